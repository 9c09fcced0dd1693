"""What the MAE parity tests compare, and how closely. Numpy only: PyTorch and JAX each import it without the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# AdamW of the comparison: MAE's, with ten times its decay, so that one parameter in the wrong decay group shows.
ADAMW = {'lr': 1e-3, 'betas': (0.9, 0.95), 'eps': 1e-8, 'weight_decay': 0.5}
STEPS = (1, 3)  # parameters are compared after these

# Relative: max |difference| / max |reference| over one parameter. The others are absolute.
TOLERANCE = {'positions': 1e-6, 'prediction': 1e-4, 'loss (relative)': 1e-5, 'gradient (relative)': 1e-3} | {
    f'parameters after {n}': 1e-5 for n in STEPS
}

# One step of Adam is about lr * sign(gradient): an element whose gradient drowns in fp32 rounding moves by +lr or -lr
# at random, in PyTorch too. Keys' biases are all of this kind: softmax ignores them, their true gradient is 0. So
# parameters are compared where every gradient so far exceeded this share of the parameter's largest.
SETTLED = 1e-4
UNSETTLED = 0.15  # at most this share of all elements may be left out: about 2 % after one step, 10 % after three


@dataclass(frozen=True)
class Case:
    """Sizes of one MAE and of its batch."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    batch: int

    @property
    def patches(self) -> int:
        """N."""
        return (self.image_size // self.patch_size) ** 2


GOLDEN = {
    'mae_224_16': Case(224, 16, 40, 2, 4, 24, 2, 3, batch=2),
    'mae_32_4': Case(32, 4, 48, 2, 4, 32, 2, 2, batch=4),
}
REAL = {
    'ViT-T/16 at 224': Case(224, 16, 192, 12, 3, 512, 8, 16, batch=2),
    'ViT-S/4 at 32': Case(32, 4, 384, 12, 6, 512, 8, 16, batch=4),
}


def make_inputs(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images u8[B,S,S,3] and mask noise f32[B,N] without ties.

    Random colours, in blocks of patch_size/8 pixels where a patch is large enough for that: such files compress.
    Image 0 has a masked patch of nearly no contrast, whose normalised target depends on the 1e-6 under the root.
    """
    rng = np.random.default_rng(seed)
    side, patch = case.image_size, case.patch_size
    grain = max(1, patch // 8)
    cells = rng.integers(0, 256, (case.batch, side // grain, side // grain, 3), dtype=np.uint8)
    images = cells.repeat(grain, axis=1).repeat(grain, axis=2)
    images[0, :patch, patch : 2 * patch] = (124, 116, 104)  # ImageNet's mean, rounded
    order = rng.permuted(np.tile(np.arange(case.patches), (case.batch, 1)), axis=1)
    last = order[0].argmax()
    order[0, [1, last]] = order[0, [last, 1]]  # the patch without contrast is masked
    noise = ((order + rng.uniform(0.1, 0.9, order.shape)) / case.patches).astype(np.float32)
    return images, noise


def settled(gradients: list[np.ndarray]) -> np.ndarray:
    """Gradients of one parameter at successive steps -> bool, where Adam's answer does not hang on rounding."""
    return np.all([np.abs(g) > SETTLED * np.abs(g).max() for g in gradients], axis=0)


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """max |ours - reference| / max |reference|."""
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def measure(ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest difference of every kind in TOLERANCE that the reference holds.

    Both: prediction f[B,N,P], loss, gradients {path: array}, after {steps: {path: array}}, positions (two tables);
    the reference's `after` is NaN where unsettled, and its `shown` says which patches its prediction has.
    """
    found = {
        'positions': max(
            float(np.abs(a - b).max()) for a, b in zip(ours['positions'], reference['positions'], strict=True)
        ),
        'prediction': float(np.abs(ours['prediction'][:, reference['shown']] - reference['prediction']).max()),
        'loss (relative)': relative(ours['loss'], reference['loss']),
        'gradient (relative)': max(relative(ours['gradients'][p], g) for p, g in reference['gradients'].items()),
    }
    for steps, parameters in reference['after'].items():
        found[f'parameters after {steps}'] = max(
            float(np.nanmax(np.abs(ours['after'][steps][path] - value)))
            for path, value in parameters.items()
            if not np.isnan(value).all()
        )
    return found


def check(
    ours: dict[str, Any], reference: dict[str, Any], tolerance: Mapping[str, float] = TOLERANCE
) -> dict[str, float]:
    """Assert that everything agrees; the differences, for reports."""
    np.testing.assert_array_equal(ours['masked'], reference['masked'])
    np.testing.assert_array_equal(ours['restore'], reference['restore'])
    assert ours['gradients'].keys() == reference['gradients'].keys()
    found = measure(ours, reference)
    print('  '.join(f'{name} {value:.1e}' for name, value in found.items()))
    too_far = {name: value for name, value in found.items() if not value <= tolerance[name]}
    assert not too_far
    for parameters in reference['after'].values():
        missing = sum(int(np.isnan(value).sum()) for value in parameters.values())
        assert missing < UNSETTLED * sum(value.size for value in parameters.values())
    return found
