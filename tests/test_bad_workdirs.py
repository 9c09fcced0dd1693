"""Workdirs that cannot be used, damaged files, full disks: nothing is lost, and what can go on goes on."""

import subprocess
import sys
from pathlib import Path

import pytest
from program_runs import (
    EVERY,
    STEPS,
    arguments,
    call,
    copy_run,
    fail,
    finish,
    read_fingerprints,
    read_losses,
    read_summary,
    share_compilations,
    snapshot,
    start,
)

from mim_jax.train import main


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    """The workdir of a finished run on eight devices; never written to."""
    share_compilations(tmp_path_factory)
    workdir = tmp_path_factory.mktemp('finished') / 'run'
    assert main(arguments(workdir)) == 0
    return workdir


# -- workdirs that are refused: what they hold stays as it is ----------------------------------------------------------
def test_a_workdir_that_is_a_file_or_below_one(capsys, tmp_path):
    file = tmp_path / 'file'
    file.write_text('precious')
    fail(capsys, arguments(file), str(file), 'is a file', 'choose a folder')
    fail(capsys, arguments(file / 'run'), str(file / 'run'), 'cannot be written', 'choose a folder')
    assert file.read_text() == 'precious'


@pytest.mark.skipif(not Path('/proc/self').exists(), reason='needs a folder that even root cannot write to')
def test_a_workdir_that_nobody_may_write(capsys):
    fail(capsys, arguments('/proc/self/run'), '--workdir /proc/self/run', 'cannot be written', 'choose a folder')


def test_a_workdir_of_other_settings(finished, capsys, tmp_path):
    workdir = copy_run(finished, tmp_path / 'run')
    before = snapshot(workdir)
    settings = {'optim.base_lr': 0.5, 'mae.mask_ratio': 0.5, 'log.every_steps': 7}
    message = fail(capsys, arguments(workdir, settings), 'other settings', 'Use another --workdir')
    assert 'optim.base_lr: 0.001 -> 0.5' in message
    assert 'mae.mask_ratio: 0.75 -> 0.5' in message
    assert 'log.every_steps' not in message  # free to change
    assert snapshot(workdir) == before


def test_a_workdir_in_use_by_another_process(finished, capsys, tmp_path):
    workdir = copy_run(finished, tmp_path / 'run')
    before = snapshot(workdir)
    hold = 'import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()'
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE}
    with subprocess.Popen([sys.executable, '-c', hold, str(workdir / '.lock')], **pipes) as holder:
        holder.stdout.readline()
        fail(capsys, arguments(workdir), str(workdir), 'in use by another run', 'choose another --workdir')
        holder.communicate(b'\n')
    assert snapshot(workdir) == before


@pytest.mark.parametrize('content', [b'{"base": "mae", ', b'[]', b'\xff\xfe', None])
def test_a_damaged_or_missing_config_json(content, finished, capsys, tmp_path):
    workdir = copy_run(finished, tmp_path / 'run')
    file = workdir / 'config.json'
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    before = snapshot(workdir)
    fail(capsys, arguments(workdir), 'config.json', 'restore it', 'another --workdir')
    assert snapshot(workdir) == before


# -- damaged checkpoints and journals ----------------------------------------------------------------------------------
def damage_largest(checkpoint: Path, kind: str) -> None:
    """Cut the largest data file of a checkpoint in half, or flip one byte in it."""
    file = max((checkpoint / 'state' / 'd').iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    if kind == 'truncate':
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize('kind', ['truncate', 'flip'])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kind, finished, tmp_path, capsys):
    workdir = copy_run(finished, tmp_path / 'run', 5 * EVERY)
    damage_largest(workdir / 'checkpoints' / str(5 * EVERY), kind)
    ended = call(capsys, arguments(workdir))
    assert (ended.status, ended.err) == (0, '')
    assert f'{5 * EVERY} is damaged' in ended.out
    assert f'Resuming mae at step {4 * EVERY}' in ended.out
    assert (workdir / 'checkpoints' / f'damaged_{5 * EVERY}').is_dir()
    assert read_fingerprints(workdir) == read_fingerprints(finished)
    assert read_losses(workdir) == read_losses(finished)


def test_all_checkpoints_damaged(finished, capsys, tmp_path):
    workdir = copy_run(finished, tmp_path / 'run', 2 * EVERY)
    for step in (EVERY, 2 * EVERY):
        damage_largest(workdir / 'checkpoints' / str(step), 'truncate')
    before = {file: content for file, content in snapshot(workdir).items() if file.startswith('checkpoints')}
    fail(capsys, arguments(workdir), 'No checkpoint', 'is readable', f'step {EVERY}', f'step {2 * EVERY}', 'start anew')
    after = snapshot(workdir)
    assert before.items() <= after.items()
    assert after['metrics.jsonl'] == (finished / 'metrics.jsonl').read_bytes()
    assert read_summary(workdir)['status'] == 'failed'


def test_a_torn_last_line_of_the_journal(finished, tmp_path, capsys):
    workdir = copy_run(finished, tmp_path / 'run', 5 * EVERY)
    lines = (workdir / 'metrics.jsonl').read_text().splitlines(keepends=True)
    (workdir / 'metrics.jsonl').write_text(''.join(lines[: 5 * EVERY + 2]) + lines[5 * EVERY + 2][:30])
    ended = call(capsys, arguments(workdir))
    assert (ended.status, ended.err) == (0, '')
    assert read_losses(workdir) == read_losses(finished)


def test_a_journal_with_a_broken_line_is_left_alone(finished, capsys, tmp_path):
    workdir = copy_run(finished, tmp_path / 'run', 5 * EVERY)
    journal = workdir / 'metrics.jsonl'
    journal.write_text(journal.read_text().replace('{', '?', 1))
    before = journal.read_bytes()
    fail(capsys, arguments(workdir), f'{journal} line 1', 'delete that line')
    assert journal.read_bytes() == before


def test_a_full_disk(finished, tmp_path):
    """Files of at most 20 kB: the journal fits, a checkpoint does not. With room again, the run goes on."""
    workdir = copy_run(finished, tmp_path / 'run', EVERY)
    limited = ('bash', '-c', 'ulimit -f 20; exec "$@"', 'limited')
    ended = finish(start(arguments(workdir), devices=8, through=limited))
    assert ended.status == 2
    assert ended.err.count('error: ') == 1
    assert 'Traceback' not in ended.err
    assert f'The checkpoint of step {2 * EVERY} could not be written in {workdir / "checkpoints"}' in ended.err
    assert f'The checkpoint of step {EVERY} is intact; free disk space' in ended.err
    assert read_summary(workdir)['status'] == 'failed'
    ended = finish(start(arguments(workdir), devices=8))
    assert (ended.status, ended.err) == (0, '')
    assert read_summary(workdir)['steps'] == STEPS
    assert read_fingerprints(workdir) == read_fingerprints(finished)
