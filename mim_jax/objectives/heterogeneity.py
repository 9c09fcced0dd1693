"""MTO's measures and losses of mask tokens, in fp32 and log-space (Choi et al., "Emerging Property of Masked Token for
Effective Pre-training", ECCV 2024; equation numbers are its own).

High entropy of a mask token's affinities means that it resembles no visible token more than another: heterogeneity.
Every function is per image; means over the batch are the caller's.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from mim_jax.tokens import gather_tokens

Scale = Literal['sqrt_dim', 'none', 'cosine']
SCALES = ('sqrt_dim', 'none', 'cosine')
TINY = 1e-12  # a squared norm below it counts as this


def affinity_logits(rows: jax.Array, columns: jax.Array, scale: Scale = 'sqrt_dim', tau: float = 0.1) -> jax.Array:
    """f[B,R,D], f[B,S,D] -> f32[B,R,S], whose softmax over columns is the affinity matrix of equations 2 and 3.

    'none': x y^T, the equations to the letter; 'sqrt_dim': x y^T / sqrt D; 'cosine': the cosine of the angle / tau. Each row
    less a number of its own.
    """
    rows, columns = rows.astype(jnp.float32), columns.astype(jnp.float32)
    if scale == 'cosine':
        rows, columns = (
            x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), TINY)) for x in (rows, columns)
        )
    # One vector less in every column shifts whole rows, which softmax does not see; what tokens have in common, often most
    # of a residual stream, would take up the digits. Equal columns become exactly 0.
    columns = columns - jax.lax.stop_gradient(columns[:, :1])
    # Rows are divided, not logits: in fusions XLA rounds a division of logits here and not there, and large ones differ.
    rows = rows / {'sqrt_dim': rows.shape[-1] ** 0.5, 'none': 1.0, 'cosine': tau}[scale]
    # Logits reach hundreds: the few bits of one bf16 pass, the default of TPUs, would move the entropy.
    return jnp.einsum('brd,bsd->brs', rows, columns, precision=jax.lax.Precision.HIGHEST)


def row_entropy(logits: jax.Array, counted: jax.Array | bool = True) -> jax.Array:
    """Entropy of softmax(logits) over the last axis, f32[...,S] -> f32[...], in [0, ln S]; ln S for equal logits.

    counted: bool, broadcast to logits: the columns that are there. With z the logits less their maximum and Z the sum of
    exp z: ln Z - sum(exp(z) z) / Z, where no term can overflow and 0 ln 0 does not occur.
    """
    highest = logits.max(-1, keepdims=True, where=counted, initial=-jnp.inf)
    z = jnp.where(counted, logits - jax.lax.stop_gradient(highest), 0.0)
    exponential = jnp.where(counted, jnp.exp(z), 0.0)
    total = exponential.sum(-1)
    return jnp.log(total) - (exponential * z).sum(-1) / total


def heterogeneity(
    tokens: jax.Array, keep: jax.Array, masked: jax.Array, scale: Scale = 'sqrt_dim', tau: float = 0.1
) -> jax.Array:
    """H (equation 2), f32[B] in [0, ln V]: the mean over masked tokens of the entropy of their affinities to visible ones.

    tokens f[B,N,D]: all patches of one layer; keep i32[B,V], masked bool[B,N]: a MaskPlan's.
    """
    entropy = row_entropy(affinity_logits(tokens, gather_tokens(tokens, keep), scale, tau))
    return jnp.where(masked, entropy, 0.0).sum(-1) / masked.sum(-1)


def sparsity(
    tokens: jax.Array,
    keep: jax.Array,
    scale: Scale = 'sqrt_dim',
    tau: float = 0.1,
    reduce: Literal['mean', 'sum'] = 'mean',
    exclude_self: bool = False,
) -> jax.Array:
    """L_spa (equation 3), f32[B]: entropy of visible tokens' affinities to all tokens, over visible rows.

    'sum' is the equation's; exclude_self leaves a token's affinity to itself out.
    """
    logits = affinity_logits(gather_tokens(tokens, keep), tokens, scale, tau)
    counted = keep[:, :, None] != jnp.arange(tokens.shape[1]) if exclude_self else True
    entropy = row_entropy(logits, counted)
    return entropy.mean(-1) if reduce == 'mean' else entropy.sum(-1)


def distinctiveness(first: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """L_e = 1 / (H0 + epsilon) (equation 4) of layer 0's heterogeneity, elementwise; it raises H0."""
    return 1.0 / (first + epsilon)


def ranking(levels: jax.Array, direction: Literal['descending', 'eq5'] = 'descending') -> jax.Array:
    """L_r (equation 5), f32[...,L+1] of H from layer 0 on -> f32[...]: the sum over layers of softplus of H's change.

    'descending': softplus(H_l - H_{l-1}), which lets H fall with depth, as the text says; 'eq5': softplus(H_{l-1} - H_l), as
    printed, which lets it rise.
    """
    rise = levels[..., 1:] - levels[..., :-1]
    return jax.nn.softplus(rise if direction == 'descending' else -rise).sum(-1)
