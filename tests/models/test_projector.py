"""The projector: its layers in order, its initial values, its groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mim_jax.models.projector import Projector

WIDTHS = (24, 24, 6)


@pytest.fixture(scope='module')
def inputs():
    return np.random.default_rng(0).normal(size=(8, 3, 16)).astype(np.float32)


def normalise(x):
    flat = x.reshape(-1, x.shape[-1])
    return (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)


@pytest.mark.parametrize('last_norm', [True, False])
def test_the_layers_are_linear_norm_relu_and_the_last_as_asked(inputs, last_norm):
    module = Projector(WIDTHS, last_norm=last_norm)
    made = module.init(jax.random.key(0), inputs)
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda a: draw.normal(size=a.shape).astype(np.float32), made['params'])
    y, moved = module.apply({**made, 'params': params}, inputs, mutable=['batch_stats'])

    x = inputs.astype(np.float64)
    for number in (1, 2):
        norm = params[f'bn{number}']
        x = normalise(x @ params[f'fc{number}']['kernel']) * norm['scale'] + norm['bias']
        x = np.maximum(x, 0.0)
    x = x @ params['fc3']['kernel']
    np.testing.assert_allclose(y, normalise(x) if last_norm else x, atol=1e-4)
    assert moved['batch_stats'].keys() == {'bn1', 'bn2', *(['bn3'] if last_norm else [])}


def test_only_the_inner_norms_and_the_kernels_have_parameters(inputs):
    for last_norm in (True, False):
        made = jax.eval_shape(Projector(WIDTHS, last_norm).init, jax.random.key(0), inputs)['params']
        shapes = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(made, sep='/').items()}
        assert shapes == {
            **{'fc1/kernel': (16, 24), 'fc2/kernel': (24, 24), 'fc3/kernel': (24, 6)},
            **{f'bn{number}/{name}': (24,) for number in (1, 2) for name in ('scale', 'bias')},
        }


@pytest.mark.parametrize(('scheme', 'bound', 'deviation'), [('beit', 0.02, 0.0108), ('mae', 0.125, 0.125 / 3**0.5)])
def test_kernels_start_as_the_scheme_says(scheme, bound, deviation):
    """128 -> 256: truncated at one deviation of 0.02, or Xavier with its limit sqrt(6 / 384)."""
    kernel = Projector((256,), scheme=scheme).init(jax.random.key(0), np.zeros((2, 128)))['params']['fc1']['kernel']
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)


def test_in_bf16_the_last_norm_answers_in_fp32(inputs):
    for last_norm, dtype in ((True, jnp.float32), (False, jnp.bfloat16)):
        module = Projector(WIDTHS, last_norm, dtype=jnp.bfloat16)
        y, made = jax.eval_shape(module.init_with_output, jax.random.key(0), inputs)
        assert y.dtype == dtype
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype('float32')}


def test_statistics_are_taken_by_groups(inputs):
    """Every half of the images is projected as if the other were not there."""
    module = Projector(WIDTHS, last_norm=True, group_images=4)
    made = module.init(jax.random.key(0), inputs)
    whole, _ = module.apply(made, inputs, mutable=['batch_stats'])
    halves = [module.apply(made, half, mutable=['batch_stats'])[0] for half in (inputs[:4], inputs[4:])]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-6)
    together, _ = Projector(WIDTHS, last_norm=True).apply(made, inputs, mutable=['batch_stats'])
    assert np.abs(together - whole).max() > 0.1
