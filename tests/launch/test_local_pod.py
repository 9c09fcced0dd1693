"""The pod on this machine: each process is told its place, signals are passed on, one exit status comes of all."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'launch' / 'local_pod.py'
POD = [sys.executable, str(SCRIPT)]


def load_script():
    spec = importlib.util.spec_from_file_location('local_pod', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(logs, code, *options):
    """(status, output) of a line of sh as every host's program; $H is its number."""
    command = [*POD, '--logs', str(logs), *options, '--', 'sh', '-c', f'H=$MIM_JAX_HOST; {code}']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr == ''
    return done.returncode, done.stdout


def test_every_process_knows_its_place(tmp_path):
    code = 'echo "$MIM_JAX_HOST of $MIM_JAX_HOSTS at $MIM_JAX_COORDINATOR on $JAX_PLATFORMS $XLA_FLAGS"'
    status, out = run(tmp_path, code, '--processes', '3', '--devices', '2')
    said = [(tmp_path / f'host_{host}.log').read_text() for host in range(3)]
    assert status == 0
    assert out.splitlines()[1:] == [said[0].strip()]  # host 0's output alone
    assert len({line.split(' at ')[1] for line in said}) == 1
    for host, line in enumerate(said):
        assert line.startswith(f'{host} of 3 at 127.0.0.1:')
        assert 'on cpu' in line
        assert line.count('--xla_force_host_platform_device_count=') == 1
        assert '--xla_force_host_platform_device_count=2' in line


def test_one_process_is_no_pod(tmp_path):
    status, out = run(tmp_path, 'echo "hosts $MIM_JAX_HOSTS at ($MIM_JAX_COORDINATOR)"', '--processes', '1')
    assert status == 0
    assert out.splitlines()[1:] == ['hosts 1 at ()']


def test_a_dry_run_prints_commands_that_run(tmp_path):
    done = subprocess.run(
        [*POD, '--dry-run', '--processes', '2', '--', 'sh', '-c', 'echo "a $MIM_JAX_HOST"'],
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert [subprocess.check_output(shlex.split(line), text=True) for line in lines] == ['a 0\n', 'a 1\n']


@pytest.mark.parametrize(
    ('statuses', 'status'),
    [
        ([0, 0], 0),
        ([0, 1], 1),
        ([75, 0], 75),
        ([1, 75], 75),
        ([0, -9], 75),
        ([134, 1], 75),
        ([75, 2, -9], 2),
        ([75, 3, 75], 3),
    ],
)
def test_one_status_of_all(statuses, status):
    assert load_script().join_statuses(statuses) == status


def test_the_others_have_a_grace(tmp_path):
    start = time.monotonic()
    status, out = run(tmp_path, '[ $H = 1 ] && exit 1; exec sleep 60', '--processes', '3', '--grace', '0.5')
    assert time.monotonic() - start < 20
    assert status == 75
    assert 'hosts [0, 2] did not end 0 s after another one; killed.' in out
    assert 'exit statuses by host: [-9, 1, -9]' in out


def test_one_that_finishes_early_is_no_failure(tmp_path):
    status, _ = run(tmp_path, '[ $H = 1 ] || sleep 1', '--grace', '0')
    assert status == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once(number, tmp_path):
    code = (
        f'import signal, time; signal.signal({int(number)}, lambda *_: print("heard", flush=True)); print("up", flush=True)\n'
        'signal.pause(); time.sleep(0.5)'
    )
    command = [*POD, '--logs', str(tmp_path), '--', sys.executable, '-c', code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as pod:
        logs = [tmp_path / f'host_{host}.log' for host in range(2)]
        wait_for(lambda: all(log.exists() and log.read_text() == 'up\n' for log in logs))
        os.killpg(pod.pid, number)  # as a terminal does
        assert pod.wait(20) == 0
    assert [log.read_text() for log in logs] == ['up\nheard\n'] * 2


@pytest.mark.skipif(sys.platform != 'linux', reason='prctl')
def test_nobody_outlives_the_pod(tmp_path):
    code = (
        'import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("told", flush=True)))\n'
        'print("up", flush=True); signal.pause()'
    )
    command = [*POD, '--logs', str(tmp_path), '--', sys.executable, '-c', code]
    log = tmp_path / 'host_1.log'
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as pod:
        wait_for(lambda: log.exists() and log.read_text() == 'up\n')
        pod.kill()
    wait_for(lambda: log.read_text() == 'up\ntold\n')


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
