"""What each kind of source yields, how splits are cut, and what users read when something is missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax.data.cache import cache_source
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError

SHARED = Path(__file__).parents[2] / '../shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the sample datasets in ../shared/data')


def section(source, **settings):
    return ConfigDict({'source': source, 'name': '', 'dir': '', 'cache': 'never', 'threads': 2} | settings)


def images_of(source):
    return np.stack([source[i].image for i in range(len(source))])


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


@needs_shared
def test_tfds_cifar10_stays_encoded_and_slices_natively():
    data = section('tfds', name='cifar10', dir=str(SHARED))
    train, part = open_source(data, 'train'), open_source(data, 'train[90%:]')
    assert (len(train), len(part), train.num_classes) == (50_000, 5_000, 10)
    assert train[0].image[:2] == b'\xff\xd8'
    assert (train[0].label, train[0].name) == (7, 'cifar10/train[0] train_16399')
    assert part[0].image == train[45_000].image


@needs_shared
def test_tfds_splits_add_up():
    data = section('tfds', name='cifar10', dir=str(SHARED))
    both, test = open_source(data, 'train[:40]+test[:20]'), open_source(data, 'test[:20]')
    assert len(both) == 60
    assert both[40][:2] == test[0][:2]


@needs_shared
def test_tfds_cache_gives_rgb_arrays():
    test = cache_source(open_source(section('tfds', name='cifar10', dir=str(SHARED)), 'test[:40]'), 'always', 2)
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
