"""BootMAE's decoder: who gets positions, what the memory does, heads that leave a rest, its form when sharded or fresh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK, random_parameters

from mim_jax.models.cross_decoder import CrossAttention, CrossDecoder, PixelHead
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths, path_of, shardings
from mim_jax.tokens import Tokens, gather_tokens, plan_from_scores, sincos_positions

KEY = jax.random.key(0)
SIZES = {'width': 16, 'depth': 2, 'heads': 3, 'output': 48, 'grid': (2, 4)}


@pytest.fixture(scope='module')
def inputs():
    plan = plan_from_scores(jax.random.uniform(KEY, (3, 8)), 3)
    latent = Tokens(jax.random.normal(KEY, (3, 1, 12)), jax.random.normal(jax.random.key(1), (3, 3, 12)))
    return latent, plan, jax.random.normal(jax.random.key(2), (3, 4, 20))


@pytest.fixture(scope='module')
def params(inputs):
    return random_parameters(CrossDecoder(**SIZES), *inputs)


def run(params, inputs, **fields):
    return _compiled(**fields)(params, inputs)


@functools.cache
def _compiled(**fields):
    module = CrossDecoder(**SIZES, **fields)
    return jax.jit(lambda params, inputs: module.apply({'params': params}, *inputs), compiler_options=QUICK)


def test_only_masked_patches_get_positions(params, inputs):
    """Layer 0 is before them: one mask token everywhere; what enters the blocks has them where masked."""
    latent, plan, _ = inputs
    silent = jax.tree_util.tree_map_with_path(
        lambda path, p: 0 * p if {'out', 'fc2'} & set(path_of(path).split('/')) else p, params
    )
    levels = run(silent, inputs)
    embedded = latent.map(lambda x: x @ params['embed']['kernel'] + params['embed']['bias'])
    expected, placed = (np.tile(params['mask_token'], (3, 8, 1)) for _ in range(2))
    placed += sincos_positions(2, 4, 16, row_first=True)
    for image, keep in enumerate(np.asarray(plan.keep)):
        expected[image, keep] = placed[image, keep] = embedded.patches[image]
    np.testing.assert_allclose(levels.embedding.patches, expected, atol=1e-5)
    np.testing.assert_allclose(levels.last.patches, placed, atol=1e-5)
    np.testing.assert_allclose(levels.last.prefix, embedded.prefix, atol=1e-5)
    assert len(levels.blocks) == 2
    assert levels.prediction.shape == (3, 8, 48)
    assert levels.queries_keys[0][0].shape == (3, 9, 3, 5)
    np.testing.assert_array_equal(levels.plan.masked, plan.masked)


def test_the_memory_is_a_set_and_is_read(params, inputs):
    latent, plan, memory = inputs
    base = run(params, inputs).prediction
    np.testing.assert_allclose(run(params, (latent, plan, memory[:, ::-1])).prediction, base, atol=1e-5)
    assert np.abs(run(params, (latent, plan, memory.at[:, 0].add(1.0 + memory[:, 1]))).prediction - base).max() > 1e-2


def test_the_order_of_visible_tokens_changes_nothing(params, inputs):
    latent, plan, memory = inputs
    place = jnp.array([2, 0, 1])
    restore = jnp.where(plan.restore < 3, jnp.argsort(place)[jnp.minimum(plan.restore, 2)], plan.restore)
    moved = plan.replace(keep=plan.keep[:, place], restore=restore)
    ids = jnp.tile(place, (3, 1))
    other = latent.replace(patches=gather_tokens(latent.patches, ids))
    np.testing.assert_allclose(
        run(params, (other, moved, memory)).prediction, run(params, inputs).prediction, atol=1e-5
    )


def test_cross_attention_follows_its_equation():
    """One head of one query at a time, in float64; 3 heads of 5 in a width of 16."""
    x, memory = np.asarray(jax.random.normal(KEY, (1, 2, 16))), np.asarray(jax.random.normal(KEY, (1, 4, 20)))
    module = CrossAttention(heads=3)
    params = random_parameters(module, x, memory)
    kernels = {name: np.asarray(params[name]['kernel'], np.float64) for name in ('q', 'kv', 'out')}
    assert {name: kernel.shape for name, kernel in kernels.items()} == {'q': (16, 15), 'kv': (20, 30), 'out': (15, 16)}
    mixed = np.zeros((2, 15))
    for head in range(3):
        run = slice(5 * head, 5 * head + 5)
        queries = x[0] @ kernels['q'][:, run] + params['q_bias'][run]
        keys = memory[0] @ kernels['kv'][:, run]
        values = memory[0] @ kernels['kv'][:, 15:][:, run] + params['v_bias'][run]
        for t, query in enumerate(queries):
            weights = np.exp([query @ key / 5**0.5 for key in keys])
            mixed[t, run] = weights @ values / weights.sum()
    expected = mixed @ kernels['out'] + params['out']['bias']
    np.testing.assert_allclose(module.apply({'params': params}, x, memory)[0], expected, atol=1e-4)


def test_pixel_head_has_one_bias_per_channel():
    x = jax.random.normal(KEY, (1, 2, 8))
    params = {'kernel': jax.random.normal(KEY, (8, 12)), 'bias': jnp.array([1.0, 10.0, 100.0])}
    added = PixelHead(12).apply({'params': params}, x) - x @ params['kernel']
    np.testing.assert_allclose(added, np.tile([1.0, 10.0, 100.0], (1, 2, 4)), rtol=1e-4)


def test_remat_changes_nothing(params, inputs):
    def outputs_and_gradients(remat):
        module = CrossDecoder(**SIZES, remat=remat)

        def loss(params):
            levels = module.apply({'params': params}, *inputs)
            return jnp.sin(3 * levels.prediction).mean() + jnp.sin(levels.blocks[0].patches).mean()

        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

    expected, expected_gradient = outputs_and_gradients('none')
    value, gradient = outputs_and_gradients('dots')
    np.testing.assert_allclose(value, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


def test_bf16_is_close_to_fp32(params, inputs):
    exact = run(params, inputs).prediction
    rounded = run(params, inputs, dtype=jnp.bfloat16).prediction
    assert rounded.dtype == jnp.bfloat16
    assert 0 < np.linalg.norm(rounded.astype(jnp.float32) - exact) / np.linalg.norm(exact) < 3e-2


@pytest.fixture(scope='module')
def released():
    """Shapes of ViT-B's pixel decoder."""
    plan = plan_from_scores(jnp.zeros((1, 196)), 49)
    latent, memory = Tokens(jnp.zeros((1, 1, 768)), jnp.zeros((1, 49, 768))), jnp.zeros((1, 50, 768))
    module = CrossDecoder(512, 2, 12, 768, (14, 14), pixel_head=True)
    return jax.eval_shape(module.init, KEY, latent, plan, memory)['params']


def test_twelve_heads_on_512_are_504_wide(released):
    shapes = {path: leaf.shape for path, leaf in flatten_with_paths(released['block_00'])}
    assert shapes['attn/qkv/kernel'] == (512, 3 * 504)
    assert shapes['cross/q/kernel'] == (512, 504)
    assert shapes['cross/kv/kernel'] == (768, 2 * 504)
    assert shapes['attn/out/kernel'] == shapes['cross/out/kernel'] == (504, 512)
    assert shapes['cross/q_bias'] == shapes['cross/v_bias'] == (504,)
    assert shapes['norm4/scale'] == (768,)
    assert released['head']['bias'].shape == (3,)
    assert 'cross/q/bias' not in shapes


@pytest.mark.parametrize('fsdp', [2, 4, 8])
def test_every_large_kernel_is_split(released, fsdp):
    mesh = make_mesh(1, fsdp, devices=jax.devices()[:fsdp])
    for path, held in flatten_with_paths(shardings(released, mesh, whole=False)):
        assert ('fsdp' in held.spec) == path.endswith('kernel'), path
