"""Logs arrive one step late, in TensorBoard and W&B too; tables and lines say what they should."""

import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import ConfigError
from mim_jax.training import journal, loggers


def test_tensorboard_purges_after_the_resume_step(tmp_path):
    from tensorboardX.proto import event_pb2

    writer = loggers.TensorBoard(tmp_path, resume_step=20)
    writer.write(30, {'loss/total': 0.5, 'note': 'not a number'})
    writer.close()
    (file,) = (tmp_path / 'tensorboard').iterdir()
    data, events = file.read_bytes(), []
    while data:  # a record: u64 length, u32 crc, payload, u32 crc
        length = int.from_bytes(data[:8], 'little')
        events.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    starts = [event.step for event in events if event.HasField('session_log')]
    assert starts == [21]
    scalars = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert scalars == [(30, 'loss/total', 0.5)]


def test_wandb_absent_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ConfigError, match='pip install wandb'):
        loggers.Loggers(tmp_path, tensorboard=False, wandb='project')


def test_wandb_continues_the_run_of_the_workdir(tmp_path, monkeypatch):
    opened, logged = [], []

    def init(**options):
        opened.append(options)
        return types.SimpleNamespace(
            id=options['id'] or 'abc123', define_metric=lambda *a, **k: None, log=logged.append, finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    for resume_step in (None, 5):
        writers = loggers.Loggers(tmp_path, resume_step, tensorboard=False, wandb='project', config={'seed': 0})
        writers.write(6, {'lr': 0.1})
        writers.close()
    assert [options['id'] for options in opened] == [None, 'abc123']
    assert logged == [{'lr': 0.1, 'step': 6}] * 2
    assert (
        len(journal.read_events(tmp_path / 'metrics.jsonl')) == 1
    )  # the second session dropped step 6 and wrote it again


def test_deferred_returns_the_previous_step():
    deferred = loggers.Deferred()
    assert deferred.flush() is None
    assert deferred.push(1, {'loss/total': jnp.float32(0.5)}) is None
    assert deferred.push(2, {'loss/total': jnp.bfloat16(0.25)}) == (1, {'loss/total': 0.5})
    step, values = deferred.flush()
    assert (step, values, type(values['loss/total'])) == (2, {'loss/total': 0.25}, float)
    assert deferred.flush() is None


def test_check_finite_names_the_cause_first():
    values = {'lr': 1.0, 'grad_norm': math.nan, 'loss/total': math.nan, 'loss/pixels': 0.1, 'loss/mimic': math.inf}
    assert loggers.check_finite(values) == 'loss/mimic'
    assert loggers.check_finite({**values, 'loss/mimic': 0.0}) == 'loss/total'
    assert loggers.check_finite({**values, 'loss/mimic': 0.0, 'loss/total': 0.1}) == 'grad_norm'
    assert loggers.check_finite({'loss/total': 0.1, 'grad_norm': 2.0}) is None


@pytest.mark.parametrize(
    ('seconds', 'text'), [(45, '45s'), (59.7, '1m00s'), (185, '3m05s'), (40000, '11h06m'), (200000, '2d07h')]
)
def test_format_duration(seconds, text):
    assert loggers.format_duration(seconds) == text


def test_progress_line_has_everything_that_is_known():
    values = {
        'epoch': 1.0,
        'loss/total': 0.48213,
        'loss/pixels': 0.41,
        'loss/mimic': 0.07,
        'lr': 1.5e-4,
        'images_per_second': 8123.4,
        'data_wait_ms': 0.42,
        'data_wait_share': 0.01,
        'mfu': 0.341,
        'eta_seconds': 40000.0,
    }
    assert loggers.progress_line(1250, 312500, values) == (
        'step   1250/312500  epoch 1.00  loss 0.4821 (pixels 0.41, mimic 0.07)  lr 0.00015  8123.4 img/s  '
        'data wait 0.4 ms (1%)  mfu 34.1%  eta 11h06m'
    )
    assert loggers.progress_line(1, 10, {'loss/total': 2.0, 'loss/pixels': 2.0}) == 'step  1/10  loss 2'


def test_parameter_table_lists_every_leaf_and_adds_up():
    kernel = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    params = {
        'encoder': {'block_00': {'kernel': kernel, 'bias': jax.ShapeDtypeStruct((32,), jnp.bfloat16)}},
        'decoder/pixels': {'embed': {'kernel': kernel}},
        'decoder': {'scale': jax.ShapeDtypeStruct((), jnp.float32)},
    }
    mesh = Mesh(np.array(jax.devices()[:1]), ('fsdp',))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec(*['fsdp'] * (leaf.ndim > 1))), params)
    decay_mask = jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    lines = loggers.parameter_table(params, shardings, decay_mask).splitlines()
    assert lines[0].split() == ['parameter', 'shape', 'dtype', 'sharding', 'decay']
    by_path = {line.split()[0]: line.split()[1:] for line in lines[1:5]}
    assert by_path['decoder/pixels/embed/kernel'] == ['16x32', 'float32', "('fsdp',)", 'yes']
    assert by_path['encoder/block_00/bias'] == ['32', 'bfloat16', '()', 'no']
    assert by_path['decoder/scale'][0] == 'scalar'
    # 'decoder' must not swallow 'decoder/pixels'.
    assert 'decoder: 1 arrays, 0.00 M parameters, 0.0 MB (0.0 MB per device), 0.00 M decayed' in lines
    assert lines[-1] == 'total: 4 arrays, 0.00 M parameters, 0.0 MB (0.0 MB per device), 0.00 M decayed'


def test_parameter_table_totals_in_millions_and_without_optional_columns():
    params = {'encoder': {'kernel': jax.ShapeDtypeStruct((1000, 2500), jnp.float32)}}
    lines = loggers.parameter_table(params).splitlines()
    assert lines[0].split() == ['parameter', 'shape', 'dtype']
    assert lines[-1] == 'total: 1 arrays, 2.50 M parameters, 10.0 MB'
