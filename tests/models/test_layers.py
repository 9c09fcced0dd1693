"""Transformer parts against formulas written separately: GELU, LayerNorm, attention, drop-path, initial values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_runs import random_parameters

from mim_jax.models.layers import (
    Attention,
    Block,
    drop_rates,
    fan_in_uniform,
    gelu,
    layer_norm,
    make_blocks,
    run_blocks,
)
from mim_jax.models.levels import Levels
from mim_jax.parallel.rules import path_of

KEY = jax.random.key(0)


class Stack(nn.Module):
    """Blocks as encoders and decoders use them."""

    depth: int
    drop_path: float = 0.0
    scan: bool = False
    remat: str = 'none'

    def setup(self):
        self.blocks = make_blocks(self.depth, self.scan, self.remat, heads=2)

    def __call__(self, x):
        return run_blocks(self.blocks, x, drop_rates(self.drop_path, self.depth))[0]


def test_gelu_is_exact_in_value_and_gradient():
    x = jnp.linspace(-6, 6, 241)
    np.testing.assert_allclose(gelu(x), jax.nn.gelu(x, approximate=False), atol=5e-7)
    ours = jax.grad(lambda x: gelu(x).sum())(x)
    np.testing.assert_allclose(ours, jax.grad(lambda x: jax.nn.gelu(x, approximate=False).sum())(x), atol=5e-7)
    by_hand = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in np.asarray(x, np.float64)]
    np.testing.assert_allclose(gelu(x), by_hand, atol=1e-6)
    assert np.abs(jax.nn.gelu(x) - gelu(x)).max() > 1e-4  # the tanh form would be noticed


def test_gelu_in_bf16_stays_within_rounding_of_fp32():
    x = jnp.linspace(-4, 4, 161).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    assert np.abs(jax.jit(gelu)(x).astype(jnp.float32) - exact).max() < 1.6e-2  # half a unit in the last place at 4


def test_layer_norm_keeps_its_digits_when_the_mean_is_large():
    x = np.random.default_rng(0).normal(size=(4, 64)) + 3000.0
    x = x.astype(np.float32)
    exact = (x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)) / np.sqrt(
        x.var(-1, keepdims=True, dtype=np.float64) + 1e-6
    )
    norm = layer_norm(jnp.float32)
    variables = norm.init(KEY, x)
    np.testing.assert_allclose(norm.apply(variables, x), exact, atol=2e-3)
    one_pass = nn.LayerNorm(epsilon=1e-6)
    assert np.abs(one_pass.apply(variables, x) - exact).max() > 1e-2  # the case tells the two apart


def test_layer_norm_epsilon_is_1e_6():
    x = jnp.array([[1e-3, -1e-3]])
    norm = layer_norm(jnp.float32)
    np.testing.assert_allclose(norm.apply(norm.init(KEY, x), x)[0, 0], 1e-3 / math.sqrt(2e-6), rtol=1e-5)


@pytest.mark.parametrize('biased', [False, True])
def test_attention_is_the_formula_and_levels_recompute_the_weights_used(biased):
    x = jax.random.normal(KEY, (2, 5, 12))
    bias = jax.random.normal(jax.random.key(1), (5, 5)) if biased else None
    module = Attention(heads=3)
    params = random_parameters(module, x)
    output, pair = module.apply({'params': params}, x, bias)
    weights = Levels(embedding=None, placed=None, blocks=(), queries_keys=(pair,), attention_bias=bias).attention(0)
    assert weights.shape == (2, 3, 5, 5)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)

    packed = np.asarray(x, np.float64) @ params['qkv']['kernel'] + params['qkv']['bias']
    q, k, v = (packed[..., 12 * i : 12 * (i + 1)].reshape(2, 5, 3, 4) for i in range(3))  # [q | k | v], head-major
    mixed = np.zeros((2, 5, 3, 4))
    for image in range(2):
        for head in range(3):
            logits = q[image, :, head] @ k[image, :, head].T / 2.0 + (0.0 if bias is None else np.asarray(bias))
            share = np.exp(logits - logits.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            np.testing.assert_allclose(weights[image, head], share, atol=1e-5)
            mixed[image, :, head] = share @ v[image, :, head]
    expected = mixed.reshape(2, 5, 12) @ params['out']['kernel'] + params['out']['bias']
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_attention_weights_are_fp32_in_a_bf16_model():
    x = jax.random.normal(KEY, (1, 5, 12), jnp.bfloat16)
    module = Attention(heads=3, dtype=jnp.bfloat16)
    _, pair = module.apply({'params': random_parameters(module, x)}, x)
    assert pair[0].dtype == jnp.bfloat16
    weights = Levels(embedding=None, placed=None, blocks=(), queries_keys=(pair,)).attention(0)
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-6)


@pytest.fixture(scope='module')
def block():
    """A block whose MLP branch is silent, so that output - input is the attention branch alone."""
    module, x = Block(heads=2), jax.random.normal(KEY, (2048, 2, 8))
    params = random_parameters(module, x, 0.0)
    params['mlp']['fc2'] = jax.tree.map(jnp.zeros_like, params['mlp']['fc2'])
    apply = jax.jit(lambda rate, **rngs: module.apply({'params': params}, x, rate, rngs=rngs)[0] - x)
    return apply


def test_drop_path_drops_whole_samples_and_scales_the_kept(block):
    whole, dropped = np.asarray(block(0.25)), np.asarray(block(0.25, drop_path=KEY))
    kept = np.abs(dropped).max((1, 2)) > 0
    assert abs(kept.mean() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / 2048)
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, atol=1e-5)
    np.testing.assert_array_equal(dropped[~kept], 0.0)


def test_drop_path_keeps_the_expectation(block):
    whole = np.asarray(block(0.25))
    mean = np.mean([block(0.25, drop_path=jax.random.key(i)) for i in range(64)], axis=0)
    # One sample's branch has relative deviation sqrt(.25/.75), here over 64 draws; averaged over 2048 samples.
    ratio = (mean * whole).sum() / (whole * whole).sum()
    assert abs(ratio - 1) < 5 * math.sqrt(1 / 3 / 64 / 2048)


def test_drop_path_at_rate_0_and_without_its_stream_does_nothing(block):
    np.testing.assert_array_equal(block(0.0, drop_path=KEY), block(0.5))


@pytest.mark.parametrize('scan', [False, True])
def test_drop_path_ramps_linearly_from_the_first_block(scan):
    """Every branch is the constant 1, so that what a sample gains in a block counts its kept branches."""
    module, x = Stack(depth=3, drop_path=0.5, scan=scan), jnp.zeros((2000, 1, 8))
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.full_like(p, path_of(path).endswith(('attn/out/bias', 'mlp/fc2/bias'))),
        random_parameters(module, x),
    )
    outputs = jax.jit(lambda key: module.apply({'params': params}, x, rngs={'drop_path': key}))(KEY)
    levels = np.stack([x, *outputs])[:, :, 0, 0]
    for index, rate in enumerate((0.0, 0.25, 0.5)):
        branches = (levels[index + 1] - levels[index]) * (1 - rate)
        assert set(np.round(branches, 5)) <= {0.0, 1.0, 2.0}
        assert abs(branches.mean() / 2 - (1 - rate)) < 5 * math.sqrt(0.25 / 4000)
        if rate == 0.0:
            np.testing.assert_array_equal(branches, 2.0)
        else:  # the two branches, and different blocks, draw on their own
            both = (branches.round() == 2).mean()
            assert abs(both - (1 - rate) ** 2) < 5 * math.sqrt(0.25 / 2000)


def test_layer_scale_multiplies_both_branches():
    x = jax.random.normal(KEY, (2, 3, 8))
    scaled, plain = Block(heads=2, layer_scale=0.1), Block(heads=2)
    made = jax.eval_shape(scaled.init, KEY, x, 0.0)['params']
    assert made['gamma_1'].shape == made['gamma_2'].shape == (8,)
    np.testing.assert_array_equal(jax.jit(lambda: scaled.init(KEY, x, 0.0)['params']['gamma_1'])(), np.float32(0.1))
    params = random_parameters(scaled, x, 0.0)
    folded = jax.tree.map(lambda p: p, params)
    for gamma, last in (('gamma_1', folded['attn']['out']), ('gamma_2', folded['mlp']['fc2'])):
        last.update({name: value * folded[gamma] for name, value in last.items()})
        del folded[gamma]
    ours, expected = (jax.jit(m.apply)({'params': p}, x, 0.0)[0] for m, p in ((scaled, params), (plain, folded)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.abs(ours - jax.jit(plain.apply)({'params': {**folded, 'attn': params['attn']}}, x, 0.0)[0]).max() > 1e-3


def test_fan_in_uniform_fills_its_interval():
    draw = np.asarray(fan_in_uniform(48)(KEY, (20000,)))
    bound = 48**-0.5
    assert np.abs(draw).max() <= bound
    assert abs(draw.std() / (bound / math.sqrt(3)) - 1) < 0.02
    assert abs(draw.mean()) < 4 * bound / math.sqrt(3 * 20000)
