"""ConMIM's released names: the student's state dict of modeling_pretrain.py, and the teacher's, which has the same form.

BatchNorm's running statistics have role paths like parameters, 'objectives/contrast/projector/bn1/mean': their last names,
'mean' and 'var', tell them apart. Source: TencentARC/ConMIM modeling_pretrain.py, utils.py (save_model, save_model_copy).
"""

from mim_jax.interop.timm import beit_encoder
from mim_jax.tokens import relative_index
from mim_jax.weights.layout import Entry, Layout, linear, norm

_PROJECTOR = 'objectives/contrast/projector'


def _statistics(ours: str, theirs: str) -> tuple[Entry, ...]:
    return Entry(f'{ours}/mean', f'{theirs}.running_mean'), Entry(f'{ours}/var', f'{theirs}.running_var')


CONMIM = Layout(
    name='ConMIM',
    entries=(
        *beit_encoder(),
        *linear(f'{_PROJECTOR}/fc1', 'projectors.0', bias=False),
        *norm(f'{_PROJECTOR}/bn1', 'projectors.1'),
        *_statistics(f'{_PROJECTOR}/bn1', 'projectors.1'),
        *linear(f'{_PROJECTOR}/fc2', 'projectors.3', bias=False),
        *norm(f'{_PROJECTOR}/bn2', 'projectors.4'),
        *_statistics(f'{_PROJECTOR}/bn2', 'projectors.4'),
        *linear(f'{_PROJECTOR}/fc3', 'projectors.6', bias=False),
        *_statistics(f'{_PROJECTOR}/bn3', 'projectors.7'),
    ),
    constants={'rel_pos_bias.relative_position_index': lambda recipe: relative_index(*recipe.grid)},
    ignored={
        r'lm_head\.(weight|bias)': 'a classifier over visual words that BEiT has and ConMIM never calls',
        r'projectors\.[147]\.num_batches_tracked': 'a counter that a running average of fixed momentum never reads',
    },
)
