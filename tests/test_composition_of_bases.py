"""The worked papers of test_composition.py on every base, abstractly: nothing is compiled."""

import jax
import jax.numpy as jnp
import pytest
from test_composition import fused, tiny
from test_precision import OPTIONS
from tiny_runs import tiny_config

from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.methods import BASES
from mim_jax.networks import Networks

PLACES = {'simmim': ('encoder',), 'conmim': ('encoder',), 'bootmae': ('pixels', 'features')}


@pytest.mark.parametrize('base', [base for base in BASES if base != 'supervised'])  # which has no mask to be outside of
def test_papers_that_swap_the_neck_and_add_a_view_a_head_and_a_teacher(base):
    """Roles and logs are the same in both orders; the second view is disjoint from the first on any base."""
    config = tiny_config({'patch_size': 4, 'width': 16}, image_size=32)
    recipe = BASES[base](config, **OPTIONS[base])
    assert recipe.mixed_places() == PLACES.get(base, ('pixels',))
    both = tiny(fused(recipe)), fused(tiny(recipe))

    def run(stacked):
        params, batch_stats, teachers = create_parameters(stacked, jax.random.key(0))
        batch = {crop: jnp.zeros((2, 32, 32, 3), jnp.uint8) for crop in stacked.crops}
        around = Surroundings(batch, jnp.arange(2), jax.random.key(1), jnp.zeros((), jnp.int32), teachers, {})
        networks = Networks(stacked, params, batch_stats, jax.random.key(2), 'train')
        forward = Forward(stacked, networks, around)
        logs = evaluate(forward)[1]
        return params, teachers, logs, forward.plan('main').masked | forward.plan('tiny').masked

    (params, teachers, logs, covered), swapped = (jax.eval_shape(lambda r=r: run(r)) for r in both)
    assert jax.tree.structure((params, teachers, logs)) == jax.tree.structure(swapped[:3])
    assert 'tiny' in teachers
    assert 'objectives/tiny/projector' in params
    assert {'loss/tiny', 'watch/neck/last/block_0'} <= logs.keys()
    assert covered.shape == (2, recipe.patches)
