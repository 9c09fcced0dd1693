"""Free tokens and settings that MTO's tests share."""

import numpy as np

SPARSITY = [{}, {'reduce': 'sum'}, {'exclude_self': True}, {'reduce': 'sum', 'exclude_self': True}]


def draw(images, patches, visible, width, deviation=1.0, seed=0):
    """Tokens f32[B,N,D], keep i32[B,V] in no order, masked bool[B,N]."""
    rng = np.random.default_rng([seed, patches, visible, width])
    tokens = (deviation * rng.normal(size=(images, patches, width))).astype(np.float32)
    keep = np.stack([rng.permutation(patches)[:visible] for _ in range(images)]).astype(np.int32)
    return tokens, keep, (keep[:, :, None] != np.arange(patches)).all(1)
