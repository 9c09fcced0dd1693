"""Tiny runs that were trained, and the lines that export from and import into them; everything in this process."""

import contextlib
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from program_runs import ROOT, TINY, call

from mim_jax import export, import_weights, train
from mim_jax.command import read_config
from mim_jax.interop.runs import build_recipe
from mim_jax.parallel.mesh import make_mesh
from mim_jax.training.assemble import make_program
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.state import to_tree
from mim_jax.training.workdir import Workdir

STEPS = 8
TINIER = TINY | {'steps': STEPS, 'checkpoint.every_steps': 4}


def settings_of(base: str, /, **settings: Any) -> list[str]:
    """--config and overrides of a tiny run; base: its file in configs; '__' in a setting's name is a dot."""
    every = {key: value for key, value in TINIER.items() if not key.startswith('mae.') or base == 'mae'}
    every |= {'bootmae.decoder_width': 16, 'bootmae.decoder_depth': 1} if base == 'bootmae' else {}
    every |= {key.replace('__', '.'): value for key, value in settings.items()}
    return ['--config', f'{ROOT}/configs/{base}.py:smoke', *(f'--config.{key}={value}' for key, value in every.items())]


def train_run(workdir: Path, base: str, /, **settings: Any) -> str:
    """What the train program says; it must finish."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert train.main([*settings_of(base, **settings), '--workdir', str(workdir)]) == 0
    return out.getvalue()


def save_random_run(workdir: Path, base: str, classes: int = 0, /, **settings: Any) -> None:
    """The folder of a run at steps 4 and 8 with arbitrary parameters, a teacher's unlike its student's. Compiles nothing.

    classes: as many as its dataset would have had.
    """
    _, spec, *overrides = settings_of(base, **settings)
    config, _ = read_config(spec, overrides)
    program = make_program(build_recipe(config, classes), make_mesh(devices=jax.devices()[:1]))
    folder, draw = Workdir(workdir, config), np.random.default_rng(0)
    checkpoints = Checkpoints(str(folder.checkpoints))
    for step in (4, STEPS):
        bare = program.abstract.replace(root_key=())
        tree = jax.tree.map(lambda a: 0.1 * draw.normal(size=a.shape).astype(a.dtype), to_tree(bare))
        checkpoints.save(step, tree, {'dataset': None})
    checkpoints.close()
    folder.close()


def run_export(capsys: Any, run: Path, kind: str, out: Path, *more: str) -> str:
    """What the export program says; it must succeed."""
    ended = call(capsys, ['--checkpoint', str(run), '--format', kind, '--out', str(out), *more], export.main)
    assert (ended.status, ended.err) == (0, ''), ended
    return ended.out


def run_import(capsys: Any, weights: Path, workdir: Path, base: str, /, *more: str, **settings: Any) -> str:
    """What the import program says; it must succeed."""
    line = [*settings_of(base, **settings), '--weights', str(weights), '--workdir', str(workdir), *more]
    ended = call(capsys, line, import_weights.main)
    assert (ended.status, ended.err) == (0, ''), ended
    return ended.out


def refuse(capsys: Any, main: Any, line: list[str], *words: str) -> None:
    """The program ends with status 2 and one message, which says these words."""
    ended = call(capsys, line, main)
    assert ended.status == 2, ended
    assert ended.err.startswith('error: ')
    assert 'Traceback' not in ended.err + ended.out
    for word in words:
        assert word in ended.err, (word, ended.err)
