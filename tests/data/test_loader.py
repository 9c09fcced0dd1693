"""The order is a function of the step: hosts, threads, workers and restarts change nothing. Bad images, exits."""

import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax.data.augment import Crop
from mim_jax.data.images import BadImage
from mim_jax.data.loader import CHUNK_ROWS, Loader, epoch_order, eval_batches
from mim_jax.data.sources import Example, open_source
from mim_jax.errors import ConfigError, DataError

ROOT = Path(__file__).parents[2]
SHARED = ROOT / '../shared/data'
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason='needs the sample datasets in ../shared/data')
RRC = {'image': Crop('rrc', 16)}


class Images:
    """n noise images whose label is their index; those in `bad` are truncated PNGs."""

    num_classes, description, fingerprint = 1000, 'test images', '0' * 16

    def __init__(self, n, bad=(), side=12):
        self.n, self.bad, self.side = n, frozenset(bad), side

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (self.side, self.side, 3), np.uint8)
        if index not in self.bad:
            return Example(pixels, index, f'{index}.png')
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, 'PNG')
        return Example(buffer.getvalue()[:60], index, f'{index}.png')


def read(start, stop, source=None, batch_size=16, crops=RRC, seed=3, **options):
    loader = Loader(source or Images(50), crops, batch_size, seed, **options)
    return list(loader.batches(start, stop))


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- order ---


def test_order_is_pinned():
    """A change here changes every run's data: it needs a reason and a note to users."""
    assert epoch_order(0, 0, 10).tolist() == [1, 0, 4, 9, 8, 7, 3, 2, 5, 6]
    assert hashlib.sha256(epoch_order(1, 7, 5000).astype('<i8').tobytes()).hexdigest()[:16] == '093d84ebdd127f24'


def test_digits_batch_is_pinned():
    data = ConfigDict({'source': 'digits', 'name': '', 'dir': '', 'cache': 'auto', 'threads': 1})
    loader = Loader(open_source(data, 'train'), {'image': Crop('rrc', 32)}, 8, seed=0)
    batch = next(loader.batches(5, 6))
    assert batch['index'].tolist() == [169, 740, 597, 1224, 694, 69, 933, 423]
    assert batch['label'].tolist() == [8, 0, 3, 5, 1, 3, 2, 8]
    # Pixels may differ by a level between Pillow's builds; moments pin boxes and flips well enough.
    moments = (batch['image'][..., 0] * np.linspace(0, 1, 32)).mean((1, 2))
    np.testing.assert_allclose(moments, [72.1, 37.7, 10.6, 37.1, 57.0, 54.3, 38.8, 36.0], atol=0.5)


def test_epochs_are_permutations_that_differ():
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1, 2)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({order.tobytes() for order in orders}) == 6
    with pytest.raises(ValueError, match='read-only'):
        orders[0][0] = 1


def test_every_example_once_per_epoch_across_batch_borders():
    """50 is no multiple of 16: an epoch ends inside a batch."""
    indices = np.concatenate([batch['index'] for batch in read(0, 25)])
    epochs = indices.reshape(8, 50)
    for epoch, order in enumerate(epochs):
        np.testing.assert_array_equal(order, epoch_order(3, epoch, 50))


# --- invariance ---


@pytest.mark.parametrize('start', [0, 7, 15])
@pytest.mark.parametrize('rows', [range(16), range(8, 16), [3], [0, 1, 2, 3, 8, 9, 10, 11]])
def test_a_host_reads_its_rows_of_the_global_batch(start, rows):
    whole = [{name: value[np.array(rows)] for name, value in batch.items()} for batch in read(start, 18)]
    assert_same(read(start, 18, rows=np.array(rows)), whole)


def test_chunks_and_threads_do_not_show():
    """Batches of three chunks, the last one short, on any number of threads."""
    size = 2 * CHUNK_ROWS + 5
    one = read(2, 5, Images(100, bad=[0]), size, threads=1, on_bad_image='skip')
    assert one[0]['image'].shape == (size, 16, 16, 3)
    np.testing.assert_array_equal(one[0]['label'], one[0]['index'])
    assert_same(one, read(2, 5, Images(100, bad=[0]), size, threads=16, on_bad_image='skip'))


def test_worker_processes_do_not_show():
    source = open_source(ConfigDict({'source': 'digits', 'name': '', 'dir': '', 'cache': 'auto', 'threads': 1}), 'test')
    assert_same(read(3, 9, source, 40), read(3, 9, source, 40, workers=2))


def test_positions_beyond_32_bits():
    step = 2**40 + 3
    batch = read(step, step + 1)[0]
    epoch, place = divmod(step * 16, 50)
    assert batch['index'][0] == epoch_order(3, epoch, 50)[place]


def test_crops_are_independent_and_keyed_by_name():
    large = Images(50, side=100)  # enough boxes that none comes twice
    both = read(0, 2, large, crops={'image': Crop('rrc', 16), 'view': Crop('rrc', 16)})
    alone = read(0, 2, large)
    for two, one in zip(both, alone, strict=True):
        np.testing.assert_array_equal(two['image'], one['image'])  # a second crop changes nothing for the first
        assert all(not np.array_equal(a, b) for a, b in zip(two['image'], two['view'], strict=True))


def test_an_example_is_cropped_anew_in_each_epoch():
    batches = read(0, 2, Images(16, side=100))
    rows = [{i: batch['image'][k] for k, i in enumerate(batch['index'])} for batch in batches]
    assert sum(np.array_equal(rows[0][i], rows[1][i]) for i in range(16)) == 0


# --- bad images ---


@pytest.mark.parametrize('workers', [0, 1])
def test_stop_raises_the_image_s_own_error(workers):
    with pytest.raises(BadImage, match=r'4\.png \(index 4\).*data\.on_bad_image=skip') as caught:
        read(0, 4, Images(50, bad=[4]), workers=workers)
    assert (caught.value.name, caught.value.index) == ('4.png', 4)


def test_skip_takes_the_next_of_the_order_and_counts():
    order = epoch_order(3, 0, 50)
    bad = [int(order[5]), int(order[6]), int(order[49])]
    loader = Loader(Images(50, bad), RRC, 10, seed=3, on_bad_image='skip')
    seen = np.concatenate([batch['index'] for batch in loader.batches(0, 5)])
    expected = order.copy()
    expected[[5, 6, 49]] = order[[7, 7, 0]]
    np.testing.assert_array_equal(seen, expected)
    assert loader.bad_images == {f'{i}.png': 1 for i in bad}
    good = np.concatenate([batch['image'] for batch in read(0, 5, batch_size=10)])
    skipped = np.concatenate([batch['image'] for batch in loader.batches(0, 5)])
    same = [np.array_equal(a, b) for a, b in zip(good, skipped, strict=True)]
    assert [k for k in range(50) if not same[k]] == [5, 6, 49]


def test_skip_gives_up_when_nothing_can_be_decoded():
    with pytest.raises(DataError, match='20 images in a row'):
        read(0, 1, Images(20, bad=range(20)), on_bad_image='skip')


# --- refusals ---


@pytest.mark.parametrize(
    ('error', 'options', 'message'),
    [
        (DataError, {'batch_size': 64}, 'batch_size=64 .* 50 images .* smaller'),
        (ConfigError, {'batch_size': 0}, 'batch_size=0 must be at least 1'),
        (ConfigError, {'threads': 0}, 'data.threads=0'),
        (ConfigError, {'on_bad_image': 'ignore'}, 'ignore'),
        (ConfigError, {'crops': {'label': Crop('rrc', 16)}}, 'called label'),
    ],
)
def test_contradictions_are_refused(error, options, message):
    with pytest.raises(error, match=message):
        read(0, 1, **options)


# --- evaluation ---


def test_eval_pads_the_last_batch_with_weight_zero():
    batches = list(eval_batches(Images(21), Crop('center', 12), 8))
    assert [batch['weight'].tolist() for batch in batches] == [[1.0] * 8, [1.0] * 8, [1.0] * 5 + [0.0] * 3]
    assert np.concatenate([batch['index'] for batch in batches]).tolist() == [*range(21), -1, -1, -1]
    np.testing.assert_array_equal(batches[1]['image'][2], Images(21)[10].image)
    assert not batches[2]['image'][5:].any()


def test_eval_subset_is_fixed_and_seeded():
    def indices(seed):
        return np.concatenate([b['index'] for b in eval_batches(Images(50), Crop('rrc', 8), 5, limit=20, seed=seed)])

    first = indices(0)
    assert len(set(first.tolist())) == 20
    np.testing.assert_array_equal(first, np.sort(first))
    np.testing.assert_array_equal(first, indices(0))
    assert first.tolist() != indices(1).tolist()


def test_eval_randomness_belongs_to_the_example():
    """A random crop is the same in every batch size, and differs between examples that look alike."""

    class Alike(Images):
        def __getitem__(self, index):
            return super().__getitem__(0)

    source = Alike(6, side=100)
    small = np.concatenate([b['image'] for b in eval_batches(source, Crop('rrc', 8), 2)])
    (large,) = eval_batches(source, Crop('rrc', 8), 6)
    np.testing.assert_array_equal(small, large['image'])
    assert len({image.tobytes() for image in small}) == 6


def test_eval_follows_the_rule_for_bad_images():
    with pytest.raises(BadImage, match=r'3\.png'):
        list(eval_batches(Images(8, bad=[3]), Crop('center', 12), 8))
    (batch,) = eval_batches(Images(8, bad=[3]), Crop('center', 12), 8, on_bad_image='skip')
    assert batch['weight'].tolist() == [1, 1, 1, 0, 1, 1, 1, 1]


# --- real data, lifetime ---


@needs_shared
@pytest.mark.parametrize('source', ['tfds', 'folder'])
def test_imagenet_sample_loads(source):
    place = SHARED if source == 'tfds' else SHARED / 'imagenet_sample_folder'
    data = ConfigDict({'source': source, 'name': 'imagenet_sample', 'dir': str(place), 'cache': 'never', 'threads': 2})
    (batch,) = read(0, 1, open_source(data, 'train'), crops={'image': Crop('rrc', 64), 'view': Crop('src', 64)})
    assert batch['image'].shape == batch['view'].shape == (16, 64, 64, 3)
    assert len(set(batch['label'].tolist())) == 16
    assert 60 < batch['image'].mean() < 180


def test_reading_ahead_is_bounded():
    class Counting(Images):
        read = 0

        def __getitem__(self, index):
            Counting.read += 1
            return super().__getitem__(index)

    batches = Loader(Counting(4000), RRC, 100, seed=0, threads=4).batches(0, 40)
    next(batches)
    deadline = time.monotonic() + 20
    while Counting.read < 301 and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.2)
    assert Counting.read == 301  # the batch delivered, two more, and a look at the first example
    batches.close()


@pytest.mark.parametrize('end', ['del batches', 'batches.close()', 'pass', 'raise KeyError("user")'])
def test_abandoned_iterator_does_not_hold_the_interpreter(end):
    code = (
        'from ml_collections import ConfigDict; from mim_jax.data import augment, loader, sources\n'
        'data = ConfigDict(dict(source="digits", name="", dir="", cache="auto", threads=4))\n'
        'source = sources.open_source(data, "train")\n'
        'batches = loader.Loader(source, {"image": augment.Crop("rrc", 224)}, 64, 0, threads=4).batches(0, 10**9)\n'
        f'next(batches)\n{end}\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == (1 if 'raise' in end else 0), result.stderr
    assert ('KeyError' if 'raise' in end else '') in result.stderr
