"""MTO's four functions against the float64 transcription: values, extreme tokens, invariances."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import mto_reference as reference
import numpy as np
import pytest
from mto_cases import SPARSITY, draw
from tiny_runs import QUICK

from mim_jax.objectives.heterogeneity import SCALES, distinctiveness, heterogeneity, ranking, row_entropy, sparsity


@functools.partial(jax.jit, static_argnames=('scale', 'reduce', 'exclude_self'), compiler_options=QUICK)
def both(tokens, keep, masked, scale, reduce='mean', exclude_self=False):
    """H and L_spa, f32[B] each."""
    return heterogeneity(tokens, keep, masked, scale), sparsity(tokens, keep, scale, 0.1, reduce, exclude_self)


def expected(tokens, keep, scale, **options):
    """The same by the reference, f64[B] each."""
    wide = np.asarray(tokens, np.float64)
    h = [reference.heterogeneity(x, shown, scale) for x, shown in zip(wide, keep, strict=True)]
    return h, [reference.sparsity(x, shown, scale, **options) for x, shown in zip(wide, keep, strict=True)]


# -- values ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('scale', SCALES)
def test_values_on_random_tokens(scale):
    """Sizes and deviations; a logit of 100 has 1e-5 of rounding in fp32."""
    worst = 0.0
    for patches, visible, width, deviations in ((16, 4, 8, (0.1, 1.0, 3.0)), (30, 7, 48, (1.0,))):
        tokens, keep, masked = draw(2, patches, visible, width)
        for deviation, options in itertools.product(deviations, SPARSITY):
            scaled = np.float32(deviation) * tokens
            ours, theirs = both(scaled, keep, masked, scale, **options), expected(scaled, keep, scale, **options)
            rows = visible if options.get('reduce') == 'sum' else 1
            differences = [np.abs(np.array(a, np.float64) - b).max() for a, b in zip(ours, theirs, strict=True)]
            worst = max(worst, differences[0], differences[1] / rows)
    print(f'{scale}: largest difference {worst:.1e}')
    assert worst < 2e-5


def test_what_all_tokens_have_in_common_does_not_cost_digits():
    """A residual stream's largest part is often one vector; here it makes logits of 6e5, which fp32 spaces 1/16 apart."""
    tokens, keep, masked = draw(2, 49, 12, 64, 0.005)
    tokens = (tokens + 100.0 * np.sign(np.random.default_rng(5).normal(size=64))).astype(np.float32)
    for ours, theirs in zip(both(tokens, keep, masked, 'none'), expected(tokens, keep, 'none'), strict=True):
        assert 0.1 < np.mean(theirs) < 4.0
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize('scale', SCALES)
def test_inputs_in_bf16_are_computed_in_fp32(scale):
    tokens, keep, masked = draw(2, 16, 4, 8)
    short = jnp.asarray(tokens, jnp.bfloat16)
    ours, theirs = both(short, keep, masked, scale), expected(np.asarray(short, np.float64), keep, scale)
    for found, wanted in zip(ours, theirs, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_distinctiveness_and_ranking():
    levels = np.random.default_rng(0).uniform(0.0, 4.0, (3, 7)).astype(np.float32)
    for direction in ('descending', 'eq5'):
        wanted = [reference.ranking(row, direction) for row in levels.astype(np.float64)]
        np.testing.assert_allclose(ranking(jnp.asarray(levels), direction), wanted, rtol=1e-6)
    np.testing.assert_allclose(distinctiveness(jnp.asarray([0.0, 1e-6, 4.0])), [1e6, 5e5, 1 / 4.000001], rtol=1e-6)
    np.testing.assert_allclose(distinctiveness(jnp.asarray([0.5]), 0.5), [1.0])


@pytest.mark.parametrize(('layers', 'visible', 'equal', 'least'), [(12, 76, 8.32, 6.35), (8, 49, 5.55, 3.83)])
def test_bounds_of_the_ranking_loss(layers, visible, equal, least):
    """Of SimMIM and MAE (methods 7): L log 2 where H does not change; least for equal steps from ln V to 0."""
    fall = jnp.linspace(math.log(visible), 0.0, layers + 1)
    np.testing.assert_allclose(ranking(jnp.full(layers + 1, 2.0)), layers * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(ranking(jnp.full(layers + 1, 2.0)), equal, atol=0.005)
    for found in (ranking(fall), ranking(fall[::-1], 'eq5')):
        np.testing.assert_allclose(found, layers * math.log1p(math.exp(-math.log(visible) / layers)), rtol=1e-6)
        np.testing.assert_allclose(found, least, atol=0.005)
    uneven = fall.at[layers // 2].add(0.1)
    assert ranking(uneven) > ranking(fall)
    assert ranking(fall[::-1]) > equal


# -- extreme tokens ----------------------------------------------------------------------------------------------------
@functools.partial(jax.jit, static_argnames=('scale', 'exclude_self'), compiler_options=QUICK)
def everything(tokens, keep, masked, scale, exclude_self=False):
    """H, L_spa, L_e, L_r of (H, H of twice the tokens), and the gradient of their sum."""

    def terms(tokens):
        h = heterogeneity(tokens, keep, masked, scale)
        levels = jnp.stack([h, heterogeneity(2 * tokens, keep, masked, scale)], axis=-1)
        found = h, sparsity(tokens, keep, scale, exclude_self=exclude_self), distinctiveness(h), ranking(levels)
        return sum(one.sum() for one in found), found

    gradient, found = jax.grad(terms, has_aux=True)(tokens)
    return found, gradient


EXTREMES = {
    'identical': lambda x: np.broadcast_to(x[:, :1], x.shape),
    'identical and huge': lambda x: 1e6 * np.broadcast_to(x[:, :1], x.shape),
    'zero': lambda x: 0.0 * x,
    'some zero': lambda x: x * (np.arange(x.shape[1]) % 3 > 0)[:, None],
    'tiny': lambda x: 1e-20 * x,
    'large': lambda x: 1e3 * x,
    'huge': lambda x: 1e6 * x,
    'one huge': lambda x: x * np.where(np.arange(x.shape[1]) == 1, 1e6, 1.0)[:, None],
    'equal visible': lambda x: np.concatenate([x[:, :1]] * 4 + [x[:, 4:]], axis=1),
}


@pytest.mark.parametrize('scale', SCALES)
@pytest.mark.parametrize('visible', [4, 1, 15])
def test_extreme_tokens(scale, visible):
    """Values as the reference has them, gradients finite; with 15 of 16 visible one token is masked."""
    tokens, _, _ = draw(2, 16, 4, 8)
    keep = np.broadcast_to(np.arange(visible, dtype=np.int32), (2, visible))
    masked = np.broadcast_to(np.arange(16) >= visible, (2, 16))
    for name, change in EXTREMES.items():
        extreme = change(tokens).astype(np.float32)
        for exclude_self in (False, True) if visible == 4 else (False,):
            (h, spa, e, r), gradient = everything(extreme, keep, masked, scale, exclude_self)
            wanted = expected(extreme, keep, scale, exclude_self=exclude_self)
            if not (scale == 'cosine' and name == 'tiny'):  # shorter than 1e-6, a token has no direction: see below
                np.testing.assert_allclose(h, wanted[0], atol=5e-6, err_msg=name)
                np.testing.assert_allclose(spa, wanted[1], atol=5e-6, err_msg=name)
            np.testing.assert_allclose(e, 1.0 / (np.asarray(h, np.float64) + 1e-6), rtol=1e-5, err_msg=name)
            assert np.isfinite(gradient).all(), name
            assert np.isfinite(r).all(), name
            assert (np.asarray(h) >= 0).all(), name
            assert (np.asarray(h) <= np.nextafter(np.float32(math.log(visible)), np.float32(9))).all(), name
            if visible == 1:
                np.testing.assert_array_equal(h, 0.0)
                np.testing.assert_allclose(e, 1e6)


@pytest.mark.parametrize('scale', SCALES)
def test_identical_tokens_have_the_highest_heterogeneity(scale):
    """Their logits are equal to the last bit, so that H is ln V as exact as XLA's logarithm, to two bits."""
    for visible, deviation in itertools.product((1, 7, 49), (0.0, 1.0, 1e3, 1e6)):
        tokens, keep, masked = draw(1, visible + 9, visible, 24)
        identical = np.broadcast_to(np.float32(deviation) * tokens[:, :1], tokens.shape)
        found, rows = both(identical, keep, masked, scale)
        np.testing.assert_array_max_ulp(np.asarray(found), np.float32([math.log(visible)]), 2)
        np.testing.assert_array_max_ulp(np.asarray(rows), np.float32([math.log(visible + 9)]), 2)


def test_saturated_affinities():
    """Every masked token on its own visible one: H is 0 in fp32, its gradient 0, and L_e = 1 / epsilon."""
    tokens = 1e3 * np.tile(np.eye(4, dtype=np.float32), (1, 2, 1))
    keep, masked = np.arange(4, dtype=np.int32)[None], np.arange(8)[None] >= 4
    for scale in ('none', 'sqrt_dim'):
        (h, spa, e, _), gradient = everything(tokens, keep, masked, scale)
        np.testing.assert_array_equal(h, 0.0)
        np.testing.assert_allclose(spa, math.log(2.0), rtol=1e-6)  # itself, and the masked token equal to it
        np.testing.assert_allclose(e, 1e6)
        np.testing.assert_allclose(gradient, 0.0, atol=1e-3)


def test_tokens_of_no_length_have_no_direction():
    """'cosine': below a length of 1e-6 logits shrink with it, which keeps the gradient finite at 0."""
    tokens, keep, masked = draw(1, 16, 4, 8)
    found, *same = (both(np.float32(f) * tokens, keep, masked, 'cosine')[0] for f in (1e-20, 1e-4, 1.0, 1e4))
    np.testing.assert_allclose(found, math.log(4), rtol=1e-6)
    np.testing.assert_allclose(same[0], same[1], rtol=1e-5)
    np.testing.assert_allclose(same[2], same[1], rtol=1e-5)


def test_two_patches_and_exclude_self():
    """One visible, one masked: the only other column has all the weight."""
    tokens, keep, masked = draw(2, 2, 1, 8)
    (h, spa, _, _), gradient = everything(tokens, keep, masked, 'none', exclude_self=True)
    np.testing.assert_array_equal(h, 0.0)
    np.testing.assert_array_equal(spa, 0.0)
    assert np.isfinite(gradient).all()
    wanted = expected(tokens, keep, 'none')[1]
    np.testing.assert_allclose(both(tokens, keep, masked, 'none')[1], wanted, atol=1e-6)
    assert min(wanted) > 0


def test_columns_that_are_not_there_do_not_count_however_large():
    logits = jnp.asarray([[1e30, 1.0, 2.0, 3.0], [0.0, 1e30, -1e30, 0.5]])
    counted = jnp.asarray([[False, True, True, True], [True, False, False, True]])
    run = jax.jit(jax.value_and_grad(lambda x: row_entropy(x, counted).sum()), compiler_options=QUICK)
    found, gradient = run(logits)
    rows = [np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.5])]
    wanted = sum(reference.row_entropy(np.ones(1), row[:, None], 'none', 1.0) for row in rows)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(counted)], 0.0)
    assert np.isfinite(gradient).all()


# -- invariances -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('scale', SCALES)
def test_the_order_of_tokens_does_not_matter(scale):
    tokens, keep, masked = draw(1, 16, 4, 8)
    h, spa = both(tokens, keep, masked, scale)
    again = both(tokens, keep[:, ::-1], masked, scale)
    order = np.random.default_rng(3).permutation(16)
    moved = both(tokens[:, order], np.argsort(order)[keep].astype(np.int32), masked[:, order], scale)
    for found in (again, moved):
        np.testing.assert_allclose(found[0], h, rtol=1e-5)
        np.testing.assert_allclose(found[1], spa, rtol=1e-5)


def test_images_do_not_see_each_other():
    tokens, keep, masked = draw(3, 16, 4, 8)
    h, spa = both(tokens, keep, masked, 'none')
    for image in range(3):
        one = slice(image, image + 1)
        alone = both(tokens[one], keep[one], masked[one], 'none')
        np.testing.assert_allclose(alone[0], h[one], rtol=1e-5)
        np.testing.assert_allclose(alone[1], spa[one], rtol=1e-5)


def test_every_switch_changes_the_value():
    tokens, keep, masked = draw(1, 16, 4, 8)
    settings = itertools.product(SCALES, (0.1, 1.0))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(x):
        h = [heterogeneity(x, keep, masked, scale, tau)[0] for scale, tau in settings]
        return jnp.stack(h), jnp.stack([sparsity(x, keep, **options)[0] for options in SPARSITY])

    h, spa = map(np.asarray, run(tokens))
    assert len(set(h.tolist())) == 4  # tau is of 'cosine' alone
    assert len(set(spa.tolist())) == 4
    np.testing.assert_allclose(spa[1], 4 * spa[0], rtol=1e-6)
