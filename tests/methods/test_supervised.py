"""The supervised ViT: what the classifier reads, its loss and accuracy, the way of the labels, the pilot on it, refusals."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from tiny_runs import SIDE, init_plain, random_batch, random_state, start, tiny_config, trace_forward

from mim_jax.config import check_config, load_config
from mim_jax.data.augment import Crop
from mim_jax.data.loader import Loader
from mim_jax.data.sources import Example, open_source
from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings, evaluate
from mim_jax.interop.runs import build_recipe
from mim_jax.methods import BASES, PAPERS, build
from mim_jax.methods.mff import mff
from mim_jax.methods.mto import mto
from mim_jax.methods.supervised import read_logits, supervised
from mim_jax.networks import Networks
from mim_jax.objectives.classify import accuracy, cross_entropy
from mim_jax.training.assemble import assemble

CONFIG = Path(__file__).parents[2] / 'configs' / 'supervised.py'
CLASSES = 10  # of tiny_config


@pytest.fixture(scope='module')
def recipe():
    return supervised(tiny_config(encoder={'positions': 'learned'}))


@pytest.fixture(scope='module')
def state(recipe):
    return init_plain(recipe)


def forward_of(recipe, state, batch):
    key = jax.random.key(3)
    rows = jnp.arange(len(batch['main']))
    around = Surroundings(batch, rows, key, jnp.zeros((), jnp.int32), {}, {})
    return Forward(recipe, Networks(recipe, state.params, {}, key, 'evaluate'), around)


def reference_loss(logits, labels, smoothing):
    """In float64, term by term: (1 - s) times the label's surprise plus s times the mean surprise of all classes."""
    total, slope = 0.0, np.zeros(logits.shape)
    for row, (scores, label) in enumerate(zip(logits.astype(np.float64), labels, strict=True)):
        shifted = scores - scores.max()
        surprise = np.log(np.exp(shifted).sum()) - shifted
        total += (1 - smoothing) * surprise[label] + smoothing * surprise.mean()
        slope[row] = np.exp(-surprise) - smoothing / len(scores)
        slope[row, label] -= 1 - smoothing
    return total / len(labels), slope / len(labels)


# -- loss and accuracy -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.7])
@pytest.mark.parametrize('scale', [1.0, 300.0])
def test_the_loss_and_its_gradient_agree_with_a_transcription_in_float64(smoothing, scale):
    draw = np.random.default_rng(0)
    logits, labels = np.float32(scale * draw.normal(size=(6, 5))), np.array([0, 4, 2, 2, 1, 3])
    value, gradient = jax.value_and_grad(cross_entropy)(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    expected, slope = reference_loss(logits, labels, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, atol=1e-7)


def test_the_loss_is_what_torch_computes():
    """torch 2.13: F.cross_entropy(logits, labels, label_smoothing=0.1), its gradient at the first row."""
    logits, labels = jnp.array([[2.0, -1.0, 0.5], [0.25, 0.0, -3.0]]), jnp.array([0, 1])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, labels, 0.1)
    np.testing.assert_allclose(value, 0.66524059, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [-0.07386816, 0.00288962, 0.07097853], atol=1e-7)


def test_even_logits_cost_the_logarithm_of_the_classes():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((3, 7)), jnp.array([0, 3, 6]), 0.1), np.log(7), rtol=1e-6)


def test_bf16_logits_are_widened_first():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 50)), jnp.bfloat16)
    labels = jnp.arange(4)
    exact = cross_entropy(logits.astype(jnp.float32), labels, 0.1)
    assert cross_entropy(logits, labels, 0.1).dtype == jnp.float32
    assert cross_entropy(logits, labels, 0.1) == exact


def test_accuracy_by_hand():
    logits = jnp.array([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0], [0.0, 1.0, 2.0], [9.0, 8.0, 7.0]])
    assert accuracy(logits, jnp.array([0, 1, 2, 2])) == 75.0
    assert accuracy(logits, jnp.array([1, 0, 0, 1])) == 0.0


# -- the recipe ------------------------------------------------------------------------------------------------------------
def test_what_it_consists_of(recipe, state):
    assert (recipe.name, recipe.labels, recipe.inputs) == ('supervised', True, ('main', 'label'))
    assert recipe.objectives['classify'].kind == 'classify'
    assert recipe.mixed_places() == ()
    assert not recipe.pictures
    assert set(state.params) == {'encoder', 'objectives/classify/linear'}
    assert 'pos_embed' in state.params['encoder']
    kernel, bias = (state.params['objectives/classify/linear'][name] for name in ('kernel', 'bias'))
    assert kernel.shape == (16, CLASSES)
    assert 0.015 < float(kernel.std()) < 0.025
    assert not bias.any()


def test_the_classifier_reads_cls_of_the_whole_image_after_the_final_norm(recipe):
    """Recomputed from the encoder's own call, which norms the last block, with arbitrary parameters."""
    state, batch = random_state(recipe), random_batch(recipe, count=3)
    forward = forward_of(recipe, state, batch)
    assert forward.plan() is None
    head = state.params['objectives/classify/linear']
    tokens = recipe.encoder.apply({'params': state.params['encoder']}, forward.images())
    assert tokens.patches.shape[1] == (SIDE // 4) ** 2
    expected = np.asarray(tokens.prefix[:, 0], np.float64) @ np.float64(head['kernel']) + head['bias']
    np.testing.assert_allclose(read_logits(forward), expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1
    loss, logs = evaluate(forward)
    np.testing.assert_allclose(loss, reference_loss(expected, batch['label'], 0.1)[0], rtol=1e-5)
    assert set(logs) == {'loss/total', 'loss/classify', 'watch/accuracy'}
    assert logs['watch/accuracy'] == pytest.approx(100 * np.mean(expected.argmax(1) == batch['label']), abs=1e-3)


def test_logits_are_fp32_and_computed_once(monkeypatch):
    recipe, calls = supervised(tiny_config(dtype='bfloat16')), []
    head = Forward.head
    monkeypatch.setattr(Forward, 'head', lambda self, name, *inputs: calls.append(name) or head(self, name, *inputs))

    def read(forward):
        evaluate(forward)
        return read_logits(forward)

    assert trace_forward(recipe, read).dtype == jnp.float32
    assert calls == ['classify/linear']


def test_other_labels_other_loss(recipe, state):
    batch = random_batch(recipe, count=8)
    value, _ = evaluate(forward_of(recipe, state, batch))
    turned, _ = evaluate(forward_of(recipe, state, batch | {'label': np.roll(batch['label'], 1)}))
    assert (batch['label'] != np.roll(batch['label'], 1)).any()
    assert value != turned
    both, _ = evaluate(forward_of(recipe, state, {name: np.roll(array, 1, axis=0) for name, array in batch.items()}))
    np.testing.assert_allclose(value, both, rtol=1e-6)


def test_labels_must_be_asked_for(recipe):
    with pytest.raises(ValueError, match=r'supervised reads forward\.labels, but gets none; set labels=True'):
        trace_forward(replace(recipe, labels=False), evaluate)


# -- the step --------------------------------------------------------------------------------------------------------------
def test_accumulation_and_devices_do_not_show(recipe):
    """Three steps on one device, in four micro-batches, and on 2 x 4 devices; the pilot's neck is along."""
    pilot = mff(recipe, layers=('all',), projection='none')
    batches, first = [random_batch(pilot, seed) for seed in range(3)], random_state(pilot)
    runs = {
        name: start(pilot, *mesh, accumulate=accumulate, first=first).train(batches)
        for name, mesh, accumulate in (('one', (1, 1), 1), ('four', (1, 1), 4), ('mesh', (2, 4), 1))
    }
    _, logs = runs.pop('one')
    assert {'watch/neck/last/weight_00', 'watch/neck/last/weight_01', 'watch/neck/last/share_00'} <= logs[0].keys()
    assert logs[0]['watch/neck/last/weight_01'] != logs[2]['watch/neck/last/weight_01']  # it learns
    for _, told in runs.values():
        for one, more in zip(logs, told, strict=True):
            for key in ('loss/total', 'watch/accuracy', 'grad_norm', 'watch/neck/last/weight_01'):
                np.testing.assert_allclose(more[key], one[key], rtol=2e-5, err_msg=key)


class Images:
    """Noise images whose label is their index; those in `bad` cannot be decoded."""

    num_classes, description, fingerprint = 20, 'test images', '0' * 16

    def __init__(self, bad=()):
        self.bad = set(bad)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Example(b'broken' if index in self.bad else image, index, f'{index}.png')


def test_a_replaced_image_brings_its_own_label():
    """Every image is different, so that it tells which label belongs to it."""
    source = Images(bad=(3, 11))
    (batch,) = Loader(source, {'main': Crop('center', 8)}, 20, seed=0, threads=1, on_bad_image='skip').batches(0, 1)
    assert {3, 11}.isdisjoint(batch['label'])
    assert len(set(batch['label'].tolist())) == 18
    for image, label in zip(batch['main'], batch['label'], strict=True):
        np.testing.assert_array_equal(image, source[label].image)


# -- papers on it ----------------------------------------------------------------------------------------------------------
def read_config(variant, *overrides):
    methods = {**BASES, **PAPERS}
    config, _ = load_config(f'{CONFIG}:{variant}', [f'--config.{one}' for one in overrides], methods)
    check_config(config, methods)
    return config


def test_the_pilot_fuses_every_block_before_the_classifier():
    config = read_config('smoke,pilot', 'encoder.depth=3')
    assert config.papers == ('mff',)
    recipe = build(config, 1000, CLASSES)
    assert recipe.name == 'supervised+mff'
    neck = recipe.neck['last']
    assert (neck.layers, neck.projection, neck.fusion) == ((0, 1, 2), 'none', 'pool')
    assert recipe.charts['fusion_weights'].prefix == 'watch/neck/last/weight_'
    fused = mff(supervised(tiny_config()), layers=('all',), projection='none')
    state, batch = random_state(fused), random_batch(fused, count=2)
    forward = forward_of(fused, state, batch)
    weights = nn.softmax(state.params['neck/last']['logits'])
    mixed = sum(w * tokens.prefix[:, 0] for w, tokens in zip(weights, forward.levels().blocks, strict=True))
    norm, head = (state.params[role] for role in ('encoder', 'objectives/classify/linear'))
    cls = jax.nn.standardize(mixed, epsilon=1e-6) * norm['norm']['scale'] + norm['norm']['bias']
    np.testing.assert_allclose(read_logits(forward), cls @ head['kernel'] + head['bias'], atol=1e-5)


def test_mto_has_nothing_to_shape(recipe):
    with pytest.raises(Refused, match='mto shapes mask tokens among image tokens, and supervised has none'):
        mto(recipe)


# -- classes ---------------------------------------------------------------------------------------------------------------
def test_classes_are_the_dataset_s_unless_more_are_named():
    recipe, source = assemble(read_config('smoke'))
    assert recipe.config.classes == source.num_classes == 10
    assert recipe.objectives['classify'].heads['linear'].features == 10
    assert supervised(tiny_config(), classes=12).objectives['classify'].heads['linear'].features == 12
    for named, features in ((0, 1000), (10, 10), (2000, 2000)):  # without a dataset: see interop/runs.py
        without = build_recipe(read_config('smoke', f'supervised.classes={named}'))
        assert without.objectives['classify'].heads['linear'].features == features


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'classes': 9}, r'supervised\.classes=9 is less than the 10 classes of the dataset; set it to 0'),
        ({'classes': -1}, r'supervised\.classes=-1 is less than the 10 classes'),
        ({'label_smoothing': 1.0}, r'label_smoothing=1\.0 must be at least 0 and below 1'),
        ({'label_smoothing': -0.1}, r'label_smoothing=-0\.1 must be'),
    ],
)
def test_what_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(Refused, match=sentence):
        supervised(tiny_config(), **options)


@pytest.mark.parametrize('classes', [0, 10])
def test_a_dataset_without_labels_is_refused(classes, tmp_path):
    np.savez(tmp_path / 'bare.npz', train_images=np.zeros((64, 8, 8, 3), np.uint8))
    data = {'source': 'npz', 'name': '', 'dir': str(tmp_path / 'bare.npz')}
    assert open_source(ConfigDict(data), 'train').num_classes == 0
    config = read_config('smoke', 'data.source=npz', f'data.dir={data["dir"]}', f'supervised.classes={classes}')
    with pytest.raises(Refused, match=r'images of data\.split=train have none; use a labelled dataset, or a base'):
        assemble(config)
