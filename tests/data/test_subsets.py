"""Low-shot subsets: what a seed takes is pinned, lists are matched by name, mistakes are named."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from mim_jax.data.cache import cache_source
from mim_jax.data.images import BadImage
from mim_jax.data.sources import ArraySource, open_source
from mim_jax.data.subsets import take_listed, take_share
from mim_jax.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2] / '../shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the sample datasets in ../shared/data')
PINNED = ([0, 1, 13, 26, 39, 50], [19, 21, 26, 36, 38, 58], '650cb02dee5013cc')


def open_split(source, split='train', place='', name=''):
    return open_source(ConfigDict({'source': source, 'name': name, 'dir': str(place)}), split)


def of_labels(labels, classes=None):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return ArraySource(images, labels, classes or int(labels.max()) + 1, np.arange(len(labels)), 'made', 'f' * 16)


def write_folder(root, files):
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())


def taken(subset):
    """The rows of the source: its pixels are row numbers."""
    return [int(subset[i].image[0, 0]) for i in range(len(subset))]


# --- a share of every class ---


def test_what_a_seed_takes_is_pinned():
    """A change here changes the low-shot results of everybody: it needs a reason and a note to users."""
    source = of_labels(np.arange(60) % 3)
    assert taken(take_share(source, 0.1, 0)) == PINNED[0]
    assert taken(take_share(source, 0.1, 1)) == PINNED[1]
    assert take_share(open_split('digits'), 0.1, 0).fingerprint == PINNED[2]


@pytest.mark.parametrize(
    ('share', 'expected'),
    [
        (0.1, [1, 1, 1, 2, 3]),
        (0.3, [1, 2, 4, 5, 8]),
        (0.01, [1, 1, 1, 1, 1]),
        (0.5, [1, 3, 7, 8, 13]),
        (0.99, [1, 5, 14, 15, 25]),
    ],
)
def test_halves_round_up_and_every_class_keeps_one(share, expected):
    """Classes of 1, 5, 14, 15 and 25 images; 0.1 * 15 = 1.5, 0.3 * 5 = 1.5 (the float 0.3 is less); class 3 has none."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4, 5], [1, 5, 14, 15, 25]))
    subset = take_share(of_labels(labels), share, 0)
    counts = np.bincount([subset[i].label for i in range(len(subset))], minlength=6)
    assert counts.tolist() == [*expected[:3], 0, *expected[3:]]


def test_a_class_of_imagenet_gives_as_many_as_simclr_takes():
    subset = take_share(of_labels(np.zeros(1300, int)), 0.01, 0)
    assert len(subset) == 13


def test_share_is_in_stored_order_nested_and_seeded():
    source = of_labels(np.random.default_rng(0).integers(0, 4, 250))
    small, large = taken(take_share(source, 0.1, 5)), taken(take_share(source, 0.4, 5))
    assert small == sorted(small)
    assert set(small) < set(large)
    assert taken(take_share(source, 0.1, 5)) == small
    assert taken(take_share(source, 0.1, 6)) != small


def test_examples_keep_their_names_and_classes():
    source = open_split('digits')
    subset = take_share(source, 0.1, 0)
    names = {source[i].name: source[i] for i in range(len(source))}
    for i in range(len(subset)):
        np.testing.assert_array_equal(subset[i].image, names[subset[i].name].image)
        assert subset[i].label == names[subset[i].name].label
    assert subset.num_classes == 10
    assert subset.description == f'{source.description}, of these 10% of every class (seed 0): {len(subset)} images'


def test_all_is_the_source_itself():
    source = of_labels([0, 1])
    assert take_share(source, 1.0, 3) is source


def test_fingerprints_follow_what_is_taken():
    source = of_labels(np.arange(200) % 2)
    other = of_labels(np.arange(200) % 2)
    other.fingerprint = 'e' * 16
    found = [take_share(source, *how).fingerprint for how in ((0.1, 0), (0.1, 1), (0.2, 0))]
    found += [source.fingerprint, take_share(other, 0.1, 0).fingerprint]
    assert len(set(found)) == 5
    assert all(re.fullmatch('[0-9a-f]{16}', x) for x in found)
    assert take_share(source, 0.104, 0).fingerprint == found[0]  # the same images, asked for otherwise


@pytest.mark.parametrize('share', [0.0, -0.1, 1.5, float('nan')])
def test_a_share_that_is_none(share):
    with pytest.raises(ConfigError, match=r'data\.share='):
        take_share(of_labels([0, 1]), share, 0)


def test_a_source_without_labels(tmp_path):
    write_folder(tmp_path, ['train/1.jpg', 'train/2.jpg'])
    with pytest.raises(DataError, match='without a label'):
        take_share(open_split('folder', 'train', tmp_path), 0.5, 0)
    with pytest.raises(DataError, match='without a label'):
        take_share(of_labels([0, -1, 1]), 0.5, 0)


def test_folder_labels_are_taken_without_reading_a_file(tmp_path):
    write_folder(tmp_path, [f'train/{c}/{i}.jpg' for c in 'ab' for i in range(10)])
    source = open_split('folder', 'train', tmp_path)
    for file in (tmp_path / 'train/a').iterdir():
        file.unlink()
    subset = take_share(source, 0.2, 0)
    assert len(subset) == 4
    with pytest.raises(BadImage, match=r'train/a/.*jpg'):
        subset[0]


def test_pickled_cached_and_read_by_threads():
    subset = take_share(open_split('digits'), 0.05, 0)
    again = pickle.loads(pickle.dumps(subset))
    assert again.fingerprint == subset.fingerprint == cache_source(subset, 'always', 2).fingerprint
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(again.__getitem__, range(len(again))))
    assert [x.name for x in read] == [subset[i].name for i in range(len(subset))]
    with pytest.raises(IndexError):
        subset[len(subset)]


@needs_shared
def test_share_of_a_tfds_set():
    source = open_split('tfds', 'test', SHARED, 'cifar10')
    subset = take_share(source, 0.01, 0)
    counts = np.bincount([subset[i].label for i in range(len(subset))])
    assert counts.tolist() == [10] * 10


# --- a list ---


def listed(tmp_path, source, text):
    (tmp_path / 'list.txt').write_text(text)
    return take_listed(source, tmp_path / 'list.txt')


FILES = ['train/cat/a 1.jpg', 'train/cat/b.jpg', 'train/dog/b.jpg', 'train/dog/c.jpg', 'train/dog/cc.jpg']


def test_names_paths_and_indices(tmp_path):
    write_folder(tmp_path / 'set', FILES)
    source = open_split('folder', 'train', tmp_path / 'set')
    subset = listed(tmp_path, source, f'# a list\n\nc.jpg\ndog/b.jpg \r\na 1.jpg\n{tmp_path}/set/train/cat/b.jpg\n4\n')
    assert [subset[i].image.decode() for i in range(len(subset))] == FILES
    assert subset.description == f'{source.description}, of these those listed in list.txt: 5 images'
    assert (
        listed(tmp_path, source, '3\na 1.jpg').fingerprint == listed(tmp_path, source, '0\ntrain/dog/c.jpg').fingerprint
    )


def test_indices_of_arrays(tmp_path):
    assert taken(listed(tmp_path, of_labels([0, 1, 0, 1]), '3\n1\n')) == [1, 3]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('c.jpg\nx.jpg\ncat/c.jpg\n9\nz\n', r"^4 of the 5 lines of .*list.txt are no image of .*'x.jpg' \(line 2\), "),
        ('b.jpg', r"'b.jpg' \(line 1 .* name of .*cat/b.jpg and .*dog/b.jpg; write more"),
        ('c.jpg\ndog/c.jpg', r"'dog/c.jpg' \(line 2 .* repeats line 1"),
        ('3\n3', 'repeats line 1'),
        ('1.jpg', '1 of the 1 lines'),
        ('-1', '1 of the 1 lines'),
        ('\n# nothing\n', 'is empty'),
        ('', 'is empty'),
    ],
)
def test_mistakes_in_a_list(tmp_path, text, message):
    write_folder(tmp_path / 'set', FILES)
    with pytest.raises(DataError, match=message):
        listed(tmp_path, open_split('folder', 'train', tmp_path / 'set'), text)


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r'nowhere.txt.* cannot be read: .*data\.list'):
        take_listed(of_labels([0, 1]), tmp_path / 'nowhere.txt')
    (tmp_path / 'bytes').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(DataError, match='cannot be read'):
        take_listed(of_labels([0, 1]), tmp_path / 'bytes')


@needs_shared
def test_names_of_a_tfds_set(tmp_path):
    source = open_split('tfds', 'test[:50]', SHARED, 'cifar10')
    names = [source[i].name.split()[-1] for i in (30, 4)]
    subset = listed(tmp_path, source, '\n'.join(names))
    assert [subset[i].name for i in range(2)] == [source[4].name, source[30].name]
