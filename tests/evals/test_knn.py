"""k-NN against scikit-learn's classifier with the same weights, and the features that feed it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mim_jax.evals.features import extract_features
from mim_jax.evals.knn import knn_accuracy


def make_clusters(count, seed, classes=7, width=12):
    centres = np.random.default_rng(0).normal(size=(classes, width))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (centres[labels] + 1.5 * rng.normal(size=(count, width))).astype(np.float32), labels.astype(np.int32)


def sklearn_percent(train, test, k):
    reference = KNeighborsClassifier(
        k, metric='cosine', algorithm='brute', weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    return 100 * reference.fit(*train).score(*test)


def test_agrees_with_sklearn_across_chunks_and_ks():
    train, test = make_clusters(300, 1), make_clusters(101, 2)
    reference = {k: sklearn_percent(train, test, k) for k in (10, 20, 100, 200)}
    assert len(set(reference.values())) > 1  # k matters here, so a wrong k would show
    values = knn_accuracy(*train, *test, num_classes=7, chunk=32)
    assert values == pytest.approx({'knn': reference[20], 'knn_best': max(reference.values())})


def test_k_is_clipped_to_the_bank():
    train, test = make_clusters(15, 3), make_clusters(40, 4)
    reference = {k: sklearn_percent(train, test, k) for k in (10, 15)}
    values = knn_accuracy(*train, *test, num_classes=7)
    assert values == pytest.approx({'knn': reference[15], 'knn_best': max(reference.values())})


def test_scale_of_a_feature_vector_does_not_matter():
    (train_x, train_y), (test_x, test_y) = make_clusters(200, 1), make_clusters(50, 2)
    scales = np.random.default_rng(0).uniform(0.1, 10, (200, 1)).astype(np.float32)
    assert knn_accuracy(train_x * scales, train_y, test_x * 3, test_y, 7) == knn_accuracy(
        train_x, train_y, test_x, test_y, 7
    )


def test_extract_features_keeps_order_and_drops_padding():
    images = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    padded = np.concatenate([images, np.zeros((1, 2, 2, 3), np.uint8)])
    labels, weights = np.array([3, 1, 4, 1, 5, 0]), np.array([1, 1, 1, 1, 1, 0.0])
    batches = (
        {'image': padded[i : i + 2], 'label': labels[i : i + 2], 'weight': weights[i : i + 2]} for i in (0, 2, 4)
    )
    encode = jax.jit(lambda images: images.astype(jnp.bfloat16).mean((1, 2)))
    features, found = extract_features(encode, batches)
    assert (features.dtype, features.shape, found.dtype) == (np.float32, (5, 3), np.int32)
    np.testing.assert_allclose(features, images.mean((1, 2)), rtol=1e-2)
    assert found.tolist() == [3, 1, 4, 1, 5]


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match='no batches'):
        extract_features(lambda images: images, [])
