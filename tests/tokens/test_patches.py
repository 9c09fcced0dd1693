"""Patches: the order of values, the inverse, and MAE's per-patch normalisation."""

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.tokens import Tokens, gather_tokens, normalise_patches, patch_statistics, patchify, unpatchify


@pytest.fixture(scope='module')
def images():
    return np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)


def test_patchify_orders_patches_row_major_and_values_dy_dx_channel(images):
    patches = np.asarray(patchify(images, 4))
    assert patches.shape == (2, 6, 48)
    for row in range(2):
        for column in range(3):
            for dy, dx, channel in ((0, 0, 0), (0, 1, 2), (3, 2, 1)):
                value = patches[1, 3 * row + column, (dy * 4 + dx) * 3 + channel]
                assert value == images[1, 4 * row + dy, 4 * column + dx, channel]


def test_unpatchify_is_the_inverse_on_a_grid_that_is_not_square(images):
    np.testing.assert_array_equal(unpatchify(patchify(images, 4), 4, 8, 12), images)


def test_patchify_refuses_what_does_not_divide(images):
    with pytest.raises(AssertionError):
        patchify(images, 5)
    with pytest.raises(AssertionError):
        patchify(images[0], 4)


def test_normalise_uses_the_unbiased_variance_of_all_values_jointly(images):
    patches = np.asarray(patchify(images, 4), np.float64)
    mean = patches.sum(-1, keepdims=True) / 48
    deviation = np.sqrt(((patches - mean) ** 2).sum(-1, keepdims=True) / 47 + 1e-6)
    got_mean, got_deviation = patch_statistics(jnp.asarray(patches, jnp.float32))
    np.testing.assert_allclose(got_mean, mean, atol=1e-6)
    np.testing.assert_allclose(got_deviation, deviation, rtol=1e-6)
    np.testing.assert_allclose(normalise_patches(jnp.asarray(patches)), (patches - mean) / deviation, atol=1e-5)
    biased = np.sqrt(((patches - mean) ** 2).mean(-1, keepdims=True) + 1e-6)
    assert np.abs(np.asarray(got_deviation) / biased - 1).min() > 5e-3  # the wrong formula would be noticed


def test_normalise_is_finite_on_a_flat_patch_and_fp32_on_bf16():
    flat = normalise_patches(jnp.full((1, 1, 48), 0.3, jnp.bfloat16))
    assert flat.dtype == jnp.float32
    np.testing.assert_allclose(flat, 0.0, atol=1e-3)


def test_tokens_split_is_the_inverse_of_joined_and_map_touches_both():
    tokens = Tokens(jnp.ones((2, 1, 4)), jnp.zeros((2, 3, 4)))
    joined = tokens.joined()
    assert joined.shape == (2, 4, 4)
    np.testing.assert_array_equal(joined[:, :1], tokens.prefix)
    doubled = tokens.map(lambda x: x + 1)
    np.testing.assert_array_equal(doubled.prefix, 2.0)
    np.testing.assert_array_equal(doubled.patches, 1.0)
    assert Tokens(jnp.ones((2, 0, 4)), tokens.patches).map(jnp.negative).prefix.shape == (2, 0, 4)


def test_gather_takes_each_image_its_own_ids_in_order():
    tokens = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    ids = np.array([[2, 0], [1, 1]])
    np.testing.assert_array_equal(gather_tokens(tokens, ids), [[tokens[0, 2], tokens[0, 0]], [tokens[1, 1]] * 2])
