"""Real processes on loopback: how a host that dies, fails or differs ends the others, with what sentence, how soon."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from program_runs import ROOT, SMOKE

LOST = 'is gone, so this host stops too'
# A host that joins, waits for the others to have joined too, and for its end.
WAITING = """
import time
from mim_jax.parallel.agreement import barrier
from mim_jax.parallel.startup import join_hosts, leave_hosts
join_hosts(timeout=100)
barrier('here')
print('here', flush=True)
time.sleep({seconds})
leave_hosts()
"""
PROGRAM = """
import sys
from importlib import metadata
from mim_jax import command, train
{before}
sys.argv = ['train', '--config', {config!r}, '--workdir', {workdir!r}, *{more!r}]
command.run_program(train.main)
"""


class Hosts:
    """Python code as the hosts of one run, one process each. None outlives the test."""

    def __init__(self, folder, codes):
        self.files = [folder / f'host_{host}.log' for host in range(len(codes))]
        port = 20000 + os.getpid() % 10000  # below the system's own ports
        place = {
            'MIM_JAX_COORDINATOR': f'127.0.0.1:{port}',
            'MIM_JAX_HOSTS': str(len(codes)),
            'MIM_JAX_JOIN_TIMEOUT': '100',
        }
        self.children = []
        for host, (code, file) in enumerate(zip(codes, self.files, strict=True)):
            environment = os.environ | place | {'MIM_JAX_HOST': str(host)}
            with file.open('w') as log:
                child = subprocess.Popen(
                    [sys.executable, '-c', code], cwd=ROOT, env=environment, stdout=log, stderr=log
                )
            self.children.append(child)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for child in self.children:
            child.kill()
            child.wait()

    def wait_until_here(self):
        end = time.monotonic() + 100
        while not all('here\n' in file.read_text() for file in self.files):
            assert time.monotonic() < end, [file.read_text() for file in self.files]
            time.sleep(0.05)

    def finish(self):
        """[(exit status, what it said)] of each."""
        return [(child.wait(100), file.read_text()) for child, file in zip(self.children, self.files, strict=True)]


@pytest.mark.parametrize('victim', [1, 0])
def test_a_host_that_is_killed_ends_the_others_at_once(victim, tmp_path):
    with Hosts(tmp_path, [WAITING.format(seconds=100)] * 3) as hosts:
        hosts.wait_until_here()
        hosts.children[victim].kill()
        start = time.monotonic()
        ended = hosts.finish()
        assert time.monotonic() - start < 10  # milliseconds; JAX's heartbeat would be 20 s
    assert ended.pop(victim)[0] == -signal.SIGKILL
    for status, said in ended:
        assert status == 75
        assert f'error: host {victim} (' in said
        assert LOST in said


def test_an_orderly_end_waits_for_all(tmp_path):
    with Hosts(tmp_path, [WAITING.format(seconds=seconds) for seconds in (0, 1)]) as hosts:
        ended = hosts.finish()
    assert [status for status, _ in ended] == [0, 0]
    assert '2 hosts have joined through 127.0.0.1:' in ended[0][1]
    assert 'error' not in ''.join(said for _, said in ended)


OTHER_VERSION = "metadata.version = lambda name, old=metadata.version: '0.0.1' if name == 'flax' else old(name)"


@pytest.mark.parametrize(
    ('before', 'more', 'words'),
    [
        pytest.param(
            OTHER_VERSION, [], ('flax is "', 'but "0.0.1" on host 1 (', 'Give every host the same'), id='version'
        ),
        pytest.param('', ['--config.seed=7'], ('seed is 0 on host 0 (', 'but 7 on host 1 ('), id='setting'),
        pytest.param('', ['--config.data.sourc=x'], ('host 1', 'data.sourc'), marks=pytest.mark.slow, id='mistake'),
    ],
)
def test_hosts_that_differ_stop_before_a_device_is_touched(before, more, words, tmp_path):
    settings = {'config': SMOKE, 'workdir': str(tmp_path / 'run')}
    codes = [PROGRAM.format(before='', more=[], **settings), PROGRAM.format(before=before, more=more, **settings)]
    with Hosts(tmp_path, codes) as hosts:
        ended = hosts.finish()
    for status, said in ended:
        assert status == 2
        assert 'Traceback' not in said
        for word in words:
            assert word in said
    assert not (tmp_path / 'run').exists()


def test_the_doctor_finds_what_one_host_lacks(tmp_path):
    np.savez(tmp_path / 'data.npz', images=np.zeros((64, 16, 16), np.uint8), labels=np.arange(64) % 10)
    data = ['--config.data.source=npz', '--config.probe.every_epochs=0', '--config.pictures.every_epochs=0']
    codes = [
        PROGRAM.replace('train', 'doctor').format(
            before='', config=SMOKE, workdir=str(tmp_path / 'run'), more=[*data, f'--config.data.dir={tmp_path / name}']
        )
        for name in ('data.npz', 'elsewhere.npz')
    ]
    with Hosts(tmp_path, codes) as hosts:
        (status, first), (other_status, other) = hosts.finish()
    assert status == other_status == 2
    assert 'ok    versions' in first
    assert 'FAULT dataset, on host 1 (' in first
    assert 'elsewhere.npz' in first
    assert 'one train step' not in first  # which would have waited for host 1
    assert other.splitlines()[0].startswith('host 1: FAULT dataset: ')
