"""The layout of MFF in mmpretrain (open-mmlab/mmpretrain models/selfsup/mff.py): MAE's there, which is mmselfsup's, and fusion.

Projections read and write the residual stream, whose channels have their halves exchanged; see interop/pixmim.py. Which
blocks are fused is not in a file, only how many: the config must say it (the released ones: 0, 2, 4, 6, 8, 11).
"""

from mim_jax.interop.pixmim import BETWEEN, PIXMIM, writer
from mim_jax.weights.layout import Entry, Form, Layout

LOGITS = Form(lambda a: a.reshape(-1), lambda a: a.reshape(-1, 1, 1, 1))

MFF = Layout(
    'mmpretrain',
    entries=(
        *PIXMIM.entries,
        *writer('neck/last/projection_{i}', 'backbone.proj_layers.{i}', BETWEEN),
        Entry('neck/last/logits', 'backbone.proj_weights', LOGITS),
    ),
    constants=PIXMIM.constants,
)
