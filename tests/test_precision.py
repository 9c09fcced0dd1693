"""What bf16 does to the gradient of every base, at the same weights, images and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_rules import photographs
from tiny_runs import QUICK, tiny_config

from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.methods import BASES
from mim_jax.models.vit import ViT
from mim_jax.networks import Networks

DECODER = {'decoder_width': 32, 'decoder_depth': 2, 'decoder_heads': 2}
OPTIONS = {
    'mae': DECODER,
    'pixmim': DECODER,
    'mcmae': DECODER | {'stage_widths': (16, 24), 'stage_depths': (1, 1)},
    'bootmae': {'decoder_width': 32},
    'simmim': {},
    'conmim': {'projector_width': 128, 'projector_output': 32},
    'supervised': {},
}


def gradient(base, dtype):
    """f64[P]: the whole gradient at the initial weights."""
    config = tiny_config({'width': 64, 'depth': 4, 'heads': 4}, image_size=32, dtype=dtype)
    recipe = BASES[base](config, **OPTIONS[base])
    params, batch_stats, teachers = jax.jit(lambda key: create_parameters(recipe, key), compiler_options=QUICK)(
        jax.random.key(0)
    )
    images, key = jnp.asarray(photographs(32, 4)), jax.random.key(1)

    def loss(params):
        batch = {'main': images, 'label': jnp.arange(4)}
        around = Surroundings(batch, jnp.arange(4), key, jnp.zeros((), jnp.int32), teachers, {})
        return evaluate(Forward(recipe, Networks(recipe, params, batch_stats, key, 'train'), around))[0]

    found = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(found)])


@pytest.mark.slow
@pytest.mark.parametrize(('base', 'least'), [(base, 0.97 if base == 'conmim' else 0.999) for base in BASES])
def test_bf16_keeps_the_direction_of_the_gradient(base, least):
    """ConMIM is the hardest: what tells its patches apart at the start is small, and BatchNorm enlarges it."""
    exact, rounded = gradient(base, 'float32'), gradient(base, 'bfloat16')
    cosine = exact @ rounded / np.linalg.norm(exact) / np.linalg.norm(rounded)
    print(
        f'{base}: cosine {cosine:.5f}, relative difference {np.linalg.norm(exact - rounded) / np.linalg.norm(exact):.3f}'
    )
    assert cosine > least


def test_small_layer_scale_is_not_rounded_away():
    """ConMIM's ViT-L starts at 1e-5: in a bf16 stream its blocks would add nothing at all (here 1e-3, for fp32 rounds too)."""
    images = jnp.asarray(photographs(32, 2), jnp.float32) / 255.0
    sizes = {'patch_size': 4, 'width': 64, 'depth': 4, 'heads': 4, 'layer_scale': 1e-3, 'scheme': 'beit'}
    params = jax.jit(ViT(**sizes).init)(jax.random.key(0), images)['params']

    def added(dtype):
        levels = ViT(**sizes, dtype=dtype).apply({'params': params}, images, method='levels')
        assert levels.last.patches.dtype == jnp.float32
        return np.asarray(levels.blocks[-1].patches - levels.blocks[0].patches, np.float64)

    exact, rounded = added(jnp.float32), added(jnp.bfloat16)
    assert np.linalg.norm(exact) > 0
    assert np.linalg.norm(exact - rounded) < 0.1 * np.linalg.norm(exact)
