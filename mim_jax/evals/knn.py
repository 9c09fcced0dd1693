"""k-nearest-neighbour accuracy of frozen features, by DINO's protocol; the bank may be spread over many devices."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import ConfigError, DataError, UserError
from mim_jax.parallel.mesh import AXES, replicated

NEIGHBOURS = (10, 20, 100, 200)
HEADLINE = 20
COLDEST = 0.02  # exp(1 / 0.02) = 5e21, of which any number can be added up in fp32; exp(1 / 0.01) is beyond it
# Rows of the bank that are compared at once on a mesh, on any number of devices: the same products in the same shapes.
BLOCK = 4096


def normalise_rows(features: jax.Array) -> jax.Array:
    """f[n,D] -> f32[n,D] of unit length."""
    features = jnp.asarray(features, jnp.float32)
    return features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames='k')
def find_nearest(bank: jax.Array, labels: jax.Array, queries: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Unit rows f32[n,D], labels i32[n], queries f32[q,D] -> the k most similar rows: similarity f32[q,k], label i32[q,k].

    Sorted; of equal ones the first in the bank comes first. Rows of label -1 are padding, of similarity -inf.
    """
    # Full fp32: a TPU's default product rounds to bf16, which reorders near neighbours.
    similarities = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    nearest, index = jax.lax.top_k(jnp.where(labels < 0, -jnp.inf, similarities), min(k, len(bank)))
    return nearest, labels[index]


def find_nearest_in_blocks(
    bank: jax.Array, labels: jax.Array, queries: jax.Array, k: int
) -> tuple[jax.Array, jax.Array]:
    """As find_nearest, for a bank f32[blocks,R,D] with labels i32[blocks,R]; missing neighbours have label -1."""

    def visit(best: tuple[jax.Array, jax.Array], block: tuple[jax.Array, jax.Array]) -> tuple:
        found = find_nearest(*block, queries, k)
        similarities, label = (jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True))
        return keep_nearest(similarities, label, k), None

    none = jnp.full((len(queries), k), -jnp.inf), jnp.full((len(queries), k), -1, jnp.int32)
    return jax.lax.scan(visit, none, (bank, labels))[0]


def keep_nearest(similarities: jax.Array, labels: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Candidates in the order of the bank, f32[q,c] and i32[q,c] -> the k nearest; top_k leaves equal ones in order."""
    nearest, index = jax.lax.top_k(similarities, k)
    return nearest, jnp.take_along_axis(labels, index, axis=1)


@partial(jax.jit, static_argnames=('k', 'mesh'))
def find_nearest_on_mesh(
    bank: jax.Array, labels: jax.Array, queries: jax.Array, k: int, mesh: Mesh
) -> tuple[jax.Array, jax.Array]:
    """As find_nearest_in_blocks, the blocks split over the devices of `mesh`; the result is on all of them."""
    rows, whole = PartitionSpec(AXES), PartitionSpec()
    search = jax.shard_map(
        partial(find_nearest_in_blocks, k=k),
        mesh=mesh,
        in_specs=(rows, rows, whole),
        out_specs=PartitionSpec(None, AXES),  # k candidates of every device, in the order of the bank
        check_vma=False,  # the scan starts from constants, which are not split
    )
    candidates = jax.lax.with_sharding_constraint(search(bank, labels, queries), replicated(mesh))
    return jax.lax.with_sharding_constraint(keep_nearest(*candidates, k), replicated(mesh))


@partial(jax.jit, static_argnames=('num_classes', 'ks'))
def vote(
    similarities: jax.Array, labels: jax.Array, num_classes: int, ks: Sequence[int], temperature: float
) -> jax.Array:
    """Neighbours f32[q,k], i32[q,k], nearest first -> the class with most votes for every k, i32[len(ks),q].

    Neighbour after neighbour, as one scatter of all would add in no fixed order on a GPU. Of equal classes the first.
    """
    weights, rows = jnp.exp(similarities / temperature), jnp.arange(len(labels))

    def add(votes: jax.Array, neighbour: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        label, weight = neighbour
        return votes.at[rows, label].add(weight, unique_indices=True), None

    votes, counted, predicted = jnp.zeros((len(labels), num_classes)), 0, {}
    for k in sorted(set(ks)):
        votes, _ = jax.lax.scan(add, votes, (labels.T[counted:k], weights.T[counted:k]))
        counted, predicted[k] = k, votes.argmax(-1)
    return jnp.stack([predicted[k] for k in ks])


def split_bank(features: np.ndarray, labels: np.ndarray, mesh: Mesh, block: int) -> tuple[jax.Array, jax.Array]:
    """Features f[n,D], labels i[n] -> unit rows f32[blocks,R,D] and i32[blocks,R], consecutive blocks on every device.

    Row r is row r % R of block r // R on any mesh. Filled up with rows of label -1 to a multiple of the devices.
    """
    blocks = -(-len(features) // (block * mesh.size)) * mesh.size
    width = features.shape[1]

    def read_features(index: tuple[slice, ...]) -> np.ndarray:
        numbers = range(*index[0].indices(blocks))
        part = np.zeros((len(numbers), block, width), np.float32)
        for place, number in enumerate(numbers):
            present = features[number * block : (number + 1) * block]
            part[place, : len(present)] = present
            part[place] = normalise_rows(part[place])  # block by block, so in one shape on any mesh
        return part

    padded = np.full((blocks, block), -1, np.int32)
    padded.ravel()[: len(labels)] = labels
    rows = NamedSharding(mesh, PartitionSpec(AXES))  # of the bank, which is no batch: over all devices
    return (
        jax.make_array_from_callback((blocks, block, width), rows, read_features),
        jax.make_array_from_callback(padded.shape, rows, padded.__getitem__),
    )


def knn_percents(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
    chunk: int = 256,
    mesh: Mesh | None = None,
    block: int = BLOCK,
) -> dict[int, float]:
    """Features f[n,D], labels i[n] -> {k: percent of the test images whose neighbours vote for their class}.

    Features L2-normalised, cosine similarity, the k nearest training images vote with weight exp(similarity / 0.07).
    A k above the number of training images is clipped to it. Equal similarities: the first image of the bank is nearer.
    `chunk` queries are compared at a time. Hits are counted as integers and divided once.

    `mesh`: the bank is split over its devices in blocks of `block` rows; the similarities, hence the result, do not
    depend on how many devices there are. Every host calls with all features. None: one device compares the whole bank.
    Raises UserError for features that are not finite, DataError for labels that are no class.
    Source: facebookresearch/dinov2 eval/knn.py; k and temperature of Wu et al. 2018 as in DINO.
    """
    check_rows('training', train_x, train_y, num_classes)
    check_rows('test', test_x, test_y, num_classes)
    ks = {k: min(k, len(train_x)) for k in ks}
    if mesh is None:
        bank = normalise_rows(train_x), jnp.asarray(train_y, jnp.int32)
    else:
        bank = split_bank(train_x, train_y, mesh, block)
    correct = np.zeros(len(ks), np.int64)
    for start in range(0, len(test_x), chunk):
        queries, labels = test_x[start : start + chunk], test_y[start : start + chunk]
        queries = normalise_rows(np.pad(queries, ((0, chunk - len(queries)), (0, 0))))  # one shape, one compilation
        if mesh is None:
            nearest = find_nearest(*bank, queries, max(ks.values()))
        else:
            queries = jax.make_array_from_callback(queries.shape, replicated(mesh), np.asarray(queries).__getitem__)
            nearest = find_nearest_on_mesh(*bank, queries, max(ks.values()), mesh)
        predicted = vote(*nearest, num_classes, tuple(ks.values()), temperature)
        correct += (np.asarray(predicted)[:, : len(labels)] == labels).sum(axis=1)
    return {k: 100.0 * int(hits) / len(test_x) for k, hits in zip(ks, correct, strict=True)}


def knn_accuracy(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    num_classes: int,
    ks: Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
    chunk: int = 256,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """knn_percents in short -> {'knn': percent at k = 20, 'knn_best': percent at the best k}.

    Pixel reconstruction gives low numbers here (public: MAE-B, 100 epochs, 11.2 on ImageNet): read the trend.
    """
    ks = tuple(dict.fromkeys([HEADLINE, *ks]))
    percents = knn_percents(train_x, train_y, test_x, test_y, num_classes, ks, temperature, chunk, mesh)
    return {'knn': percents[HEADLINE], 'knn_best': max(percents.values())}


def check_vote(neighbours: Sequence[int], temperature: float) -> None:
    """Raise ConfigError for votes that are none, or overflow: then every image would be of the first class."""
    if not neighbours or not all(type(k) is int and k >= 1 for k in neighbours):
        raise ConfigError(f'knn.neighbours={tuple(neighbours)} must be one whole number above 0 or more.')
    if not COLDEST <= temperature < np.inf:
        raise ConfigError(f'knn.temperature={temperature} must be finite and at least {COLDEST}; 0.07 is usual.')


def check_rows(name: str, features: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Raise for what a comparison would silently turn into a wrong number: NaN sorts as the nearest of all."""
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(
            f'The features of {name} image {int(finite.argmin())} are not finite: the encoder overflows or its '
            'parameters are damaged. Use an earlier checkpoint, or dtype=float32.'
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(
            f'{name.capitalize()} image {first} has label {int(labels[first])}, but the classes are 0 to '
            f'{num_classes - 1}: k-NN needs splits with labels of the same classes.'
        )
