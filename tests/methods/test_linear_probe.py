"""The linear probe on every base: a frozen encoder from a file, features, a row of learning rates in one pass, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from protocol_cases import run_program
from test_finetune import batch_of, make_base
from tiny_runs import QUICK, leaves

from mim_jax.errors import Refused
from mim_jax.evals.accuracy import make_predict
from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.methods import BASES
from mim_jax.methods.linear_probe import frozen_encoder, linear_probe
from mim_jax.networks import Networks
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Frozen
from mim_jax.teachers import digest_frozen, load_frozen
from mim_jax.weights.encoders import encoder_shapes, save_encoder
from mim_jax.weights.files import WeightsError, digest_file

LARS = {'name': 'lars', 'base_lr': 6.4, 'b1': 0.9, 'weight_decay': 0.0, 'decay_exclude': 'mae'}
POOLED = {'pool': 'mean'}  # MCMAE has no CLS token


@pytest.fixture(scope='module')
def make_probe(tmp_path_factory):
    """make_probe(base, **options): a probe of an encoder with arbitrary weights, in a file."""
    folder = tmp_path_factory.mktemp('encoders')

    def make(base='mae', encoder=(), **options):
        recipe = make_base(base, {**dict(encoder), 'positions': 'fixed'}, LARS)
        file, draw = folder / f'{base}.safetensors', np.random.default_rng(0)
        shapes = encoder_shapes(frozen_encoder(recipe))
        save_encoder(file, {name: 0.2 * draw.normal(size=leaf.shape) for name, leaf in shapes.items()}, {})
        return linear_probe(recipe, **{'weights': str(file), **(POOLED if base == 'mcmae' else {}), **options})

    return make


def forward_of(recipe, batch, params, stats, frozen, mode='train'):
    key, rows = jax.random.key(0), jnp.arange(len(batch['main']))
    around = Surroundings(batch, rows, key, jnp.int32(0), {}, frozen)
    return Forward(recipe, Networks(recipe, params, stats, key, mode), around)


def features_by_hand(recipe, images, layer=0, pool='cls', norm='encoder'):
    """f64[B,D], from the encoder itself."""
    teacher = recipe.teachers['encoder']
    scaled = (images / 255.0 - np.array(recipe.mean)) / np.array(recipe.std)
    params = {'params': teacher.load()}
    tokens = teacher.encoder.apply(params, jnp.float32(scaled), method='levels').blocks[layer - 1]
    if norm == 'encoder':
        tokens = teacher.encoder.apply(params, tokens, method='finish')
    x = np.float64(tokens.prefix[:, 0] if pool == 'cls' else np.asarray(tokens.patches).mean(axis=1))
    if norm == 'fresh':
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x


@pytest.mark.parametrize('base', BASES)
def test_every_base_is_probed_and_its_encoder_stays_outside(base, make_probe):
    """20 steps on one batch; the state holds the classifier and the statistics alone."""
    recipe = make_probe(base)
    assert recipe.name == f'{base}+linear_probe'
    batch = batch_of(recipe) | {'label': np.arange(16, dtype=np.int32) % 10}  # else the bias, unscaled, learns the most
    state, logs, _, first = run_program(recipe, [batch] * 20)
    assert {path.rpartition('/')[0] for path in leaves(state.params)} == {'objectives/probe/linear_00'}
    assert set(leaves(state.batch_stats)) == {'objectives/probe/norm/mean', 'objectives/probe/norm/var'}
    assert not state.teachers
    assert not any('encoder' in path for path in leaves(state.replace(root_key=())))
    losses = [float(log['loss/total']) for log in logs]
    assert losses[-1] < losses[0] - 0.03, losses
    assert all((value != leaves(first.params)[path]).any() for path, value in leaves(state.params).items())
    assert 0 <= logs[0]['watch/accuracy'] <= 100
    assert float(leaves(first.params)['objectives/probe/linear_00/kernel'].std()) == pytest.approx(0.01, rel=0.2)


def test_no_gradient_reaches_the_encoder(make_probe):
    recipe = make_probe()
    params, stats, _ = create_parameters(recipe, jax.random.key(0))
    frozen = load_frozen(recipe)

    def loss(both):
        return evaluate(forward_of(recipe, batch_of(recipe), both[0], stats, both[1]))[0]

    ours, theirs = jax.jit(jax.grad(loss), compiler_options=QUICK)((params, frozen))
    assert theirs.keys() == {'encoder'}
    for path, gradient in flatten_with_paths(theirs):
        np.testing.assert_array_equal(gradient, 0.0, err_msg=path)
    assert np.abs(leaves(ours)['objectives/probe/linear_00/kernel']).max() > 0


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'layer': 1},
        {'pool': 'mean', 'norm': 'fresh'},
        {'pool': 'mean', 'norm': 'none', 'layer': 1},
        {'pool': 'mean'},
        {'pool': 'cls', 'norm': 'none'},
    ],
)
def test_logits_are_those_of_the_layer_pool_and_norm_that_were_named(options, make_probe):
    """In training BatchNorm by the batch, in a test by what is remembered."""
    recipe = make_probe(**options)
    params, stats, _ = create_parameters(recipe, jax.random.key(0))
    stats = {role: {'mean': tree['mean'] + 0.3, 'var': tree['var'] * 2} for role, tree in stats.items()}
    batch, frozen = batch_of(recipe), load_frozen(recipe)
    x = features_by_hand(recipe, batch['main'], **options)
    head = params['objectives/probe/linear_00']
    for mode, mean, var in (('train', x.mean(0), x.var(0)), ('evaluate', 0.3, 2.0)):
        found = recipe.predict(forward_of(recipe, batch, params, stats, frozen, mode))['']
        expected = ((x - mean) / np.sqrt(var + 1e-6)) @ np.float64(head['kernel']) + head['bias']
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=mode)


def test_a_sweep_gives_each_head_what_it_gets_alone(make_probe):
    """Three rates in one pass, and the second by itself: the same weights, losses and answers after five steps."""
    rates = (0.5, 2.0, 8.0)
    sweep, alone = make_probe(rates=rates), make_probe(rates=rates[1:2])
    batches = [batch_of(sweep, seed) for seed in range(5)]
    both = run_program(sweep, batches)
    params = {'objectives/probe/linear_00': both.first.params['objectives/probe/linear_01']}
    single = run_program(alone, batches[:1])  # for the shape of its state
    one = run_program(alone, batches, first=single.first.replace(params=params))
    for name in ('kernel', 'bias'):
        found, expected = (
            run.params[-1][f'objectives/probe/linear_{i}/{name}'] for run, i in ((both, '01'), (one, '00'))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
        assert np.abs(found - both.params[-1][f'objectives/probe/linear_02/{name}']).max() > 1e-3
    for log, other in zip(both.logs, one.logs, strict=True):
        assert {f'loss/probe/{i:02d}' for i in range(3)} | {f'watch/accuracy/{i:02d}' for i in range(3)} <= log.keys()
        np.testing.assert_allclose(log['loss/probe/01'], other['loss/probe'], rtol=1e-5)
        np.testing.assert_allclose(log['lr'], other['lr'])
    images = batches[0]['main']
    found, expected = (make_predict(r)(run.state, load_frozen(r), images) for r, run in ((sweep, both), (alone, one)))
    assert set(found) == {'00', '01', '02'}
    np.testing.assert_allclose(found['01'], expected[''], atol=1e-5)


def test_devices_do_not_show(make_probe):
    recipe = make_probe(rates=(1.0, 4.0))
    batches = [batch_of(recipe, seed) for seed in range(3)]
    one = run_program(recipe, batches)
    eight = run_program(recipe, batches, 8, one.first)
    for a, b in zip(one.logs, eight.logs, strict=True):
        np.testing.assert_allclose(b['loss/total'], a['loss/total'], rtol=1e-5)
        np.testing.assert_allclose(b['watch/accuracy/01'], a['watch/accuracy/01'])


def test_statistics_of_groups_of_images(make_probe):
    """bn_images=4: as on devices that hold four images each."""
    recipe = make_probe(bn_images=4)
    params, stats, _ = create_parameters(recipe, jax.random.key(0))
    batch = batch_of(recipe)
    x = features_by_hand(recipe, batch['main']).reshape(4, 4, -1)
    x = ((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)).reshape(16, -1)
    head = params['objectives/probe/linear_00']
    found = recipe.predict(forward_of(recipe, batch, params, stats, load_frozen(recipe)))['']
    np.testing.assert_allclose(found, x @ head['kernel'] + head['bias'], atol=2e-5)


def test_the_encoder_is_whole_still_and_known_by_its_checksum(make_probe):
    """No drop path, no loop over blocks, whatever the config says; so one file fits."""
    recipe = make_probe(encoder={'drop_path': 0.5, 'scan': True, 'remat': 'full'})
    teacher = recipe.teachers['encoder']
    assert isinstance(teacher, Frozen)
    assert (teacher.encoder.drop_path, teacher.encoder.scan, teacher.encoder.remat) == (0.0, False, 'none')
    assert digest_frozen(recipe) == {'encoder': teacher.digest()}
    assert len(teacher.digest()) == 64


# -- what cannot be --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('base', 'options', 'sentence'),
    [
        (
            'mcmae',
            {'pool': 'cls'},
            r"linear_probe\.pool='cls' reads a CLS token, which mcmae's encoder has not; use pool=",
        ),
        ('mae', {'layer': 3}, r'linear_probe\.layer=3 must be a block from 1 to 2, or 0 for the last'),
        ('mae', {'layer': -1}, r'linear_probe\.layer=-1 must be'),
        ('mae', {'pool': 'max'}, r"linear_probe\.pool='max' must be mean or cls"),
        ('mae', {'norm': 'batch'}, r"norm='batch' one of encoder, fresh, none"),
        ('mae', {'rates': ()}, r'linear_probe\.rates=\(\) must be one number above 0 or more'),
        ('mae', {'rates': (1.0, 0.0)}, r'linear_probe\.rates=\(1\.0, 0\.0\) must be'),
        ('mae', {'rates': ('1',)}, r"linear_probe\.rates=\('1',\) must be"),
        ('mae', {'classes': 9}, r'linear_probe\.classes=9 is less than the 10 classes of the dataset'),
        ('mae', {'weights': ''}, r"linear_probe\.weights='' is no file\. Run python -m mim_jax\.evaluate"),
        ('mae', {'weights': '/nowhere.safetensors'}, r'is no file\. Run python -m mim_jax\.evaluate'),
        ('mae', {'bn_images': 5}, r'linear_probe\.bn_images=5'),
    ],
)
def test_what_makes_no_sense_is_refused(base, options, sentence, make_probe):
    with pytest.raises(Refused, match=sentence):
        make_probe(base, **options)


def test_a_file_of_another_encoder_is_refused_with_what_differs(make_probe, tmp_path):
    recipe = make_probe()
    arrays = dict(flatten_with_paths({'encoder': recipe.teachers['encoder'].load()}))
    del arrays['encoder/cls_token']
    arrays['encoder/other'] = np.zeros(3)
    arrays['encoder/norm/scale'] = np.zeros(5)
    save_encoder(tmp_path / 'other.safetensors', arrays, {})
    with pytest.raises(WeightsError) as caught:
        load_frozen(make_probe(weights=str(tmp_path / 'other.safetensors')))
    for words in (
        'encoder/cls_token: missing',
        'encoder/other: unknown',
        'encoder/norm/scale: shape (5,), wanted (16,)',
    ):
        assert words in str(caught.value)
    assert digest_file(tmp_path / 'other.safetensors') != recipe.teachers['encoder'].digest()
