"""MFF's fusion against a transcription of equations 4 and 5 in float64 NumPy; what is detached; what is logged."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK, random_parameters

from mim_jax.models.fusion import Fusion
from mim_jax.models.levels import Levels
from mim_jax.tokens import Tokens

BATCH, PATCHES, WIDTH, DEPTH, HEADS = 3, 5, 12, 4, 3
LAYERS = (0, 2, 3)
KINDS = [(projection, fusion) for projection in ('none', 'linear', 'nonlinear') for fusion in ('pool', 'attention')]

UPSTREAM = np.random.default_rng(1).normal(size=(BATCH, 1 + PATCHES, WIDTH))  # the gradient of what is fused


# -- the equations, in NumPy ---------------------------------------------------------------------------------------------
def linear(x, params, name):
    return x @ params[name]['kernel'] + params[name]['bias']


def exact_gelu(x):
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def softmax(x):
    shifted = np.exp(x - x.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def standardise(x, norm):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * norm['scale'] + norm['bias']


def project(x, params, projection, place):
    if projection == 'linear':
        return linear(x, params, f'projection_{place:02d}')
    if projection == 'nonlinear':
        hidden = exact_gelu(linear(x, params, f'projection_{place:02d}_fc1'))
        return linear(hidden, params, f'projection_{place:02d}_fc2')
    return x


def attend(x, params):
    """(f[T,D] of one image after one pre-norm block, its attention f[heads,T,T])."""
    packed = linear(standardise(x, params['norm1']), params['attn'], 'qkv')
    maps, heads, size = [], [], WIDTH // HEADS
    for h in range(HEADS):
        q, k, v = (packed[:, part * WIDTH + h * size : part * WIDTH + (h + 1) * size] for part in range(3))
        maps.append(softmax(q @ k.T / math.sqrt(size)))
        heads.append(maps[-1] @ v)
    x = x + linear(np.concatenate(heads, axis=1), params['attn'], 'out')
    hidden = exact_gelu(linear(standardise(x, params['norm2']), params['mlp'], 'fc1'))
    return x + linear(hidden, params['mlp'], 'fc2'), np.stack(maps)


def transcribe(blocks, params, projection, fusion):
    """(fused f64[B,1+V,D], watched {name: value}) of every block's f64[B,1+V,D]."""
    last = len(LAYERS) - 1
    parts = [
        project(blocks[layer], params, projection, i) if i < last else blocks[layer] for i, layer in enumerate(LAYERS)
    ]
    if fusion == 'pool':
        weights = softmax(params['logits'])
        weighted = [weight * part for weight, part in zip(weights, parts, strict=True)]
        sizes = np.array([math.sqrt((part**2).mean()) for part in weighted])
        return sum(weighted), name_layers('weight', weights) | name_layers('share', sizes / sizes.sum())
    length = 1 + PATCHES
    outputs, masses = [], []
    for image in range(BATCH):
        output, maps = attend(np.concatenate([part[image] for part in parts]), params['block'])
        outputs.append(output[-length:])
        paid = maps[:, -length:]
        masses.append([paid[:, :, i * length : (i + 1) * length].sum(-1).mean() for i in range(len(LAYERS))])
    return np.stack(outputs), name_layers('weight', np.mean(masses, axis=0))


def name_layers(kind, values):
    return {f'{kind}_{layer:02d}': value for layer, value in zip(LAYERS, values, strict=True)}


# -- ours ------------------------------------------------------------------------------------------------------------------
def make_levels(blocks):
    tokens = tuple(Tokens(x[:, :1], x[:, 1:]) for x in blocks)
    return Levels(embedding=tokens[0], placed=tokens[0], blocks=tokens)


def make_module(projection, fusion, **more):
    return Fusion(LAYERS, projection, fusion, heads=HEADS, **more)


@functools.cache
def make_case(projection, fusion):
    """(every block's f32[B,1+V,D], parameters, a direction for each)."""
    draw = np.random.default_rng(0)
    blocks = [jnp.asarray((1.0 + i) * draw.normal(size=(BATCH, 1 + PATCHES, WIDTH)), jnp.float32) for i in range(DEPTH)]
    params = random_parameters(make_module(projection, fusion), make_levels(blocks))
    return blocks, params, jax.tree.map(lambda a: draw.normal(size=a.shape), (blocks, params))


def wide(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def run(module, blocks, params):
    """(fused f32[B,1+V,D], watched {name: f32[]})."""
    fused, made = module.apply({'params': params}, make_levels(blocks), mutable=['watch'])
    return fused.joined(), {name: values[0] for name, values in made['watch'].items()}


@functools.cache
def gradients(projection, fusion, detach=False):
    """Of sum(UPSTREAM * fused) with respect to (blocks, params)."""
    module, (blocks, params, _) = make_module(projection, fusion, detach=detach), make_case(projection, fusion)

    def loss(blocks, params):
        return jnp.sum(UPSTREAM * run(module, blocks, params)[0])

    return jax.jit(jax.grad(loss, (0, 1)), compiler_options=QUICK)(blocks, params)


def along(tree, direction):
    """The derivative in one direction."""
    return sum(
        np.vdot(np.asarray(a, np.float64), b) for a, b in zip(*map(jax.tree.leaves, (tree, direction)), strict=True)
    )


@pytest.mark.parametrize(('projection', 'fusion'), KINDS)
def test_it_is_the_equation(projection, fusion):
    blocks, params, _ = make_case(projection, fusion)
    found, watched = run(make_module(projection, fusion), blocks, params)
    expected, logged = transcribe(wide(blocks), wide(params), projection, fusion)
    assert found.dtype == jnp.float32
    print(projection, fusion, np.abs(found - expected).max() / np.abs(expected).max())
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    assert watched.keys() == logged.keys()
    for name, value in logged.items():
        np.testing.assert_allclose(watched[name], value, rtol=1e-5, err_msg=name)
    for kind in {name.partition('_')[0] for name in watched}:
        whole = sum(float(value) for name, value in watched.items() if name.startswith(kind))
        np.testing.assert_allclose(whole, 1.0, rtol=1e-6)


@pytest.mark.parametrize(('projection', 'fusion'), KINDS)
def test_gradients_are_those_of_the_equation(projection, fusion):
    """Along a random direction of all blocks and parameters, by central differences of the transcription."""
    blocks, params, direction = make_case(projection, fusion)
    found = along(gradients(projection, fusion), direction)

    def value(step):
        moved = jax.tree.map(lambda a, d: a + step * d, wide((blocks, params)), direction)
        return (UPSTREAM * transcribe(*moved, projection, fusion)[0]).sum()

    np.testing.assert_allclose(found, (value(1e-6) - value(-1e-6)) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize(('projection', 'fusion'), KINDS)
def test_detached_layers_get_no_gradient_and_projections_learn_as_before(projection, fusion):
    blocks, params, direction = make_case(projection, fusion)
    plain, cut = (make_module(projection, fusion, detach=detach) for detach in (False, True))
    for ours, theirs in zip(*map(jax.tree.leaves, (run(m, blocks, params) for m in (plain, cut))), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    of_blocks, of_params = gradients(projection, fusion)
    cut_blocks, cut_params = gradients(projection, fusion, detach=True)
    for layer in range(DEPTH - 1):
        assert not np.asarray(cut_blocks[layer]).any()
        assert np.asarray(of_blocks[layer]).any() == (layer in LAYERS)
    np.testing.assert_allclose(cut_blocks[-1], of_blocks[-1], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(cut_params), jax.tree.leaves(of_params), strict=True):
        assert np.asarray(ours).any()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def value(step):  # the last layer alone moves
        moved = [*wide(blocks[:-1]), wide(blocks[-1]) + step * direction[0][-1]]
        return (UPSTREAM * transcribe(moved, wide(params), projection, fusion)[0]).sum()

    expected = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(along(cut_blocks, direction[0]), expected, rtol=1e-4)


def test_gradients_of_a_pool_in_closed_form():
    """w_last g into the last block; through a linear projection P, w_i g P^T."""
    _, params, _ = make_case('linear', 'pool')
    found, _ = gradients('linear', 'pool')
    weights = softmax(np.asarray(params['logits'], np.float64))
    np.testing.assert_allclose(found[LAYERS[-1]], weights[-1] * UPSTREAM, atol=1e-5)
    for place, layer in enumerate(LAYERS[:-1]):
        expected = weights[place] * UPSTREAM @ np.asarray(params[f'projection_{place:02d}']['kernel'], np.float64).T
        np.testing.assert_allclose(found[layer], expected, atol=1e-5)


def test_it_starts_as_a_mean():
    blocks, _, _ = make_case('none', 'pool')
    module = make_module('none', 'pool')
    params = module.init(jax.random.key(0), make_levels(blocks))['params']
    np.testing.assert_array_equal(params['logits'], np.ones(len(LAYERS)))
    np.testing.assert_allclose(run(module, blocks, params)[0], np.mean([blocks[i] for i in LAYERS], axis=0), atol=1e-6)


def test_projections_start_xavier_uniform_without_a_bias():
    blocks, _, _ = make_case('linear', 'pool')
    params = make_module('linear', 'pool').init(jax.random.key(0), make_levels(blocks))['params']
    limit = math.sqrt(6.0 / (2 * WIDTH))
    for place in range(len(LAYERS) - 1):
        kernel = np.asarray(params[f'projection_{place:02d}']['kernel'])
        assert 0.9 * limit < np.abs(kernel).max() <= limit
        assert not np.asarray(params[f'projection_{place:02d}']['bias']).any()


@pytest.mark.parametrize(('projection', 'fusion'), KINDS)
def test_bf16_is_for_products_only(projection, fusion):
    blocks, params, _ = make_case(projection, fusion)
    exact, watched = run(make_module(projection, fusion), blocks, params)
    rounded, logged = run(make_module(projection, fusion, dtype=jnp.bfloat16), blocks, params)
    assert rounded.dtype == jnp.float32
    relative = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
    assert (relative > 0) == ((projection, fusion) != ('none', 'pool'))  # a weighted sum has no products to round
    assert relative < 0.01
    for name, value in watched.items():
        assert logged[name].dtype == jnp.float32
        np.testing.assert_allclose(logged[name], value, atol=0.02)


def test_one_layer_is_the_level_itself():
    blocks, _, _ = make_case('linear', 'pool')
    for fusion in ('pool', 'attention'):
        module = Fusion((DEPTH - 1,), 'linear', fusion, heads=HEADS)
        levels = make_levels(blocks)
        fused, made = module.init_with_output(jax.random.key(0), levels)
        assert made == {}
        np.testing.assert_array_equal(fused.joined(), blocks[-1])
