"""Writes resize.npz beside this file: tables resized by released code. Needs torch, and SciPy below 1.14, which has interp2d.

Argument: a checkout of microsoft/SimMIM (utils.py: remap_pretrained_keys_vit). The tables come from parity_rules.uniform by
the names of the results: 'bias/8_12' (relative biases, from 8 x 8 to 12 x 12 patches, 2 heads), 'positions/8_12' (torch's
bicubic interpolate, width 4).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), sys.argv[1]]

import utils  # noqa: E402  the checkout's
from parity_rules import uniform  # noqa: E402

GRIDS = ((8, 12), (14, 7), (5, 14), (14, 24))


def resize_bias(table: torch.Tensor, target: int) -> np.ndarray:
    """What the released code makes of a table for a model of target x target patches."""
    names = {'blocks.0.attn.relative_position_bias_table': torch.zeros((2 * target - 1) ** 2 + 3, table.shape[1])}
    model = SimpleNamespace(
        use_rel_pos_bias=True,
        get_num_layers=lambda: 1,
        state_dict=lambda: names,
        patch_embed=SimpleNamespace(patch_shape=(target, target)),
    )
    state = {'rel_pos_bias.relative_position_bias_table': table}
    return utils.remap_pretrained_keys_vit(model, state, logging.getLogger())[next(iter(names))].numpy()


def resize_positions(table: torch.Tensor, target: int) -> np.ndarray:
    """f[side,side,D] -> f[target*target,D]."""
    grid = table.permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(grid, size=(target, target), mode='bicubic', align_corners=False)
    return resized[0].permute(1, 2, 0).reshape(target * target, -1).numpy()


if __name__ == '__main__':
    stored = {}
    for source, target in GRIDS:
        name = f'bias/{source}_{target}'
        table = torch.from_numpy(uniform(name, ((2 * source - 1) ** 2 + 3, 2))).float()
        stored[name] = resize_bias(table, target)
        name = f'positions/{source}_{target}'
        stored[name] = resize_positions(torch.from_numpy(uniform(name, (source, source, 4))).float(), target)
    np.savez_compressed(HERE / 'resize.npz', **stored)
    print({name: array.shape for name, array in stored.items()}, (HERE / 'resize.npz').stat().st_size)
