"""Random erasing, mixup and CutMix: timm's rules transcribed and fed the same draws, hand-worked cases, distributions."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from tiny_runs import QUICK

from mim_jax import mixing
from mim_jax.mixing import Box, Mix, draw_erased_box, draw_mix, erase, mix_images, mix_labels, place_cut, weigh_uncut
from mim_jax.objectives.classify import cross_entropy, soft_cross_entropy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT = 20_000


def with_noise(draw, noise, *arguments, beta=None):
    """Runs one of the draws on given uniform numbers f32[N,n] (and Beta numbers f32[N]) instead of random ones, N times."""

    def run(noise, beta):
        uniform = mock.patch.object(mixing.jax.random, 'uniform', lambda key, shape: noise.reshape(shape))
        weight = mock.patch.object(mixing.jax.random, 'beta', return_value=beta)
        with uniform, weight:  # in force while jax traces
            return draw(jax.random.key(0), *arguments)

    beta = np.zeros(len(noise), np.float32) if beta is None else np.asarray(beta, np.float32)
    run = jax.jit(jax.vmap(run), compiler_options=QUICK)
    return jax.tree.map(np.asarray, run(jnp.asarray(noise, jnp.float32), beta))


def erased_by_rule(noise, height, width, probability):
    """(top, bottom, left, right) of timm's random erasing for one row of noise, in double precision."""
    areas, aspects, (happens, row, column) = noise[:10], noise[10:20], noise[20:]
    if happens < probability:
        for area, aspect in zip(areas, aspects, strict=True):
            target = (0.02 + (1 / 3 - 0.02) * area) * height * width
            ratio = np.exp(np.log(0.3) + (np.log(1 / 0.3) - np.log(0.3)) * aspect)
            h, w = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
            if h < height and w < width:
                top, left = int(row * (height - h + 1)), int(column * (width - w + 1))
                return top, top + h, left, left + w
    return None


@pytest.mark.parametrize(('height', 'width'), [(224, 224), (32, 32), (20, 64)])
def test_erased_box_follows_the_rule_draw_by_draw(height, width):
    noise = np.random.default_rng(height).random((2000, 23)).astype(np.float32)
    found = np.stack(with_noise(draw_erased_box, noise, height, width, 0.7), axis=1)
    rule = [erased_by_rule(row, height, width, 0.7) for row in noise.astype(np.float64)]
    erased = np.array([box is not None for box in rule])
    assert 0.65 < erased.mean() < 0.75
    assert ((found[:, 1] - found[:, 0]) * (found[:, 3] - found[:, 2]) > 0).tolist() == erased.tolist()
    differ = np.any(found[erased] != np.array([box for box in rule if box]), axis=1)
    assert differ.mean() < 2e-3  # f32 rounds a side or a place the other way, very seldom


def test_a_box_as_large_as_the_image_is_drawn_again_and_given_up_in_the_end():
    flat = np.full(23, 0.5)
    flat[:10], flat[10:20], flat[20] = 1.0, 0.0, 0.0  # a third of 64 x 20 with aspect .3 is 11 x 38: too wide
    none = with_noise(draw_erased_box, flat[None], 64, 20, 1.0)
    assert none.top == none.bottom
    flat[3], flat[13] = 0.0, 0.5  # the fourth try: 5 x 5
    box = with_noise(draw_erased_box, flat[None], 64, 20, 1.0)
    assert [int(edge[0]) for edge in box] == [30, 35, 8, 13]  # (64 - 5 + 1) / 2 and (20 - 5 + 1) / 2


def test_erased_boxes_follow_their_distributions():
    draw = jax.vmap(partial(draw_erased_box, height=512, width=512, probability=0.25))
    box = jax.jit(draw, compiler_options=QUICK)(keys(COUNT))
    top, bottom, left, right = np.stack(box).astype(np.float64)
    h, w = bottom - top, right - left
    erased = h > 0
    assert abs(erased.mean() - 0.25) < 4 * (0.25 * 0.75 / COUNT) ** 0.5
    area, aspect = (h * w / 512**2)[erased], np.log(h[erased] / w[erased])
    # Up to an area of .3, no box of these aspects is as wide or as high as the image: nothing is drawn again.
    below = area <= 0.29
    assert stats.kstest(area[below], stats.uniform(0.02, 0.27).cdf).pvalue > 1e-3
    assert stats.kstest(aspect[below], stats.uniform(np.log(0.3), -2 * np.log(0.3)).cdf).pvalue > 1e-3
    assert area.max() < 0.335
    for edge, side in ((top, h), (left, w)):
        part = (edge[erased] + 0.5) / (513 - side[erased])
        assert stats.kstest(part, stats.uniform().cdf).pvalue > 1e-3


def test_only_the_box_becomes_noise_of_the_normalised_scale():
    pixels = np.full((400, 32, 32, 3), 7.0, np.float32)
    found = np.asarray(run_erase(pixels, keys(400)))
    changed = found != 7.0
    assert (changed.all(axis=-1) == changed.any(axis=-1)).all()
    inside = changed[..., 0]
    assert 0.17 < inside.any(axis=(1, 2)).mean() < 0.33
    for box in inside[inside.any(axis=(1, 2))]:  # a full rectangle
        assert box.sum() == box.any(axis=1).sum() * box.any(axis=0).sum()
    noise = (found[inside] - MEAN) / np.array(STD)
    assert stats.kstest(noise.ravel(), stats.norm.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.05


@partial(jax.jit, compiler_options=QUICK)
def run_erase(pixels, keys):
    return erase(pixels, keys, 0.25, MEAN, STD)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_an_image_and_its_key_decide_alone():
    pixels = np.random.default_rng(0).random((400, 32, 32, 3)).astype(np.float32)
    order, found = np.random.default_rng(1).permutation(400), run_erase(pixels, keys(400))
    np.testing.assert_array_equal(run_erase(pixels[order], keys(400)[order]), found[order])
    assert np.abs(run_erase(pixels, jnp.roll(keys(400), 1)) - found).max() > 0.1


def test_a_sharded_batch_is_erased_without_communication_and_mixed_alike():
    rows = NamedSharding(jax.make_mesh((8,), ('data',)), PartitionSpec('data'))
    pixels = np.random.default_rng(0).random((16, 8, 8, 3)).astype(np.float32)
    placed = jax.device_put(pixels, rows), jax.device_put(keys(16), rows)
    run = jax.jit(partial(erase, probability=0.5, mean=MEAN, std=STD), out_shardings=rows, compiler_options=QUICK)
    text = run.lower(*placed).compile().as_text()
    assert not [word for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute') if word in text]
    for cut in (False, True):
        mix = Mix(jnp.float32(0.3), jnp.array(cut), Box(*map(jnp.int32, (1, 3, 0, 2))))
        np.testing.assert_allclose(jax.jit(mix_images)(placed[0], mix), mix_images(pixels, mix), atol=2e-7)


@pytest.mark.parametrize(
    ('weight', 'row', 'column', 'expected'),
    [
        (0.75, 16, 16, (8, 24, 8, 24)),  # side 32 * .5
        (0.75, 0, 31, (0, 8, 23, 32)),  # clipped at two edges: 8 x 9
        (0.0, 16, 16, (0, 32, 0, 32)),
        (1.0, 5, 5, (5, 5, 5, 5)),
        (0.9, 10, 20, (5, 15, 15, 25)),  # int(10.12) = 10
        (0.919, 10, 20, (6, 15, 16, 25)),  # 9: four before, five after
    ],
)
def test_hand_worked_cuts(weight, row, column, expected):
    box = place_cut(jnp.float32(weight), jnp.int32(row), jnp.int32(column), 32)
    assert tuple(map(int, box)) == expected
    top, bottom, left, right = expected
    assert float(weigh_uncut(box, 32)) == pytest.approx(1 - (bottom - top) * (right - left) / 1024)


def test_mix_takes_one_draw_for_everything():
    beta = np.float32([0.3, 0.75])
    mix = with_noise(draw_mix, [[0.5, 0.99, 0.0], [0.49, 0.0, 0.999]], 32, 0.8, 1.0, 0.5, beta=beta)
    assert mix.cut.tolist() == [False, True]
    assert mix.weight.tolist() == [np.float32(0.3), 1 - 8 * 9 / 1024]
    assert [int(edge[1]) for edge in mix.box] == [0, 8, 23, 32]
    for alphas, cut in (((0.8, 0.0), False), ((0.0, 1.0), True)):
        alone = with_noise(draw_mix, [[0.0, 0.5, 0.5], [0.999, 0.5, 0.5]], 32, *alphas, 0.5, beta=[0.75, 0.75])
        assert alone.cut.tolist() == [cut, cut]
        assert alone.weight.tolist() == [0.75, 0.75]


def test_mixing_by_hand():
    images = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((3, 4, 4, 3), np.float32)
    box = Box(*map(jnp.int32, (1, 3, 0, 2)))
    mixup, cutmix = (Mix(jnp.float32(w), jnp.array(cut), box) for w, cut in ((0.25, False), (0.75, True)))
    assert np.asarray(mix_images(images, mixup))[:, 2, 3, 0].tolist() == [1.5, 1.0, 0.5]
    cut = np.asarray(mix_images(images, cutmix))
    assert cut[0, :, :, 1].tolist() == [[0, 0, 0, 0], [2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]]
    assert (cut[1] == 1).all()
    labels = mix_labels(jnp.array([0, 1, 3]), mixup, 4, 0.2)
    assert labels.dtype == jnp.float32
    # .05 on every class, .8 on the label: a quarter its own, three quarters the partner's.
    expected = [[0.25, 0.05, 0.05, 0.65], [0.05, 0.85, 0.05, 0.05], [0.65, 0.05, 0.05, 0.25]]
    np.testing.assert_allclose(labels, expected, atol=1e-7)
    np.testing.assert_array_equal(mix_images(images, mixup._replace(weight=jnp.float32(1.0))), images)


def test_mixes_follow_their_distributions():
    draw = jax.jit(jax.vmap(lambda key: draw_mix(key, 2048, 0.8, 1.0, 0.3)), compiler_options=QUICK)
    drawn = draw(keys(COUNT))
    weight, cut = np.asarray(drawn.weight, np.float64), np.asarray(drawn.cut)
    assert abs(cut.mean() - 0.3) <= 4 * (0.3 * 0.7 / COUNT) ** 0.5
    assert stats.kstest(weight[~cut], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    top, bottom, left, right = np.stack(drawn.box)[:, cut].astype(np.int64)
    np.testing.assert_allclose(weight[cut], 1 - (bottom - top) * (right - left) / 2048**2, atol=1e-6)
    # Beta(1, 1) is uniform, so a side^2 is, and the middle lies anywhere; the edges cut off what is outside.
    rng = np.random.default_rng(0)
    side, row, column = np.sqrt(rng.random(COUNT)), rng.random(COUNT), rng.random(COUNT)
    for low, high, middle in ((top, bottom, row), (left, right, column)):
        for edge, expected in ((low, np.maximum(middle - side / 2, 0)), (high, np.minimum(middle + side / 2, 1))):
            assert stats.ks_2samp(edge / 2048, expected).pvalue > 1e-3
    area = np.prod([np.minimum(x + side / 2, 1) - np.maximum(x - side / 2, 0) for x in (row, column)], axis=0)
    assert stats.ks_2samp(weight[cut], 1 - area).pvalue > 1e-3


def test_soft_cross_entropy_is_that_of_labels_when_nothing_is_mixed():
    logits = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    labels = jnp.arange(6)
    unmixed = Mix(jnp.float32(1.0), jnp.array(False), Box(*[jnp.int32(0)] * 4))
    found = soft_cross_entropy(logits, mix_labels(labels, unmixed, 10, 0.1))
    assert float(found) == pytest.approx(float(cross_entropy(logits, labels, 0.1)), rel=1e-6)
    mixed = mix_labels(labels, unmixed._replace(weight=jnp.float32(0.3)), 10, 0.0)
    expected = 0.3 * cross_entropy(logits, labels, 0.0) + 0.7 * cross_entropy(logits, labels[::-1], 0.0)
    assert float(soft_cross_entropy(logits, mixed)) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(AssertionError):
        soft_cross_entropy(logits, labels)
