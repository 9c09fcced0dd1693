"""Parameter path -> PartitionSpec: the ViT table, the fallback, and the refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mim_jax.errors import ConfigError
from mim_jax.parallel.mesh import batch_sharding, make_mesh
from mim_jax.parallel.rules import AUTO, RULES, Rule, flatten_with_paths, shardings

WIDTH = 128


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def block(*lead):
    return {
        'attn': {
            'qkv': {'kernel': struct(*lead, WIDTH, 3 * WIDTH), 'bias': struct(*lead, 3 * WIDTH)},
            'out': {'kernel': struct(*lead, WIDTH, WIDTH)},
        },
        'mlp': {
            'fc1': {'kernel': struct(*lead, WIDTH, 4 * WIDTH), 'bias': struct(*lead, 4 * WIDTH)},
            'fc2': {'kernel': struct(*lead, 4 * WIDTH, WIDTH)},
        },
        'norm1': {'scale': struct(*lead, WIDTH)},
    }


def specs(tree, fsdp=4, rules=RULES, whole=True, model=1):
    mesh = make_mesh(fsdp=fsdp, model=model)
    return {path: s.spec for path, s in flatten_with_paths(shardings(tree, mesh, rules, whole))}


def test_vit_table_covers_parameters_moments_and_teachers():
    params = {
        'encoder': {
            'patch_embed': {'kernel': struct(768, WIDTH), 'bias': struct(WIDTH)},
            'cls_token': struct(1, 1, WIDTH),
            'block_00': block(),
        },
        'decoder/pixels': {'mask_token': struct(1, 1, 2**15)},
    }
    state = {
        'step': struct(),
        'params': params,
        'opt_state': jax.eval_shape(optax.adam(1e-3).init, params),
        'teachers': {'ema': {'params': {'encoder': params['encoder']}}},
    }
    found = specs(state)
    expected = {
        'encoder/patch_embed/kernel': P('fsdp', None),
        'encoder/patch_embed/bias': P(),
        'encoder/cls_token': P(),
        'encoder/block_00/attn/qkv/kernel': P('fsdp', None),
        'encoder/block_00/attn/qkv/bias': P(),
        'encoder/block_00/attn/out/kernel': P(None, 'fsdp'),
        'encoder/block_00/mlp/fc1/kernel': P('fsdp', None),
        'encoder/block_00/mlp/fc1/bias': P(),
        'encoder/block_00/mlp/fc2/kernel': P(None, 'fsdp'),
        'encoder/block_00/norm1/scale': P(),
        'decoder/pixels/mask_token': P(),
    }
    for prefix in ('params', 'opt_state/0/mu', 'opt_state/0/nu'):
        assert {path: found[f'{prefix}/{path}'] for path in expected} == expected
    for path in (path for path in expected if path.startswith('encoder')):
        assert found[f'teachers/ema/params/{path}'] == expected[path]
    assert found['step'] == found['opt_state/0/count'] == P()


def test_depth_axis_of_scanned_blocks_is_never_split():
    deep = block(16) | {'extra': {'table': struct(4096, 8, 64), 'wide': struct(16, 64, 256)}}
    found = specs({'encoder': {'blocks': deep}})
    assert found['encoder/blocks/attn/qkv/kernel'] == P(None, 'fsdp', None)
    assert found['encoder/blocks/mlp/fc2/kernel'] == P(None, None, 'fsdp')
    assert found['encoder/blocks/extra/wide'] == P(None, None, 'fsdp')
    assert all(len(spec) == 0 or spec[0] is None for spec in found.values())


def test_heads_and_hidden_units_are_split_over_model():
    """And everything else as without it: copied over the group."""
    params = {'block_00': block(), 'blocks': block(16), 'patch_embed': {'kernel': struct(768, WIDTH)}}
    params['block_00']['attn'] |= {'q_bias': struct(WIDTH), 'v_bias': struct(WIDTH)}
    found = specs({'params': params, 'opt_state': jax.eval_shape(optax.adam(1e-3).init, params)}, fsdp=2, model=4)
    expected = {
        'block_00/attn/qkv/kernel': P(('fsdp', 'model'), None),
        'block_00/attn/qkv/bias': P(),
        'block_00/attn/q_bias': P('model'),
        'block_00/attn/v_bias': P('model'),
        'block_00/attn/out/kernel': P('model', 'fsdp'),
        'block_00/mlp/fc1/kernel': P('fsdp', 'model'),
        'block_00/mlp/fc1/bias': P('model'),
        'block_00/mlp/fc2/kernel': P('model', 'fsdp'),
        'block_00/norm1/scale': P(),
        'blocks/attn/qkv/kernel': P(None, ('fsdp', 'model'), None),
        'blocks/mlp/fc1/bias': P(None, 'model'),
        'blocks/mlp/fc2/kernel': P(None, 'model', 'fsdp'),
        'patch_embed/kernel': P('fsdp', None),
    }
    for prefix in ('params', 'opt_state/0/mu'):
        assert {path: found[f'{prefix}/{path}'] for path in expected} == expected


@pytest.mark.parametrize(
    ('shape', 'spec'),
    [
        ((5, 5, 64, 128), P(None, None, None, 'fsdp')),
        ((256, 64), P('fsdp', None)),
        ((128, 128), P(None, 'fsdp')),
        ((127, 129), P()),  # nothing divides
        ((129, 1000, 4), P(None, 'fsdp', None)),
        ((127, 128), P()),  # fewer than 2**14 elements
        ((2**14,), P('fsdp')),
    ],
)
def test_fallback(shape, spec):
    assert specs({'w': struct(*shape)}, whole=False) == {'w': spec}


def test_fallback_copies_when_there_is_one_shard():
    assert specs({'w': struct(256, 256)}, fsdp=1, whole=False) == {'w': P()}


def test_the_default_rules_must_all_decide_something_in_a_whole_state():
    with pytest.raises(ConfigError, match='decide no array'):
        specs({'encoder': {'attn': {'query': {'kernel': struct(256, 256)}}}})


def test_refusals_name_the_rule_or_the_path():
    tree = {'encoder': {'w': struct(256, 256)}}
    with pytest.raises(ConfigError, match='No sharding rule matches encoder/w'):
        shardings(tree, make_mesh(), (Rule('bias$', P(), optional=True),))
    with pytest.raises(ConfigError, match=r"decide no array: 'encodr/'"):
        shardings(tree, make_mesh(), (Rule('encodr/', P('fsdp')), Rule('.*', AUTO)))
    with pytest.raises(ConfigError, match=r"decide no array: 'w\$'"):  # shadowed by the rule before it
        shardings(tree, make_mesh(), (Rule('.*', AUTO), Rule('w$', P('fsdp'))))
    with pytest.raises(ConfigError, match=r"'w\$' names 3 axes, but encoder/w has shape \(256, 256\)"):
        shardings(tree, make_mesh(), (Rule('w$', P('fsdp', None, None)),))
    with pytest.raises(ConfigError, match=r'qkv/kernel has shape \(36, 108\).*fsdp splits its axis 0 into 8 parts'):
        shardings({'attn': {'qkv': {'kernel': struct(36, 108)}}}, make_mesh(fsdp=8))
    with pytest.raises(ConfigError, match=r'fc2/kernel has shape \(36, 16\).*model splits its axis 0 into 8 parts'):
        shardings({'mlp': {'fc2': {'kernel': struct(36, 16)}}}, make_mesh(model=8))


def test_sharded_step_agrees_with_one_device():
    """A gradient step of a two-layer network: same numbers for every mesh, and parameters stay where they were put."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        'mlp': {
            'fc1': {'kernel': jax.random.normal(keys[0], (64, 256)) / 8, 'bias': jnp.zeros(256)},
            'fc2': {'kernel': jax.random.normal(keys[1], (256, 64)) / 16, 'bias': jnp.zeros(64)},
        }
    }
    images = jax.random.normal(keys[2], (32, 64))

    def step(params, x):
        def loss(p):
            hidden = jax.nn.gelu(x @ p['mlp']['fc1']['kernel'] + p['mlp']['fc1']['bias'])
            return jnp.mean((hidden @ p['mlp']['fc2']['kernel'] + p['mlp']['fc2']['bias'] - x) ** 2)

        return jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))

    expected = jax.jit(step)(params, images)
    for fsdp, model in ((1, 1), (2, 1), (8, 1), (2, 4)):
        mesh = make_mesh(fsdp=fsdp, model=model)
        placed = shardings(params, mesh, whole=False)
        stepped = jax.jit(step, out_shardings=placed)(
            jax.device_put(params, placed), jax.device_put(images, batch_sharding(mesh))
        )
        for (path, got), (_, want) in zip(flatten_with_paths(stepped), flatten_with_paths(expected), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=path)
        kernel = stepped['mlp']['fc1']['kernel']
        assert kernel.addressable_shards[0].data.shape == (64 // fsdp, 256 // model)
