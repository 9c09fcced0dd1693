"""Differences, config.json, and what a run may change when it goes on."""

import subprocess
import sys

from stand_ins import MAE, METHODS, ROOT, load, mistakes_of

from mim_jax.config import check_same_run, default_config, difference, from_json, load_config, to_json
from mim_jax.config.names import assign
from mim_jax.errors import WorkdirError


def test_difference_lists_what_left_the_reference():
    config, reference = load_config(MAE, ['--config.optim.base_lr=1e-3', '--config.data.scale=.5,1'], METHODS)
    assert difference(config, reference) == [
        'data.scale: (0.2, 1.0) -> (0.5, 1.0)',
        'optim.base_lr: 0.00015 -> 0.001',
    ]
    assert difference(config, config) == []
    assert 'mae.mask_ratio: (not set) -> 0.75' in difference(config, default_config())


def test_json_round_trip_is_exact():
    config = load('--config.papers=mff', '--config.optim.eps=1.1e-8', variants='cifar10')
    again = from_json(to_json(config))
    assert again == config
    assert difference(again, config) == []  # compares reprs: types as well
    assert again.papers == ('mff',)
    assert again.is_locked


def test_a_workdir_may_go_on_elsewhere_but_not_as_another_run():
    saved = load()
    elsewhere = ('mesh.fsdp=4', 'accumulate=2', 'log.every_steps=1', 'checkpoint.keep=1', 'probe.every_epochs=5')
    elsewhere += ('pictures.count=2', 'data.dir=x', 'data.threads=1', 'data.workers=1', 'data.cache=never')
    elsewhere += ('encoder.remat=full', 'data.on_bad_image=skip')
    check_same_run(load(*(f'--config.{override}' for override in elsewhere)), saved)

    other = load('--config.seed=1', '--config.data.name=cifar10', '--config.papers=mff', '--config.log.every_steps=1')
    message = mistakes_of(lambda: check_same_run(other, saved), WorkdirError)
    for line in (
        'seed: 0 -> 1',
        "data.name: 'imagenet2012' -> 'cifar10'",
        "papers: () -> ('mff',)",
        "mff.projection: (not set) -> 'linear'",
    ):
        assert f'\n  {line}\n' in message
    assert 'log.every_steps' not in message


def test_micro_batches_are_part_of_a_run_that_draws_for_them():
    for key, value in (('encoder.drop_path', 0.1), ('papers', ('finetune',)), ('papers', ('linear_probe',))):
        saved = default_config()
        assign(saved, key, value)
        now = saved.copy_and_resolve_references()
        check_same_run(now, saved)
        now.accumulate = 2
        assert '\n  accumulate: 1 -> 2\n' in mistakes_of(lambda a=now, b=saved: check_same_run(a, b), WorkdirError)


def test_the_configuration_needs_no_jax():
    code = 'import sys, mim_jax.config; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0
