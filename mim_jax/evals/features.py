"""What a frozen network says of every image of a data set, in host memory: features for the probes, logits to count."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mim_jax.parallel.hosts import local_rows, to_global
from mim_jax.parallel.mesh import batch_shards

BATCH = 256


def eval_batch(mesh: Mesh) -> int:
    """Images that are evaluated at a time: 256, rounded up to a multiple of what the mesh splits a batch into."""
    shards = batch_shards(mesh)
    return -(-BATCH // shards) * shards


def run_batches(
    compute: Callable[[Any], Any], batches: Iterable[Mapping[str, Any]], mesh: Mesh | None = None
) -> Iterator[tuple[Any, dict[str, np.ndarray]]]:
    """Run every batch and drop the padding -> (outputs, the batch without its images), row by row, as numpy arrays.

    `compute`: images u8[b,S,S,3] -> an array [b,...] or a tree of them, jitted by the caller; on several hosts its
    output must be replicated, and every host receives all of it.
    `batches`: dicts with image, weight f[b] and others, as data.loader.eval_batches yields them on every host; rows of
    weight 0 are padding and dropped, so that every image is there once on any number of devices.
    `mesh`: split the images over its devices, which must divide b (ConfigError). None: `compute` is given numpy.
    """

    def fetch(output: Any, batch: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
        kept = np.asarray(batch['weight']) > 0
        rows = {name: np.asarray(value)[kept] for name, value in batch.items() if name != 'image'}
        return jax.tree.map(lambda x: np.asarray(x)[kept], output), rows

    pending = None
    for batch in batches:
        images = batch['image'] if mesh is None else to_global(mesh, {'image': own_rows(batch['image'], mesh)})['image']
        running = compute(images), batch
        if pending:  # fetched while the device works on the next batch
            yield fetch(*pending)
        pending = running
    if pending:
        yield fetch(*pending)


def own_rows(images: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What this host's devices hold of a batch that every host has read."""
    rows = local_rows(mesh, len(images))
    return images if len(rows) == len(images) else images[rows]


def extract_features(
    encode: Callable[[Any], jax.Array], batches: Iterable[Mapping[str, Any]], mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every batch and drop the padding -> features f32[n,D], labels i32[n], in the order of the batches.

    Arguments as run_batches has them; `encode` returns f[b,D], and the batches have a label i[b].
    """
    features, labels = [], []
    for output, rows in run_batches(encode, batches, mesh):
        features.append(output.astype(np.float32))
        labels.append(rows['label'].astype(np.int32))
    if not features:
        raise ValueError('no batches to extract features from')
    return np.concatenate(features), np.concatenate(labels)
