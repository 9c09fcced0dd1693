"""A run that is stopped, killed, or moved to other devices ends as if nothing had happened."""

import os
import random
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from program_runs import (
    EVERY,
    STEPS,
    arguments,
    call,
    check_same_end,
    copy_run,
    finish,
    half_written,
    kill,
    read_losses,
    read_summary,
    saved_steps,
    share_compilations,
    snapshot,
    start,
    wait_for_step,
)
from tiny_runs import random_batch, tiny_mae

from mim_jax import train
from mim_jax.data.augment import Crop
from mim_jax.data.loader import Loader
from mim_jax.data.sources import SyntheticSource
from mim_jax.forward import Forward, Surroundings
from mim_jax.networks import Networks, named_key
from mim_jax.parallel.mesh import batch_sharding, make_mesh
from mim_jax.training.loggers import read_events
from mim_jax.training.loop import Watcher
from mim_jax.training.state import TrainState


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(scope='module')
def whole(cache, tmp_path_factory) -> Path:
    """The workdir of a run that nothing disturbed, on one device."""
    workdir = tmp_path_factory.mktemp('whole') / 'run'
    ended = finish(start(arguments(workdir)))
    assert (ended.status, ended.err) == (0, '')
    return workdir


def test_a_signal_saves_and_the_same_command_goes_on(whole, tmp_path):
    """Ctrl-C, then SIGTERM, then to the end."""
    done = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        child = start(arguments(tmp_path))
        seen = wait_for_step(child, done + 3)
        child.send_signal(number)
        ended = finish(child, seen)
        assert (ended.status, ended.err) == (75, '')
        assert f'{number.name}: saving and stopping' in ended.out
        assert f'Interrupted at step {saved_steps(tmp_path)[-1]} of {STEPS}, saved.' in ended.out
        assert ('Resuming' in ended.out) == (done > 0)
        summary = read_summary(tmp_path)
        assert (summary['status'], summary['steps']) == ('interrupted', saved_steps(tmp_path)[-1])
        assert done < summary['steps'] < STEPS
        done = summary['steps']
        assert list(read_losses(tmp_path)) == list(range(1, done + 1))
    ended = finish(start(arguments(tmp_path)))
    assert (ended.status, ended.err) == (0, '')
    assert f'Resuming mae at step {done} of {STEPS}' in ended.out
    check_same_end(tmp_path, whole)


def test_a_second_signal_stops_without_saving(whole, tmp_path):
    child = start(arguments(tmp_path, {'checkpoint.every_steps': 0}))
    seen = wait_for_step(child, 3)
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    ended = finish(child, seen)
    assert (ended.status, ended.err.count('\n')) == (75, 1)
    assert 'Stopped; the last checkpoint stands.' in ended.err
    assert read_summary(tmp_path)['status'] == 'interrupted'
    assert saved_steps(tmp_path) == []


@pytest.mark.slow
def test_ctrl_c_that_reaches_the_loaders_workers_too(whole, tmp_path):
    """A terminal sends it to the whole process group."""
    child = start(arguments(tmp_path, {'data.workers': 2, 'data.threads': 2}))
    seen = wait_for_step(child, 3)
    os.killpg(child.pid, signal.SIGINT)
    ended = finish(child, seen)
    assert ended.status == 75
    assert read_summary(tmp_path)['status'] == 'interrupted'
    assert saved_steps(tmp_path)[-1] == read_summary(tmp_path)['steps'] < STEPS
    assert finish(start(arguments(tmp_path))).status == 0
    check_same_end(tmp_path, whole)


def test_sigterm_before_the_first_step_is_an_interrupt_too(tmp_path):
    child = start(arguments(tmp_path))
    seen = child.stdout.readline()  # Python and jax are up, nothing is compiled
    child.send_signal(signal.SIGTERM)
    ended = finish(child, seen)
    assert ended.status == 75
    assert read_summary(tmp_path)['status'] == 'interrupted'


def test_kill_in_the_middle_of_a_save(whole, tmp_path):
    kill(start(arguments(tmp_path)), tmp_path, 'save')
    ended = finish(start(arguments(tmp_path)))
    assert (ended.status, ended.err) == (0, '')
    assert half_written(tmp_path) == []
    check_same_end(tmp_path, whole)


@pytest.mark.slow
def test_kills_at_random_moments(whole, tmp_path):
    """Five in a row: while starting, in a save, and at three steps; each time the run goes on from what it had saved."""
    draw = random.Random()
    child = start(arguments(tmp_path))
    kill(child, tmp_path, 'start', draw.uniform(0.5, 4.0))
    for _ in range(4):
        child = start(arguments(tmp_path))
        done = max(saved_steps(tmp_path), default=0) if (tmp_path / 'checkpoints').exists() else 0
        if draw.random() < 0.3:
            kill(child, tmp_path, 'save')
        else:
            kill(child, tmp_path, draw.randint(done + 1, min(done + 14, STEPS - 8)), draw.uniform(0.0, 0.05))
    ended = finish(start(arguments(tmp_path)))
    assert (ended.status, ended.err) == (0, '')
    check_same_end(tmp_path, whole)


def test_one_run_on_one_eight_and_two_devices(whole, tmp_path, capsys):
    """Steps 1-16 on one device, 17-32 on eight (data 4 x fsdp 2), 33-48 on two."""
    first = copy_run(whole, tmp_path / 'first', 2 * EVERY)
    settings = {'mesh.data': 4, 'mesh.fsdp': 2}
    ended = call(capsys, arguments(first, settings))
    assert (ended.status, ended.err) == (0, '')
    assert f'Resuming mae at step {2 * EVERY} of {STEPS}' in ended.out
    assert '8 x cpu' in ended.out
    second = copy_run(first, tmp_path / 'second', 4 * EVERY)
    ended = finish(start(arguments(second, {'mesh.fsdp': 2}), devices=2))
    assert (ended.status, ended.err) == (0, '')
    assert f'Resuming mae at step {4 * EVERY} of {STEPS}' in ended.out
    reference, losses = read_losses(whole), read_losses(second)
    assert list(losses) == list(reference)
    np.testing.assert_allclose(list(losses.values()), list(reference.values()), rtol=1e-5)
    assert losses != reference  # other devices did compute: sums in another order


def test_accumulate_may_change_on_resume(whole, tmp_path, capsys):
    workdir = copy_run(whole, tmp_path / 'run', 4 * EVERY)
    ended = call(capsys, arguments(workdir, {'accumulate': 2}))
    assert (ended.status, ended.err) == (0, '')
    reference, losses = read_losses(whole), read_losses(workdir)
    assert list(losses) == list(reference)
    np.testing.assert_allclose(list(losses.values()), list(reference.values()), rtol=1e-5)


def test_a_finished_run_says_so_and_changes_nothing(whole, tmp_path, capsys):
    workdir = copy_run(whole, tmp_path / 'run')
    ended = call(capsys, arguments(workdir))
    assert (ended.status, ended.err) == (0, '')
    assert 'Nothing is left to do: this run has finished.' in ended.out
    assert snapshot(workdir) == snapshot(whole)


def test_a_finished_run_stays_finished_when_its_data_is_gone(whole, tmp_path, capsys):
    workdir = copy_run(whole, tmp_path / 'run')
    ended = call(capsys, arguments(workdir, {'batch_size': 16, 'mesh.fsdp': 3}))
    assert ended.status == 2
    assert 'mesh.fsdp=3' in ended.err
    assert read_summary(workdir) == read_summary(whole)


def test_what_a_watcher_sees_is_not_lost(whole, tmp_path, capsys, monkeypatch):
    """It breaks once, at a step that is saved as well; the session that goes on looks again."""
    failures = [RuntimeError('once')]

    def look(state: TrainState, step: int) -> dict[str, float]:
        if step == EVERY and failures:
            raise failures.pop()
        return {'probe/step': step}

    monkeypatch.setattr(train, 'make_watchers', lambda *_: [Watcher(look, EVERY)])
    with pytest.raises(RuntimeError, match='once'):
        call(capsys, arguments(tmp_path))
    assert call(capsys, arguments(tmp_path)).status == 0
    seen = [event['step'] for event in read_events(tmp_path / 'metrics.jsonl') if 'probe/step' in event]
    assert seen == list(range(EVERY, STEPS + 1, EVERY))


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_a_batch_depends_on_the_step_alone(hosts):
    """Whichever step a session starts at, and however many hosts share it."""
    source = SyntheticSource(np.arange(100), 'train')

    def read(first: int, last: int, parts: int) -> list[dict[str, np.ndarray]]:
        crops = {'main': Crop('rrc', 16)}
        shares = np.split(np.arange(16), parts)
        loaders = [Loader(source, crops, 16, seed=3, rows=share, threads=1) for share in shares]
        rows = zip(*(loader.batches(first, last) for loader in loaders), strict=True)
        return [{name: np.concatenate([part[name] for part in row]) for name in row[0]} for row in rows]

    straight, resumed = read(0, 10, 1), read(6, 10, hosts)
    assert len({tuple(batch['index']) for batch in straight}) == 10
    for reference, batch in zip(straight[6:], resumed, strict=True):
        np.testing.assert_array_equal(batch['index'], reference['index'])
        np.testing.assert_array_equal(batch['main'], reference['main'])


def test_masks_of_a_step_are_the_same_on_any_number_of_devices():
    recipe = tiny_mae()
    root = jax.random.key(0)

    def masked(batch: dict, step: jax.Array) -> jax.Array:
        key = named_key(root, 'step', step)
        around = Surroundings(batch, jnp.arange(16), key, step, {}, {})
        return Forward(recipe, Networks(recipe, {}, {}, key, 'train'), around).plan().masked

    plans = []
    for data, fsdp in ((1, 1), (2, 1), (4, 2), (8, 1)):
        mesh = make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
        placed = jax.device_put(random_batch(recipe), batch_sharding(mesh))
        everywhere = NamedSharding(mesh, PartitionSpec())
        find = jax.jit(masked, in_shardings=(batch_sharding(mesh), everywhere))
        plans.append(np.stack([find(placed, jax.device_put(step, everywhere)) for step in (0, 7)]))
    assert (plans[0][0] != plans[0][1]).any()
    for plan in plans[1:]:
        np.testing.assert_array_equal(plan, plans[0])
