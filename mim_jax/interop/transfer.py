"""Moving weights between our role paths and another library's names, with an account of every array.

Import checks everything before it gives anything, and lists all that is wrong at once; export is its inverse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from mim_jax.interop.account import Account, collapse, role_of
from mim_jax.interop.blocks import pack_biases, packed_paths, unpack_bias, value_bias
from mim_jax.interop.classifier import MASK_TOKEN, explain_unused
from mim_jax.interop.formats import POSITIONS, Format, place_names
from mim_jax.interop.resize import resize_relative_bias, square_relative_grid
from mim_jax.interop.tables import check_constant, read_positions
from mim_jax.recipe import Recipe
from mim_jax.weights.files import WeightsError
from mim_jax.weights.layout import Arrays, to_ours, to_theirs

CLS, TABLE = 'encoder/cls_token', 'encoder/relative_bias_table'
DECODER_TABLES = 'decoder_pos_embed', 'de_pos_embed'
UNWANTED = 'not part of what is imported'


def export_arrays(arrays: Mapping[str, np.ndarray], form: Format, recipe: Recipe) -> tuple[Arrays, list[str]]:
    """Our unstacked {path: array} -> (their arrays, constants among them; our paths that have no place there)."""
    layout = form.layout
    packed = pack_biases(arrays, layout)
    positions = None if form.positions is None else packed.pop(POSITIONS, None)
    covered = {path: array for path, array in packed.items() if layout.covers(path)}
    constants = {name: compute(recipe) for name, compute in layout.constants.items() if has_place(name, recipe)}
    state = to_theirs(covered, layout) | constants
    if positions is not None:
        row = np.zeros((1, int(recipe.encoder.cls), positions.shape[-1]), np.float32)
        state[form.positions.theirs] = form.positions.form.to_theirs(np.concatenate([row, positions], axis=1))
    return state, sorted(packed.keys() - covered.keys())


def has_place(name: str, recipe: Recipe) -> bool:
    """Whether this constant of a layout is of a network that the recipe has: a decoder's positions need a decoder."""
    return bool(recipe.decoders) or not name.endswith(DECODER_TABLES)


def import_arrays(
    state: Mapping[str, np.ndarray],
    form: Format,
    recipe: Recipe,
    like: Mapping[str, Any],
    ignore: Iterable[str] = (),
    half: bool = False,
) -> tuple[Arrays, Account]:
    """Their arrays -> our unstacked {path: array}, of the paths in `like` (anything with a shape), and the account.

    A role of which the file has nothing is missing, and left out of the result; the encoder must be there, but for its mask
    token. ignore: patterns such as 'head.*' of names to leave aside; half: the file had 16-bit values. Raises WeightsError
    listing every array that is unknown, mis-shaped, missing, or whole numbers where fractions are due.
    """
    return _Import(state, form, recipe, like, ignore, half).run()


class _Import:
    """One import: `problems` collects what is wrong, `account` what was done."""

    def __init__(
        self,
        state: Mapping[str, np.ndarray],
        form: Format,
        recipe: Recipe,
        like: Mapping[str, Any],
        ignore: Iterable[str],
        half: bool,
    ):
        self.form, self.layout, self.recipe, self.like, self.half = form, form.layout, recipe, like, half
        self.account, self.problems, self.result = Account(), [], {}
        ignored = {name for name in state if any(fnmatchcase(name, pattern) for pattern in ignore)}
        self.account.skipped |= dict.fromkeys(sorted(ignored), 'ignored, as asked for')
        self.state = {name: array for name, array in state.items() if name not in ignored}
        self.places = place_names(form.layout, self.state)
        self.packed = packed_paths(like, form.layout)  # our query bias -> all three biases in one
        self.tables = {*form.layout.constants} | ({form.positions.theirs} if form.positions else set())

    def run(self) -> tuple[Arrays, Account]:
        self.check_sizes()
        self.load()
        if self.form.positions:
            self.load_positions(self.form.positions.theirs)
        for name in self.layout.constants.keys() - ({self.form.positions.theirs} if self.form.positions else set()):
            self.settle_constant(name)
        self.settle_the_rest()
        if self.problems:
            listed = '\n  '.join(self.problems)
            raise WeightsError(f'These weights ({self.layout.name}) do not fit {self.recipe.name}:\n  {listed}')
        return self.result, self.account

    def check_sizes(self) -> None:
        """Another width or depth is one sentence, not a list of all arrays."""
        theirs = {entry.ours.replace('{i}', f'{i:02d}'): self.state[n].shape for n, (entry, i) in self.places.items()}
        found, wanted = _sizes(theirs), _sizes({path: leaf.shape for path, leaf in self.like.items()})
        for role in sorted(found.keys() & wanted.keys()):
            if found[role] != wanted[role]:
                (width, depth), (width_here, depth_here) = found[role], wanted[role]
                section = 'encoder.' if role == 'encoder' else f'{self.recipe.papers[0]}.decoder_'
                raise WeightsError(
                    f'The file holds another architecture: its {role} has width {width} and depth {depth}, this config wants '
                    f'{width_here} and {depth_here}. Set {section}width={width}, {section}depth={depth} and {section}heads '
                    'to match, or take another file.'
                )

    def load(self) -> None:
        """What can be taken over one to one, or resized; what is missing."""
        missing = [path for path in self.like if not self.is_elsewhere(path) and not self.load_one(path)]
        present = {role_of(path) for path in self.result}
        for path in missing:
            if path != MASK_TOKEN and role_of(path) in {*present, 'encoder'}:
                self.problems.append(f'{path}: missing')
            else:
                self.account.missing += [path, value_bias(path)] if path in self.packed else [path]
        self.account.loaded += self.result

    def is_elsewhere(self, path: str) -> bool:
        """Whether another path, or `load_positions`, brings this one along."""
        return path in map(value_bias, self.packed) or (path == POSITIONS and self.form.positions is not None)

    def load_one(self, path: str) -> bool:
        """Whether anything of it is in the file; if so it is in the result, or its faults among the problems."""
        source, target = self.packed.get(path, path), self.like[path].shape
        if not self.layout.covers(source):
            return False
        entry, i = self.layout.find(source)
        names = entry.names(i)
        lacking = [name for name in names if name not in self.state]
        if len(lacking) == len(names):
            return False
        whole = [name for name in names if name not in lacking and self.state[name].dtype.kind != 'f']
        self.problems += [f'{name}: missing, though {path} is there in part' for name in lacking]
        self.problems += [f'{name}: holds {self.state[name].dtype}, not numbers with a fraction' for name in whole]
        if lacking or whole:
            return True
        try:
            array = to_ours(self.state, self.layout, (source,))[source]
            if source != path:
                parts = unpack_bias(path, self.fit(array, path, (3 * target[0],), names[0]))
            else:
                parts = {path: self.fit(array, path, target, names[0])}
            self.result |= {part: np.asarray(value, np.float32) for part, value in parts.items()}
        except (ValueError, IndexError) as error:  # an array of another rank may not even take its form
            self.problems.append(f'{", ".join(names)} {self.state[names[0]].shape}: {error}')
        return True

    def fit(self, array: np.ndarray, path: str, shape: tuple[int, ...], name: str) -> np.ndarray:
        """The array in the wanted shape, a relative-bias table resized to the grid. Raises ValueError."""
        if array.shape == shape:
            return array
        source = square_relative_grid(len(array)) if path == TABLE and array.shape[1:] == shape[1:] else None
        if source is None:
            raise ValueError(f'{path} is {tuple(shape)}, this would be {array.shape}')
        rows, columns = self.recipe.grid
        self.account.resized.append(f'{name}: from {source[0]} x {source[1]} to {rows} x {columns} patches')
        return resize_relative_bias(array, source, self.recipe.grid)

    def load_positions(self, name: str) -> None:
        learned = POSITIONS in self.like
        if name not in self.state:
            self.problems += [f'{name}: missing'] if learned else []
            return
        try:
            found = read_positions(self.state[name], self.form, self.recipe, learned, self.half)
        except ValueError as error:
            self.problems.append(f'{name} {self.state[name].shape}: {error}')
            return
        if learned:
            self.result[POSITIONS] = found.patches
            self.account.loaded.append(POSITIONS)
        self.account.resized += [f'{name}: {found.resized}'] if found.resized else []
        self.account.recomputed += [f'{name}: {found.recomputed}'] if found.recomputed else []
        if found.prefix is not None and CLS in self.result:
            self.result[CLS] = self.result[CLS] + found.prefix
            self.account.recomputed.append(f'{name}, the position of CLS: added to the CLS token, which is the same')

    def settle_constant(self, name: str) -> None:
        """A constant other than the encoder's positions."""
        if name not in self.state:
            return
        if not has_place(name, self.recipe):
            self.account.skipped[name] = UNWANTED
            return
        try:
            line = check_constant(name, self.state[name], self.layout.constants[name], self.recipe, self.half)
            self.account.recomputed.append(f'{name}: {line}')
        except ValueError as error:
            self.problems.append(f'{name} {self.state[name].shape}: {error}')

    def settle_the_rest(self) -> None:
        """Names that nothing asked for: of a role that is not imported, ignored by the layout, or unknown."""
        wanted = {*self.like, *self.packed.values()}
        roles = {role_of(path) for path in self.like}
        unknown = []
        for name in sorted(self.state.keys() - self.tables):
            entry, i = self.places.get(name, (None, 0))
            path = entry and entry.ours.replace('{i}', f'{i:02d}')
            if path in wanted:
                continue
            if path and role_of(path) not in roles:
                why = UNWANTED
            elif not (why := path and explain_unused(self.recipe, path)):
                why = next((why for pattern, why in self.layout.ignored.items() if re.fullmatch(pattern, name)), None)
            if why is None:
                unknown.append(name)
            else:
                self.account.skipped[name] = why
        for name in collapse(unknown):
            pattern = re.sub(r'\{.*?\}', '*', name)
            self.problems.append(f'{name}: unknown; --ignore "{pattern}" leaves it aside')


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """{role with blocks: (width, depth)}, from the norms of its blocks."""
    blocks: dict[str, list[int]] = {}
    for path, shape in shapes.items():
        if match := re.fullmatch(r'(.+)/block_\d+/norm1/scale', path):
            blocks.setdefault(match[1], []).append(shape[0])
    return {role: (widths[0], len(widths)) for role, widths in blocks.items()}
