"""LUT's released names: MAE's state dict with two heads; a checkpoint's 'model' is the student, its 'model_ema' the teacher.

BatchNorm's running statistics have role paths like parameters, as in interop/conmim.py. Source: naver-ai/lut
models/models_lut.py, util/misc.py (save_dict).
"""

from mim_jax.interop.mae import MAE
from mim_jax.weights.layout import Entry, Layout, linear, norm, running


def _head(ours: str, theirs: str) -> tuple[Entry, ...]:
    """Linear, BatchNorm, ReLU, linear."""
    ours = f'objectives/lut/{ours}'
    return (
        *linear(f'{ours}/fc1', f'{theirs}.0', bias=False),
        *norm(f'{ours}/bn1', f'{theirs}.1'),
        *running(f'{ours}/bn1', f'{theirs}.1'),
        *linear(f'{ours}/fc2', f'{theirs}.3', bias=False),
    )


LUT = Layout(
    name='naver-ai/lut',
    entries=(*MAE.entries, *_head('projector', 'head'), *_head('predictor', 'predictor')),
    constants=MAE.constants,
    ignored={
        r'(head|predictor)\.1\.num_batches_tracked': 'a counter that a running average of fixed momentum never reads'
    },
)
