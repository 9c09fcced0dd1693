"""Files of weights: what is read, what is said of it, and what is refused. No PyTorch is needed here."""

import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mim_jax.weights.files import WeightsError, read_metadata, read_weights, write_safetensors

ARRAYS = {
    'a.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
    'a.bias': np.array([0.5, -1.5], np.float32),
    'index': np.arange(4, dtype=np.int64),
    'scalar': np.array(0.25, np.float32),
}


def write_raw(path, arrays, dtypes, metadata=None):
    """A safetensors file by its definition: length of the header, header, bytes."""
    header, data = {'__metadata__': metadata} if metadata else {}, b''
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {'dtype': dtypes[name], 'shape': array.shape, 'data_offsets': [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def refuse(path, *words):
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    for word in (str(path), *words):
        assert word in str(caught.value), (word, str(caught.value))


def assert_arrays(weights, expected=ARRAYS):
    assert weights.arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert (weights.arrays[name].dtype, weights.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(weights.arrays[name], array)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / 'w.safetensors'
    views = {name: np.asarray(array, order='F') for name, array in ARRAYS.items()} | {'t': ARRAYS['a.weight'].T}
    write_safetensors(path, views, {'recipe': 'mae'})
    weights = read_weights(path)
    assert_arrays(weights, ARRAYS | {'t': ARRAYS['a.weight'].T})
    assert (weights.notes, weights.half, weights.metadata) == ((), False, {'recipe': 'mae'})
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)['t'], ARRAYS['a.weight'].T)


@pytest.mark.parametrize('length', [int.from_bytes(b'\x80\x02', 'little'), int.from_bytes(b'PK', 'little')])
def test_the_length_of_a_header_is_not_taken_for_another_kind(tmp_path, length):
    """The first bytes of a safetensors file, its header's length, can be those of a pickle or of a zip file."""
    path, dtypes = tmp_path / 'w.safetensors', {'a.weight': 'F32', 'a.bias': 'F32', 'index': 'I64', 'scalar': 'F32'}
    write_raw(path, ARRAYS, dtypes, {'filled': ''})
    missing = length - int.from_bytes(path.read_bytes()[:8], 'little')
    write_raw(path, ARRAYS, dtypes, {'filled': 'x' * missing})
    assert path.read_bytes()[:2] == length.to_bytes(2, 'little')
    assert_arrays(read_weights(path))


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / 'w.safetensors'
    write_safetensors(path, ARRAYS, {})
    before = path.read_bytes()
    with pytest.raises(Exception, match='object'):
        write_safetensors(path, ARRAYS | {'bad': np.array([None])}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['w.safetensors']


@pytest.mark.parametrize(
    ('dtype', 'code', 'half'), [('bfloat16', 'BF16', True), ('float16', 'F16', True), ('float64', 'F64', False)]
)
def test_other_floats_become_fp32(tmp_path, dtype, code, half):
    path = tmp_path / 'w.safetensors'
    kind = getattr(ml_dtypes, dtype, None) or np.dtype(dtype)
    write_raw(path, {'w': np.array([1.5, -2.0, 0.1], kind), 'i': np.arange(2)}, {'w': code, 'i': 'I64'})
    weights = read_weights(path)
    assert weights.arrays['w'].dtype == np.float32
    np.testing.assert_array_equal(weights.arrays['w'], np.array([1.5, -2.0, 0.1], kind).astype(np.float32))
    assert weights.notes == (f'1 arrays converted from {dtype} to float32',)
    assert weights.half == half


def test_quantised_values_are_refused(tmp_path):
    path = tmp_path / 'w.safetensors'
    write_raw(path, {'w': np.zeros(3, np.uint8)}, {'w': 'F8_E4M3'})
    refuse(path, 'w is stored as F8_E4M3')


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / 'w.safetensors'
    write_safetensors(path, ARRAYS | {'bad': np.array([1, value], np.float32)}, {})
    refuse(path, 'NaN or infinite in bad;')


@pytest.mark.parametrize('keep', [0, 3, 40, 0.5, -1])
def test_truncated_files_are_refused(tmp_path, keep):
    path = tmp_path / 'w.safetensors'
    write_safetensors(path, ARRAYS, {})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refuse(path, 'is truncated or damaged')


@pytest.mark.parametrize('content', [b'', b'\xff' * 40, b'\x04' + bytes(7) + b'null', b'\x08' + bytes(7) + b'{"a":'])
def test_a_header_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / 'w.safetensors').write_bytes(content)
    with pytest.raises(WeightsError, match='is truncated or damaged'):
        read_metadata(tmp_path / 'w.safetensors')


def test_what_is_neither_is_refused(tmp_path):
    path = tmp_path / 'w.pth'
    path.write_text('<!DOCTYPE html><html>Not found</html>')
    refuse(path, "neither a safetensors file nor one of PyTorch: it begins with b'<!DOCTYPE html>")
    path.write_text('version https://git-lfs.github.com/spec/v1')
    refuse(path, 'neither')
    np.savez(tmp_path / 'w.npz', **ARRAYS)
    refuse(tmp_path / 'w.npz', 'neither')
    path.write_bytes(b'PK\x03\x04 and no more')
    refuse(path, 'is truncated or damaged')


def test_nothing_there(tmp_path):
    write_safetensors(tmp_path / 'model_b.safetensors', ARRAYS, {})
    refuse(tmp_path / 'model.safetensors', 'There is no file', 'has: model_b.safetensors')
    refuse(tmp_path, 'a folder without a file model.safetensors')


def test_a_folder_of_transformers(tmp_path):
    write_safetensors(tmp_path / 'model.safetensors', ARRAYS, {})
    assert_arrays(read_weights(tmp_path))


def test_a_prefix_of_every_name_is_dropped(tmp_path):
    path = tmp_path / 'w.safetensors'
    write_safetensors(path, {f'module.{name}': array for name, array in ARRAYS.items()}, {})
    weights = read_weights(path)
    assert_arrays(weights)
    assert weights.notes == ("dropped 'module.' before every name",)


class Bomb:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def make_archive(payload):
    """What torch.save writes: a zip with a pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('archive/data.pkl', payload)
        archive.writestr('archive/version', '3\n')
    return buffer.getvalue()


@pytest.mark.parametrize('form', ['archive', 'pickle', 'renamed'])
def test_nothing_in_a_file_is_executed(tmp_path, form):
    """With PyTorch its weights-only loader refuses it; without, it is not opened at all."""
    trace, payload = tmp_path / 'executed', pickle.dumps({'model': Bomb(tmp_path / 'executed')}, protocol=2)
    path = tmp_path / ('w.safetensors' if form == 'renamed' else 'w.pth')
    path.write_bytes(payload if form == 'pickle' else make_archive(payload))
    refuse(path)
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # it would have been
