"""Faults that may pass are not taken for damage, and a failed save is told by its cause."""

import errno
import os
from pathlib import Path

import jax.numpy as jnp
import pytest
from checkpoint_cases import abstract, assert_identical, largest_file, make_state

from mim_jax.errors import CheckpointError
from mim_jax.training.checkpoint import read_params
from mim_jax.training.faults import is_damage, is_out_of_space

TENSORSTORE = 'Error reading "params.w/0.0" in OCDBT database at local file "/run/checkpoints/20/state/"'


def os_error(number):
    return OSError(number, os.strerror(number))


def wrapped(text):
    """As Orbax raises what TensorStore says."""
    error = Exception('Encountered error while reading array index')
    error.__cause__ = ValueError(text)
    return error


@pytest.mark.parametrize(
    'error',
    [
        *map(os_error, (errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES, errno.ETIMEDOUT)),
        ValueError(f'ABORTED: {TENSORSTORE}: Stale file handle'),
        wrapped(f'UNKNOWN: {TENSORSTORE}: Input/output error'),
        ValueError(f'RESOURCE_EXHAUSTED: {TENSORSTORE}: Too many open files'),
        ValueError(f"FAILED_PRECONDITION: {TENSORSTORE}: Device or resource busy [os_error_code='16']"),
        ValueError(f'UNAVAILABLE: {TENSORSTORE}: HTTP response code: 503'),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
    ids=str,
)
def test_a_fault_that_may_pass_is_not_damage(error):
    assert not is_damage(error)


@pytest.mark.parametrize(
    'error',
    [
        os_error(errno.ENOENT),
        os_error(errno.ENOTDIR),
        ValueError(f"NOT_FOUND: {TENSORSTORE} [os_error_code='2']"),
        ValueError(f'DATA_LOSS: {TENSORSTORE}: Error decoding manifest'),
        wrapped(f'OUT_OF_RANGE: {TENSORSTORE}: Requested byte range [0, 9) is not valid for value of size 0'),
        KeyError('value_type'),
    ],
    ids=str,
)
def test_what_shows_damage(error):
    assert is_damage(error)


@pytest.mark.skipif(not Path('/proc/self/mem').exists(), reason='needs a file whose reading fails with EIO')
@pytest.mark.parametrize('file', ['seal/metadata', 'state/_METADATA', 'state/array_metadatas/process_0'])
def test_an_input_output_error_moves_nothing(checkpoints, saved, lines, file):
    check_passing(checkpoints, saved, lines, saved / '20' / file, '/proc/self/mem', 'Input/output error')


@pytest.mark.parametrize('file', ['seal/metadata', 'state/manifest.ocdbt', 'largest'])
def test_an_open_error_moves_nothing(checkpoints, saved, lines, file):
    path = largest_file(saved / '20' / 'state') if file == 'largest' else saved / '20' / file
    check_passing(checkpoints, saved, lines, path, path, 'Too many levels of symbolic links')


def check_passing(checkpoints, saved, lines, path, target, message):
    """While `path` is a link to `target`, reading fails and says so; afterwards the same checkpoint is read."""
    content = path.read_bytes()
    path.unlink()
    path.symlink_to(target)
    with pytest.raises(CheckpointError, match=f'20 cannot be read now: .*{message}'):
        checkpoints.restore(abstract(make_state()))
    path.unlink()
    path.write_bytes(content)
    tree, step, _ = checkpoints.restore(abstract(make_state()))
    assert (step, lines) == (20, [])
    assert_identical(tree, make_state(20))
    assert sorted(p.name for p in saved.iterdir()) == ['10', '20']


def test_read_params_tells_a_passing_fault_from_damage(saved):
    manifest = saved / '20' / 'state' / 'manifest.ocdbt'
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(CheckpointError, match='20 cannot be read now'):
        read_params(saved)
    manifest.unlink()
    with pytest.raises(CheckpointError, match='20 is damaged'):
        read_params(saved)


FULL = [
    *map(os_error, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    ValueError(f'RESOURCE_EXHAUSTED: {TENSORSTORE}: No space left on device'),
    wrapped('OUT_OF_RANGE: Error writing local file: File too large'),
]
OTHERS = [
    *map(os_error, (errno.EIO, errno.EACCES, errno.EROFS, errno.EMFILE)),
    ValueError(f'RESOURCE_EXHAUSTED: {TENSORSTORE}: Too many open files'),
    RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes.'),
]


@pytest.fixture
def fail_save(checkpoints, monkeypatch):
    """A save of step 30 that meets `error` -> what the user is told."""

    def save(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(checkpoints._manager, 'save', fail)
        with pytest.raises(CheckpointError, match='The checkpoint of step 30 could not be written') as caught:
            checkpoints.save(30, {'w': jnp.float32(1)})
        return str(caught.value)

    return save


@pytest.mark.parametrize(('error', 'full'), [(e, True) for e in FULL] + [(e, False) for e in OTHERS], ids=str)
def test_space_is_the_remedy_only_where_it_lacks(fail_save, error, full):
    message = fail_save(error)
    assert 'The checkpoint of step 20 is intact' in message
    assert ('free disk space or quota there' in message) == full == is_out_of_space(error)


def test_a_failed_save_in_a_folder_that_cannot_be_listed(fail_save, checkpoints, monkeypatch):
    def fail():
        raise os_error(errno.EMFILE)

    monkeypatch.setattr(checkpoints._manager, 'reload', fail)
    assert fail_save(os_error(errno.EMFILE)).endswith('cannot be listed now ([Errno 24] Too many open files).')
