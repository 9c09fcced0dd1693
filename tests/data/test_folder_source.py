"""Which folders are splits, which are classes, how classes are numbered, and what is refused."""

import io
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax.data.images import BadImage
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError


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


def test_folder_splits_without_class_folders_stay_apart_and_unlabelled(tmp_path):
    write_folder(tmp_path, ['train/1.jpg', 'train/2.jpg', 'val/3.jpg', 'labelled/cat/4.jpg'])
    data = section('folder', dir=str(tmp_path))
    train, val, labelled = (open_source(data, split) for split in ('train', 'val', 'labelled'))
    assert [(Path(train[i].name).name, train[i].label) for i in range(len(train))] == [('1.jpg', -1), ('2.jpg', -1)]
    assert [(Path(val[i].name).name, val[i].label) for i in range(len(val))] == [('3.jpg', -1)]
    assert (train.num_classes, val.num_classes) == (0, 0)
    assert 'without labels' in train.description
    assert (labelled[0].label, labelled.num_classes) == (0, 1)
    assert len(open_source(data, 'train[:50%]')) == 1


def test_folder_numbers_the_classes_of_all_splits_together(tmp_path):
    """Whatever the splits are called, and whichever of them lacks a class. Folders without images do not count."""
    write_folder(tmp_path, ['training/a/1.jpg', 'training/b/2.jpg', 'val/b/3.jpg', 'val/d/4.jpg', 'extra/c/5.jpg'])
    (tmp_path / 'annotations/aardvark').mkdir(parents=True)
    data = section('folder', dir=str(tmp_path))
    found = {}
    for split in ('training', 'val', 'extra'):
        source = open_source(data, split)
        assert source.num_classes == 4
        for i in range(len(source)):
            found.setdefault(Path(source[i].name).parent.name, set()).add(source[i].label)
    assert found == {'a': {0}, 'b': {1}, 'c': {2}, 'd': {3}}


def test_folder_beside_labelled_splits_does_no_harm(tmp_path):
    write_folder(tmp_path, ['train/cat/1.jpg', 'figures/2.jpg', 'test/3.jpg'])
    train, test = (open_source(section('folder', dir=str(tmp_path)), split) for split in ('train', 'test'))
    assert (len(train), train.num_classes, train[0].label) == (1, 1, 0)
    assert (len(test), test.num_classes, test[0].label) == (1, 0, -1)
    with pytest.raises(DataError, match=r"no split 'validation' in .* it has figures, test, train"):
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
        ([], 'train', 'No images'),
        (['1.jpg', '2.jpg'], 'train', 'No images .*put images into'),
        (['train/cat/1.txt'], 'train', r'No images \(.jpg'),
        (['train/cat/1.jpg', 'test/cat/1.jpg'], 'validation', "no split 'validation' in .* it has test, train"),
        (['train/1.jpg', 'test/2.jpg'], 'validation', "no split 'validation' in .* it has test, train"),
        (['Train/1.jpg', 'Test/2.jpg'], 'train', "no split 'train' in .* it has Test, Train"),
        (
            ['train/1.jpg', 'plane/2.jpg'],
            'train',
            "'plane' in .* a class or a split beside 'train'; put .*<split>/all/",
        ),
        (['test/1.jpg', 'plane/2.jpg'], 'train', "'plane' in .* a class or a split beside 'test'"),
        (['cat/1.jpg', 'dog/2.jpg'], 'cat', "'dog' in .* a class or a split beside 'cat'"),
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
