"""Counts of hits: the same on any number of devices, ties by a stated rule, nothing silently wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from mim_jax.data.augment import Crop
from mim_jax.data.loader import eval_batches
from mim_jax.data.sources import ArraySource
from mim_jax.errors import ConfigError, DataError, UserError
from mim_jax.evals.counting import Predictions, count_correct, rank_labels
from mim_jax.evals.features import extract_features
from mim_jax.parallel.mesh import make_mesh, replicated

CLASSES, SIDE = 12, 4
WEIGHTS = np.random.default_rng(7).normal(size=(SIDE * SIDE * 3, CLASSES)).astype(np.float32)


def make_source(count, classes=CLASSES):
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return ArraySource(images, draw.integers(0, classes, count), classes, np.arange(count), 'noise', '0' * 16)


def read(source, batch=16, **options):
    return eval_batches(source, Crop('center', SIDE), batch, threads=1, **options)


def flat_logits(images):
    return (images.reshape(len(images), -1).astype(jnp.float32) / 255 - 0.5) @ WEIGHTS


def on_mesh(count):
    mesh = make_mesh(devices=jax.devices()[:count])
    return jax.jit(flat_logits, out_shardings=replicated(mesh)), mesh


def given(logits, labels, weights=None):
    """One batch whose images are row numbers, and what answers with `logits`."""
    rows = np.arange(len(labels))
    weight = np.ones(len(labels), np.float32) if weights is None else np.asarray(weights, np.float32)
    batch = {'image': rows, 'label': np.asarray(labels, np.int32), 'index': rows, 'weight': weight}
    return lambda images: np.asarray(logits, np.float32)[images], [batch]


@pytest.mark.parametrize('count', [1, 37, 101])
def test_counts_are_the_same_on_one_and_eight_devices(count):
    source = make_source(count)
    expected = flat_logits(np.stack([source[i].image for i in range(count)]))
    labels = np.array([source[i].label for i in range(count)])
    results = []
    for devices in (1, 8):
        predict, mesh = on_mesh(devices)
        saved = Predictions()
        results.append(count_correct(predict, read(source), mesh, source, predictions=saved))
        arrays = saved.arrays()
        np.testing.assert_allclose(arrays['logits'], expected, atol=1e-5)
        assert arrays['index'].tolist() == list(range(count))
        assert arrays['label'].tolist() == labels.tolist()
    predict, _ = on_mesh(1)
    results.append(count_correct(predict, read(source, 5)))
    assert results[0] == results[1] == results[2]
    order = np.argsort(-np.asarray(expected), axis=1, kind='stable')
    hits = [int((order[:, :k] == labels[:, None]).sum()) for k in (1, 5)]
    assert results[0] == {'top1': 100 * hits[0] / count, 'top5': 100 * hits[1] / count, 'images': count}


def test_agrees_with_sklearn():
    logits = np.random.default_rng(0).normal(size=(200, 9))
    labels = np.random.default_rng(1).integers(0, 9, 200)
    found = count_correct(*given(logits, labels))
    for k in (1, 5):
        assert found[f'top{k}'] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=k, labels=range(9)))


def test_padding_counts_nowhere_even_if_it_would_hit():
    predict, batches = given(np.eye(6), [0, 1, 0, 3, 4, 5], weights=[1, 1, 1, 0, 0, 0])
    assert count_correct(predict, batches) == {'top1': 100 * 2 / 3, 'top5': 100.0, 'images': 3}


def test_equal_logits_are_ordered_by_class():
    """A network that has collapsed to one answer for all scores chance: 1 and 5 classes of 10."""
    predict, batches = given(np.zeros((10, 10)), np.arange(10))
    assert count_correct(predict, batches) == {'top1': 10.0, 'top5': 50.0, 'images': 10}
    logits = np.float32([[1, 3, 3, 0, 3, -np.inf]]).repeat(6, axis=0)
    assert rank_labels(logits, np.arange(6)).tolist() == [3, 0, 1, 4, 2, 5]
    assert logits[0].argmax() == 1


def test_top_five_of_fewer_classes():
    assert count_correct(*given(np.eye(3), [0, 2, 1]))['top5'] == 100.0


@pytest.mark.parametrize(('label', 'named'), [(CLASSES, 'label 12'), (-1, 'label -1')])
def test_a_label_that_is_no_class_names_the_image(label, named):
    source = make_source(21)
    source.labels[18] = label
    with pytest.raises(DataError, match=rf'^noise\[18\] \(index 18\) has {named}, .* 0 to 11'):
        count_correct(jax.jit(flat_logits), read(source), source=source)
    with pytest.raises(DataError, match=r'^Image 18 has label'):
        count_correct(jax.jit(flat_logits), read(source))


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_logits_that_are_no_answer_are_refused(value):
    logits = np.zeros((4, 5))
    logits[2, 3] = value
    with pytest.raises(UserError, match=r'^Image 2 has a logit that is NaN or infinite'):
        count_correct(*given(logits, [0, 1, 2, 3]))
    assert count_correct(*given(logits, [0, 1, 2, 3], weights=[1, 1, 0, 1]))['images'] == 3  # in padding it is harmless


def test_no_images_is_an_error():
    with pytest.raises(DataError, match='no images to evaluate'):
        count_correct(*given(np.zeros((2, 5)), [0, 0], weights=[0, 0]))


def test_a_batch_that_the_devices_do_not_divide():
    predict, mesh = on_mesh(8)
    with pytest.raises(ConfigError, match='multiple of 8'):
        count_correct(predict, read(make_source(9), 12), mesh)


def test_features_on_a_mesh_are_those_of_one_device():
    source = make_source(37)
    (one, first), (eight, second) = (
        extract_features(predict, read(source), mesh) for predict, mesh in map(on_mesh, (1, 8))
    )
    assert one.shape == (37, CLASSES)
    np.testing.assert_allclose(one, eight, atol=1e-5)
    assert first.tolist() == second.tolist() == [source[i].label for i in range(37)]
