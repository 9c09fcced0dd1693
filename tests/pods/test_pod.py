"""Two processes are one run: what they train is what one process trains, and they stop, save and go on together."""

import signal

import numpy as np
import pytest
from pod_runs import Pod, compare_runs, read_seal, read_values, run_pod, statuses
from program_runs import arguments, read_losses, read_summary, saved_steps, share_compilations

STEPS, EVERY, WATCHED = 12, 5, 6
PER_EPOCH = 1437 / 16
SETTINGS = {
    'steps': STEPS,
    'checkpoint.every_steps': EVERY,
    'mesh.fsdp': 2,
    'probe.every_epochs': WATCHED / PER_EPOCH,
    'probe.ridge': False,
    'probe.train_images': 256,
    'probe.test_images': 64,
    'pictures.every_epochs': WATCHED / PER_EPOCH,
    'pictures.count': 2,
}


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


def test_two_processes_train_what_one_trains(tmp_path):
    """data 2 x fsdp 2 over two processes, with probes and pictures; SIGTERM to the second one alone stops both."""
    one, two = tmp_path / 'one', tmp_path / 'two'
    with Pod(tmp_path / 'first', arguments(two, SETTINGS)) as pod:
        pod.wait_for('step  2/12')
        pod.children[1].send_signal(signal.SIGTERM)
        ended = pod.finish()
    assert statuses(ended) == [75, 75], ended
    stopped = read_summary(two)
    assert (stopped['status'], stopped['hosts']) == ('interrupted', 2)
    assert saved_steps(two)[-1] == stopped['steps'] < STEPS
    assert f'Interrupted at step {stopped["steps"]} of {STEPS}, saved.' in ended[0].out
    assert 'step' not in ended[1].out  # the first host speaks for both

    ended = run_pod(tmp_path / 'second', arguments(two, SETTINGS))
    assert statuses(ended) == [0, 0], ended
    assert f'Resuming mae at step {stopped["steps"]} of {STEPS}' in ended[0].out
    assert (ended[0].err, ended[1].err) == ('', '')

    (whole,) = run_pod(tmp_path / 'whole', arguments(one, SETTINGS), hosts=1, devices=4)
    assert whole.status == 0, whole
    assert list(read_losses(two)) == list(range(1, STEPS + 1))
    apart = compare_runs(two, one, STEPS)
    assert apart['loss'] < 1e-5, apart
    assert apart['parameters'] < 1e-5, apart
    summary = read_summary(two)
    assert (summary['status'], summary['steps']) == ('finished', STEPS)
    assert read_seal(two, STEPS)['owed'] is False
    seen, expected = (read_values(run, 'probe/') for run in (two, one))
    assert list(seen) == list(expected) == [WATCHED, STEPS]
    for step, values in expected.items():
        np.testing.assert_allclose(list(seen[step].values()), list(values.values()), atol=2 * 100 / 64)
    for run in (one, two):
        names = {path.name for path in (run / 'pictures').iterdir()}
        assert names == {'curves.png', *(f'pixels_step_{step:07d}.png' for step in (WATCHED, STEPS))}


def test_a_workdir_that_is_in_use_ends_all_hosts_with_that_sentence(tmp_path):
    """Before any device is touched."""
    workdir = tmp_path / 'run'
    workdir.mkdir()
    hold = "import fcntl; held = open({!r}, 'w'); fcntl.flock(held, fcntl.LOCK_EX)".format(str(workdir / '.lock'))
    # The first host holds the lock itself, through another open file.
    ended = run_pod(tmp_path / 'pod', arguments(workdir), faults={0: hold})
    assert statuses(ended) == [2, 2], ended
    for one in ended:
        assert f'{workdir} is in use by another run' in one.err
        assert 'Traceback' not in one.err
    assert {path.name for path in workdir.iterdir()} == {'.lock'}
