"""The depth-wise convolution against XLA's grouped one, in value and gradients, and what a fresh one looks like."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.depthwise import DepthwiseConv, correlate


def convolve(x, kernel):
    """XLA's convolution with as many groups as channels."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=x.shape[-1]
    )


@pytest.fixture(scope='module')
def arrays():
    """Input, kernel, gradient of the output."""
    keys = jax.random.split(jax.random.key(0), 3)
    return [
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(2, 6, 7, 8), (5, 5, 1, 8), (2, 6, 7, 8)], strict=True)
    ]


def test_value_and_gradients_are_those_of_a_grouped_convolution(arrays):
    x, kernel, gradient = arrays
    (ours, back), (expected, expected_back) = (jax.vjp(f, x, kernel) for f in (correlate, convolve))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    for a, b in zip(back(gradient), expected_back(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_products_of_the_hessian_exist(arrays):
    """Forward-mode over the written gradient, as curvature measurements need."""
    x, kernel, tangent = arrays

    def product(f):
        slope = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), argnums=(0, 1))
        return jax.jvp(slope, (x, kernel), (tangent, jnp.ones_like(kernel)))[1]

    for a, b in zip(product(correlate), product(convolve), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_bf16_is_summed_in_fp32(arrays):
    x, kernel, gradient = (a.astype(jnp.bfloat16) for a in arrays)
    kernel = kernel.astype(jnp.float32)
    ours, back = jax.vjp(correlate, x, kernel)
    exact, exact_back = jax.vjp(correlate, x.astype(jnp.float32), kernel)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, exact.astype(jnp.bfloat16))  # rounded once
    (to_x, to_kernel), (exact_x, exact_kernel) = back(gradient), exact_back(gradient.astype(jnp.float32))
    np.testing.assert_array_equal(to_x, exact_x.astype(jnp.bfloat16))
    np.testing.assert_allclose(to_kernel, exact_kernel, rtol=1e-6, atol=1e-5)


def test_initial_values_are_pytorch_s():
    params = DepthwiseConv(5).init(jax.random.key(0), jnp.zeros((1, 4, 4, 512)))['params']
    assert params['kernel'].shape == (5, 5, 1, 512)
    for leaf in params.values():
        assert 0.98 * 0.2 < np.abs(leaf).max() <= 0.2  # 1 / sqrt(25)
        assert abs(np.std(leaf) * 3**0.5 / 0.2 - 1) < 0.06
