"""A run is bound to its dataset; and what a signal kept the watchers from seeing is seen later."""

import os
import signal

import numpy as np
import pytest
from program_runs import arguments, call, fail, read_losses, read_summary, share_compilations, snapshot
from test_bad_inputs import folder_settings, make_images

from mim_jax.evals import watchers
from mim_jax.training.loop import is_due, period_of


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


def test_a_run_does_not_go_on_with_other_images(tmp_path, capsys):
    files = make_images(tmp_path / 'images')
    settings = folder_settings(tmp_path / 'images', epochs=2.0, steps=0)
    line = arguments(tmp_path / 'run', settings)
    assert call(capsys, line).status == 0
    before = snapshot(tmp_path / 'run')

    files[3].rename(files[3].with_name('renamed.jpg'))
    fail(capsys, line, '20 images', 'the dataset is now', 'Put back the images')
    files[4].unlink()
    fail(capsys, line, '20 images', '19 images', 'another --workdir')
    assert snapshot(tmp_path / 'run') == before


def test_a_moved_dataset_is_the_same_dataset(tmp_path, capsys):
    make_images(tmp_path / 'here')
    assert call(capsys, arguments(tmp_path / 'run', folder_settings(tmp_path / 'here'))).status == 0
    (tmp_path / 'here').rename(tmp_path / 'there')
    ended = call(capsys, arguments(tmp_path / 'run', folder_settings(tmp_path / 'there')))
    assert (ended.status, ended.err) == (0, '')


def test_probes_need_labels(tmp_path, capsys):
    np.savez(
        tmp_path / 'images.npz',
        train_images=np.zeros((20, 16, 16, 3), np.uint8),
        test_images=np.zeros((9, 16, 16, 3), np.uint8),
    )
    settings = {
        'data.source': 'npz',
        'data.dir': tmp_path / 'images.npz',
        'optim.warmup_epochs': 0.0,
        'probe.every_epochs': 1,
    }
    fail(capsys, arguments(tmp_path / 'run', settings), 'Probes need labelled splits', 'probe.every_epochs=0')


def test_skipping_bad_images_holds_for_probes_and_pictures(tmp_path, capsys):
    for file in make_images(tmp_path / 'images', 40)[:3]:
        file.write_bytes(file.read_bytes()[:100])
    more = {
        'data.on_bad_image': 'skip',
        'data.eval_split': 'train',
        'probe.every_epochs': 1,
        'pictures.every_epochs': 1,
    }
    ended = call(capsys, arguments(tmp_path / 'run', folder_settings(tmp_path / 'images', **more)))
    assert (ended.status, ended.err) == (0, '')
    assert 'probe/knn' in read_summary(tmp_path / 'run')['metrics']


def test_a_signal_is_not_kept_waiting_by_watchers_and_the_look_is_made_up_for(tmp_path, capsys, monkeypatch):
    """The signal comes in the middle of a look at step 8: the probe after it is left, and taken by the next session."""
    settings = {'steps': 16, 'checkpoint.every_steps': 0, 'pictures.every_epochs': 8 * 16 / 1437, 'pictures.count': 2}
    settings |= {'probe.every_epochs': 8 * 16 / 1437, 'probe.train_images': 64, 'probe.test_images': 32}
    line = arguments(tmp_path / 'run', settings)
    looks = []

    def make(session, train, test):
        found = make_watchers(session, train, test)
        probe, picture = found[0].look, found[1].look

        def interrupted(state, step):
            if step == 8 and not looks:
                os.kill(os.getpid(), signal.SIGTERM)
            looks.append(step)
            return picture(state, step)

        return [
            watchers.Watcher(interrupted, found[1].period),
            watchers.Watcher(probe, found[0].period, untrained=True),
        ]

    make_watchers = watchers.make_watchers
    monkeypatch.setattr('mim_jax.train.make_watchers', make)
    assert call(capsys, line).status == 75
    assert 'probe/knn' not in read_summary(tmp_path / 'run')['metrics']
    assert read_summary(tmp_path / 'run')['steps'] == 8
    ended = call(capsys, line)
    assert ended.status == 0
    assert looks == [8, 8, 16]
    assert 'step  8/16  probe/knn' in ended.out
    assert list(read_losses(tmp_path / 'run')) == list(range(1, 17))


def test_a_failed_restart_keeps_what_the_summary_knew(tmp_path, capsys):
    make_images(tmp_path / 'images')
    line = arguments(tmp_path / 'run', folder_settings(tmp_path / 'images', steps=4))
    assert call(capsys, line).status == 0
    (tmp_path / 'run' / 'summary.json').write_text(
        (tmp_path / 'run' / 'summary.json').read_text().replace('"finished"', '"interrupted"')
    )
    fail(capsys, arguments(tmp_path / 'run', folder_settings(tmp_path / 'nowhere', steps=4)), 'nowhere')
    summary = read_summary(tmp_path / 'run')
    assert summary['status'] == 'failed'
    assert summary['steps'] == 4
    assert summary['metrics']['loss/total'] > 0


def test_a_workdir_in_a_bucket_of_another_kind_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fail(capsys, arguments('s3://bucket/run'), 's3://bucket/run', 'gs://bucket/folder')
    assert not list(tmp_path.iterdir())


def test_periods_of_epochs_do_not_drift():
    """100 epochs of 6.25 steps, looked at every epoch: a hundred looks, the last of them at the end."""

    class Stub:
        class config:
            steps_per_epoch = 6.25

    period = period_of(1.0, Stub)
    due = [done for done in range(1, 626) if is_due(done, period)]
    assert len(due) == 100
    assert due[:4] == [7, 13, 19, 25]
    assert due[-1] == 625
    assert not any(is_due(done, 0.0) for done in range(1, 50))
    assert [done for done in range(1, 10) if is_due(done, 3)] == [3, 6, 9]
