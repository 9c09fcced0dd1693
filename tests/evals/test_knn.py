"""k-NN against scikit-learn's classifier with the same weights, and the features that feed it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mim_jax.errors import ConfigError, DataError, UserError
from mim_jax.evals.features import extract_features
from mim_jax.evals.knn import (
    COLDEST,
    NEIGHBOURS,
    find_nearest,
    find_nearest_on_mesh,
    knn_percents,
    normalise_rows,
    split_bank,
    summarise_percents,
    vote,
)
from mim_jax.evals.protocols import knn
from mim_jax.parallel.mesh import make_mesh


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
    values = summarise_percents(knn_percents(*train, *test, num_classes=7, chunk=32))
    assert values == pytest.approx({'knn': reference[20], 'knn_best': max(reference.values())})


def test_k_is_clipped_to_the_bank():
    train, test = make_clusters(15, 3), make_clusters(40, 4)
    reference = {k: sklearn_percent(train, test, k) for k in (10, 15)}
    values = summarise_percents(knn_percents(*train, *test, num_classes=7))
    assert values == pytest.approx({'knn': reference[15], 'knn_best': max(reference.values())})


def test_scale_of_a_feature_vector_does_not_matter():
    (train_x, train_y), (test_x, test_y) = make_clusters(200, 1), make_clusters(50, 2)
    scales = np.random.default_rng(0).uniform(0.1, 10, (200, 1)).astype(np.float32)
    assert knn_percents(train_x * scales, train_y, test_x * 3, test_y, 7) == knn_percents(
        train_x, train_y, test_x, test_y, 7
    )


def mesh_of(count, fsdp=1):
    return make_mesh(fsdp=fsdp, devices=jax.devices()[:count])


@pytest.mark.parametrize(('count', 'fsdp'), [(1, 1), (8, 2)])
def test_a_split_bank_agrees_with_sklearn_for_every_k(count, fsdp):
    """301 rows in blocks of 16: padded blocks, and more neighbours than a block has rows."""
    train, test = make_clusters(301, 1), make_clusters(101, 2)
    values = knn_percents(*train, *test, num_classes=7, chunk=32, mesh=mesh_of(count, fsdp), block=16)
    assert values == pytest.approx({k: sklearn_percent(train, test, k) for k in NEIGHBOURS})


def nearest_rows(bank, queries, k, count, block):
    """Similarities and row numbers; every row is its own class."""
    mesh = mesh_of(count)
    split = split_bank(bank, np.arange(len(bank)), mesh, block)
    return jax.device_get(find_nearest_on_mesh(*split, normalise_rows(queries), k, mesh))


def test_neighbours_are_the_same_to_the_bit_on_any_number_of_devices():
    draw = np.random.default_rng(3)
    bank, queries = draw.normal(size=(1003, 96)).astype(np.float32), draw.normal(size=(32, 96)).astype(np.float32)
    similarities, rows = nearest_rows(bank, queries, 200, 1, 64)
    assert all(len(set(row)) == 200 for row in rows.tolist())
    for count in (2, 8):
        again, found = nearest_rows(bank, queries, 200, count, 64)
        np.testing.assert_array_equal(similarities.view(np.int32), again.view(np.int32))
        np.testing.assert_array_equal(rows, found)


@pytest.mark.parametrize(('count', 'block'), [(1, 5), (1, 64), (2, 16), (8, 5), (8, 64)])
def test_equal_neighbours_are_taken_in_the_order_of_the_bank(count, block):
    """Signs in 4 dimensions: 100 rows with 16 values in all, so that every similarity is an exact tie of many."""
    bank = np.random.default_rng(0).choice(np.float32([-1, 1]), (100, 4))
    exact = bank[:9] @ bank.T
    expected = np.argsort(-exact, axis=1, kind='stable')[:, :30]
    similarities, rows = nearest_rows(bank, bank[:9], 30, count, block)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(similarities, np.take_along_axis(exact, expected, axis=1) / 4)


def test_a_bank_smaller_than_the_devices():
    train, test = make_clusters(5, 3), make_clusters(40, 4)
    values = knn_percents(*train, *test, num_classes=7, mesh=mesh_of(8), block=2)
    assert values == pytest.approx(dict.fromkeys(NEIGHBOURS, sklearn_percent(train, test, 5)))


@pytest.mark.parametrize('count', [1, 8])
def test_padding_is_never_a_neighbour(count):
    """Opposite to every query, the 13 images have negative similarities: a row of zeros would be nearer."""
    bank = np.ones((13, 4), np.float32)
    similarities, rows = nearest_rows(bank, -bank[:2], 13, count, 8)
    np.testing.assert_array_equal(similarities, np.full((2, 13), -1, np.float32))
    assert rows.tolist() == 2 * [list(range(13))]


def test_one_device_without_a_mesh_finds_the_same_neighbours():
    train, test = make_clusters(300, 1), make_clusters(101, 2)
    assert knn_percents(*train, *test, 7) == knn_percents(*train, *test, 7, mesh=mesh_of(8))


def test_votes_by_hand():
    """At temperature 1 the weights are e^0.9, e^0.8, e^0.1, e^0.1: class 2 has the nearest, class 1 the most votes."""
    similarities, labels = jnp.array([[0.9, 0.8, 0.1, 0.1]]), jnp.array([[2, 1, 1, 0]])
    assert vote(similarities, labels, 3, (4, 1, 2, 3), 1.0).ravel().tolist() == [1, 2, 2, 1]
    assert vote(similarities[:, 2:], labels[:, 2:], 3, (2,), 1.0).item() == 0  # a tie: the first class


def test_the_coldest_vote_still_counts():
    """199 votes against one, all as near as can be: their sum is finite. Where it is not, the first class wins."""
    similarities, labels = jnp.ones((1, 200)), jnp.array([[0, *[1] * 199]])
    assert vote(similarities, labels, 3, (200,), COLDEST).tolist() == [[1]]
    assert vote(similarities, labels, 3, (200,), 0.01).tolist() == [[0]]


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        *(({'neighbours': ks}, 'knn.neighbours=') for ks in [(), (0,), (10, -1), (2.5,)]),
        *(({'temperature': t}, 'knn.temperature=') for t in [0.0, -0.07, 0.01, np.inf, np.nan]),
    ],
)
def test_votes_that_cannot_be_counted_are_refused_before_anything_is_read(options, words):
    with pytest.raises(ConfigError, match=words):
        knn(None, **options)


def test_the_product_is_full_fp32():
    lowered = find_nearest.lower(jnp.ones((4, 8)), jnp.zeros(4, jnp.int32), jnp.ones((2, 8)), 2).as_text()
    assert 'HIGHEST' in lowered


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    (train_x, train_y), (test_x, test_y) = make_clusters(30, 1), make_clusters(9, 2)
    train_x[17, 3] = value
    with pytest.raises(UserError, match='training image 17 are not finite'):
        knn_percents(train_x, train_y, test_x, test_y, 7)


@pytest.mark.parametrize('label', [-1, 7])
def test_labels_that_are_no_class_are_refused(label):
    (train_x, train_y), (test_x, test_y) = make_clusters(30, 1), make_clusters(9, 2)
    test_y[4] = label
    with pytest.raises(DataError, match=rf'Test image 4 has label {label}, .* 0 to 6'):
        knn_percents(train_x, train_y, test_x, test_y, 7)


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


def test_no_images_are_an_error():
    with pytest.raises(DataError, match='no images to evaluate: the split is empty'):
        extract_features(lambda images: images, [])
