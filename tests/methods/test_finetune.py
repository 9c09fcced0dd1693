"""Fine-tuning on every base: what it reads, draws and trains, its average of the weights, what it refuses."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from protocol_cases import run_program
from test_precision import OPTIONS
from tiny_runs import QUICK, init_plain, leaves, random_batch, random_state, tiny_config

from mim_jax.errors import Refused
from mim_jax.evals.accuracy import make_predict
from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.interop.blocks import stack_blocks, unstack_blocks
from mim_jax.methods import BASES
from mim_jax.methods.finetune import Classifier, batch_key, finetune
from mim_jax.methods.mff import mff
from mim_jax.mixing import draw_mix, erase, mix_images, mix_labels
from mim_jax.networks import Networks, named_key
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.training.assemble import make_program

PLAIN = {'mixup': 0.0, 'cutmix': 0.0, 'erase_probability': 0.0}
STILL = {'label_smoothing': 0.0, 'head_deviation': 0.02, **PLAIN}
CLASSES, LR = 10, 5e-3


def make_base(base='mae', encoder: Mapping = {}, optim: Mapping = {}, **top):
    sizes = {'patch_size': 8, 'width': 32, 'depth': 2, 'heads': 2} if base == 'mcmae' else {}
    side = 32 if base == 'mcmae' else 16
    positions = {} if base in ('simmim', 'conmim') else {'positions': 'learned'}
    rates = {'base_lr': LR, 'lr_scaling': 'none', 'warmup_epochs': 0.4, 'decay_exclude': 'simmim', 'b2': 0.999}
    config = tiny_config({**sizes, **positions, **encoder}, {**rates, **optim}, image_size=side, batch_size=16, **top)
    return BASES[base](config, **OPTIONS[base])


def make_recipe(base='mae', encoder: Mapping = {}, optim: Mapping = {}, **options):
    return finetune(make_base(base, encoder, optim), **options)


def batch_of(recipe, seed=0, count=16):
    side = recipe.config.image_size
    batch = random_batch(recipe, seed, count)
    return batch | {'main': np.ascontiguousarray(batch['main'].repeat(side // 16, 1).repeat(side // 16, 2))}


def forward_of(recipe, state, batch, mode='train', step=0):
    key = named_key(jax.random.key(0), 'step', step)
    rows = jnp.arange(len(batch['main']))
    around = Surroundings(batch, rows, key, jnp.int32(step), state.teachers, {})
    return Forward(recipe, Networks(recipe, state.params, state.batch_stats, key, mode), around)


@pytest.mark.parametrize('base', BASES)
def test_every_base_learns_one_batch(base):
    """20 steps on one batch, layer by layer at its own rate; nothing of pre-training is left."""
    recipe = make_recipe(base, **STILL)
    assert recipe.name == f'{base}+finetune'
    batch = batch_of(recipe)
    state, logs, _, first = run_program(recipe, [batch] * 20)
    assert {role.split('/')[0] for role in state.params} <= {'encoder', 'neck', 'objectives'}
    assert not any(part in path for path in leaves(state.params) for part in ('mask_token', 'decoder', 'encoder/norm/'))
    assert not state.teachers
    assert not recipe.pictures
    losses = [float(log['loss/total']) for log in logs]
    assert losses[0] == pytest.approx(np.log(CLASSES), rel=0.1)
    assert losses[-1] < 0.9 * losses[0], losses
    before, after = leaves(first.params), leaves(state.params)
    still = [path for path, value in before.items() if np.array_equal(value, after[path])]
    assert not still  # everything that is left is trained


def test_the_classifier_reads_the_mean_of_the_patches_through_a_norm_of_its_own():
    recipe = make_recipe(**STILL)
    state, batch = random_state(recipe), batch_of(recipe, count=3)
    forward = forward_of(recipe, state, batch)
    images = (batch['main'] / 255.0 - np.array(recipe.mean)) / np.array(recipe.std)
    levels = recipe.encoder.apply({'params': state.params['encoder']}, jnp.float32(images), method='levels')
    x = np.asarray(levels.last.patches, np.float64).mean(axis=1)
    head = jax.tree.map(np.float64, state.params['objectives/classify/head'])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    logits = (x * head['norm']['scale'] + head['norm']['bias']) @ head['linear']['kernel'] + head['linear']['bias']
    np.testing.assert_allclose(recipe.predict(forward)[''], logits, atol=1e-4)
    surprise = np.log(np.exp(logits).sum(-1)) - logits[np.arange(3), batch['label']]
    np.testing.assert_allclose(evaluate(forward)[0], surprise.mean(), rtol=1e-5)
    assert 'norm' not in state.params['encoder']


def test_cls_is_read_after_the_norm_of_the_encoder():
    recipe = make_recipe(pool='cls', **STILL)
    state, batch = random_state(recipe), batch_of(recipe, count=3)
    forward = forward_of(recipe, state, batch)
    assert set(state.params['objectives/classify/head']) == {'linear'}
    tokens = recipe.encoder.apply({'params': state.params['encoder']}, forward.images())
    linear = state.params['objectives/classify/head']['linear']
    expected = tokens.prefix[:, 0] @ linear['kernel'] + linear['bias']
    np.testing.assert_allclose(recipe.predict(forward)[''], expected, atol=1e-5)


def test_the_classifier_starts_with_weights_of_its_deviation():
    x = jnp.zeros((2, 400))
    for deviation in (2e-5, 1.0):
        params = Classifier(1000, True, deviation).init(jax.random.key(0), x)['params']
        assert float(params['linear']['kernel'].std()) == pytest.approx(deviation, rel=0.01)
        assert not params['linear']['bias'].any()


# -- what is drawn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('alphas', [(0.8, 1.0, 0.5), (0.8, 0.0, 0.5), (0.0, 1.0, 0.5)])
def test_images_and_labels_are_mixed_by_the_same_draw(alphas):
    """By hand from the step's key: each image erased with its own, then the batch mixed; at six steps."""
    named = dict(zip(('mixup', 'cutmix', 'switch_probability'), alphas, strict=True))
    recipe = make_recipe(erase_probability=0.5, **named)
    state, batch = random_state(recipe), batch_of(recipe)

    def by_hand(step):
        base = named_key(jax.random.key(0), 'step', step, 'photometric', 'main')
        keys = jax.vmap(lambda row: jax.random.fold_in(base, row))(jnp.arange(16))
        mix = draw_mix(batch_key(keys), 16, *alphas)
        pixels = erase(batch['main'].astype(np.float32) / 255.0, keys, 0.5, recipe.mean, recipe.std)
        return mix_images(pixels, mix), mix_labels(batch['label'], mix, CLASSES, 0.1), mix

    def by_recipe(step):
        forward = forward_of(recipe, state, batch, step=step)
        return forward.pixels(), recipe.predict(forward)[''], evaluate(forward)[0]

    expected, found = jax.jit(lambda step: (by_hand(step), by_recipe(step)), compiler_options=QUICK), []
    for step in range(6):
        (mixed, targets, mix), (pixels, logits, loss) = expected(step)
        np.testing.assert_allclose(pixels, mixed, atol=1e-6)
        np.testing.assert_allclose(loss, -(targets * jax.nn.log_softmax(logits)).sum(-1).mean(), rtol=1e-5)
        found.append((bool(mix.cut), float(mix.weight)))
    cuts, weights = map(set, zip(*found, strict=True))
    assert cuts == ({True, False} if all(alphas[:2]) else {alphas[1] > 0})
    assert len(weights) == 6  # another draw at every step


def test_micro_batches_are_mixed_each_by_a_draw_of_its_own():
    recipe = make_recipe(erase_probability=0.0)
    keys = forward_of(recipe, random_state(recipe), batch_of(recipe)).keys('photometric', 'main')
    first, second = (batch_key(keys[rows]) for rows in (slice(0, None, 2), slice(1, None, 2)))
    assert jax.random.key_data(first).tolist() != jax.random.key_data(second).tolist()
    assert jax.random.key_data(first).tolist() == jax.random.key_data(batch_key(keys)).tolist()


def test_without_mixing_the_targets_are_smoothed_labels():
    recipe = make_recipe(label_smoothing=0.3, **PLAIN)
    state, batch = random_state(recipe), batch_of(recipe)
    forward = forward_of(recipe, state, batch)
    np.testing.assert_array_equal(forward.pixels(), np.float32(batch['main']) / np.float32(255.0))
    targets = 0.7 * np.eye(CLASSES)[batch['label']] + 0.3 / CLASSES
    logits = np.asarray(recipe.predict(forward)[''], np.float64)
    surprise = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
    np.testing.assert_allclose(evaluate(forward)[0], (targets * surprise).sum(-1).mean(), rtol=1e-5)


def test_a_test_draws_nothing():
    """Neither erasing nor mixing nor drop path: the logits of plain images, and labels are not needed."""
    recipe = make_recipe(encoder={'drop_path': 0.5}, erase_probability=1.0)
    state, batch = random_state(recipe), batch_of(recipe)
    still = make_recipe(**STILL)
    expected = still.predict(forward_of(still, state, batch, 'evaluate'))['']
    np.testing.assert_allclose(make_predict(recipe)(state, {}, batch['main'])[''], expected, atol=1e-6)
    drawn = recipe.predict(forward_of(recipe, state, batch))['']
    assert np.abs(drawn - expected).max() > 1e-3


def test_drop_path_acts_in_training_alone():
    batch, state = None, None
    losses = {}
    for rate in (0.0, 0.5):
        recipe = make_recipe(encoder={'drop_path': rate}, **STILL)
        batch, state = batch_of(recipe), state or random_state(recipe)
        for mode in ('train', 'evaluate'):
            losses[rate, mode] = [float(evaluate(forward_of(recipe, state, batch, mode, step))[0]) for step in (0, 1)]
    assert losses[0.0, 'train'] == losses[0.0, 'evaluate'] == losses[0.5, 'evaluate']
    assert len({losses[0.0, 'train'][0], *losses[0.5, 'train']}) == 3


# -- training --------------------------------------------------------------------------------------------------------------
def test_the_average_is_the_running_mean_of_all_weights_and_is_tested_beside_them():
    recipe = make_recipe(average=0.75, head_deviation=0.02)
    batches = [batch_of(recipe, seed) for seed in range(3)]
    state, _, params, first = run_program(recipe, batches)
    average = leaves(first.params)
    assert leaves(first.teachers['average']['params']).keys() == average.keys()
    for now in params:
        average = {path: 0.75 * average[path] + 0.25 * value for path, value in now.items()}
    held = leaves(state.teachers['average']['params'])
    for path, value in average.items():
        np.testing.assert_allclose(held[path], value, rtol=1e-5, atol=1e-7, err_msg=path)
    found = make_predict(recipe)(state, {}, batches[0]['main'])
    averaged = make_predict(recipe)(state.replace(params=state.teachers['average']['params']), {}, batches[0]['main'])
    assert set(found) == {'', 'average'}
    np.testing.assert_allclose(found['average'], averaged[''], atol=1e-6)
    assert np.abs(found['average'] - found['']).max() > 1e-4


@pytest.mark.slow
def test_devices_do_not_show():
    """Everything that is drawn is drawn for the global batch: three steps on 1 and on 8 devices."""
    recipe = make_recipe(encoder={'drop_path': 0.2}, average=0.9)
    batches = [batch_of(recipe, seed) for seed in range(3)]
    one = run_program(recipe, batches)
    eight = run_program(recipe, batches, 8, one.first)
    for a, b in zip(one.logs, eight.logs, strict=True):
        np.testing.assert_allclose(b['loss/total'], a['loss/total'], rtol=1e-5)
        np.testing.assert_allclose(b['grad_norm'], a['grad_norm'], rtol=1e-4)


def test_layers_move_at_their_rates():
    """Adam's first step is the learning rate times a sign: largest movement of a layer is its multiplier."""
    decay = 0.5
    recipe = make_recipe(optim={'warmup_epochs': 0.0, 'weight_decay': 0.0}, layer_decay=decay, **STILL)
    state, _, _, first = run_program(recipe, [batch_of(recipe)])
    before, after = leaves(first.params), leaves(state.params)
    moved = {path: float(np.abs(after[path] - value).max()) / LR for path, value in before.items()}
    for path, layer in {
        'encoder/patch_embed/kernel': 0,
        'encoder/cls_token': 0,
        'encoder/pos_embed': 0,
        'encoder/block_00/attn/qkv/kernel': 1,
        'encoder/block_01/mlp/fc2/kernel': 2,
        'objectives/classify/head/norm/bias': 3,
        'objectives/classify/head/linear/kernel': 3,
    }.items():
        assert moved[path] == pytest.approx(decay ** (3 - layer), rel=1e-2), path


def test_looped_blocks_move_as_the_blocks_do():
    """encoder.scan changes how the program is compiled: two steps from the same weights end at the same."""
    whole, looped = (make_recipe(encoder={'scan': scan}, **STILL) for scan in (False, True))
    batches = [batch_of(whole, seed) for seed in range(2)]
    apart, stacked = run_program(whole, batches), make_program(looped, make_mesh(devices=jax.devices()[:1]))
    weights = stack_blocks(leaves(apart.first.params), dict(flatten_with_paths(stacked.abstract.params)))
    first = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), stacked.abstract.replace(root_key=()))
    params = jax.tree.unflatten(jax.tree.structure(first.params), list(weights.values()))
    found = run_program(looped, batches, first=first.replace(params=params, root_key=apart.first.root_key))
    assert any('encoder/blocks/' in path for path in found.params[-1])
    for path, value in unstack_blocks(found.params[-1]).items():
        start, expected = leaves(apart.first.params)[path], apart.params[-1][path]
        gap = np.abs(value - expected)
        assert np.quantile(gap, 0.6) < 1e-3 * np.abs(expected - start).max(), path  # that of keys is rounding
        assert gap.max() < LR, path


# -- what cannot be --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('base', 'options', 'sentence'),
    [
        ('mcmae', {'pool': 'cls'}, r"finetune\.pool='cls' reads a CLS token, which mcmae's encoder has not; use mean"),
        ('mae', {'pool': 'max'}, r"finetune\.pool='max' must be mean or cls"),
        ('mae', {'classes': 9}, r'finetune\.classes=9 is less than the 10 classes of the dataset; set it to 0'),
        ('mae', {'layer_decay': 0.0}, r'finetune\.layer_decay=0\.0 must be above 0 and at most 1, which is off'),
        ('mae', {'layer_decay': 1.5}, r'finetune\.layer_decay=1\.5 must be'),
        ('mae', {'label_smoothing': 1.0}, r'finetune\.label_smoothing=1\.0 must be at least 0 and below 1'),
        ('mae', {'average': 1.0}, r'finetune\.average=1\.0 must be at least 0 and below 1'),
        ('mae', {'mixup': -0.1}, r'finetune\.mixup=-0\.1 and cutmix=1\.0 must not be negative; 0 is off'),
        ('mae', {'erase_probability': 1.1}, r'finetune\.erase_probability=1\.1 must be from 0 to 1'),
        ('mae', {'switch_probability': 1.1}, r'finetune\.switch_probability=1\.1 must be from 0 to 1'),
        ('mae', {'head_deviation': -1.0}, r'finetune\.head_deviation=-1\.0 must not be negative'),
    ],
)
def test_what_makes_no_sense_is_refused(base, options, sentence):
    with pytest.raises(Refused, match=sentence):
        finetune(make_base(base), **options)


def test_labels_are_needed():
    base = make_base()
    base.config.classes = 0
    with pytest.raises(Refused, match=r'finetune learns labels, and the images of data\.split=train have none'):
        finetune(base)


def test_what_pre_training_added_is_gone():
    """MFF's fusion, mask tokens, teachers: the classifier reads the last block alone, whatever the encoder was trained by."""
    plain, fused = finetune(make_base(), **STILL), finetune(mff(make_base()), **STILL)
    assert fused.name == 'mae+mff+finetune'
    assert leaves(init_plain(fused).params).keys() == leaves(init_plain(plain).params).keys()
    state, batch = random_state(plain), batch_of(plain)
    run = jax.jit(lambda recipe=fused: recipe.predict(forward_of(recipe, state, batch))[''], compiler_options=QUICK)
    np.testing.assert_allclose(run(), plain.predict(forward_of(plain, state, batch))[''], atol=1e-6)
    with pytest.raises(Refused, match='finetune is already part of'):
        finetune(fused)
