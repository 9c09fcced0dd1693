"""Block masks: exact counts, the released distribution, an end for every grid, and the order that follows from them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity_rules import GOLDEN
from tiny_runs import tiny_config

from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings
from mim_jax.methods.bootmae import bootmae
from mim_jax.networks import Networks, named_key
from mim_jax.tokens import check_blocks, sample_blocks

RELEASED = (14, 14, 120, 16, 60)


@functools.cache
def draw(rows, columns, masked, smallest, largest, count=4096):
    """bool[count,rows,columns]."""
    check_blocks(rows, columns, masked, smallest, largest)
    sample = jax.vmap(lambda key: sample_blocks(key, rows, columns, masked, smallest, largest))
    return np.asarray(jax.jit(sample)(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize(
    'case', [RELEASED, (4, 4, 10, 1, 5), (8, 8, 39, 5, 20), (16, 16, 157, 21, 78), (5, 9, 45, 4, 7), (2, 2, 1, 1, 1)]
)
def test_exactly_so_many_are_masked_and_draws_differ(case):
    masks = draw(*case)
    assert masks.shape[1:] == case[:2]
    assert masks.dtype == bool
    assert (masks.sum((1, 2)) == case[2]).all()
    assert len({mask.tobytes() for mask in masks}) > (1 if case[2] < case[0] * case[1] else 0)


def test_masks_are_distributed_as_the_released_generators():
    """How often each patch lies inside, and how long the border is, which scattered patches or single blocks would change."""
    with np.load(GOLDEN / 'bootmae.npz') as stored:
        inside, (mean, deviation, count) = stored['masks/inside'], stored['masks/border']
    masks = draw(*RELEASED)
    spread = np.sqrt(inside * (1 - inside) * (1 / len(masks) + 1 / count))
    assert np.abs((masks.mean(0) - inside) / spread).max() < 4.5  # 196 patches
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    border = (padded[:, 1:] != padded[:, :-1]).sum((1, 2)) + (padded[:, :, 1:] != padded[:, :, :-1]).sum((1, 2))
    spread = deviation * np.sqrt(1 / len(masks) + 1 / count)
    assert abs(border.mean() - mean) < 4 * spread
    assert abs(border.std() - deviation) < 4 * spread
    print(f'border {border.mean():.2f} +- {border.std():.2f}, released {mean:.2f} +- {deviation:.2f}')


def test_a_single_patch_can_always_be_added():
    """The hardest moment: one patch is left, on the smallest grid that takes the smallest blocks."""
    for case in ((2, 2, 4, 1, 1), (4, 4, 16, 3, 5), (6, 6, 36, 16, 16)):
        assert (draw(*case, count=256).sum((1, 2)) == case[2]).all()


@pytest.mark.parametrize(
    ('case', 'message'),
    [
        ((4, 4, 10, 16, 60), 'blocks of 16 patches do not fit in 4 x 4: a side of 4 must be shorter'),
        ((5, 5, 20, 15, 20), 'a side of 5 must be shorter'),
        ((1, 8, 3, 1, 1), 'do not fit in 1 x 8'),
        ((4, 4, 17, 1, 5), 'cannot mask 17 of 4 x 4'),
        ((4, 4, 0, 1, 5), 'cannot mask 0'),
        ((4, 4, 8, 3, 2), 'blocks of 3 to 2'),
    ],
)
def test_what_might_never_end_is_named(case, message):
    with pytest.raises(ValueError, match=message):
        check_blocks(*case)


def drawn_plans(recipe, images, step=0):
    """(MaskPlan, blocks bool[B,N]) of `images` examples."""

    @jax.jit
    def run():
        key = named_key(jax.random.key(0), 'step', step)
        around = Surroundings({}, jnp.arange(images), key, step, {}, {})
        forward = Forward(recipe, Networks(recipe, {}, {}, key, 'train'), around)
        sample = jax.vmap(lambda key: sample_blocks(key, *RELEASED))
        return forward.plan(), sample(forward.keys('mask', 'blocks')).reshape(images, -1)

    return jax.device_get(run())


@pytest.fixture(scope='module')
def config():
    return tiny_config(image_size=56)  # 14 x 14 patches


@pytest.mark.parametrize('roll', [1, 4])
def test_blocks_are_masked_last_and_rolled(config, roll):
    """49 visible; of the 120 in blocks, 0 to roll - 1 among them, each as often; and these are the first of the order."""
    plan, blocks = drawn_plans(bootmae(config, mask_roll=roll, decoder_width=16), 2048)
    assert plan.keep.shape == (2048, 49)
    shown = np.take_along_axis(blocks, plan.keep, axis=1)
    counts = np.bincount(shown.sum(1), minlength=roll) / len(blocks)
    assert len(counts) == roll
    np.testing.assert_allclose(counts, 1 / roll, atol=0.05 * (roll > 1))
    for image in range(20):
        rolled = shown[image].sum()
        assert shown[image, :rolled].all()
        order = np.roll(np.concatenate([plan.keep[image], plan.drop[image]]), -rolled)
        np.testing.assert_array_equal(blocks[image, order], np.arange(196) >= 76)


def test_order_inside_the_groups_is_random(config):
    plan, blocks = drawn_plans(bootmae(config, mask_roll=1, decoder_width=16), 2048)
    outside = ~blocks
    first = np.array([(outside[i].cumsum()[plan.keep[i, 0]] - 1) / 75 for i in range(2048)])  # its place among the 76
    np.testing.assert_allclose([first.mean(), first.std()], [0.5, 12**-0.5], atol=0.03)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            {'block_patches': 200},
            r'bootmae\.\{block_patches, .*=\(200, 16, 60\), scaled to \(200, 16, 60\) for 14 x 14 patches: cannot',
        ),
        ({'smallest_block': 61}, 'smallest_block at most largest_block'),
        ({'mask_roll': 0}, r'mask_roll=0 must be at least 1'),
        ({'decoder_width': 18}, r'decoder_width=18 must be divisible by 4'),
        ({'decoder_depth': 0}, r'decoder_depth=0 must be at least 1'),
        ({'feature_weight': 0.0}, r'feature_weight=0.0 must be above 0'),
        ({'ema_momentum': 1.0}, r'ema_momentum=1.0 must be above 0 and at most 0.9999'),
        ({'mask_ratio': 1.0}, 'mask_ratio of 1.0 leaves 0 of 196 patches visible'),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, settings, message):
    with pytest.raises(Refused, match=message):
        bootmae(config, **{'decoder_width': 16, **settings})
