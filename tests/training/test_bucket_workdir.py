"""What a run keeps in a bucket, from its config to its checkpoints; and buckets that cannot be used."""

import json
from pathlib import Path

import jax
import pytest
from checkpoint_cases import make_state
from fake_gcs import Reply, failure
from program_runs import SMOKE, arguments, call, fail

from mim_jax import doctor, export
from mim_jax.command import read_config
from mim_jax.errors import BucketError, CheckpointError, WorkdirError
from mim_jax.paths import open_path
from mim_jax.training import curves, lock
from mim_jax.training.checkpoint import Checkpoints
from mim_jax.training.journal import Journal, Uploads, read_events
from mim_jax.training.loggers import Loggers, TensorBoard
from mim_jax.training.workdir import Workdir

RUN = 'gs://fake/run'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lock, 'PERIOD', 0.2)
    monkeypatch.setattr(lock, 'RETRIES', {'max_retries': 1, 'initial_delay': '10ms', 'max_delay': '10ms'})


@pytest.fixture
def config():
    return read_config(SMOKE, [])[0]


def steps(bucket):
    return [json.loads(line)['step'] for line in bucket.text('run/metrics.jsonl').splitlines()]


def test_a_workdir_is_opened_given_back_and_bound_to_its_settings(bucket, config):
    workdir = Workdir(RUN, config)
    assert sorted(bucket.objects) == ['run/.lease', 'run/config.json']
    curves.draw_curves([], workdir.picture('curves'))
    assert bucket.objects['run/pictures/curves.png'].data.startswith(b'\x89PNG')
    workdir.close()
    assert 'run/.lease' not in bucket.objects
    Journal(RUN).write(1, {})
    other, _ = read_config(SMOKE, ['--config.seed=7'])
    with pytest.raises(WorkdirError, match='seed'):
        Workdir(RUN, other)
    assert 'run/.lease' not in bucket.objects
    del bucket.objects['run/config.json']
    with pytest.raises(WorkdirError, match=r'without its config\.json'):
        Workdir(RUN, config)


@pytest.mark.parametrize(
    ('denied', 'words'),
    [
        ({'POST': 403, 'DELETE': 403}, ('do not suffice', 'storage.objectAdmin')),  # read only
        ({'DELETE': 403}, ('do not suffice',)),  # nothing can be replaced
        (dict.fromkeys(('GET', 'POST', 'DELETE'), 401), ('no valid credentials', 'gcloud auth')),
        (dict.fromkeys(('GET', 'POST', 'DELETE'), 503), ('cannot be reached now', 'run the same command again')),
    ],
)
def test_a_bucket_that_cannot_be_used_is_told_before_a_device_is_touched(denied, words, bucket, capsys, monkeypatch):
    monkeypatch.setattr(jax, 'devices', None)
    bucket.denied = denied
    fail(capsys, arguments(RUN), 'gs://fake/run', *words)
    bucket.denied = {}
    assert not [name for name in bucket.objects if '/.' not in name]


def test_a_bucket_that_is_not_there(bucket, capsys):
    fail(capsys, arguments('gs://absent/run'), 'gs://absent/run', 'no such bucket')


def test_what_does_not_go_to_a_bucket_is_refused(bucket, capsys, config, tmp_path):
    Workdir(RUN, config).close()
    line = ['--checkpoint', RUN, '--format', 'timm', '--out', 'gs://fake/encoder.safetensors']
    ended = call(capsys, line, export.main)
    assert (ended.status, 'export to a folder' in ended.err) == (2, True)


def test_the_doctor_looks_into_a_bucket(bucket, config):
    assert doctor.check_folder(open_path(RUN), config, None)[0] == f'{RUN} is writable'
    bucket.denied = {'POST': 403}
    with pytest.raises(WorkdirError, match='do not suffice'):
        doctor.check_folder(open_path(RUN), config, None)


def test_the_journal_is_written_anew_now_and_then_and_whenever_asked(bucket, monkeypatch):
    written = Journal(RUN)
    written.write(1, {'loss/total': 0.5})
    assert steps(bucket) == [1]
    for step in range(2, 50):
        written.write(step, {'loss/total': 0.5})
    assert steps(bucket) == [1]  # all within the same seconds
    monkeypatch.setattr(Uploads, 'SECONDS', 0.0)
    monkeypatch.setattr(Uploads, 'PACE', 0.0)
    written.flush()
    written.write(50, {})
    assert steps(bucket) == list(range(1, 51))
    resumed = Journal(RUN, resume_step=20)
    assert steps(bucket) == list(range(1, 21))
    resumed.write(21, {'lr': 0.1})
    resumed.close()
    assert read_events(f'{RUN}/metrics.jsonl')[-1] == {'step': 21, 'lr': 0.1}


def test_an_outage_loses_no_event_and_a_lost_folder_is_left_alone(bucket, monkeypatch, capsys):
    monkeypatch.setattr(Uploads, 'SECONDS', 0.0)
    monkeypatch.setattr(Uploads, 'PACE', 0.0)
    taken = []

    def check():
        if taken:
            raise WorkdirError('taken over')

    written = Journal(RUN, check=check)
    written.write(1, {})
    bucket.denied = {'POST': 403}
    written.write(2, {})
    assert 'What is logged meanwhile is kept.' in capsys.readouterr().err
    with pytest.raises(BucketError):  # before a checkpoint it must be there
        written.flush()
    bucket.denied = {}
    written.write(3, {})
    assert steps(bucket) == [1, 2, 3]
    taken.append(True)
    for act in (lambda: written.write(4, {}), written.flush, written.close):
        with pytest.raises(WorkdirError, match='taken over'):
            act()
    assert steps(bucket) == [1, 2, 3]


def test_tensorboards_events_are_copied(bucket):
    writer = TensorBoard(RUN)
    writer.write(1, {'loss/total': 0.5})
    writer.close()
    (name,) = bucket.objects
    assert name.startswith('run/tensorboard/events.out')
    assert b'loss/total' in bucket.objects[name].data


def test_every_logger_is_closed_whatever_the_others_raise(bucket):
    loggers = Loggers(RUN)
    (folder,) = [Path(writer._copies.name) for writer in loggers._writers if isinstance(writer, TensorBoard)]
    loggers.write(1, {'lr': 0.1})
    bucket.denied = {'POST': 403}
    with pytest.raises(BucketError):
        loggers.flush()
    with pytest.raises(BucketError):
        loggers.close()
    assert not folder.exists()


def test_checkpoints_are_kept_marked_and_moved_aside(bucket):
    lines, states = [], {step: make_state(step) for step in (1, 2, 3)}
    checkpoints = Checkpoints(f'{RUN}/checkpoints', keep=2, report=lines.append)
    for step, state in states.items():
        checkpoints.save(step, state, {'step': step}, milestone=step == 1)
    checkpoints.wait()
    checkpoints.save(2, states[2], milestone=True)  # only marked
    assert checkpoints.steps() == [1, 2, 3]
    for name in [name for name in bucket.objects if '/3/state/ocdbt.process_0/d/' in name]:
        del bucket.objects[name]
    before = {name for name in bucket.objects if name.startswith('run/checkpoints/3/')}
    tree, step, extra = checkpoints.restore(jax.eval_shape(lambda: states[2]))
    assert (step, extra) == (2, {'step': 2})
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail('altered'), tree, states[2])
    assert checkpoints.steps() == [1, 2]
    assert 'is damaged' in lines[0]
    assert {name for name in bucket.objects if '/damaged_3/' in name} == {
        name.replace('/3/', '/damaged_3/') for name in before
    }
    checkpoints.save(3, states[3], {'step': 3})
    checkpoints.close()
    again = Checkpoints(f'{RUN}/checkpoints', keep=2)  # removes what was not completed, and nothing else
    assert again.steps() == [1, 2, 3]
    assert any('/damaged_3/' in name for name in bucket.objects)
    again.close()


@pytest.mark.parametrize(('part', 'status'), [('/seal/metadata', 401), ('/state/_METADATA', 403)])
def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_a_damaged_one(part, status, bucket, monkeypatch):
    checkpoints, find = Checkpoints(f'{RUN}/checkpoints'), bucket.find
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    checkpoints.wait()

    def refuse(name):
        if part in name:
            raise Reply(status, failure(status, 'Not now.'))
        return find(name)

    monkeypatch.setattr(bucket, 'find', refuse)
    with pytest.raises(CheckpointError, match=r'/2 cannot be read now: .*Run the same command again'):
        checkpoints.restore(jax.eval_shape(lambda: make_state(2)))
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_a_bucket_that_refuses_a_save_leaves_the_one_before(bucket):
    checkpoints = Checkpoints(f'{RUN}/checkpoints', keep=2)
    checkpoints.save(1, make_state(1))
    checkpoints.wait()
    bucket.denied = {'POST': 403}
    with pytest.raises(CheckpointError, match=r'step 2 could not be written.*step 1 is intact'):
        checkpoints.save(2, make_state(2)) or checkpoints.wait()
    bucket.denied = {}
    with pytest.raises(CheckpointError, match=r'step 2 could not be written'):
        checkpoints.close()
    assert Checkpoints(f'{RUN}/checkpoints').steps() == [1]
