"""The distances between a student's outputs and its teacher's, against their definitions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lut_ours import transcribe

from mim_jax.objectives.context import cosine_distance, info_nce, smooth_l1


@pytest.mark.parametrize('distance', ['cosine', 'infonce', 'smooth_l1'])
def test_distances_follow_their_definitions(distance):
    outputs, targets = np.random.default_rng(0).normal(size=(2, 5, 7))
    ours = {'cosine': cosine_distance, 'infonce': lambda *a: info_nce(*a, 0.2), 'smooth_l1': smooth_l1}[distance]
    np.testing.assert_allclose(
        ours(jnp.asarray(outputs), jnp.asarray(targets)), transcribe(distance, outputs, targets), rtol=1e-6
    )


def test_infonce_of_tokens_has_negatives_within_the_image():
    outputs, targets = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    each = [transcribe('infonce', *pair) for pair in zip(outputs, targets, strict=True)]
    np.testing.assert_allclose(info_nce(jnp.asarray(outputs), jnp.asarray(targets), 0.2), np.mean(each), rtol=1e-6)


@pytest.mark.parametrize('distance', [cosine_distance, lambda *a: info_nce(*a, 0.1), smooth_l1])
def test_a_row_of_zeros_makes_no_nan(distance):
    outputs = jnp.ones((3, 4)).at[1].set(0.0)
    loss, gradient = jax.value_and_grad(distance)(outputs, jnp.arange(12.0).reshape(3, 4))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
