"""The ViT's options beyond MAE: relative position bias, trained positions, biases of queries and values, initialisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import random_parameters

from mim_jax.models.layers import SCHEMES, Attention
from mim_jax.models.vit import ViT
from mim_jax.tokens import plan_from_scores, relative_index, sincos_positions

KEY = jax.random.key(0)
BEIT = {
    **{'patch_size': 4, 'width': 16, 'depth': 2, 'heads': 2, 'grid': (4, 4), 'positions': 'none'},
    **{'relative_bias': True, 'qkv_bias': 'qv', 'layer_scale': 0.1, 'scheme': 'beit', 'mask_tokens': True},
}


@pytest.fixture(scope='module')
def images():
    return jax.random.normal(KEY, (3, 16, 16, 3))


def test_relative_index_is_the_offset_and_cls_has_entries_of_its_own():
    rows, columns = 3, 5
    index = relative_index(rows, columns)
    for query in range(rows * columns):
        for key in range(rows * columns):
            dy, dx = query // columns - key // columns, query % columns - key % columns
            assert index[1 + query, 1 + key] == (2 * columns - 1) * (dy + rows - 1) + dx + columns - 1
    assert set(index[0, 1:]) == {45}
    assert set(index[1:, 0]) == {46}
    assert index[0, 0] == 47
    assert set(index[1:, 1:].ravel()) == set(range(45))


def test_the_bias_table_is_shared_by_all_blocks_and_enters_every_attention(images):
    module = ViT(**BEIT)
    params = random_parameters(module, images)
    assert params['relative_bias_table'].shape == (7 * 7 + 3, 2)
    assert not any('relative' in path for block in ('block_00', 'block_01') for path in params[block]['attn'])
    levels = module.apply({'params': params}, images, method='levels')
    expected = np.asarray(params['relative_bias_table'])[relative_index(4, 4)].transpose(2, 0, 1)
    for block in range(2):
        q, k = (np.asarray(a, np.float64) for a in levels.queries_keys[block])
        logits = np.einsum('bqhd,bkhd->bhqk', q, k) / np.sqrt(8) + expected
        share = np.exp(logits - logits.max(-1, keepdims=True))
        np.testing.assert_allclose(levels.attention(block), share / share.sum(-1, keepdims=True), atol=1e-5)


def test_removed_patches_leave_the_biases_of_the_kept_pairs(images):
    plan = plan_from_scores(jax.random.uniform(jax.random.key(1), (3, 16)), 5)
    module = ViT(**{**BEIT, 'mask_tokens': False})
    params = random_parameters(module, images)
    levels = module.apply({'params': params}, images, plan, method='levels')
    table, index = np.asarray(params['relative_bias_table']), relative_index(4, 4)
    for image in range(3):
        kept = np.concatenate([[0], np.asarray(plan.keep[image]) + 1])
        expected = table[index[np.ix_(kept, kept)]].transpose(2, 0, 1)
        np.testing.assert_array_equal(levels.attention_bias[image], expected)


def test_positions_none_means_patches_are_told_apart_by_their_offsets_only(images):
    """Without a bias, and without CLS, the encoder commutes with a permutation of the patches."""
    module = ViT(4, 16, 2, 2, positions='none', cls=False)
    params = random_parameters(module, images)
    moved = jnp.roll(images, 4, axis=1)
    plain, rolled = (module.apply({'params': params}, x).patches.reshape(3, 4, 4, 16) for x in (images, moved))
    np.testing.assert_allclose(rolled, jnp.roll(plain, 1, axis=1), atol=1e-5)


@pytest.mark.parametrize('order', ['sincos', 'sincos_rows'])
def test_trained_positions_start_as_the_fixed_ones(images, order):
    plan = plan_from_scores(jax.random.uniform(jax.random.key(1), (3, 16)), 5)
    fixed = ViT(4, 16, 2, 2, positions=order)
    trained = ViT(4, 16, 2, 2, (4, 4), positions=order, learned_positions=True)
    params = jax.jit(trained.init)(KEY, images)['params']
    np.testing.assert_array_equal(params['pos_embed'][0], sincos_positions(4, 4, 16, order == 'sincos_rows'))
    rest = {name: value for name, value in params.items() if name != 'pos_embed'}
    for p in (None, plan):
        ours, expected = trained.apply({'params': params}, images, p), fixed.apply({'params': rest}, images, p)
        np.testing.assert_allclose(ours.joined(), expected.joined(), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: jnp.sin(trained.apply({'params': p}, images).joined()).sum()))(params)
    assert np.abs(gradient['pos_embed']).min(-1).min() > 0


def test_biases_of_queries_and_values_are_the_packed_bias_without_the_keys():
    x = jax.random.normal(KEY, (2, 5, 12))
    module = Attention(heads=3, qkv_bias='qv')
    params = random_parameters(module, x)
    assert params['q_bias'].shape == params['v_bias'].shape == (12,)
    assert 'bias' not in params['qkv']
    packed = {'kernel': params['qkv']['kernel']}
    packed['bias'] = jnp.concatenate([params['q_bias'], jnp.zeros(12), params['v_bias']])
    expected = Attention(heads=3).apply({'params': {'qkv': packed, 'out': params['out']}}, x)[0]
    np.testing.assert_allclose(module.apply({'params': params}, x)[0], expected, atol=1e-6)


def test_heads_need_not_divide_the_width():
    """12 heads of 42 on 512 channels, as BootMAE's pixel decoder has."""
    x = jax.random.normal(KEY, (2, 5, 14))
    params = random_parameters(Attention(heads=4), x)
    assert params['qkv']['kernel'].shape == (14, 36)
    assert params['out']['kernel'].shape == (12, 14)
    output, (queries, _) = Attention(heads=4).apply({'params': params}, x)
    assert output.shape == (2, 5, 14)
    assert queries.shape == (2, 5, 4, 3)


@pytest.mark.parametrize('scan', [False, True])
def test_beit_initialisation(images, scan):
    """Normal draws of deviation 0.02 cut at one deviation; residual kernels of block l divided by sqrt(2 l)."""
    module = ViT(**{**BEIT, 'width': 64, 'depth': 3, 'scan': scan})
    params = jax.jit(module.init)(KEY, images)['params']
    blocks = [params[f'block_{i:02d}'] for i in range(3)] if not scan else None
    if scan:
        blocks = [jax.tree.map(lambda a, i=i: a[i], params['blocks']) for i in range(3)]
    cut = 0.02 * 0.5396  # deviation of a normal cut at one of its own
    for number, block in enumerate(blocks, start=1):
        for kernel in (block['attn']['qkv']['kernel'], block['mlp']['fc1']['kernel']):
            assert np.abs(kernel).max() <= 0.02
            assert abs(np.std(kernel) / cut - 1) < 0.05
        for kernel in (block['attn']['out']['kernel'], block['mlp']['fc2']['kernel']):
            assert np.abs(kernel).max() <= 0.02 / np.sqrt(2 * number)
            assert abs(np.std(kernel) * np.sqrt(2 * number) / cut - 1) < 0.05
        np.testing.assert_array_equal(block['gamma_1'], np.float32(0.1))
        assert not np.any(block['attn']['q_bias'])
        assert not np.any(block['attn']['v_bias'])
    for token in ('cls_token', 'mask_token'):
        assert 0.005 < np.std(params[token]) < 0.016
    assert not np.any(params['patch_embed']['bias'])
    assert not np.any(params['relative_bias_table'])
    assert np.abs(params['patch_embed']['kernel']).max() <= 0.02


def test_bootmae_initialisation():
    """q, k and v are xavier-uniform as three matrices: a wider range than one of three times the width."""
    kernel = SCHEMES['bootmae'].qkv(KEY, (64, 192))
    limit = np.sqrt(6 / 128)
    assert 0.98 * limit < np.abs(kernel).max() <= limit
    module = ViT(4, 16, 1, 2, scheme='bootmae', qkv_bias='qv', positions='sincos_rows')
    params = jax.jit(module.init)(KEY, jnp.zeros((1, 16, 16, 3)))['params']
    assert 0 < np.abs(params['cls_token']).max() < 1e-5
    assert not np.any(params['patch_embed']['bias'])


def test_scan_changes_nothing_with_every_option(images):
    plan = plan_from_scores(jax.random.uniform(jax.random.key(1), (3, 16)), 5)
    loop, scan = ViT(**BEIT), ViT(**BEIT, scan=True)
    params = random_parameters(loop, images)
    rest = {name: value for name, value in params.items() if not name.startswith('block_')}
    stacked = jax.tree.map(lambda *a: jnp.stack(a), params['block_00'], params['block_01'])
    outputs = [
        module.apply({'params': p}, images, plan).joined()
        for module, p in ((loop, params), (scan, {**rest, 'blocks': stacked}))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)
