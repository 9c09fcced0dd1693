"""Images decoded once and kept in memory."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import numpy as np

from mim_jax.data.images import BadImage, decode
from mim_jax.errors import DataError

if TYPE_CHECKING:
    from mim_jax.data.sources import Example, Source

_AUTO_BYTES = 2**30


def cache_source(source: Source, cache: str, threads: int) -> Source:
    """Wraps `source` in a CachedSource if `cache` is 'always', or 'auto' and the pixels are predicted to fit 1 GiB.

    The prediction decodes eight images spread over the source. Sources that hold arrays already stay as they are.
    """
    if cache not in ('auto', 'always', 'never'):
        raise DataError(f"data.cache='{cache}' is unknown; use 'auto', 'always' or 'never'.")
    if cache == 'never':
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
