"""The encoder: masked forms, scanned and rematerialised forms, bf16, and what a fresh one looks like."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK, random_parameters

from mim_jax.models.vit import ViT
from mim_jax.parallel.rules import flatten_with_paths, path_of
from mim_jax.tokens import patchify, plan_from_scores, sincos_positions

KEY = jax.random.key(0)
SIZES = {'patch_size': 4, 'width': 16, 'depth': 3, 'heads': 2}


@pytest.fixture(scope='module')
def images():
    return jax.random.normal(KEY, (4, 16, 16, 3))


@pytest.fixture(scope='module')
def plan():
    return plan_from_scores(jax.random.uniform(jax.random.key(1), (4, 16)), 5)


@pytest.fixture(scope='module')
def params(images):
    """Of the loop form; arbitrary, so that no special initial value hides a mistake."""
    return random_parameters(ViT(**SIZES), images)


def stack_blocks(params):
    """Loop form -> scan form."""
    names = sorted(name for name in params if name.startswith('block_'))
    rest = {name: value for name, value in params.items() if name not in names}
    return {**rest, 'blocks': jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))}


def outputs_and_gradients(module, params, images, plan):
    """All that a loss may read of a module, and the gradient of a loss that reads all of it."""

    def loss(params):
        levels = module.apply({'params': params}, images, plan, method='levels')
        done = module.apply({'params': params}, levels.last, method='finish')
        read = [done.joined(), *(block.patches for block in levels.blocks), levels.attention(1)]
        return sum(jnp.sin(3 * part.astype(jnp.float32)).mean() for part in read), read

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params)


@pytest.fixture(scope='module')
def reference(params, images, plan):
    return outputs_and_gradients(ViT(**SIZES), params, images, plan)


@pytest.mark.parametrize(('scan', 'remat'), [(True, 'none'), (False, 'full'), (True, 'dots')])
def test_scan_and_remat_change_nothing(reference, params, images, plan, scan, remat):
    module = ViT(**SIZES, scan=scan, remat=remat)
    (value, read), gradient = outputs_and_gradients(module, stack_blocks(params) if scan else params, images, plan)
    (expected, expected_read), expected_gradient = reference
    np.testing.assert_allclose(value, expected, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), read, expected_read)
    expected_gradient = stack_blocks(expected_gradient) if scan else expected_gradient
    assert jax.tree.structure(gradient) == jax.tree.structure(expected_gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient['norm'])) > 0


def test_bf16_is_close_to_fp32_and_its_parameters_are_fp32(reference, params, images, plan):
    module = ViT(**SIZES, dtype=jnp.bfloat16)
    (_, read), gradient = outputs_and_gradients(module, params, images, plan)
    assert read[0].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype('float32')}
    for ours, exact in zip(read, reference[0][1], strict=True):
        error = np.linalg.norm(ours.astype(jnp.float32) - exact) / np.linalg.norm(exact)
        assert 0 < error < 2e-2
    shapes = jax.eval_shape(module.init, KEY, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype('float32')}


@pytest.fixture(scope='module')
def transparent(params):
    """Parameters whose blocks add nothing: what enters the first block leaves the last."""

    def silence(path, p):
        return 0 * p if {'out', 'fc2'} & set(path_of(path).split('/')) else p

    return jax.tree_util.tree_map_with_path(silence, params)


def test_visible_patches_are_those_of_the_whole_image(params, transparent, images, plan):
    """Dropping before the embedding is dropping after it; positions follow the patches; CLS gets none."""
    levels = ViT(**SIZES).apply({'params': transparent}, images, plan, method='levels')
    embedded = patchify(images, 4) @ params['patch_embed']['kernel'] + params['patch_embed']['bias']
    kept = np.take_along_axis(np.asarray(embedded), np.asarray(plan.keep)[..., None], axis=1)
    np.testing.assert_allclose(levels.embedding.patches, kept, atol=1e-5)
    positions = sincos_positions(4, 4, 16)[np.asarray(plan.keep)]
    np.testing.assert_allclose(levels.last.patches, kept + positions, atol=1e-5)
    np.testing.assert_allclose(levels.last.prefix, np.broadcast_to(params['cls_token'], (4, 1, 16)), atol=1e-6)
    assert levels.plan is plan


def test_mask_tokens_stand_where_the_mask_is(transparent, images, plan):
    module = ViT(**SIZES, mask_tokens=True)
    token = jnp.arange(16.0).reshape(1, 1, 16)
    variables = {'params': {**transparent, 'mask_token': token}}
    levels = module.apply(variables, images, plan, method='levels')
    whole = module.apply(variables, images, None, method='levels')
    masked = np.asarray(plan.masked)
    assert levels.last.patches.shape == (4, 16, 16)
    np.testing.assert_array_equal(np.asarray(levels.embedding.patches)[masked], np.tile(token[0], (44, 1)))
    np.testing.assert_array_equal(levels.embedding.patches[~masked], whole.embedding.patches[~masked])
    positions = np.broadcast_to(sincos_positions(4, 4, 16), (4, 16, 16))
    np.testing.assert_allclose(levels.last.patches - levels.embedding.patches, positions, atol=1e-5)


def test_masked_pixels_cannot_be_seen(params, images, plan):
    """MAE's encoder does not depend on what is masked; SimMIM's neither."""
    hidden = jnp.repeat(jnp.repeat(plan.masked.reshape(4, 4, 4), 4, 1), 4, 2)[..., None]
    other = jnp.where(hidden, images + 7.0, images)
    for module, variables in (
        (ViT(**SIZES), params),
        (ViT(**SIZES, mask_tokens=True), {**params, 'mask_token': jnp.zeros((1, 1, 16))}),
    ):

        @jax.jit
        def encode(images, module=module, variables=variables):
            return module.apply({'params': variables}, images, plan, method='levels').last.joined()

        np.testing.assert_array_equal(encode(images), encode(other))
        assert np.abs(encode(images) - encode(images + 7.0)).max() > 1e-3


def test_attention_rows_sum_to_one_over_prefix_and_patches(params, images, plan):
    levels = ViT(**SIZES).apply({'params': params}, images, plan, method='levels')
    for block in (0, -1):
        weights = levels.attention(block)
        assert weights.shape == (4, 2, 6, 6)
        np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)


def test_without_cls_there_is_no_prefix(params, images):
    bare = {name: value for name, value in params.items() if name != 'cls_token'}
    tokens = ViT(**SIZES, cls=False).apply({'params': bare}, images)
    assert tokens.prefix.shape == (4, 0, 16)
    assert tokens.patches.shape == (4, 16, 16)


@pytest.fixture(scope='module', params=[False, True], ids=['loop', 'scan'])
def fresh(request):
    """{path: array} of a new encoder, wide enough for statistics; scanned blocks are compared with the same bounds."""
    module = ViT(4, 64, 2, 4, mask_tokens=True, scan=request.param)
    made = jax.jit(module.init, compiler_options=QUICK)(KEY, jnp.zeros((1, 8, 8, 3)))['params']
    return {path: np.asarray(leaf) for path, leaf in flatten_with_paths(made)}


def test_kernels_are_xavier_with_the_packed_fan_out(fresh):
    fans = {'qkv': (64, 192), 'out': (64, 64), 'fc1': (64, 256), 'fc2': (256, 64), 'patch_embed': (48, 64)}
    seen = set()
    for path, kernel in fresh.items():
        if path.endswith('kernel'):
            name = path.split('/')[-2]
            seen.add(name)
            assert kernel.shape[-2:] == fans[name]
            bound = math.sqrt(6 / sum(fans[name]))
            assert 0.99 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6), path
            assert abs(kernel.std() / (bound / math.sqrt(3)) - 1) < 0.03, path
            assert abs(kernel.mean()) < 5 * bound / math.sqrt(3 * kernel.size), path
    assert seen == set(fans)


def test_biases_norms_and_tokens(fresh):
    for path, leaf in fresh.items():
        name = path.split('/')[-1]
        if path == 'patch_embed/bias':
            assert 0.9 / math.sqrt(48) < np.abs(leaf).max() <= 1 / math.sqrt(48)
        elif name == 'bias':
            np.testing.assert_array_equal(leaf, 0.0, err_msg=path)
        elif name == 'scale':
            np.testing.assert_array_equal(leaf, 1.0, err_msg=path)
    tokens = np.concatenate([fresh['cls_token'].ravel(), fresh['mask_token'].ravel()])
    assert abs(tokens.std() / 0.02 - 1) < 4 / math.sqrt(2 * tokens.size)
    assert np.abs(fresh['cls_token'] - fresh['mask_token']).max() > 0


def test_blocks_start_from_different_draws(fresh):
    kernels = [leaf for path, leaf in fresh.items() if path.endswith('mlp/fc1/kernel')]
    first, second = kernels if len(kernels) == 2 else kernels[0]
    assert np.abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05
