"""What each kind of source yields, how splits are cut, and what users read when something is missing."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax.data.images import BadImage
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError

SHARED = Path(__file__).parents[2] / '../shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the sample datasets in ../shared/data')


def section(source, **settings):
    return ConfigDict({'source': source, 'name': '', 'dir': '', 'cache': 'never', 'threads': 2} | settings)


def jpeg(value, size=(8, 6)):
    buffer = io.BytesIO()
    Image.new('RGB', size, (value, value, value)).save(buffer, 'JPEG')
    return buffer.getvalue()


def write_folder(root, files):
    for k, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(jpeg(10 * k))


def images_of(source):
    return np.stack([source[i].image for i in range(len(source))])


def test_folder_with_splits_sorts_classes_and_files(tmp_path):
    write_folder(tmp_path, ['train/dog/b.JPG', 'train/dog/a.jpeg', 'train/cat/x.png', 'val/dog/c.jpg'])
    (tmp_path / 'train/cat/notes.txt').write_text('not an image')
    train = open_source(section('folder', dir=str(tmp_path)), 'train')
    found = [(Path(train[i].name).name, train[i].label) for i in range(len(train))]
    assert found == [('x.png', 0), ('a.jpeg', 1), ('b.JPG', 1)]
    assert train[2].image == jpeg(0)
    assert train.num_classes == 2
    assert str(tmp_path) in train.description
    val = open_source(section('folder', dir=str(tmp_path)), 'val')
    assert [val[0].label, len(val), val.num_classes] == [1, 1, 2]  # train's numbering, though val has no cats


def test_folder_without_splits_is_all_train(tmp_path):
    write_folder(tmp_path, ['cat/1.jpg', 'dog/2.jpg'])
    source = open_source(section('folder', dir=str(tmp_path)), 'train')
    assert [source[0].label, source[1].label] == [0, 1]
    with pytest.raises(DataError, match=r"no split 'validation' .* it has train"):
        open_source(section('folder', dir=str(tmp_path)), 'validation')


def test_folder_slices_hold_all_classes_and_share_nothing(tmp_path):
    write_folder(tmp_path, [f'{c}/{k:02}.jpg' for c in ('cat', 'dog') for k in range(20)])
    data = section('folder', dir=str(tmp_path))
    first, rest, again = (open_source(data, split) for split in ('train[:75%]', 'train[75%:]', 'train[:30]'))
    names = [{source[i].name for i in range(len(source))} for source in (first, rest, again)]
    assert [len(x) for x in names] == [30, 10, 30]
    assert not names[0] & names[1]
    assert names[0] == names[2]
    assert {rest[i].label for i in range(10)} == {0, 1}


@pytest.mark.parametrize(
    ('files', 'split', 'message'),
    [
        ([], 'train', 'No class folders'),
        (['1.jpg', '2.jpg'], 'train', 'No class folders .*put images into'),
        (['train/cat/1.txt'], 'train', r'No images \(.jpg'),
        (['train/cat/1.jpg', 'test/cat/1.jpg'], 'validation', "no split 'validation' in .* it has test, train"),
        (['train/cat/1.jpg', 'test/elk/1.jpg'], 'test', 'elk.* has no counterpart'),
        (['cat/1.jpg'], 'train[:', 'cannot be read'),
        (['cat/1.jpg'], 'train[5:]', 'empty'),
    ],
)
def test_folder_mistakes_are_explained(tmp_path, files, split, message):
    write_folder(tmp_path, files)
    with pytest.raises(DataError, match=message):
        open_source(section('folder', dir=str(tmp_path)), split)


def test_missing_folder_and_missing_setting(tmp_path):
    with pytest.raises(DataError, match=r'nowhere.*data\.dir'):
        open_source(section('folder', dir=str(tmp_path / 'nowhere')), 'train')
    with pytest.raises(DataError, match=r'needs data\.dir'):
        open_source(section('folder'), 'train')


def test_file_that_vanished_is_a_bad_image(tmp_path):
    write_folder(tmp_path, ['cat/1.jpg'])
    source = open_source(section('folder', dir=str(tmp_path)), 'train')
    (tmp_path / 'cat/1.jpg').unlink()
    with pytest.raises(BadImage, match=r'1\.jpg \(index 0\).*No such file'):
        source[0]


def write_npz(path, **arrays):
    np.savez(path, **arrays)
    return section('npz', dir=str(path))


def test_npz_with_bare_arrays_is_train(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), np.uint8)
    source = open_source(write_npz(tmp_path / 'a.npz', images=images, labels=[0, 2, 1, 2, 0]), 'train')
    np.testing.assert_array_equal(images_of(source), images)
    assert [source[i].label for i in range(5)] == [0, 2, 1, 2, 0]
    assert source.num_classes == 3
    part = open_source(section('npz', dir=str(tmp_path / 'a.npz')), 'train[-2:]')
    for k in range(2):
        row = int(part[k].name.split('[')[1].rstrip(']'))
        np.testing.assert_array_equal(part[k].image, images[row])


def test_npz_with_splits_and_without_labels(tmp_path):
    grey = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = write_npz(tmp_path / 'a.npz', train_images=grey, val_images=grey[:1], val_labels=np.array([4]))
    train, val = open_source(data, 'train'), open_source(data, 'val')
    assert (train.num_classes, train[0].label) == (0, -1)
    assert (val.num_classes, val[0].label) == (5, 4)
    with pytest.raises(DataError, match=r"no split 'test' in .* it has train, val"):
        open_source(data, 'test')


@pytest.mark.parametrize(
    ('arrays', 'message'),
    [
        ({'x': np.zeros(3)}, 'holds no images'),
        ({'images': np.zeros((2, 4, 4))}, 'must be uint8'),
        ({'images': np.zeros((2, 4, 4, 4), np.uint8)}, 'must be uint8'),
        ({'images': np.zeros((2, 4, 4), np.uint8), 'labels': [1]}, '2 integers'),
        ({'images': np.zeros((2, 4, 4), np.uint8), 'labels': [1, -1]}, 'integers >= 0'),
        ({'images': np.zeros((0, 4, 4), np.uint8), 'labels': np.zeros(0, int)}, 'is empty'),
    ],
)
def test_npz_mistakes_are_explained(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_source(write_npz(tmp_path / 'a.npz', **arrays), 'train')


def test_file_that_is_no_npz(tmp_path):
    (tmp_path / 'a.npz').write_bytes(b'PK\x03\x04 damaged')
    np.save(tmp_path / 'b.npy', np.zeros(3))
    for name, message in [('a.npz', 'not a readable'), ('b.npy', 'not a readable'), ('c.npz', 'no file')]:
        with pytest.raises(DataError, match=message):
            open_source(section('npz', dir=str(tmp_path / name)), 'train')


def test_digits_are_the_scans_of_scikit_learn():
    from sklearn.datasets import load_digits

    expected = load_digits()
    with np.load(Path(__file__).parents[2] / 'mim_jax/data/digits.npz') as file:
        np.testing.assert_array_equal(file['images'], expected.images)
        np.testing.assert_array_equal(file['labels'], expected.target)
        test = file['test']
    assert (test.sum(), (~test).sum()) == (360, 1437)
    share = np.bincount(expected.target[test]) / np.bincount(expected.target)
    assert np.abs(share - 360 / 1797).max() < 0.006


def test_digits_are_enlarged_to_rgb():
    train, test = open_source(section('digits'), 'train'), open_source(section('digits'), 'test')
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    example = train[0]
    with np.load(Path(__file__).parents[2] / 'mim_jax/data/digits.npz') as file:
        row = np.flatnonzero(~file['test'])[0]
        small, label = file['images'][row], file['labels'][row]
    assert example.image.shape == (32, 32, 3)
    assert example.label == label
    blocks = example.image[..., 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.98
    with pytest.raises(DataError, match=r"no split 'validation' .* it has test, train"):
        open_source(section('digits'), 'validation')


def test_synthetic_is_a_function_of_the_row():
    first, second = (open_source(section('synthetic'), 'train') for _ in range(2))
    np.testing.assert_array_equal(first[7].image, second[7].image)
    assert first[7].image.shape == (64, 64, 3)
    assert [first[i].label for i in (0, 9, 10)] == [0, 9, 0]
    assert 120 < first[3].image.mean() < 135
    assert not np.array_equal(first[3].image, first[4].image)
    assert not np.array_equal(first[3].image, open_source(section('synthetic'), 'test')[3].image)


def test_cache_keeps_pixels_and_the_error_of_a_bad_image(tmp_path):
    write_folder(tmp_path, ['cat/1.jpg', 'cat/2.jpg', 'cat/3.jpg'])
    (tmp_path / 'cat/2.jpg').write_bytes(jpeg(9)[:-100])
    cached = open_source(section('folder', dir=str(tmp_path), cache='auto'), 'train')
    assert 'in memory' in cached.description
    (tmp_path / 'cat/3.jpg').unlink()  # it is in memory already
    assert cached[2].image.shape == (6, 8, 3)
    assert np.abs(cached[2].image.astype(int) - 20).max() <= 1
    with pytest.raises(BadImage, match=r'2\.jpg \(index 1\)'):
        cached[1]


def test_cache_auto_leaves_large_sources_encoded(tmp_path, monkeypatch):
    write_folder(tmp_path, ['cat/1.jpg', 'cat/2.jpg'])
    monkeypatch.setattr('mim_jax.data.cache._AUTO_BYTES', 2 * 8 * 6 * 3)  # exactly what they need: not under
    data = section('folder', dir=str(tmp_path), cache='auto')
    assert isinstance(open_source(data, 'train')[0].image, bytes)
    data.cache = 'always'
    assert isinstance(open_source(data, 'train')[0].image, np.ndarray)
    data.cache = 'sometimes'
    with pytest.raises(DataError, match=r"data.cache='sometimes'"):
        open_source(data, 'train')


@needs_shared
def test_tfds_cifar10_stays_encoded_and_slices_natively():
    data = section('tfds', name='cifar10', dir=str(SHARED))
    train, part = open_source(data, 'train'), open_source(data, 'train[90%:]')
    assert (len(train), len(part), train.num_classes) == (50_000, 5_000, 10)
    assert train[0].image[:2] == b'\xff\xd8'
    assert (train[0].label, train[0].name) == (7, 'cifar10/train[0] train_16399')
    assert part[0].image == train[45_000].image


@needs_shared
def test_tfds_cache_gives_rgb_arrays():
    test = open_source(section('tfds', name='cifar10', dir=str(SHARED), cache='always'), 'test[:40]')
    assert images_of(test).shape == (40, 32, 32, 3)


@needs_shared
def test_imagenet_sample_is_the_same_through_tfds_and_folder():
    tfds = open_source(section('tfds', name='imagenet_sample', dir=str(SHARED)), 'train')
    folder = open_source(section('folder', dir=str(SHARED / 'imagenet_sample_folder')), 'train')
    assert len(tfds) == len(folder) == tfds.num_classes == folder.num_classes == 1000
    assert [folder[k].label for k in (0, 500, 999)] == [0, 500, 999]
    files = {Path(folder[k].name).name: folder[k].label for k in range(1000)}
    for k in (0, 17, 999):
        example = tfds[k]
        assert files[Path(example.name.split(' ')[-1]).name] == example.label


@needs_shared
@pytest.mark.parametrize('split', ['validation', 'train[:oops]'])
def test_tfds_wrong_split_lists_those_that_exist(split):
    with pytest.raises(DataError, match='it has train, test'):
        open_source(section('tfds', name='cifar10', dir=str(SHARED)), split)


def test_tfds_dataset_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(DataError) as caught:
        open_source(section('tfds', name='imagenet2012', dir=str(tmp_path)), 'train')
    for part in ('imagenet2012', str(tmp_path), 'download_and_prepare', "file_format='array_record'"):
        assert part in str(caught.value)


def test_tfds_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'cifar10'"):
        open_source(section('tfds', name='cifar1O', dir=str(tmp_path)), 'train')


def test_unknown_kind_of_source():
    with pytest.raises(DataError, match="'webdataset' is unknown; use one of tfds, folder, npz, digits, synthetic"):
        open_source(section('webdataset'), 'train')


@needs_shared
def test_tensorflow_is_never_imported(tmp_path):
    """A decoy package would be imported if anything asked for TensorFlow, installed or not."""
    (tmp_path / 'tensorflow').mkdir()
    (tmp_path / 'tensorflow/__init__.py').write_text('')
    code = (
        'import sys; from ml_collections import ConfigDict; from mim_jax.data import loader, sources\n'
        'assert "tensorflow_datasets" not in sys.modules\n'
        f'data = ConfigDict(dict(source="tfds", name="cifar10", dir={str(SHARED)!r}, cache="never", threads=1))\n'
        'assert sources.open_source(data, "test")[0].label >= 0\n'
        'assert "tensorflow_datasets" in sys.modules\n'
        'assert "tensorflow" not in sys.modules\n'
        'import tensorflow; print(tensorflow.__file__)\n'
    )
    root = Path(__file__).parents[2]
    env = {'PYTHONPATH': f'{tmp_path}:{root}', 'PATH': '/usr/bin:/bin', 'JAX_PLATFORMS': 'cpu'}
    result = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout  # the decoy was in reach
