"""MCMAE's recipe: the released CViT-B, and settings that make no sense."""

import jax
import pytest
from tiny_runs import tiny_config

from mim_jax.config import default_config
from mim_jax.errors import Refused
from mim_jax.forward import create_parameters
from mim_jax.methods.mcmae import mcmae
from mim_jax.models.neck import Last
from mim_jax.models.stages import AddStages
from mim_jax.parallel.rules import flatten_with_paths

RELEASED = 114_790_528  # trainable values of convmae_convvit_base_patch16, models_convmae.py of Alpha-VL/ConvMAE


def test_cvit_b_has_the_released_parameters():
    config = default_config()
    config.encoder.depth = 11
    recipe = mcmae(config)
    params, _, _ = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in flatten_with_paths(params)}
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == RELEASED
    assert shapes['encoder/embed1/proj/kernel'] == (4 * 4 * 3, 256)
    assert shapes['encoder/stage1/block_01/depthwise/kernel'] == (5, 5, 1, 256)
    assert shapes['encoder/stage2/block_01/fc1/kernel'] == (384, 1536)
    assert shapes['encoder/block_10/attn/qkv/kernel'] == (768, 2304)
    assert shapes['neck/stages/stage1/kernel'] == (4 * 4 * 256, 768)


def test_the_neck_adds_the_stages_to_the_last_block():
    recipe = mcmae(tiny_config())
    assert {name: type(reader) for name, reader in recipe.neck.items()} == {'last': Last, 'stages': AddStages}
    assert recipe.mixed_places() == ('pixels',)
    assert recipe.masking.visible == 4


@pytest.mark.parametrize(
    ('encoder', 'options', 'message'),
    [
        ({'patch_size': 2}, {}, r'encoder\.patch_size=2 must be divisible by 4: mcmae halves it twice'),
        ({}, {'stage_widths': (8,)}, r'mcmae\.stage_widths=\(8,\) must be two numbers of at least 1'),
        ({}, {'stage_depths': (0, 2)}, r'mcmae\.stage_depths=\(0, 2\) must be two numbers'),
        ({}, {'decoder_heads': 7}, r'mcmae\.decoder_width=512, .* decoder_heads=7: .* divisible by the heads'),
        ({}, {'mask_ratio': 1.0}, 'leaves 0 of 16 patches visible'),
    ],
)
def test_what_makes_no_sense_is_refused(encoder, options, message):
    with pytest.raises(Refused, match=message):
        mcmae(tiny_config(encoder, base='mcmae'), **options)
