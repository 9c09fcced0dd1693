"""Fixed sine-cosine positions: constants of the program, never parameters, so nothing can train or decay them."""

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
