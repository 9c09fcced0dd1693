"""BatchNorm: PyTorch's definition, groups of images, and the same numbers on one, two and eight devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK

from mim_jax.models.batch_norm import BatchNorm
from mim_jax.parallel.mesh import batch_sharding, make_mesh, replicated

IMAGES, TOKENS, WIDTH = 16, 3, 5


@pytest.fixture(scope='module')
def inputs():
    """f32[16,3,5] whose mean is large against its deviation, differently in every image."""
    draw = np.random.default_rng(0)
    return (draw.normal(size=(IMAGES, TOKENS, WIDTH)) + 30.0 + draw.normal(size=(IMAGES, 1, 1))).astype(np.float32)


VARIABLES = {
    'params': {'scale': jnp.linspace(0.5, 1.5, WIDTH), 'bias': jnp.linspace(-1.0, 1.0, WIDTH)},
    'batch_stats': {'mean': jnp.full((WIDTH,), 20.0), 'var': jnp.full((WIDTH,), 4.0)},
}


def transcribe(x, group):
    """Output, running mean and variance after it, in float64: torch.nn.BatchNorm1d's formulas for each group by itself."""
    scale, bias = (np.asarray(VARIABLES['params'][name], np.float64) for name in ('scale', 'bias'))
    outputs, means, variances = [], [], []
    for start in range(0, len(x), group):
        rows = x[start : start + group].reshape(-1, WIDTH).astype(np.float64)
        mean, variance = rows.mean(axis=0), rows.var(axis=0)
        outputs.append((rows - mean) / np.sqrt(variance + 1e-5) * scale + bias)
        means.append(mean)
        variances.append(rows.var(axis=0, ddof=1))
    output = np.concatenate(outputs).reshape(x.shape)
    return output, 0.9 * 20.0 + 0.1 * np.mean(means, axis=0), 0.9 * 4.0 + 0.1 * np.mean(variances, axis=0)


@pytest.mark.parametrize('group', [0, 1, 4, 16, 64])
def test_training_follows_the_formulas_group_by_group(inputs, group):
    y, moved = BatchNorm(group).apply(VARIABLES, inputs, mutable=['batch_stats'])
    expected, mean, variance = transcribe(inputs, min(group, IMAGES) or IMAGES)
    np.testing.assert_allclose(y, expected, atol=5e-5)
    np.testing.assert_allclose(moved['batch_stats']['mean'], mean, rtol=1e-6)
    np.testing.assert_allclose(moved['batch_stats']['var'], variance, rtol=1e-5)


def test_one_vector_an_image_is_a_batch_of_images(inputs):
    pooled = inputs[:, 0]
    y, _ = BatchNorm(4).apply(VARIABLES, pooled, mutable=['batch_stats'])
    np.testing.assert_allclose(y, transcribe(pooled[:, None], 4)[0][:, 0], atol=5e-5)


def test_evaluation_uses_the_running_statistics(inputs):
    y = BatchNorm(4).apply(VARIABLES, inputs)
    expected = (inputs.astype(np.float64) - 20.0) / np.sqrt(4.0 + 1e-5)
    expected = expected * np.asarray(VARIABLES['params']['scale']) + np.asarray(VARIABLES['params']['bias'])
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_initialising_normalises_and_leaves_the_statistics_alone(inputs):
    y, made = BatchNorm().init_with_output(jax.random.key(0), inputs)
    np.testing.assert_array_equal(made['batch_stats']['mean'], 0.0)
    np.testing.assert_array_equal(made['batch_stats']['var'], 1.0)
    np.testing.assert_array_equal(made['params']['scale'], 1.0)
    np.testing.assert_array_equal(made['params']['bias'], 0.0)
    np.testing.assert_allclose(np.asarray(y).mean((0, 1)), 0.0, atol=1e-5)


def test_without_affine_there_are_no_parameters(inputs):
    y, made = BatchNorm(affine=False).init_with_output(jax.random.key(0), inputs)
    assert made.keys() == {'batch_stats'}
    np.testing.assert_allclose(np.asarray(y).std((0, 1)), 1.0, atol=1e-4)


def test_bf16_inputs_have_fp32_statistics(inputs):
    """In bf16 the mean of 48 values near 30 would be off by up to 0.1, and 0.1 % of the squares by as much."""
    rounded = jnp.asarray(inputs, jnp.bfloat16)
    y, moved = BatchNorm(dtype=jnp.bfloat16).apply(VARIABLES, rounded, mutable=['batch_stats'])
    expected, mean, variance = transcribe(np.asarray(rounded, np.float32), IMAGES)
    assert y.dtype == jnp.bfloat16
    assert {moved['batch_stats'][name].dtype for name in ('mean', 'var')} == {jnp.dtype('float32')}
    np.testing.assert_allclose(moved['batch_stats']['mean'], mean, rtol=1e-6)
    np.testing.assert_allclose(moved['batch_stats']['var'], variance, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(y, np.float32), expected, rtol=2**-8, atol=1e-4)


def test_a_batch_that_does_not_divide_and_a_lone_value_are_named(inputs):
    with pytest.raises(ValueError, match=r'groups of 6 images: a batch of 16 does not divide'):
        BatchNorm(6).apply(VARIABLES, inputs, mutable=['batch_stats'])
    with pytest.raises(ValueError, match=r'one value per channel'):
        BatchNorm(1).apply(VARIABLES, inputs[:, 0], mutable=['batch_stats'])


# -- devices -------------------------------------------------------------------------------------------------------------


def run_on(devices, group, inputs):
    """Output, running statistics and input gradient with the images over `devices`; the compiled program's text."""
    mesh = make_mesh(devices, 1, devices=jax.devices()[:devices])

    def run(x):
        def loss(x):
            y, moved = BatchNorm(group).apply(VARIABLES, x, mutable=['batch_stats'])
            return jnp.sum(jnp.sin(3.0 * y)), (y, moved['batch_stats'])

        (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(x)
        return *out, gradient

    rows, whole = batch_sharding(mesh), replicated(mesh)
    program = jax.jit(run, in_shardings=rows, out_shardings=(rows, whole, rows))
    compiled = program.lower(inputs).compile(compiler_options=QUICK)
    return jax.device_get(compiled(jax.device_put(inputs, rows))), compiled.as_text()


@pytest.mark.parametrize('group', [0, 2, 4])
def test_devices_change_nothing_and_no_activation_travels(inputs, group):
    """Statistics over all images, over each of eight devices' two, and over pairs of devices."""
    expected, _ = run_on(1, group, inputs)
    for devices in (2, 8):
        found, program = run_on(devices, group, inputs)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
        assert not re.search(r'all-gather|all-to-all|collective-permute', program)


def test_groups_within_a_device_send_only_the_running_statistics(inputs):
    """One all-reduce of two vectors; statistics over all images need more, in the backward pass too."""

    def sums(group):
        return len(re.findall(r'all-reduce(?:-start)?\(', run_on(8, group, inputs)[1]))

    assert 1 <= sums(2) <= 2 < sums(0)
