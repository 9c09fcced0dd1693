"""What goes wrong on one host of several: all of them end, say why, and nothing that was saved is lost or only looks saved.

Each fault is a line of Python that one process runs before the program.
"""

import shutil
import time

import pytest
from pod_runs import Pod, read_values, run_pod, statuses
from program_runs import (
    arguments,
    half_written,
    read_fingerprints,
    read_losses,
    read_summary,
    saved_steps,
    share_compilations,
)

STEPS, EVERY = 12, 4
SETTINGS = {'steps': STEPS, 'checkpoint.every_steps': EVERY, 'mesh.fsdp': 2}
PROBED = {'probe.every_epochs': 6 * 16 / 1437, 'probe.ridge': False, 'probe.train_images': 64, 'probe.test_images': 64}
pytestmark = pytest.mark.slow


def break_at(step: int, method: str = '_look_up', error: str = "RuntimeError('broken')") -> str:
    """A method of the session, whose first argument is the steps done, raises."""
    return f"""
from mim_jax.training import loop
before = loop.Session.{method}
def broken(self, done, *rest):
    if done == {step}:
        raise {error}
    return before(self, done, *rest)
loop.Session.{method} = broken
"""


def signal_in(owner: str, method: str, times: int = 1) -> str:
    """SIGTERM arrives, `times` times, as a method of an object in the loop's module begins for the first time."""
    return f"""
import os
from mim_jax.training import loop
before, signals = loop.{owner}.{method}, [15] * {times}
def signalled(self, *rest, **more):
    while signals:
        os.kill(os.getpid(), signals.pop())
    return before(self, *rest, **more)
loop.{owner}.{method} = signalled
"""


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(scope='module')
def whole(cache, tmp_path_factory):
    """A run of two hosts that nothing disturbed."""
    folder = tmp_path_factory.mktemp('whole')
    ended = run_pod(folder / 'pod', arguments(folder / 'run', SETTINGS))
    assert statuses(ended) == [0, 0], ended
    return folder / 'run'


def check_same_end(workdir, whole):
    assert read_summary(workdir)['status'] == 'finished'
    assert read_fingerprints(workdir, STEPS) == read_fingerprints(whole, STEPS)
    assert read_losses(workdir) == read_losses(whole)


def go_on(tmp_path, workdir, whole):
    """The same command, without the fault, ends as if there had been none."""
    ended = run_pod(tmp_path / 'again', arguments(workdir, SETTINGS))
    assert statuses(ended) == [0, 0], ended
    check_same_end(workdir, whole)


@pytest.mark.parametrize('host', [0, 1])
def test_a_crash_on_one_host_ends_the_other_soon(host, whole, tmp_path):
    workdir, start = tmp_path / 'run', time.monotonic()
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={host: break_at(6)})
    assert (ended[host].status, ended[1 - host].status) == (1, 75), ended
    assert 'RuntimeError: broken' in ended[host].err
    assert f'host {host}' in ended[1 - host].err
    assert saved_steps(workdir) == [EVERY]
    assert read_summary(workdir)['status'] == 'failed' if host == 0 else True
    print(f'ended after {time.monotonic() - start:.0f} s')
    go_on(tmp_path, workdir, whole)


@pytest.mark.parametrize('host', [0, 1])
def test_a_host_that_fails_before_it_saves_leaves_no_checkpoint_that_looks_complete(host, whole, tmp_path):
    workdir = tmp_path / 'run'
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={host: break_at(2 * EVERY, '_save')})
    assert (ended[host].status, ended[1 - host].status) == (1, 75), ended
    assert saved_steps(workdir) == [EVERY]
    go_on(tmp_path, workdir, whole)


def test_a_bad_image_on_one_host_ends_both_with_that_sentence(whole, tmp_path):
    workdir = tmp_path / 'run'
    fault = break_at(6, error="loop.DataError('image 7 cannot be decoded')")
    fault = 'from mim_jax import errors\nfrom mim_jax.training import loop\nloop.DataError = errors.DataError\n' + fault
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={1: fault})
    assert statuses(ended) == [2, 2], ended
    for one in ended:
        assert 'image 7 cannot be decoded' in one.err
        assert 'host 1' in one.err
        assert 'Traceback' not in one.err
    go_on(tmp_path, workdir, whole)


def test_a_checkpoint_that_one_host_cannot_read_is_damaged_for_all(whole, tmp_path):
    workdir = tmp_path / 'run'
    shutil.copytree(whole, workdir)
    (workdir / 'summary.json').unlink()
    fault = f"""
from mim_jax.training import checkpoint
before = checkpoint._read_seal
def unreadable(path):
    if path.name == '{STEPS}':
        raise checkpoint.Damaged('it was altered')
    return before(path)
checkpoint._read_seal = unreadable
"""
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={1: fault})
    assert statuses(ended) == [0, 0], ended
    assert 'is damaged: it was altered (seen by host 1)' in ended[0].out
    assert f'Resuming mae at step {2 * EVERY} of {STEPS}' in ended[0].out
    assert (workdir / 'checkpoints' / f'damaged_{STEPS}').is_dir()
    check_same_end(workdir, whole)


@pytest.mark.parametrize(('fast', 'saved'), [(1, [STEPS]), (0, list(range(2, STEPS + 1, 2)))])
def test_the_first_hosts_clock_decides_when_to_save(fast, saved, whole, tmp_path):
    """One host's clock runs 1e9 times too fast, so that 15 minutes are a microsecond and always over: if it is the first one's,
    all save whenever a step tells them so."""
    skew = (
        'import time, types; from mim_jax.training import loop; '
        'loop.time = types.SimpleNamespace(monotonic=lambda: 1e9 * time.monotonic())'
    )
    workdir = tmp_path / 'run'
    settings = SETTINGS | {'checkpoint.every_steps': 0, 'checkpoint.every_minutes': 15}
    ended = run_pod(tmp_path / 'pod', arguments(workdir, settings), faults={fast: skew})
    assert statuses(ended) == [0, 0], ended
    assert saved_steps(workdir) == saved
    check_same_end(workdir, whole)


@pytest.mark.parametrize(
    ('owner', 'method', 'done'), [('Session', '_compile', 0), ('Checkpoints', 'save', None), ('Loggers', 'write', None)]
)
def test_a_signal_in_any_phase_stops_all_hosts(owner, method, done, whole, tmp_path):
    """To the second host alone: while it compiles, in the middle of a save, while it writes what it saw."""
    workdir = tmp_path / 'run'
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={1: signal_in(owner, method)})
    assert statuses(ended) == [75, 75], ended
    summary = read_summary(workdir)
    assert summary['status'] == 'interrupted'
    assert summary['steps'] == saved_steps(workdir)[-1] < STEPS
    assert done is None or summary['steps'] == done
    go_on(tmp_path, workdir, whole)


def test_a_signal_while_one_host_evaluates(whole, tmp_path):
    """Both finish that look, and stop; what was seen is not looked at again."""
    workdir = tmp_path / 'run'
    fault = """
import os
from mim_jax.evals import watchers
before = watchers.knn_percents
def signalled(*arguments):
    os.kill(os.getpid(), 15)
    return before(*arguments)
watchers.knn_percents = signalled
"""
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS | PROBED), faults={1: fault})
    assert statuses(ended) == [75, 75], ended  # at the look at the untrained network
    assert read_summary(workdir)['steps'] == 0
    ended = run_pod(tmp_path / 'again', arguments(workdir, SETTINGS | PROBED), faults={1: fault})
    assert statuses(ended) == [75, 75], ended
    assert list(read_values(workdir, 'probe/')) == [6]
    ended = run_pod(tmp_path / 'last', arguments(workdir, SETTINGS | PROBED))
    assert statuses(ended) == [0, 0], ended
    assert list(read_values(workdir, 'probe/')) == [6, STEPS]
    assert list(read_values(workdir, 'untrained/')) == [0]
    check_same_end(workdir, whole)


def test_a_second_signal_insists(whole, tmp_path):
    """On the host that gets it; the other has nobody to go on with."""
    workdir = tmp_path / 'run'
    fault = signal_in('Session', '_look_up', times=2)
    ended = run_pod(tmp_path / 'pod', arguments(workdir, SETTINGS), faults={0: fault})
    assert statuses(ended) == [75, 75], ended
    assert 'once more to stop without saving' in ended[0].out
    assert 'Stopped; the last checkpoint stands' in ended[0].err
    assert saved_steps(workdir) == []
    go_on(tmp_path, workdir, whole)


@pytest.mark.parametrize('host', [0, 1])
def test_a_kill_in_the_middle_of_a_save(host, whole, tmp_path):
    workdir, line = tmp_path / 'run', arguments(tmp_path / 'run', SETTINGS | {'checkpoint.every_steps': 1})
    with Pod(tmp_path / 'pod', line) as pod:
        pod.wait_for('step  3/')
        while not half_written(workdir):
            time.sleep(0.001)
        pod.children[host].kill()
        ended = pod.finish()
    assert (ended[host].status, ended[1 - host].status) == (-9, 75), ended
    assert f'host {host}' in ended[1 - host].err
    go_on(tmp_path, workdir, whole)


def test_hosts_that_do_not_share_the_workdir(tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    fault = f"""
from mim_jax.training import entry
before = entry.Guest.__init__
entry.Guest.__init__ = lambda self, path: before(self, {str(elsewhere)!r})
"""
    ended = run_pod(tmp_path / 'pod', arguments(tmp_path / 'run', SETTINGS), faults={1: fault})
    assert statuses(ended) == [2, 2], ended
    for one in ended:
        assert f'{elsewhere} is another folder here than on the first host' in one.err
    assert not list((tmp_path / 'run').glob('.shared_*'))


def test_a_folder_that_nobody_may_write(tmp_path):
    ended = run_pod(tmp_path / 'pod', arguments('/proc/self/run'))
    assert statuses(ended) == [2, 2], ended
    for one in ended:
        assert '--workdir /proc/self/run cannot be written' in one.err
