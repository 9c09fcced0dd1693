"""Images decoded once and kept in memory."""

from __future__ import annotations

import concurrent.futures

import numpy as np

from mim_jax.data.images import BadImage, decode
from mim_jax.data.sources import ArraySource, Example, Source, SyntheticSource
from mim_jax.errors import DataError

_AUTO_BYTES = 2**30


def cache_source(source: Source, cache: str, threads: int) -> Source:
    """The only place that caches: decodes all of `source` into memory, with `threads`, or returns it as it is.

    `cache` is 'never', 'always', or 'auto': if the pixels are predicted to stay below 1 GiB, from eight images spread
    over the source. Arrays and a CachedSource are in memory already. Synthetic images are never kept: made anew for
    every batch, they load the input pipeline as a dataset of any size would.

    Raises:
      DataError: `cache` is none of the three.
    """
    if cache not in ('auto', 'always', 'never'):
        raise DataError(f"data.cache='{cache}' is unknown; use 'auto', 'always' or 'never'.")
    if cache == 'never' or isinstance(source, ArraySource | CachedSource | SyntheticSource):
        return source
    probes = [_decode_example(source, len(source) * k // 8) for k in range(8)]
    sizes = [probe.image.nbytes for probe in probes if not isinstance(probe, BadImage)]
    if cache == 'auto' and (not sizes or sum(sizes) / len(sizes) * len(source) >= _AUTO_BYTES):
        return source
    return CachedSource(source, threads)


class CachedSource:
    """Every image as u8[H,W,3]. A bad image stays bad: its error comes when it is read, not at the start."""

    def __init__(self, source: Source, threads: int):
        self.num_classes, self.description = source.num_classes, f'{source.description}, decoded in memory'
        self.fingerprint = source.fingerprint
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            self._examples = list(pool.map(lambda index: _decode_example(source, index), range(len(source))))

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        example = self._examples[index]
        if isinstance(example, BadImage):
            raise BadImage(example.name, example.index, example.reason)  # a fresh one: each reader has its traceback
        return example


def _decode_example(source: Source, index: int) -> Example | BadImage:
    try:
        example = source[index]
        return example._replace(image=np.asarray(decode(example.image, example.name, index)))
    except BadImage as error:
        return error
