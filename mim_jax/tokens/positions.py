"""Positions: sine-cosine tables, which are constants of the program unless a model trains them, and relative offsets."""

import functools

import numpy as np


@functools.cache
def sincos_positions(rows: int, columns: int, width: int, row_first: bool = False) -> np.ndarray:
    """f32[rows*columns, width]: [sin x | cos x | sin y | cos y], x the column, y the row (MAE's layout).

    Each quarter uses frequencies 10000^(-k / (width/4)). row_first=True puts the row's half first, the layout of
    MoCo v3, mmpretrain and BootMAE; it matters only when weights are exchanged. A prefix token's position is zero.
    Source: facebookresearch/mae util/pos_embed.py. Raises ValueError when width is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f'sine-cosine positions need a width divisible by 4, not {width}')
    frequencies = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    y, x = np.meshgrid(np.arange(rows, dtype=np.float64), np.arange(columns, dtype=np.float64), indexing='ij')
    first, second = (y, x) if row_first else (x, y)
    angles = [axis.reshape(-1, 1) * frequencies for axis in (first, second)]
    table = np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1)
    table = table.astype(np.float32)
    table.setflags(write=False)
    return table


@functools.cache
def relative_index(rows: int, columns: int) -> np.ndarray:
    """i32[1+N,1+N]: for each query and key, CLS first, the row of a table of (2 rows - 1)(2 columns - 1) + 3 biases.

    Patch to patch: (2 columns - 1) * (row_q - row_k + rows - 1) + column_q - column_k + columns - 1. The last three rows
    are CLS to patch, patch to CLS, CLS to CLS. Source: microsoft/SimMIM models/vision_transformer.py.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    offsets = (2 * columns - 1) * (row[:, None] - row + rows - 1) + column[:, None] - column + columns - 1
    special = (2 * rows - 1) * (2 * columns - 1)
    index = np.empty((rows * columns + 1,) * 2, np.int32)
    index[1:, 1:] = offsets
    index[0, :], index[:, 0], index[0, 0] = special, special + 1, special + 2
    index.setflags(write=False)
    return index
