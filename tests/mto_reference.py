"""MTO's equations in NumPy float64, token by token, from the paper (Choi et al., ECCV 2024) and not from our code.

One image at a time: tokens f64[N,D], visible: the patches that are shown. Every logit is exact before it is divided by the
scale: products of two fp32 numbers fit in float64, and math.fsum rounds the sum of such products once, so that the difference
of two logits of 1e12 is right to its last bit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np


def normalise_layer(tokens: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    """LayerNorm without parameters, f64[N,D]."""
    return np.stack([(x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + epsilon) for x in tokens])


def unit(x: np.ndarray) -> np.ndarray:
    """x over its length; a token of zeros has no direction and stays."""
    length = math.sqrt(math.fsum(x * x))
    return x / length if length else x


def row_probabilities(
    row: np.ndarray, columns: Sequence[np.ndarray], scale: str, tau: float
) -> list[tuple[float, float]]:
    """(p, log p) of one row's softmax over columns."""
    if scale == 'cosine':
        row, columns, divisor = unit(row), [unit(x) for x in columns], tau
    else:
        divisor = {'none': 1.0, 'sqrt_dim': math.sqrt(len(row))}[scale]
    products = [row * x for x in columns]
    largest = products[int(np.argmax([math.fsum(one) for one in products]))]
    z = [math.fsum([*one, *-largest]) / divisor for one in products]
    log_total = math.log(math.fsum(math.exp(one) for one in z))
    return [(math.exp(one - log_total), one - log_total) for one in z]


def row_entropy(row: np.ndarray, columns: Sequence[np.ndarray], scale: str, tau: float) -> float:
    """-sum_j p_j log p_j."""
    return -math.fsum(p * log_p for p, log_p in row_probabilities(row, columns, scale, tau))


def heterogeneity(tokens: np.ndarray, visible: Iterable[int], scale: str = 'sqrt_dim', tau: float = 0.1) -> float:
    """H, equation 2: -1/|M| sum over masked i, sum over visible j of A_ij log A_ij."""
    shown = sorted(int(j) for j in visible)
    masked = [i for i in range(len(tokens)) if i not in shown]
    total = 0.0
    for i in masked:
        total += row_entropy(tokens[i], [tokens[j] for j in shown], scale, tau)
    return total / len(masked)


def sparsity(
    tokens: np.ndarray,
    visible: Iterable[int],
    scale: str = 'sqrt_dim',
    tau: float = 0.1,
    reduce: str = 'mean',
    exclude_self: bool = False,
) -> float:
    """L_spa, equation 3: -sum over visible i, sum over all j of p_ij log p_ij; or the mean over i."""
    shown = sorted(int(i) for i in visible)
    total = 0.0
    for i in shown:
        columns = [tokens[j] for j in range(len(tokens)) if not (exclude_self and j == i)]
        total += row_entropy(tokens[i], columns, scale, tau)
    return {'sum': total, 'mean': total / len(shown)}[reduce]


def distinctiveness(first: float, epsilon: float = 1e-6) -> float:
    """L_e, equation 4."""
    return 1.0 / (first + epsilon)


def ranking(levels: Sequence[float], direction: str = 'descending') -> float:
    """L_r, equation 5 as printed ('eq5'), or with its difference turned round ('descending')."""
    total = 0.0
    for before, after in itertools.pairwise(levels):
        difference = before - after if direction == 'eq5' else after - before
        total += max(difference, 0.0) + math.log1p(math.exp(-abs(difference)))  # log(1 + exp(difference))
    return total
