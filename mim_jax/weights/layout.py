"""A layout says how another library names and stores the arrays of a network; import and export are its two directions.

Everything here only renames, transposes, concatenates and splits, so both directions are exact and gradients or optimizer
moments may take the same way. Paths are role paths: 'encoder/block_00/attn/qkv/kernel', 'decoder/pixels/head/bias'.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """Two array changes, each the inverse of the other."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


SAME = Form(lambda a: a, lambda a: a)
LINEAR = Form(lambda a: a.T, lambda a: a.T)  # torch Linear (out, in) <-> (in, out)


def patch_convolution(channels: int = 3) -> Form:
    """torch Conv2d (out, channels, p, p) with stride p <-> the matrix (p*p*channels, out), rows ordered (dy, dx, channel)."""

    def to_theirs(a: np.ndarray) -> np.ndarray:
        side = math.isqrt(a.shape[0] // channels)
        return a.reshape(side, side, channels, -1).transpose(3, 2, 0, 1)

    return Form(lambda a: a.transpose(2, 3, 1, 0).reshape(-1, a.shape[0]), to_theirs)


PATCHES = patch_convolution()


@dataclass(frozen=True)
class Entry:
    """One array of ours and the array(s) it is there.

    '{i}' in the names stands for a block's number (two digits in ours): 'encoder/block_{i}/norm1/scale' is
    'blocks.{i}.norm1.weight'. Several names: their arrays, once in our form, are concatenated along the last axis.
    """

    ours: str
    theirs: str | tuple[str, ...]
    form: Form = SAME

    def match(self, path: str) -> int | None:
        """The block number with which `ours` is this path (0 where it has none); None when it is another."""
        pattern = re.escape(self.ours).replace(r'\{i\}', r'(\d\d)')
        found = re.fullmatch(pattern, path)
        return None if found is None else int(found[1]) if found.groups() else 0

    def names(self, i: int) -> tuple[str, ...]:
        """Their names for block i."""
        theirs = (self.theirs,) if isinstance(self.theirs, str) else self.theirs
        return tuple(name.replace('{i}', str(i)) for name in theirs)


@dataclass(frozen=True)
class Layout:
    """All arrays of one network in another library.

    constants: their name -> (recipe) -> array, what is stored there and computed here (fixed positions, index tables);
    ignored: regular expressions of names that may be there and have no counterpart, such as a classifier, with the reason.
    """

    name: str
    entries: tuple[Entry, ...]
    constants: Mapping[str, Callable[[Any], np.ndarray]] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)

    def find(self, path: str) -> tuple[Entry, int]:
        """The entry of one of our paths, and its block number. Raises KeyError when the layout does not have it."""
        for entry in self.entries:
            number = entry.match(path)
            if number is not None:
                return entry, number
        raise KeyError(f'the {self.name} layout has no name for {path}')

    def covers(self, path: str) -> bool:
        """Whether one of our paths has a name here."""
        return any(entry.match(path) is not None for entry in self.entries)


def to_ours(state: Mapping[str, np.ndarray], layout: Layout, paths: tuple[str, ...]) -> Arrays:
    """Their arrays -> {our path: array} for the paths asked for. Raises KeyError naming what is missing."""
    arrays = {}
    for path in paths:
        entry, i = layout.find(path)
        parts = [entry.form.to_ours(np.asarray(state[name])) for name in entry.names(i)]
        arrays[path] = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return arrays


def to_theirs(arrays: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """{our path: array} -> their arrays, constants left out; the inverse of `to_ours`. KeyError: a path without a name."""
    state = {}
    for path, array in arrays.items():
        entry, i = layout.find(path)
        names = entry.names(i)
        parts = np.split(np.asarray(array), len(names), axis=-1)
        state |= {name: entry.form.to_theirs(part) for name, part in zip(names, parts, strict=True)}
    return state


def norm(ours: str, theirs: str) -> tuple[Entry, ...]:
    """Scale and bias of a LayerNorm (or an affine BatchNorm)."""
    return Entry(f'{ours}/scale', f'{theirs}.weight'), Entry(f'{ours}/bias', f'{theirs}.bias')


def linear(ours: str, *theirs: str, form: Form = LINEAR, bias: bool = True) -> tuple[Entry, ...]:
    """Kernel and bias of a linear layer; several of theirs are one of ours, side by side."""
    kernel = Entry(f'{ours}/kernel', tuple(f'{name}.weight' for name in theirs), form)
    return (kernel, Entry(f'{ours}/bias', tuple(f'{name}.bias' for name in theirs))) if bias else (kernel,)
