"""`mim_jax.prepare`: smaller images that TFDS reads, in the original's order; resumed, refused, and what bad images become."""

import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax import prepare
from mim_jax.data import shards
from mim_jax.data.images import BadImage, decode
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError, UserError

SIDE = 24
SIZES = [(60, 40), (30, 90), (24, 24), (20, 16), (48, 24), (25, 31), (80, 80)]


def picture(size, seed):
    """A smooth picture, which JPEG can store."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def make_folder(root):
    """Two classes in two splits; the fourth image of train is a PNG."""
    for split, sizes in (('train', SIZES), ('val', SIZES[:2])):
        for k, size in enumerate(sizes):
            path = root / split / ('cat', 'dog')[k % 2] / f'{k}.{"png" if k == 3 else "jpg"}'
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(size, k).save(path, quality=95)
    return root


def run(root, out, *options):
    settings = {'source': 'folder', 'dir': root, 'name': '', 'split': 'train', 'eval_split': 'val', 'threads': 2}
    flags = [f'--config.data.{key}={value}' for key, value in settings.items()]
    line = ['--config', 'configs/mae.py:smoke', '--out', str(out), '--short-side', str(SIDE), '--shard', '3', *options]
    return prepare.main([*line, *flags])


def read(out, split, name=f'folder_{SIDE}'):
    return open_source(ConfigDict({'source': 'tfds', 'name': name, 'dir': str(out)}), split)


def original(root, split):
    return open_source(ConfigDict({'source': 'folder', 'name': '', 'dir': str(root)}), split)


def test_images_labels_and_order_are_the_originals(tmp_path, capsys):
    root = make_folder(tmp_path / 'images')
    assert run(root, tmp_path / 'out') == 0
    said = capsys.readouterr().out
    assert f'--config.data.name=folder_{SIDE} --config.data.dir={tmp_path / "out"}' in said
    for split, count in (('train', 7), ('val', 2)):
        small, large = read(tmp_path / 'out', split), original(root, split)
        assert (len(small), small.num_classes) == (count, 2) == (len(large), large.num_classes)
        for k in range(count):
            ours, theirs = small[k], large[k]
            assert ours.label == theirs.label
            assert ours.name.endswith(large.files[k])
            before = decode(theirs.image, theirs.name)
            after = decode(ours.image, ours.name)
            if min(before.size) <= SIDE:
                assert ours.image == theirs.image  # not encoded again
                continue
            assert min(after.size) == SIDE
            resized = np.asarray(before.resize(after.size, Image.Resampling.BICUBIC), np.float64)
            assert abs(after.size[0] / after.size[1] - before.size[0] / before.size[1]) < 0.1
            assert np.abs(np.asarray(after, np.float64) - resized).mean() < 4
    folder = tmp_path / 'out' / f'folder_{SIDE}' / shards.VERSION
    info = json.loads((folder / 'dataset_info.json').read_text())
    assert [split['shardLengths'] for split in info['splits']] == [['3', '3', '1'], ['2']]
    assert (folder / 'label.labels.txt').read_text().split() == ['cat', 'dog']
    assert not list(folder.glob('.*'))


def test_the_quality_that_is_printed_is_measured(tmp_path, capsys):
    root = make_folder(tmp_path / 'images')
    found = {}
    for quality in (30, 95):
        run(root, tmp_path / 'out', '--quality', str(quality), '--name', f'q{quality}')
        small, psnrs = read(tmp_path / 'out', 'train', f'q{quality}'), []
        for k, example in enumerate(original(root, 'train')[i] for i in range(len(SIZES))):
            before, after = decode(example.image, ''), decode(small[k].image, '')
            if min(before.size) > SIDE:
                apart = np.asarray(before.resize(after.size, Image.Resampling.BICUBIC), np.float64) - np.asarray(after)
                psnrs.append(10 * np.log10(255**2 / np.square(apart).mean()))
        told = f'{len(psnrs)} images: PSNR {np.mean(psnrs):.1f} dB on average, lowest {min(psnrs):.1f}.'
        assert told in capsys.readouterr().out
        found[quality] = np.mean(psnrs)
    assert found[95] > found[30] + 3


def test_it_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    root, out = make_folder(tmp_path / 'images'), tmp_path / 'out'
    run(root, out, '--name', 'whole')
    whole = {path.name: path.read_bytes() for path in (out / 'whole' / '1.0.0').glob('whole-*')}
    shrink, calls = shards.Shrinking.__call__, []

    def stop_in_the_second_file(self, data, name, index):
        calls.append(name)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return shrink(self, data, name, index)

    monkeypatch.setattr(shards.Shrinking, '__call__', stop_in_the_second_file)
    with pytest.raises(KeyboardInterrupt):
        run(root, out, '--name', 'parts')
    with pytest.raises(DataError, match=r'not prepared|knows no dataset'):
        read(out, 'train', 'parts')
    capsys.readouterr()
    monkeypatch.setattr(shards.Shrinking, '__call__', shrink)
    assert run(root, out, '--name', 'parts') == 0
    assert '1 of the files were there already' in capsys.readouterr().out
    found = {path.name: path.read_bytes() for path in (out / 'parts' / '1.0.0').glob('parts-*')}
    assert found == {name.replace('whole', 'parts'): data for name, data in whole.items()}


def test_a_bad_image_stops_it_or_is_left_out(tmp_path, capsys):
    root, out = make_folder(tmp_path / 'images'), tmp_path / 'out'
    bad = root / 'train' / 'cat' / '2.jpg'
    bad.write_bytes(bad.read_bytes()[:50])
    with pytest.raises(BadImage, match=r'2\.jpg'):
        run(root, out)
    assert run(root, out, '--name', 'skipped', '--config.data.on_bad_image=skip') == 0
    assert '1 images cannot be decoded and were left out, such as ' + str(bad) in capsys.readouterr().out
    assert len(read(out, 'train', 'skipped')) == len(SIZES) - 1


def test_arrays_become_png_where_they_are_small_enough(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / 'images.npz', images=images)
    line = ['--config', 'configs/mae.py:smoke', '--out', str(tmp_path / 'out'), '--splits', 'train', '--name', 'arrays']
    data = {'source': 'npz', 'dir': tmp_path / 'images.npz', 'name': '', 'threads': 1}
    assert prepare.main([*line, *(f'--config.data.{key}={value}' for key, value in data.items())]) == 0
    small = read(tmp_path / 'out', 'train', 'arrays')
    assert small.num_classes == 0
    for k, image in enumerate(images):
        assert np.array_equal(decode(small[k].image, ''), image)
        assert small[k].image[:4] == b'\x89PNG'


def test_mistakes(tmp_path):
    root, out = make_folder(tmp_path / 'images'), tmp_path / 'out'
    run(root, out)
    with pytest.raises(DataError, match=r'begun with other settings \(quality was 92, is 50\).*--name'):
        run(root, out, '--quality', '50')
    with pytest.raises(DataError, match="'Big Images' cannot name a dataset"):
        run(root, out, '--name', 'Big Images')
    with pytest.raises(DataError, match='1 to 100'):
        run(root, out, '--quality', '101')
    with pytest.raises(UserError, match='is a bucket'):
        run(root, 'gs://bucket/data')
    with pytest.raises(DataError, match="no split 'test'"):
        run(root, out, '--name', 'tests', '--splits', 'test')
    (root / 'test').mkdir()
    picture((30, 30), 0).save(root / 'test' / '0.jpg')
    with pytest.raises(UserError, match=r'differ in their classes \(train 2, test 0\).*--splits'):
        run(root, out, '--name', 'unlabelled', '--splits', 'train', 'test')
    (out / 'mine' / '1.0.0').mkdir(parents=True)
    (out / 'mine' / '1.0.0' / 'notes.txt').write_text('something else')
    with pytest.raises(DataError, match='holds something else'):
        run(root, out, '--name', 'mine')
    part = out / f'folder_{SIDE}' / '1.0.0' / f'folder_{SIDE}-train.array_record-00001-of-00003'
    part.write_bytes(b'damaged')
    with pytest.raises(DataError, match=f'{part.name} cannot be read'):
        run(root, out)


def test_the_encoded_image_is_what_is_read(tmp_path):
    """EXIF: a resized image is upright, one that keeps its bytes keeps its note."""
    turned = picture((60, 40), 0)
    note = Image.Exif()
    note[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, 'JPEG', exif=note)
    data, psnr = shards.Shrinking(SIDE)(buffer.getvalue(), 'turned', 0)
    assert Image.open(io.BytesIO(data)).size == (24, 36)
    assert psnr > 20
    assert shards.Shrinking(90)(buffer.getvalue(), 'turned', 0) == (buffer.getvalue(), None)
