"""Parts of a data set for low-shot training: a seeded share of every class, or the images of a list file."""

from __future__ import annotations

import collections
import concurrent.futures
import fractions
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.data.order import random_stream
from mim_jax.data.sources import ArraySource, Example, FolderSource, Source, open_source
from mim_jax.errors import ConfigError, DataError

_READERS = 16


class SubsetSource:
    """The examples `rows` i64[n] of another source, in that order. Its names and classes are the other source's.

    The fingerprint depends on the whole's fingerprint and the rows, not on how they were chosen.
    """

    def __init__(self, source: Source, rows: np.ndarray, description: str):
        self.num_classes, self.description = source.num_classes, description
        digest = hashlib.blake2b(f'subset\0{source.fingerprint}\0'.encode(), digest_size=8)
        digest.update(rows.astype('<i8').tobytes())
        self.fingerprint = digest.hexdigest()
        self._source, self._rows = source, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._rows[index])]


def take_share(source: Source, share: float, seed: int) -> Source:
    """A random `share` of every class, in stored order; `source` itself for a share of 1.

    A class of n images gives share * n of them, rounded to the nearest (halves up), and at least one. The draw depends
    on the seed and on the order of the source alone, on every machine. With one seed a smaller share is part of a larger.
    Labels of folders and arrays are known; others (TFDS) are read once from the records, without decoding an image.
    Call it before cache.cache_source.

    Raises:
      ConfigError: `share` is not in (0, 1].
      DataError: a source without labels.
    """
    if not 0 < share <= 1:
        raise ConfigError(f'data.share={share} must be more than 0 and at most 1 (all images).')
    if share == 1:
        return source
    labels = read_labels(source) if source.num_classes else np.array([-1])
    if labels.min() < 0:
        raise DataError(
            f'data.share={share} takes a share of every class, but {source.description} has images without a label; '
            'use a labelled split, or data.share=1.'
        )
    exact = fractions.Fraction(repr(float(share)))  # the decimal that was written: 0.1 * 5 is a half, not nearly
    draws = random_stream(seed, 'share', 0).random_raw(len(labels))
    by_class = np.lexsort((draws, labels))
    counts = np.bincount(labels)
    taken = [max(1, int(exact * int(n) + fractions.Fraction(1, 2))) if n else 0 for n in counts]
    starts = np.cumsum(counts) - counts
    rows = np.concatenate([by_class[start : start + n] for start, n in zip(starts, taken, strict=True)])
    what = f'{float(100 * exact):g}% of every class (seed {seed}): {len(rows):,} images'
    return SubsetSource(source, np.sort(rows), f'{source.description}, of these {what}')


def take_listed(source: Source, path: str | Path) -> Source:
    """The images that a text file lists, in stored order: one file name or index per line, '#' starts a comment line.

    A line of digits is an index into `source`. Any other is a name, or the last parts of one: SimCLR's 1percent.txt
    has 'n01440764_10026.JPEG' where the folder has 'train/n01440764/n01440764_10026.JPEG' and TFDS the bare name.
    The names of TFDS and arrays are read once from the records, without decoding an image.

    Raises:
      DataError: a file that cannot be read or lists nothing; lines that are no image of the source, that fit several,
        or that repeat one.
    """
    wanted = _read_lines(Path(path).expanduser())
    found = _find_names(source, [line for _, line in wanted if not line.isdecimal()])
    rows, missing = {}, []
    for number, line in wanted:
        matches = [int(line)] if line.isdecimal() and int(line) < len(source) else found.get(line, [])
        if not matches:
            missing.append(f"'{line}' (line {number})")
        elif len(matches) > 1:
            names = ' and '.join(source[row].name for row in matches[:2])
            raise DataError(f"'{line}' (line {number} of {path}) is the name of {names}; write more of its path.")
        elif matches[0] in rows:
            raise DataError(f"'{line}' (line {number} of {path}) repeats line {rows[matches[0]]}; remove one of them.")
        else:
            rows[matches[0]] = number
    if missing:
        raise DataError(
            f'{len(missing):,} of the {len(wanted):,} lines of {path} are no image of {source.description}: '
            f'{", ".join(missing[:3])}. Give the list that belongs to this data set and split.'
        )
    what = f'those listed in {Path(path).name}: {len(rows):,} images'
    return SubsetSource(source, np.array(sorted(rows), np.int64), f'{source.description}, of these {what}')


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, content) of the lines that say something."""
    try:
        lines = path.read_text('utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list '{path}' cannot be read: {error}. Set data.list to a text file.") from error
    told = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    told = [(number, line) for number, line in told if line and not line.startswith('#')]
    if not told:
        raise DataError(f"The list '{path}' is empty; write one file name or index per line.")
    return told


def _find_names(source: Source, wanted: list[str]) -> dict[str, list[int]]:
    """For every wanted name the examples whose name is it, or ends in '/' and it."""
    if not wanted:
        return {}
    places = collections.defaultdict(list)
    for row, name in enumerate(read_names(source)):
        places[name.rsplit('/', 1)[-1]].append((row, f'/{name}'))
    return {
        line: [row for row, name in places[line.rsplit('/', 1)[-1]] if name.endswith(f'/{line.lstrip("/")}')]
        for line in wanted
    }


def read_names(source: Source) -> list[str]:
    """File names, with their folders where there are some, without reading a file where they are known."""
    if isinstance(source, FolderSource):
        return [f'{source.root}/{file}' for file in source.files]
    # TFDS puts 'dataset/split[index] ' before the file's name.
    return [re.sub(r'^[^ ]+\[\d+\] ', '', name) for name in read_rows(source, lambda row: source[row].name)]


def read_labels(source: Source) -> np.ndarray:
    """i64[n], without reading a file where labels are known."""
    if isinstance(source, ArraySource | FolderSource):
        return np.asarray(source.labels, np.int64)
    return np.array(read_rows(source, lambda row: source[row].label), np.int64)


def read_rows(source: Source, read: Callable[[int], Any]) -> list[Any]:
    """read(row) of every example, by several threads."""
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, range(len(source))))


def open_training(data: Any) -> Source:
    """The images that the section `data` trains on: its split, or the listed ones, or a share of every class."""
    source = open_source(data, data.split)
    return take_share(take_listed(source, data.list) if data.list else source, data.share, data.share_seed)
