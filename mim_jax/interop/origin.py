"""What is evaluated: a run's folder and a step of it; for what reads the encoder alone, a file of that beside it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.errors import Refused, WorkdirError
from mim_jax.interop.begin import save_first, wanted_arrays
from mim_jax.interop.formats import POSITIONS
from mim_jax.interop.resize import resize_relative_bias, square_relative_grid
from mim_jax.interop.runs import choose_arrays, read_run_config
from mim_jax.interop.transfer import TABLE
from mim_jax.parallel.mesh import make_mesh
from mim_jax.tokens import sincos_positions
from mim_jax.training.assemble import make_program, open_run
from mim_jax.training.checkpoint import Checkpoints, find_step, read_arrays, read_digest
from mim_jax.training.workdir import CHECKPOINTS, IMPORTED, Workdir
from mim_jax.weights.encoders import save_encoder
from mim_jax.weights.files import digest_file, read_metadata, read_weights
from mim_jax.weights.layout import Arrays
from mim_jax.weights.resize import resize_positions, square_grid

FINAL_NORM = 'encoder/norm/'


@dataclass(frozen=True)
class Origin:
    """run: its folder; config: the run's; step: of the checkpoint; teacher: in place of the student."""

    run: Path
    config: Any
    step: int
    teacher: str | None

    @property
    def folder(self) -> Path:
        """Of results, and of the encoder's file."""
        return self.run / 'evals'

    @property
    def recipe(self) -> str:
        """'mae+mff'."""
        return '+'.join((self.config.base, *self.config.papers))

    @cached_property
    def digest(self) -> str:
        """Of the checkpoint; another run in the same folder has another."""
        return read_digest(str(self.run / CHECKPOINTS), self.step)

    @cached_property
    def weights(self) -> Path:
        """The encoder's file, RUN/evals/encoder_step_<step>.safetensors, written once for each checkpoint.

        Raises WorkdirError, CheckpointError, Refused.
        """
        file = self.folder / f'encoder_step_{self.step}{f"_{self.teacher}" if self.teacher else ""}.safetensors'
        if not file.exists() or read_metadata(file).get('checkpoint') != self.digest:
            # One entry: of several the writer's order is not fixed, and with it neither is the file's checksum.
            save_encoder(file, self._read_encoder(), {'checkpoint': self.digest})
        return file

    def _read_encoder(self) -> Arrays:
        run, teacher = self.run, self.teacher
        parts = ('params', 'teachers') if teacher else ('params',)
        saved, _, _ = read_arrays(str(run / CHECKPOINTS), self.step, parts)
        names = {path.split('/')[1] for path in saved if path.startswith('teachers/')}
        if teacher and teacher not in names:
            raise Refused(f'{run} has no momentum teacher {teacher!r}; it has {", ".join(sorted(names)) or "none"}.')
        arrays, _ = choose_arrays(saved, 'teacher' if teacher else 'encoder', teacher)
        if not arrays:
            raise WorkdirError(f'{run} holds no encoder of its own; --checkpoint is the folder of a pre-training run.')
        return arrays

    def describe(self, encoder: bool = True) -> dict[str, Any]:
        """What results say of it; with the checksum of the encoder's file where the encoder is all that is read."""
        about = {'run': str(self.run), 'recipe': self.recipe, 'step': self.step, 'teacher': self.teacher}
        about['digest'] = self.digest
        return about | ({'sha256': digest_file(self.weights)} if encoder else {})


def read_origin(run: Path, step: int | None = None, teacher: str | None = None) -> Origin:
    """A run's newest checkpoint, or that of `step`. Raises WorkdirError, CheckpointError."""
    return Origin(run, read_run_config(run), find_step(str(run / CHECKPOINTS), step), teacher)


def begin_from(origin: Origin, config: Any, workdir: Workdir) -> None:
    """The checkpoint of step 0 of a run of `config` with the origin's encoder; nothing where the run has begun.

    Positions and tables of relative biases are resized to its grid. Fixed positions that are trained from here on start
    from the table of the grid they were trained with. Raises WorkdirError when anything of the encoder has no place.
    """
    mine = {'checkpoint': origin.digest, 'teacher': origin.teacher, 'weights': str(origin.weights)}
    with contextlib.closing(Checkpoints(str(workdir.checkpoints))) as begun:  # removes what a killed save has left
        if begun.steps():
            check_begun_with(workdir.path, mine)
            return
    recipe, _ = open_run(config)
    program = make_program(recipe, make_mesh(**config.mesh))
    wanted = {path: leaf.shape for path, leaf in wanted_arrays(program, 'encoder').items()}
    arrays = dict(read_weights(origin.weights).arrays)
    if not any(path.startswith(FINAL_NORM) for path in wanted):  # a classifier with a norm of its own
        arrays = {path: array for path, array in arrays.items() if not path.startswith(FINAL_NORM)}
    if POSITIONS in wanted and POSITIONS not in arrays:
        side = origin.config.image_size // origin.config.encoder.patch_size
        arrays[POSITIONS] = sincos_positions(side, side, wanted[POSITIONS][-1])[None]
    arrays = {path: fit_grid(path, array, wanted.get(path), recipe.grid) for path, array in arrays.items()}
    wrong = [path for path in sorted(wanted.keys() | arrays.keys()) if wanted.get(path) != _shape(arrays, path)]
    if wrong:
        raise WorkdirError(f'The encoder of {origin.run} does not fit: {", ".join(wrong)}.')
    save_first(program, arrays, workdir, mine)


def check_begun_with(workdir: Path, mine: dict[str, Any]) -> None:
    """Raise WorkdirError where the run of a workdir began with another checkpoint's encoder, or with random weights."""
    file = workdir / IMPORTED
    theirs = json.loads(file.read_text()) if file.exists() else {}
    if any(theirs.get(key) != mine[key] for key in ('checkpoint', 'teacher')):
        raise WorkdirError(
            f'{workdir} holds a fine-tuning that began with {theirs.get("weights", "random weights")}, not with '
            f'{mine["weights"]} as it is now. Choose another --workdir, or delete that one.'
        )


def _shape(arrays: Arrays, path: str) -> tuple[int, ...] | None:
    return arrays[path].shape if path in arrays else None


def fit_grid(path: str, array: np.ndarray, shape: tuple[int, ...] | None, grid: tuple[int, int]) -> np.ndarray:
    """A table of positions f[1,N,D] or of relative biases for `grid`; any other array, or one of `shape`, as it is."""
    if shape in (None, array.shape):
        return array
    if path == POSITIONS and (source := square_grid(array.shape[1])):
        return resize_positions(array[0], source, grid)[None]
    if path == TABLE and (source := square_relative_grid(len(array))):
        return resize_relative_bias(array, source, grid)
    return array
