"""Folders and buckets through one door: what is replaced, moved and refused, and what is said about it."""

import sys

import numpy as np
import pytest
from etils import epath

from mim_jax.errors import BucketError, UserError, WorkdirError
from mim_jax.paths import explain, move_folder, open_path, replace_file, replacing
from mim_jax.weights.files import digest_file, read_metadata, read_weights, write_safetensors


def test_a_folder_is_pathlibs_and_a_bucket_is_etils(tmp_path):
    assert type(open_path(str(tmp_path))) is type(tmp_path)
    assert str(open_path('runs/mae')) == 'runs/mae'
    assert str(open_path('gs://fake/runs') / 'mae') == 'gs://fake/runs/mae'
    assert open_path(open_path('gs://fake/runs')) == epath.Path('gs://fake/runs')


@pytest.mark.parametrize('address', ['s3://fake/run', 'gs://', 'gs:///run', 'file:///run', 'gs:/fake/run'])
def test_other_addresses_are_refused(address):
    with pytest.raises(WorkdirError, match='gs://bucket/folder'):
        open_path(address)


@pytest.mark.parametrize(('module', 'package'), [('gcsfs', 'gcsfs'), ('google.cloud', 'google-cloud-storage')])
def test_a_missing_package_is_named_with_the_command(module, package, monkeypatch):
    hidden = [name for name in sys.modules if name == module or name.startswith(f'{module}.')]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)

    class Hide:
        @staticmethod
        def find_spec(name, *_):
            if name == module:
                raise ModuleNotFoundError(name)

    monkeypatch.setattr(sys, 'meta_path', [Hide, *sys.meta_path])
    with pytest.raises(WorkdirError, match=f'pip install {package}'):
        open_path('gs://fake/run')


def test_a_file_is_replaced_whole(bucket, tmp_path):
    for folder in (tmp_path, open_path('gs://fake/run')):
        file = folder / 'file'
        replace_file(file, 'long before')
        bucket.asked.clear()
        replace_file(file, b'\x00now')
        assert [method for method, _ in bucket.asked] == ([] if folder == tmp_path else ['POST'])
        assert file.read_bytes() == b'\x00now'
        with replacing(file) as temporary:
            temporary.write_text('later')
        assert file.read_text() == 'later'
        with pytest.raises(TypeError), replacing(file) as temporary:
            temporary.write_text(1)
        assert file.read_text() == 'later'
        assert [path.name for path in folder.iterdir()] == ['file']


def test_weights_are_written_to_a_bucket_and_read_there(bucket, tmp_path):
    arrays = {'encoder/norm/scale': np.arange(8, dtype=np.float32)}
    for path in (tmp_path / 'encoder.safetensors', open_path('gs://fake/run/encoder.safetensors')):
        write_safetensors(path, arrays, {'checkpoint': 'abc'})
    assert digest_file(path) == digest_file(tmp_path / 'encoder.safetensors')
    assert read_metadata(path) == {'checkpoint': 'abc'}
    np.testing.assert_array_equal(read_weights(str(path)).arrays['encoder/norm/scale'], arrays['encoder/norm/scale'])


def test_a_move_that_is_broken_off_loses_nothing(bucket, monkeypatch):
    """After each request that writes: one of the two is whole, or the target is and the source no longer counts."""
    content = {name: f'content of {name}' for name in (*'abcdefgh', 'state/a', 'written')}
    put, delete = bucket.put, bucket.delete
    allowed = 0

    def limited(act):
        def limit(*arguments):
            nonlocal allowed
            allowed -= 1
            if allowed < 0:
                bucket.denied = dict.fromkeys(('GET', 'POST', 'DELETE'), 403)
                bucket.refuse('POST')
            return act(*arguments)

        return limit

    def found(folder):
        return {
            name.removeprefix(folder): bucket.text(name) for name in sorted(bucket.objects) if name.startswith(folder)
        }

    for whole in range(40):
        bucket.reset()
        for name, text in content.items():
            put(f'run/7/{name}', text.encode())
        allowed = whole
        with monkeypatch.context() as patch:
            patch.setattr(bucket, 'put', limited(put))
            patch.setattr(bucket, 'delete', limited(delete))
            try:
                move_folder(epath.Path('gs://fake/run/7'), epath.Path('gs://fake/run/damaged_7'), 'written')
            except BucketError:
                ended = False
            else:
                ended = True
        before, after = found('run/7/'), found('run/damaged_7/')
        assert before == content or (after == content and 'written' not in before), whole
        if ended:
            assert (before, after) == ({}, content)
            return
    raise AssertionError('it never came to its end')


def test_what_went_wrong_is_told_with_what_to_do(bucket):
    file = open_path('gs://fake/run/file')
    for status, words in ((401, 'gcloud auth application-default login'), (403, 'storage.objectAdmin')):
        bucket.denied = {'POST': status}
        with pytest.raises(BucketError, match=words):
            replace_file(file, 'text')
    bucket.denied = {}
    with pytest.raises(BucketError, match='no such bucket'):
        replace_file(open_path('gs://absent/file'), 'text')
    assert issubclass(BucketError, UserError)
    assert 'run the same command again' in explain(ConnectionError('cut off'))
