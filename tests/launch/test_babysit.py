"""The supervisor: what is tried again and how often, and what ends it. Commands are lines of Python or sh."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BABYSIT = [sys.executable, str(Path(__file__).parents[2] / 'launch' / 'babysit.py')]


def sit(*options, code, cwd):
    """(status, lines) of a command in sh; it finds its own try's number in $N."""
    count = 'N=$(( $(cat tries 2>/dev/null || echo 0) + 1 )); echo $N > tries; '
    command = [*BABYSIT, '--wait', '0', *options, '--', 'sh', '-c', count + code, 'sh', '--workdir', 'run']
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.stderr == ''
    return done.returncode, done.stdout.splitlines()


@pytest.fixture
def journal(tmp_path):
    (tmp_path / 'run').mkdir()
    return tmp_path / 'run' / 'metrics.jsonl'


def test_again_until_finished(tmp_path):
    status, lines = sit(
        code='case $N in 1) exit 75;; 2) exit 1;; 3) kill -9 $$;; 4) exit 134;; *) exit 0;; esac', cwd=tmp_path
    )
    assert status == 0
    assert [line.split(' after ')[0] for line in lines] == [
        'babysit: ended with 75 (interrupted, or a host lost)',
        'babysit: ended with 1 (a crash)',
        'babysit: ended with -9 (Killed)',
        'babysit: ended with 134 (Aborted)',
        'babysit: ended with 0 (finished)',
    ]


@pytest.mark.parametrize('status', [0, 2, 3, 64])
def test_never_again(status, tmp_path):
    assert sit(code=f'exit {status}', cwd=tmp_path)[0] == status
    assert (tmp_path / 'tries').read_text() == '1\n'


def test_failures_without_a_new_step_come_to_an_end(tmp_path, journal):
    journal.write_text('{"step": 7, "loss/total": 1.0}\n{"step": 8, "los')  # cut off by a kill
    status, lines = sit('--tries', '4', code='exit 75', cwd=tmp_path)
    assert (status, len(lines)) == (75, 4)
    assert 'at step 7' in lines[0]
    assert 'failure 4 in a row without a new step: given up' in lines[-1]


def test_a_crash_at_one_step_is_tried_less_often(tmp_path, journal):
    journal.write_text('{"step": 7}\n')
    status, lines = sit('--tries', '9', code='exit 1', cwd=tmp_path)
    assert (status, len(lines)) == (1, 3)
    assert 'that is crash 3 there: given up' in lines[-1]


def test_new_steps_begin_the_count_again(tmp_path, journal):
    code = 'echo "{\\"step\\": $N}" >> run/metrics.jsonl; [ $N -lt 8 ] && exit 1; exit 0'
    status, lines = sit('--tries', '2', '--crashes', '2', code=code, cwd=tmp_path)
    assert (status, len(lines)) == (0, 8)
    assert all('failure 1 of 2' in line for line in lines[:-1])


def test_a_long_try_is_progress_where_no_journal_is_seen(tmp_path):
    code = '[ $N -lt 4 ] && sleep 0.3 && exit 75; exit 75'
    status, lines = sit('--tries', '2', '--long', '0.2', code=code, cwd=tmp_path)
    assert (status, len(lines)) == (75, 4)  # three long tries, each a new beginning, and one more failure


def test_the_wait_doubles(tmp_path):
    start = time.monotonic()
    sit('--tries', '4', '--wait', '0.1', code='exit 75', cwd=tmp_path)
    assert time.monotonic() - start > 0.1 + 0.2 + 0.4


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_once_and_ends_it(number, tmp_path):
    code = f'import signal, sys; signal.signal({int(number)}, lambda *_: sys.exit(75)); print("up", flush=True); signal.pause()'
    command = [*BABYSIT, '--wait', '0', '--', sys.executable, '-c', code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0) as sitter:
        assert sitter.stdout.readline() == 'up\n'
        os.killpg(sitter.pid, number)  # as a terminal does; the command has a group of its own
        assert sitter.wait(20) == 75
        assert 'told to stop, so not again' in sitter.stdout.read()


def test_a_signal_between_two_tries_ends_it(tmp_path):
    command = [*BABYSIT, '--wait', '60', '--', 'sh', '-c', 'exit 75']
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sitter:
        assert 'again in 60 s' in sitter.stdout.readline()
        sitter.terminate()
        assert sitter.wait(20) == 75


def test_no_command_and_an_unknown_one():
    for command in ([], ['--', 'no_such_program']):
        done = subprocess.run([*BABYSIT, *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert 'error: ' in done.stderr
