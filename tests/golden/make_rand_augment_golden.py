"""Writes rand_augment.npz beside this file: timm's RandAugment operations on a piece of a photograph. Needs timm.

Keys <operation>/<increasing>/<magnitude>/<negated> -> u8[H,W,3]; pillow: the version of Pillow whose operations timm called.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import numpy as np
import PIL

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

from augment_cases import FILL, golden_cases, golden_image, timm_name  # noqa: E402
from conftest import repair_torchvision  # noqa: E402

from mim_jax.data.rand_augment import OPERATIONS  # noqa: E402

if __name__ == '__main__':
    repair_torchvision()
    from timm.data import auto_augment

    hparams = {'img_mean': FILL, 'interpolation': PIL.Image.Resampling.BICUBIC}
    found = {}
    for operation, increasing, magnitude, negated in golden_cases(OPERATIONS):
        theirs = auto_augment.AugmentOp(timm_name(operation, increasing), 1.0, magnitude, hparams)
        with mock.patch.object(auto_augment.random, 'random', lambda negated=negated: 0.9 if negated else 0.1):
            found[f'{operation}/{increasing}/{magnitude}/{negated}'] = np.asarray(theirs(golden_image()))
    path = HERE / 'rand_augment.npz'
    np.savez_compressed(path, pillow=PIL.__version__, **found)
    print(path, path.stat().st_size, len(found))
