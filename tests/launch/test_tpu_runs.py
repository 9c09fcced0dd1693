"""Runs on a pretended slice of two workers, whose side (tpu_worker.sh) really runs: start, look, stop, bring back."""

import time

import pytest
from tpu_world import World

V4 = ('--type', 'v4-16')
# Runs until SIGTERM, at most 20 s, and then ends as a training that has saved.
TRAIN = ('--', 'bash', '-c', 'trap "exit 75" TERM; echo "step 7"; for i in {1..400}; do sleep 0.05; done')


def in_each_start(cloud, *statuses: int) -> tuple[str, ...]:
    """A command that counts its starts in a bucket, and ends each with the status given; 'None': as TRAIN."""
    cases = ' '.join(f'{n}) exit {status};;' for n, status in enumerate(statuses, 1) if status is not None)
    count = f'f={cloud}/bucket_$FAKE_HOST; echo start >>$f; case $(wc -l <$f) in {cases} esac'
    return ('--', 'bash', '-c', f'{count}; {TRAIN[-1]}')


def is_running(world: World, worker: int) -> bool:
    return f'pod-w-{worker} running' in world.run('tpu_status.sh').stdout


@pytest.fixture
def world(tmp_path):
    with World(tmp_path) as opened:
        yield opened


@pytest.fixture
def pod(world):
    assert world.run('tpu_create.sh', *V4).returncode == 0
    assert world.run('tpu_setup.sh').returncode == 0
    return world


def test_from_start_to_stop(pod):
    started = pod.run('tpu_run.sh', *TRAIN)
    assert started.returncode == 0, started.stderr
    seen = pod.run('tpu_status.sh')
    assert seen.stdout.splitlines() == [
        'pod: ACTIVE v4-16', 'mim_jax-worker pod-w-0 running', 'mim_jax-worker pod-w-1 running', 'step 7'
    ]  # fmt: skip
    again = pod.run('tpu_run.sh', *TRAIN)
    assert again.returncode == 0
    assert again.stdout.count('running already: nothing to start') == 2
    stopped = pod.run('tpu_stop.sh')
    assert stopped.stdout.splitlines() == ['mim_jax-worker pod-w-0 stopped', 'mim_jax-worker pod-w-1 stopped']
    assert (pod.home(0) / 'mim_jax_run' / 'status').read_text() == '75\n'
    assert pod.run('tpu_stop.sh').returncode == 0
    assert pod.run('tpu_run.sh', *TRAIN).returncode == 0  # and goes on
    assert is_running(pod, 0)
    assert (pod.home(1) / 'mim_jax_run' / 'log').read_text().count('step 7') == 2
    assert pod.run('tpu_delete.sh').returncode == 0


def test_a_run_is_not_disturbed(pod):
    pod.run('tpu_run.sh', *TRAIN)
    other = pod.run('tpu_run.sh', '--', 'true')
    assert other.returncode == 1
    assert 'another command runs here' in other.stderr
    setup = pod.run('tpu_setup.sh')
    assert setup.returncode == 1
    assert 'a run is alive here' in setup.stderr
    assert is_running(pod, 0)
    assert is_running(pod, 1)


def test_words_reach_the_command_as_they_were_given(pod):
    words = ['--config=a b', "it's", '$HOME', 'vit_l16,folder', 'x;y', '']
    pod.run('tpu_run.sh', '--tries', '3', '--', 'printf', '<%s>', *words)
    deadline = time.monotonic() + 10
    log = pod.home(0) / 'mim_jax_run' / 'log'
    while '>' not in log.read_text().splitlines()[-1] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert log.read_text().splitlines()[-1] == ''.join(f'<{word}>' for word in words)


def test_what_status_says(pod):
    def state() -> str:
        return pod.run('tpu_status.sh').stdout.splitlines()[1].removeprefix('mim_jax-worker pod-w-0 ')

    assert state() == 'idle'
    for status in 0, 3:
        pod.run('tpu_run.sh', '--', 'bash', '-c', f'exit {status}')
        time.sleep(0.3)
        assert state() == f'ended {status}'
    pod.run('tpu_run.sh', *TRAIN)
    pod.kill_run(0)
    assert state() == 'gone'
    (pod.home(0) / 'mim_jax_venv' / '.ready').unlink()
    (pod.home(0) / 'mim_jax_run' / 'pid').unlink()
    assert state() == 'not-set-up'


def test_run_and_status_of_what_is_not_there(world):
    done = world.run('tpu_run.sh', *TRAIN)
    assert done.returncode == 2
    assert 'pod is not there, not ACTIVE' in done.stderr
    assert world.run('tpu_status.sh').stdout == 'pod: not there \n'
    world.run('tpu_create.sh', *V4)
    assert 'pod-w-1 not-set-up' in world.run('tpu_status.sh').stdout
    assert world.run('tpu_run.sh', *TRAIN).returncode == 1


def test_keep_alive_ends_when_the_run_has_finished(pod):
    done = pod.run('tpu_run.sh', *V4, '--keep-alive', *in_each_start(pod.cloud, 0))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == 'The run on pod has finished.'
    assert 'no gs:// folder' in done.stdout


def test_keep_alive_brings_a_preempted_slice_back_and_gives_the_same_command(pod):
    pod.exists('ACTIVE', 'ACTIVE', 'UNREACHABLE', 'ACTIVE', 'SUSPENDING', 'SUSPENDED')
    pod.plan([['REFUSED'], ['PROVISIONING', 'ACTIVE']])
    before = len(pod.calls('create')), len(pod.calls('scp'))
    done = pod.run('tpu_run.sh', *V4, '--spot', '--keep-alive', *in_each_start(pod.cloud, None, 0))
    assert done.returncode == 0, done.stderr
    assert 'taken away' in done.stdout
    assert (len(pod.calls('create')), len(pod.calls('scp'))) == (before[0] + 2, before[1] + 1)
    assert '--spot' in pod.calls('create')[-1]
    assert (pod.cloud / 'bucket_pod-w-1').read_text() == 'start\n' * 2


def test_keep_alive_starts_again_after_a_reboot_but_not_for_ever(pod):
    done = pod.run('tpu_run.sh', *V4, '--keep-alive', '--tries', '2', *in_each_start(pod.cloud, 1, 75, 1, 0))
    assert done.returncode == 75
    assert 'started again 2 times' in done.stderr
    assert (pod.cloud / 'bucket_pod-w-0').read_text() == 'start\n' * 3


@pytest.mark.parametrize('status', [2, 3])
def test_keep_alive_stops_all_for_what_only_a_person_can_mend(pod, status):
    command = ('--', 'bash', '-c', f'[ "$FAKE_HOST" != pod-w-1 ] || exit {status}; {TRAIN[-1]}')
    done = pod.run('tpu_run.sh', *V4, '--keep-alive', *command)
    assert done.returncode == status
    assert f'ended with status {status}' in done.stderr
    assert 'pod-w-0 stopped' in pod.run('tpu_status.sh').stdout


def test_keep_alive_does_not_make_anew_what_was_deleted(pod):
    pod.exists('ACTIVE', 'ACTIVE', 'GONE')
    done = pod.run('tpu_run.sh', *V4, '--keep-alive', *TRAIN)
    assert done.returncode == 75
    assert 'nothing to keep alive' in done.stderr
    assert len(pod.calls('create')) == 1


def test_keep_alive_ends_when_somebody_deletes_the_slice_that_it_waits_for(pod):
    pod.exists('SUSPENDED')
    pod.plan([['PROVISIONING', 'GONE']])
    done = pod.run('tpu_run.sh', *V4, '--keep-alive', *TRAIN)
    assert done.returncode == 2
    assert 'somebody has deleted it' in done.stderr
    assert len(pod.calls('create')) == 2
