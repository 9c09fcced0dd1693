"""A fingerprint changes with what index -> example depends on, and with nothing else."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax.data.sources import open_source

SHARED = Path(__file__).parents[2] / '../shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the sample datasets in ../shared/data')


def fingerprint(source, split='train', place='', name=''):
    data = ConfigDict({'source': source, 'name': name, 'dir': str(place), 'cache': 'never', 'threads': 1})
    return open_source(data, split).fingerprint


def write_folder(root, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b'never read')


@pytest.mark.parametrize(
    ('source', 'split', 'expected'),
    [
        ('digits', 'train', '907d4c659fedc227'),
        ('digits', 'test[:50%]', '6f092d3d9caadc49'),
        ('synthetic', 'train', '6147a4cebae4e427'),
    ],
)
def test_the_values_that_runs_have_stored(source, split, expected):
    """If this fails, every interrupted run on an unchanged dataset is refused."""
    assert fingerprint(source, split) == expected


@pytest.mark.parametrize('source', ['digits', 'synthetic'])
def test_splits_and_slices_differ(source):
    splits = ['train', 'test', 'train[:]', 'train[:90%]', 'train[10%:]', 'train[:100]']
    found = [fingerprint(source, split) for split in splits]
    assert len(set(found)) == len(splits)
    assert all(re.fullmatch('[0-9a-f]{16}', x) for x in found)
    assert fingerprint(source, 'train[0:100%]') == found[2]  # the same rows, written otherwise


def test_folder_may_move_and_its_pixels_are_not_read(tmp_path):
    write_folder(tmp_path / 'here', ['train/cat/1.jpg', 'train/dog/2.jpg', 'test/cat/1.jpg', 'test/dog/2.jpg'])
    shutil.copytree(tmp_path / 'here', tmp_path / 'there')
    (tmp_path / 'there/train/cat/notes.txt').write_text('no image')
    assert fingerprint('folder', 'train', tmp_path / 'here') == fingerprint('folder', 'train', tmp_path / 'there')
    assert fingerprint('folder', 'train', tmp_path / 'here') != fingerprint('folder', 'test', tmp_path / 'here')


@pytest.mark.parametrize(
    'change',
    [
        lambda root: (root / 'train/cat/1.jpg').unlink(),
        lambda root: (root / 'train/cat/1.jpg').rename(root / 'train/cat/9.jpg'),
        lambda root: (root / 'train/cat/1.jpg').rename(root / 'train/dog/1.jpg'),
        lambda root: write_folder(root, ['train/dog/3.jpg']),
        lambda root: write_folder(root, ['val/ape/3.jpg']),  # moves the labels of cat and dog
    ],
)
def test_folder_with_other_files_differs(tmp_path, change):
    write_folder(tmp_path, ['train/cat/1.jpg', 'train/cat/2.jpg', 'train/dog/1b.jpg', 'train/dog/2.jpg'])
    before = fingerprint('folder', 'train', tmp_path)
    change(tmp_path)
    assert fingerprint('folder', 'train', tmp_path) != before


def test_folder_with_names_that_are_no_text(tmp_path):
    write_folder(tmp_path, ['cat/\udcff.jpg'])
    assert len(fingerprint('folder', 'train', tmp_path)) == 16


def test_npz_counts_shape_pixels_and_labels_not_its_place(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 3), np.uint8)
    other = images.copy()
    other[3, 1, 2] ^= 1
    labels = np.array([0, 1, 2, 1])
    variants = [
        {'images': images, 'labels': labels},
        {'images': images},
        {'images': images, 'labels': labels[::-1]},
        {'images': images[::-1], 'labels': labels},
        {'images': images.reshape(4, 3, 2), 'labels': labels},
        {'images': other, 'labels': labels},
        {'images': images[:3], 'labels': labels[:3]},
    ]
    found = []
    for k, arrays in enumerate(variants):
        np.savez(tmp_path / f'{k}.npz', **arrays)
        found.append(fingerprint('npz', 'train', tmp_path / f'{k}.npz'))
    assert len(set(found)) == len(variants)
    np.savez_compressed(tmp_path / 'same.npz', images=np.asfortranarray(images), labels=labels.astype(np.uint8))
    assert fingerprint('npz', 'train', tmp_path / 'same.npz') == found[0]


@needs_shared
def test_tfds_counts_name_version_and_split_not_its_place(tmp_path):
    source = SHARED / 'cifar10'
    (tmp_path / 'cifar10').symlink_to(source.resolve())
    here = fingerprint('tfds', 'test', SHARED, 'cifar10')
    version = next(x.name for x in source.iterdir() if re.fullmatch(r'\d+\.\d+\.\d+', x.name))
    assert fingerprint('tfds', 'test', tmp_path, 'cifar10') == here
    assert fingerprint('tfds', 'test', SHARED, f'cifar10:{version}') == here
    assert fingerprint('tfds', 'test[:50%]', SHARED, 'cifar10') != here
    assert fingerprint('tfds', 'train', SHARED, 'cifar10') != here
