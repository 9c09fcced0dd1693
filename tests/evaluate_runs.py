"""Tiny runs to evaluate, and how the program is called, for the tests of `python -m mim_jax.evaluate`."""

import contextlib
import io
import json

import jax
import numpy as np
import program_runs
from program_runs import ROOT, call, share_compilations

from mim_jax import evaluate, train
from mim_jax.command import read_config
from mim_jax.interop.runs import build_recipe
from mim_jax.parallel.mesh import make_mesh
from mim_jax.training.assemble import make_program
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.state import to_tree
from mim_jax.training.workdir import Workdir

STEPS, EVAL = 8, ROOT / 'configs' / 'eval'
TINY = {
    'batch_size': 64,
    'steps': 6,
    'data.threads': 1,
    'log.every_steps': 1,
    'log.tensorboard': False,
    'checkpoint.every_steps': 2,
    'checkpoint.keep': 20,
}
QUICK_FINETUNE = {**TINY, 'optim.warmup_epochs': 0.1, 'data.rand_augment': ''}
POOLED = ('--config.linear_probe.pool=mean', '--config.linear_probe.norm=none', '--config.linear_probe.layer=1')


def pretrain(base):
    """--config and overrides of a tiny run of a base."""
    settings = {**program_runs.TINY, 'steps': STEPS, 'checkpoint.every_steps': 4}
    named = {key: value for key, value in settings.items() if base == 'mae' or not key.startswith('mae.')}
    return f'{ROOT}/configs/{base}.py:smoke', [f'--config.{key}={value}' for key, value in named.items()]


def make_runs(tmp_path_factory):
    """{base: workdir}: MAE, trained for eight steps, and SimMIM with arbitrary weights, which compiles nothing."""
    share_compilations(tmp_path_factory)
    folders = {base: tmp_path_factory.mktemp(base) / 'run' for base in ('mae', 'simmim')}
    spec, overrides = pretrain('mae')
    with contextlib.redirect_stdout(io.StringIO()):
        assert train.main(['--config', spec, '--workdir', str(folders['mae']), *overrides]) == 0
    save_arbitrary('simmim', folders['simmim'])
    return folders


def save_arbitrary(base, folder):
    """The folder of a run of a base with arbitrary weights at steps 4 and 8."""
    config, _ = read_config(*pretrain(base))
    program = make_program(build_recipe(config), make_mesh(devices=jax.devices()[:1]))
    workdir, draw = Workdir(folder, config), np.random.default_rng(0)
    checkpoints = Checkpoints(str(workdir.checkpoints))
    for step in (4, STEPS):
        bare = to_tree(program.abstract.replace(root_key=()))
        checkpoints.save(
            step, jax.tree.map(lambda a: 0.1 * draw.normal(size=a.shape).astype(a.dtype), bare), {'dataset': None}
        )
    checkpoints.close()
    workdir.close()
    return folder


def refuse(capsys, command, *words):
    """The program ends with status 2 and one message, which says these words."""
    ended = call(capsys, command, evaluate.main)
    assert ended.status == 2, ended
    assert ended.err.startswith('error: ')
    assert ended.err.count('error: ') == 1
    assert 'Traceback' not in ended.err + ended.out
    for word in words:
        assert word in ended.err, (word, ended.err)


def line(run, protocol, workdir, *more, **settings):
    """A command line; '__' in a setting's name is a dot."""
    named = {key.replace('__', '.'): value for key, value in settings.items()}
    flags = [f'--config.{key}={value}' for key, value in named.items()]
    return ['--checkpoint', str(run), '--config', f'{EVAL}/{protocol}', '--workdir', str(workdir), *flags, *more]


def as_settings(settings):
    return {key.replace('.', '__'): value for key, value in settings.items()}


def run_protocol(capsys, *arguments, **settings):
    """(results, what was said); it must succeed."""
    command = line(*arguments, **settings)
    ended = call(capsys, command, evaluate.main)
    assert (ended.status, ended.err) == (0, ''), ended
    workdir = arguments[2]
    assert f'Wrote {workdir}/results.json.' in ended.out
    return json.loads((workdir / 'results.json').read_text()), ended.out
