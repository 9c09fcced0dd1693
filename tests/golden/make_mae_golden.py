"""Writes mae_*.npz beside this file from transformers' ViTMAE. Needs torch.

Keys, with torch's parameter names: images, noise, weights/<name> (float16, exact), shown and prediction (some patches),
masked, restore, positions/<name>; per setting 'norm' (norm_pix_loss on) and 'plain': <setting>/loss,
<setting>/gradients/<name>; and norm/moved_<steps>/<name>: how far AdamW moved a parameter (float16: 1e-6 of rounding
against a tolerance of 1e-5), NaN where unsettled.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / 'parity')]

from mae_cases import GOLDEN, STEPS, Case, make_inputs  # noqa: E402
from vitmae_reference import build_reference, run_reference, weights_of  # noqa: E402

from mim_jax.interop.mae import VITMAE  # noqa: E402

SHOWN = 12_000  # at most as many predicted values are kept per image


def make_golden(case: Case, seed: int) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    images, noise = make_inputs(case, seed)
    stored = {'images': images, 'noise': noise}
    for setting in ('norm', 'plain'):
        model = build_reference(case, setting == 'norm', seed)
        weights = weights_of(model)
        found = run_reference(model, images, noise)
        every = -(-case.patches * case.patch_size**2 * 3 // SHOWN)
        shown = found['shown'][::every]
        stored |= {'shown': shown, 'prediction': found['prediction'][:, shown]}  # the same in both settings
        stored |= {'masked': found['masked'], 'restore': found['restore'].astype(np.uint8)}
        stored |= {f'positions/{name}': table for name, table in zip(VITMAE.constants, found['positions'], strict=True)}
        stored |= {f'weights/{name}': value.astype(np.float16) for name, value in weights.items()}
        stored[f'{setting}/loss'] = found['loss']
        stored |= {f'{setting}/gradients/{name}': value for name, value in found['gradients'].items()}
        if setting == 'norm':
            for steps in STEPS:
                for name, value in found['after'][steps].items():
                    stored[f'norm/moved_{steps}/{name}'] = (value - weights[name]).astype(np.float16)
    assert stored['masked'][0, 1]  # the patch without contrast
    assert case.patches <= 256  # restore is stored in bytes
    return stored


if __name__ == '__main__':
    for name, case in GOLDEN.items():
        path = HERE / f'{name}.npz'
        np.savez_compressed(path, **make_golden(case, seed=0))
        print(path, f'{path.stat().st_size / 1e6:.2f} MB')
