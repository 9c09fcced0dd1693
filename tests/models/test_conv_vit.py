"""The convolutional ViT: visible patches alone equal the whole map under a mask; forms, drop-path, initial values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import QUICK, random_parameters

from mim_jax.models.conv_vit import ConvBlock, ConvViT
from mim_jax.models.places import Places
from mim_jax.models.stages import AddStages
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.tokens import Tokens, gather_tokens, plan_from_scores, sincos_positions

KEY = jax.random.key(0)
SIZES = {'patch_size': 8, 'width': 16, 'depth': 1, 'heads': 2, 'stage_widths': (8, 12), 'stage_depths': (2, 1)}


@pytest.fixture(scope='module')
def images():
    """3 x 5 patches of 8 pixels."""
    return jax.random.normal(KEY, (4, 24, 40, 3))


@pytest.fixture(scope='module')
def plan():
    return plan_from_scores(jax.random.uniform(jax.random.key(1), (4, 15)), 6)


@pytest.fixture(scope='module')
def params(images):
    return random_parameters(ConvViT(**SIZES), images)


def run(params, images, plan=None, method=None, rngs=None, **changes):
    """Apply the encoder with SIZES and `changes`, compiled quickly."""
    module = ConvViT(**{**SIZES, **changes})
    program = jax.jit(
        lambda p, x, plan: module.apply({'params': p}, x, plan, method=method, rngs=rngs), compiler_options=QUICK
    )
    return program(params, images, plan)


# -- the released form: whole maps, a mask that multiplies what the depth-wise convolution reads ------------------------


def dense_stages(params, images, masked):
    """Maps of both stages f[B,h,w,C] and f[B,N,D] before positions, masked places included, as convolutions of images."""

    def convolve(x, p, side, **options):
        kernel = p['kernel'].reshape(side, side, -1, p['kernel'].shape[-1])
        strides = (side, side) if not options else (1, 1)
        names = ('NHWC', 'HWIO', 'NHWC')
        options = {'padding': 'VALID', **options}
        return jax.lax.conv_general_dilated(x, kernel, strides, dimension_numbers=names, **options) + p['bias']

    def normalise(x, p):
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']

    def gelu(x):
        return jax.nn.gelu(x, approximate=False)

    def embed(x, p, side):
        return gelu(normalise(convolve(x, p['proj'], side), p['norm']))

    def stage(x, blocks):
        factor = x.shape[1] // 3
        shown = 1.0 - masked.reshape(-1, 3, 5).repeat(factor, axis=1).repeat(factor, axis=2)[..., None]
        for _, p in sorted(blocks.items()):
            y = shown * convolve(normalise(x, p['norm1']), p['conv1'], 1)
            y = convolve(y, p['depthwise'], 5, padding='SAME', feature_group_count=x.shape[-1])
            x = x + convolve(y, p['conv2'], 1)
            x = x + convolve(gelu(convolve(normalise(x, p['norm2']), p['fc1'], 1)), p['fc2'], 1)
        return x

    first = stage(embed(images, params['embed1'], 2), params['stage1'])
    second = stage(embed(first, params['embed2'], 2), params['stage2'])
    third = embed(second, params['embed3'], 2).reshape(len(images), 15, -1)
    return first, second, third @ params['embed4']['kernel'] + params['embed4']['bias']


def cells_of(feature_map, keep):
    """f[B,3s,5s,C] -> f[B,V,s*s,C] by indexing, patch by patch."""
    b, height, _, channels = feature_map.shape
    s = height // 3
    cells = feature_map.reshape(b, 3, s, 5, s, channels).swapaxes(2, 3).reshape(b, 15, s * s, channels)
    return cells[jnp.arange(b)[:, None], keep]


@pytest.mark.parametrize('masked', [True, False], ids=['masked', 'whole'])
def test_visible_patches_alone_equal_the_released_form(params, images, plan, masked):
    chosen = plan if masked else None
    keep = plan.keep if masked else jnp.tile(jnp.arange(15), (4, 1))

    def ours(params):
        levels = ConvViT(**SIZES).apply({'params': params}, images, chosen, method='levels')
        return [levels.maps['stage1'], levels.maps['stage2'], levels.embedding.patches]

    def dense(params):
        hidden = plan.masked if masked else jnp.zeros((4, 15), bool)
        *maps, tokens = dense_stages(params, images, hidden)
        return [*(cells_of(one, keep) for one in maps), gather_tokens(tokens, keep)]

    def loss_of(read):
        return lambda params: (sum(jnp.sin(3 * part).mean() for part in read(params)), read(params))

    (((_, found), gradient), ((_, expected), expected_gradient)) = (
        jax.jit(jax.value_and_grad(loss_of(read), has_aux=True), compiler_options=QUICK)(params)
        for read in (ours, dense)
    )
    assert [part.shape[1:] for part in found] == [(len(keep[0]), 16, 8), (len(keep[0]), 4, 12), (len(keep[0]), 16)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    stages = [path for path, _ in flatten_with_paths(gradient) if path.startswith(('embed', 'stage'))]
    flat, flat_expected = dict(flatten_with_paths(gradient)), dict(flatten_with_paths(expected_gradient))
    for path in stages:
        np.testing.assert_allclose(flat[path], flat_expected[path], atol=1e-5, err_msg=path)
        assert np.abs(flat[path]).max() > 1e-4, path


def test_masked_pixels_cannot_be_seen(params, images, plan):
    hidden = jnp.repeat(jnp.repeat(plan.masked.reshape(4, 3, 5), 8, 1), 8, 2)[..., None]
    encode = jax.jit(lambda images: ConvViT(**SIZES).apply({'params': params}, images, plan).patches)
    ours, same, other = encode(images), encode(jnp.where(hidden, images + 7.0, images)), encode(images + 7.0)
    np.testing.assert_array_equal(ours, same)
    assert np.abs(ours - other).max() > 1e-3


def test_spread_and_collect(plan):
    """What is spread is found at the patch's place, zeros elsewhere, and collected as it was."""
    places, cells = Places(plan, 3, 5), jax.random.normal(KEY, (4, 6 * 4, 2))
    whole = places.spread(cells)
    assert whole.shape == (4, 6, 10, 2)
    np.testing.assert_array_equal(places.collect(whole), cells)
    first = int(plan.keep[1, 0])
    row, column = divmod(first, 5)
    np.testing.assert_array_equal(
        whole[1, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(4, 2), cells[1, :4]
    )
    hidden = np.asarray(plan.masked).reshape(4, 3, 5).repeat(2, 1).repeat(2, 2)
    assert np.abs(np.asarray(whole)[hidden]).max() == 0
    assert (np.asarray(whole)[~hidden] != 0).all()


def test_merge_reads_squares_of_cells():
    cells = jnp.arange(16.0).reshape(1, 16, 1)
    merged = Places(None, 1, 1).merge(cells)
    np.testing.assert_array_equal(merged[0], [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


# -- forms of the same network -----------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def outputs_and_gradients(images, plan):
    """(parameters, changes to SIZES) -> a loss over the output and its gradients."""

    def outputs_and_gradients(params, **changes):
        module = ConvViT(**SIZES, **changes)
        loss = lambda params: jnp.sin(3 * module.apply({'params': params}, images, plan).patches).mean()  # noqa: E731
        return jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)

    return outputs_and_gradients


@pytest.fixture(scope='module')
def expected(outputs_and_gradients, params):
    return outputs_and_gradients(params)


@pytest.mark.parametrize(('scan', 'remat'), [(False, 'full'), (True, 'dots')])
def test_scan_and_remat_change_nothing(outputs_and_gradients, expected, params, scan, remat):
    names = [f'block_{i:02d}' for i in range(SIZES['depth'])]
    stacked = {name: value for name, value in params.items() if name not in names}
    stacked['blocks'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    value, gradient = outputs_and_gradients(stacked if scan else params, scan=scan, remat=remat)
    np.testing.assert_allclose(value, expected[0], atol=1e-6)
    for name in ('embed1', 'stage1', 'stage2', 'norm'):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient[name], expected[1][name])


def test_bf16_is_close_to_fp32(params, images, plan):
    exact, rounded = (run(params, images, plan, dtype=dtype).patches for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.dtype == jnp.bfloat16
    assert 0 < np.linalg.norm(rounded.astype(jnp.float32) - exact) / np.linalg.norm(exact) < 3e-2


def test_learned_positions_start_as_the_fixed_ones(params, images, plan):
    learned = {'grid': (3, 5), 'learned_positions': True}
    shapes = jax.eval_shape(ConvViT(**SIZES, **learned).init, KEY, images)['params']
    assert shapes['pos_embed'].shape == (1, 15, 16)
    table = {'pos_embed': jnp.asarray(sincos_positions(3, 5, 16))[None]}
    ours = run({**params, **table}, images, plan, **learned).patches
    np.testing.assert_allclose(ours, run(params, images, plan).patches, atol=1e-6)


def test_the_final_norm_has_its_own_epsilon(params):
    """1e-6, not the stages' 1e-5: seen on tokens of hardly any contrast."""
    flat = 1e-3 * jnp.tile(jnp.array([1.0, -1.0]), (4, 6, 8))
    finished = ConvViT(**SIZES).apply({'params': params}, Tokens(flat[:, :0], flat), method='finish').patches
    expected = flat / jnp.sqrt(1e-6 + 1e-6) * params['norm']['scale'] + params['norm']['bias']
    np.testing.assert_allclose(finished, expected, atol=1e-5)


# -- drop-path ---------------------------------------------------------------------------------------------------------


def test_drop_path_drops_branches_of_whole_samples():
    """Equal samples: with two branches there are four outcomes, one of them the input itself."""
    cells = jnp.broadcast_to(jax.random.normal(KEY, (1, 4, 8)), (64, 4, 8))
    block, places = ConvBlock(), Places(None, 2, 2)
    params = random_parameters(block, cells, jnp.zeros(()), places)

    def apply(rate, **rngs):
        return block.apply({'params': params}, cells, jnp.asarray(rate), places, rngs=rngs)

    outcomes = np.unique(np.asarray(apply(0.5, drop_path=KEY)).round(4), axis=0)
    assert len(outcomes) == 4
    assert np.abs(outcomes - cells[0]).max((1, 2)).min() < 1e-3
    np.testing.assert_allclose(apply(0.0, drop_path=KEY), apply(0.5), atol=1e-5)


def test_drop_path_ramps_over_the_blocks_of_all_stages(images):
    """One of each: rates 0, 1/2 and 1 of a rate of nearly 1; the first keeps all, the last adds nothing."""
    one = {'stage_depths': (1, 1)}
    params = random_parameters(ConvViT(**{**SIZES, **one}), images)
    dropped = run(params, images, method='levels', rngs={'drop_path': KEY}, drop_path=0.999999, **one)
    kept = run(params, images, method='levels', **one)
    np.testing.assert_allclose(dropped.maps['stage1'], kept.maps['stage1'], atol=1e-5)
    assert np.abs(dropped.maps['stage2'] - kept.maps['stage2']).max() > 1e-2
    placed = dropped.embedding.patches + sincos_positions(3, 5, 16)
    np.testing.assert_allclose(dropped.last.patches, placed, atol=1e-5)


# -- the neck and initial values ---------------------------------------------------------------------------------------


def test_stages_are_added_to_the_visible_patches(params, images, plan):
    levels = run(params, images, plan, method='levels')
    neck = random_parameters(AddStages(), levels)
    added = AddStages().apply({'params': neck}, levels)
    assert added.prefix.shape == (4, 0, 16)
    expected = sum(
        jnp.einsum('bvnc,ncd->bvd', cells, neck[name]['kernel'].reshape(*cells.shape[2:], 16)) + neck[name]['bias']
        for name, cells in levels.maps.items()
    )
    np.testing.assert_allclose(added.patches, expected, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope='module')
def fresh():
    """{path: array} of a new encoder and neck, wide enough for statistics."""
    module = ConvViT(16, 64, 2, 4, stage_widths=(32, 48), stage_depths=(1, 1))
    images = jnp.zeros((1, 32, 32, 3))

    def create(key):
        levels, made = module.init_with_output(key, images, method='levels')
        done = module.init(key, levels.last, method='finish')['params']
        return {**made['params'], **done, 'neck': AddStages().init(key, levels)['params']}

    made = jax.jit(create, compiler_options=QUICK)(KEY)
    return {path: np.asarray(leaf) for path, leaf in flatten_with_paths(made)}


def test_initial_values_are_the_released_ones(fresh):
    """Xavier for linear layers and the third embedding; PyTorch's U(+-1/sqrt(fan-in)) for convolutions, bias too."""
    fans = {
        **{'embed1/proj': 48, 'embed2/proj': 128, 'neck/stage1': 512, 'neck/stage2': 192},
        **{f'stage1/block_00/{name}': 32 for name in ('conv1', 'conv2', 'fc1')},
        **{f'stage2/block_00/{name}': 48 for name in ('conv1', 'conv2', 'fc1')},
        **{'stage1/block_00/fc2': 128, 'stage2/block_00/fc2': 192},
        **{f'stage{i}/block_00/depthwise': 25 for i in (1, 2)},
    }
    seen = set()
    for path, leaf in fresh.items():
        module, _, name = path.rpartition('/')
        if name == 'scale' or (name == 'bias' and module.endswith(('norm', 'norm1', 'norm2'))):
            np.testing.assert_array_equal(leaf, float(name == 'scale'), err_msg=path)
        elif module in fans or path == 'embed3/proj/bias':
            bound = fans.get(module, 192) ** -0.5
            seen.add(module)
            assert 0.85 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6), path
            assert abs(leaf.std() / (bound / math.sqrt(3)) - 1) < 2 / math.sqrt(leaf.size), path
        elif name == 'kernel':
            bound = math.sqrt(6 / sum(leaf.shape))
            assert 0.98 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6), path
            assert abs(leaf.std() / (bound / math.sqrt(3)) - 1) < 0.03, path
        else:
            np.testing.assert_array_equal(leaf, 0.0, err_msg=path)
    assert seen == {*fans, 'embed3/proj'}
    assert {'embed3/proj/kernel', 'embed4/kernel', 'block_01/attn/qkv/kernel'} <= set(fresh)
