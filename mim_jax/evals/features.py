"""What a frozen network says of every image of a data set, in host memory: features for the probes, logits to count."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mim_jax.data.loader import eval_batches
from mim_jax.data.sources import Source
from mim_jax.errors import DataError
from mim_jax.parallel.hosts import local_rows, to_global
from mim_jax.parallel.mesh import batch_shards, replicated

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
    `batches`: dicts with image, weight f[b] and others; on several hosts, of the rows that this one's devices hold, as
    read_split yields them. Rows of weight 0 are padding and dropped, so that every image is there once on any mesh.
    `mesh`: split the images over its devices, which must divide b (ConfigError). None: `compute` is given numpy.
    """

    def fetch(output: Any, rows: Mapping[str, Any]) -> tuple[Any, dict[str, np.ndarray]]:
        kept = np.asarray(rows['weight']) > 0
        return jax.tree.map(lambda x: np.asarray(x)[kept], (output, rows))

    pending = None
    for batch in batches:
        rows = {name: value for name, value in batch.items() if name != 'image'}
        images = batch['image'] if mesh is None else to_global(mesh, {'image': batch['image']})['image']
        running = compute(images), rows if mesh is None or jax.process_count() == 1 else gather(rows, mesh)
        if pending:  # fetched while the device works on the next batch
            yield fetch(*pending)
        pending = running
    if pending:
        yield fetch(*pending)


def gather(rows: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Every host's rows of a batch -> all of them, on every host."""
    return _compile_gather(mesh)(to_global(mesh, rows))


@functools.cache
def _compile_gather(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda rows: rows, out_shardings=replicated(mesh))


def read_split(
    source: Source, crop: Callable, mesh: Mesh, config: Any, limit: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """All images of a split, or `limit` random ones, in stored order: on each host the rows that its devices hold."""
    size, data = eval_batch(mesh), config.data
    rows = local_rows(mesh, size)
    return eval_batches(source, crop, size, limit, config.seed, data.threads, data.on_bad_image, rows)


def extract_features(
    encode: Callable[[Any], jax.Array], batches: Iterable[Mapping[str, Any]], mesh: Mesh | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode every batch and drop the padding -> features f32[n,D], labels i32[n], in the order of the batches.

    Arguments as run_batches has them; `encode` returns f[b,D], and the batches have a label i[b].
    """
    features, rows = collect_batches(encode, batches, mesh)
    return features.astype(np.float32), rows['label'].astype(np.int32)


def collect_batches(
    compute: Callable[[Any], Any],
    batches: Iterable[Mapping[str, Any]],
    mesh: Mesh | None = None,
    name: str = 'the split',
) -> tuple[Any, dict[str, np.ndarray]]:
    """All that run_batches yields, put together. Raises DataError, which calls the images `name`, where there are none."""
    found = [*run_batches(compute, batches, mesh)]
    if not any(len(rows['label']) for _, rows in found):
        raise DataError(f'There are no images to evaluate: {name} is empty, or none of its images could be decoded.')
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)
