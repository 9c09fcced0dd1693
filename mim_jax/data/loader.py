"""Index -> example as a pure function of (seed, epoch, position); Grain supplies threads, processes and prefetch.

The position of an example counts over the whole run: row r of the global batch of step s is position s*B + r. So the
state of the input pipeline is the step number, and neither hosts, threads nor workers change what a step sees.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Protocol

import grain
import numpy as np
from absl import flags

from mim_jax.data.augment import Crop
from mim_jax.data.images import BadImage, decode
from mim_jax.data.order import epoch_order, random_stream
from mim_jax.data.sources import Source
from mim_jax.errors import ConfigError, DataError

# Grain handles chunks of rows: large enough that its cost per element vanishes beside 32-pixel images, small enough
# that all threads work on the same batch, so that memory does not grow with threads times batch.
CHUNK_ROWS = 32
_BAD_IN_A_ROW = 100
_FIELDS = ('label', 'index', 'bad')


class _Rows(Protocol):
    """Writes the example at a position into row k of a batch. Frozen and picklable: workers get a copy."""

    crops: Mapping[str, Crop]

    def fill(self, batch: dict[str, np.ndarray], k: int, position: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class _TrainRows:
    source: Source
    crops: Mapping[str, Crop]
    seed: int
    skip_bad: bool

    def fill(self, batch: dict[str, np.ndarray], k: int, position: int) -> None:
        n = len(self.source)
        epoch, place = divmod(position, n)
        order = epoch_order(self.seed, epoch, n)
        batch['bad'][k] = -1
        for attempt in range(min(n, _BAD_IN_A_ROW)):
            index = int(order[(place + attempt) % n])
            try:
                example = self.source[index]
                image = decode(example.image, example.name, index)
                break
            except BadImage:
                if not self.skip_bad:
                    raise
                if attempt == 0:  # further ones are reported at their own positions
                    batch['bad'][k] = index
        else:
            raise DataError(f'{attempt + 1} images in a row cannot be decoded in {self.source.description}; repair it.')
        for name, crop in self.crops.items():
            batch[name][k] = crop(image, np.random.Generator(random_stream(self.seed, f'crop/{name}', position)))
        batch['label'][k], batch['index'][k] = example.label, index


@dataclasses.dataclass(frozen=True)
class _EvalRows:
    source: Source
    crops: Mapping[str, Crop]
    seed: int
    skip_bad: bool
    indices: np.ndarray

    def fill(self, batch: dict[str, np.ndarray], k: int, position: int) -> None:
        """Rows after the last example, and bad images when they are skipped, are zero with index -1."""
        for name in (*self.crops, *_FIELDS):
            batch[name][k] = -1 if name == 'index' else 0
        if position >= len(self.indices):
            return
        index = int(self.indices[position])
        try:
            example = self.source[index]
            image = decode(example.image, example.name, index)
        except BadImage:
            if not self.skip_bad:
                raise
            return
        for name, crop in self.crops.items():
            batch[name][k] = crop(image, np.random.Generator(random_stream(self.seed, f'eval/{name}', index)))
        batch['label'][k], batch['index'][k] = example.label, index


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunks:
    """The random-access sequence that Grain reads: chunk c holds up to CHUNK_ROWS rows of one host's part of one step.

    The host's part of step s are the positions s*stride + numbers.
    """

    rows: _Rows
    start_step: int
    stop_step: int
    stride: int
    numbers: np.ndarray

    @property
    def per_step(self) -> int:
        return -(-len(self.numbers) // CHUNK_ROWS)

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * self.per_step

    def __getitem__(self, chunk: int) -> dict[str, np.ndarray]:
        step, part = divmod(chunk, self.per_step)
        numbers = self.numbers[part * CHUNK_ROWS : (part + 1) * CHUNK_ROWS]
        start = (self.start_step + step) * self.stride
        batch = {name: np.empty((len(numbers), c.size, c.size, 3), np.uint8) for name, c in self.rows.crops.items()}
        batch |= {name: np.empty(len(numbers), np.int32) for name in _FIELDS}
        for k, number in enumerate(numbers.tolist()):
            self.rows.fill(batch, k, start + number)
        return batch


def _read_batches(chunks: _Chunks, threads: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Reads ahead about two batches, or one chunk per thread where that is more, and joins chunks into batches."""
    ahead = max(threads, 2 * chunks.per_step)
    dataset = grain.MapDataset.source(chunks)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain hands its flags to the workers, parsed or not at all
            flags.FLAGS.mark_as_parsed()
        each = max(1, threads // workers)
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=each, prefetch_buffer_size=each))
        # Only images through shared memory. All through pipes would be tidier, but then closing takes half a minute.
        options = grain.experimental.DatasetOptions(min_shm_size=4096)
        dataset = grain.experimental.WithOptionsIterDataset(dataset, options)
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, -(-ahead // workers)), _prepare_worker)
    else:
        dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead))
    with contextlib.closing(iter(dataset)) as iterator:
        for _ in range(chunks.start_step, chunks.stop_step):
            yield _join([next(iterator) for _ in range(chunks.per_step)])


def _prepare_worker(index: int, count: int) -> None:
    """In a worker process: Ctrl-C is the parent's to answer, and a killed parent leaves no orphans."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _useful_threads(source: Source, crops: Mapping[str, Crop], threads: int) -> int:
    """More threads than cores pay only while some wait for storage; tiny images only contend for the interpreter."""
    try:
        in_memory = isinstance(source[0].image, np.ndarray)
    except BadImage:
        return threads
    if not in_memory:
        return threads
    return 1 if max(crop.size for crop in crops.values()) <= 64 else min(threads, os.cpu_count() or 1)


class Loader:
    """Endless shuffled batches of crops, every example exactly once per epoch, addressed by step number.

    Args:
      crops: name -> crop; each batch holds every crop of the same images, with independent randomness.
      batch_size: the global one.
      rows: numbers i[b] within the global batch, of the rows that this host reads, in this order; None: all of them.
      workers: processes beside this one, each with its own copy of the source and its share of `threads`. 0: none.
      on_bad_image: 'stop' raises BadImage; 'skip' takes the next example of the epoch's order in its place.

    Attributes:
      bad_images: name -> how often an undecodable image was skipped on this host.
      dataset: the source's identity; what the order of the examples depends on besides the seed.

    Raises:
      DataError: fewer examples than one batch.
      ConfigError: settings that contradict each other.
    """

    def __init__(
        self,
        source: Source,
        crops: Mapping[str, Crop],
        batch_size: int,
        seed: int,
        rows: np.ndarray | None = None,
        threads: int = 16,
        workers: int = 0,
        on_bad_image: str = 'stop',
    ):
        if batch_size > len(source):
            raise DataError(
                f'batch_size={batch_size} is more than the {len(source)} images of {source.description}; '
                'use a smaller batch_size or more data.'
            )
        if batch_size < 1:
            raise ConfigError(f'batch_size={batch_size} must be at least 1.')
        if threads < 1 or workers < 0:
            raise ConfigError(f'data.threads={threads} must be at least 1 and data.workers={workers} at least 0.')
        if set(crops) & set(_FIELDS):
            raise ConfigError(f'A crop cannot be called {" or ".join(_FIELDS)}: these are other parts of a batch.')
        self._rows = _TrainRows(source, dict(crops), seed, _skips(on_bad_image))
        self._batch_size, self._numbers = batch_size, np.arange(batch_size) if rows is None else rows
        self._threads, self._workers = _useful_threads(source, crops, threads), workers
        self.bad_images: collections.Counter[str] = collections.Counter()
        self.dataset = f'{len(source)} images (fingerprint {source.fingerprint})'

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, np.ndarray]]:
        """This host's rows of the batches of the steps [start_step, stop_step).

        Yields:
          {crop name: u8[b, S, S, 3], 'label': i32[b], 'index': i32[b]}. Close the iterator to stop reading ahead.
        """
        chunks = _Chunks(self._rows, start_step, stop_step, self._batch_size, self._numbers)
        with contextlib.closing(_read_batches(chunks, self._threads, self._workers)) as batches:
            for batch in batches:
                bad = batch.pop('bad')
                for index in bad[bad >= 0]:
                    self._count_bad(int(index))
                yield batch

    def _count_bad(self, index: int) -> None:
        try:
            name = self._rows.source[index].name
        except BadImage as error:  # the source itself could not read it
            name = error.name
        if name not in self.bad_images:
            logging.getLogger(__name__).warning('skipped an image that cannot be decoded: %s', name)
        self.bad_images[name] += 1


def eval_batches(
    source: Source,
    crop: Crop,
    batch_size: int,
    limit: int | None = None,
    seed: int = 0,
    threads: int = 16,
    on_bad_image: str = 'stop',
) -> Iterator[dict[str, np.ndarray]]:
    """All examples once, or a fixed random subset of `limit`, in stored order.

    Yields:
      {'image': u8[B, S, S, 3], 'label': i32[B], 'index': i32[B], 'weight': f32[B]}. The last batch is filled up with
      rows of weight 0, which is also the weight of bad images when they are skipped.
    """
    indices = np.sort(epoch_order(seed, 0, len(source))[:limit])
    rows = _EvalRows(source, {'image': crop}, seed, _skips(on_bad_image), indices)
    chunks = _Chunks(rows, 0, -(-len(indices) // batch_size), batch_size, np.arange(batch_size))
    threads = _useful_threads(source, rows.crops, threads)
    with contextlib.closing(_read_batches(chunks, threads, 0)) as batches:
        for batch in batches:
            del batch['bad']
            yield batch | {'weight': (batch['index'] >= 0).astype(np.float32)}


def _skips(on_bad_image: str) -> bool:
    if on_bad_image not in ('stop', 'skip'):
        raise ConfigError(f"data.on_bad_image='{on_bad_image}' is unknown; use 'stop' or 'skip'.")
    return on_bad_image == 'skip'
