"""What is kept in memory, what is left alone, and that nobody but cache_source decides it."""

import io

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mim_jax.data.cache import CachedSource, cache_source
from mim_jax.data.images import BadImage
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError


def jpeg(value):
    buffer = io.BytesIO()
    Image.new('RGB', (8, 6), (value, value, value)).save(buffer, 'JPEG')
    return buffer.getvalue()


def section(source, **settings):
    return ConfigDict({'source': source, 'name': '', 'dir': '', 'cache': 'always', 'threads': 2} | settings)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'cat').mkdir()
    for k in range(3):
        (tmp_path / f'cat/{k}.jpg').write_bytes(jpeg(10 * k))
    return tmp_path


def test_opening_caches_nothing(folder):
    assert isinstance(open_source(section('folder', dir=str(folder)), 'train')[0].image, bytes)


def test_pixels_and_the_error_of_a_bad_image_are_kept(folder):
    (folder / 'cat/1.jpg').write_bytes(jpeg(9)[:-100])
    source = open_source(section('folder', dir=str(folder)), 'train')
    cached = cache_source(source, 'auto', 2)
    assert 'in memory' in cached.description
    assert (len(cached), cached.num_classes, cached.fingerprint) == (3, 1, source.fingerprint)
    (folder / 'cat/2.jpg').unlink()  # it is in memory already
    assert cached[2].image.shape == (6, 8, 3)
    assert np.abs(cached[2].image.astype(int) - 20).max() <= 1
    with pytest.raises(BadImage, match=r'1\.jpg \(index 1\)'):
        cached[1]


def test_auto_leaves_large_sources_encoded(folder, monkeypatch):
    monkeypatch.setattr('mim_jax.data.cache._AUTO_BYTES', 3 * 8 * 6 * 3)  # exactly what they need: not under
    source = open_source(section('folder', dir=str(folder)), 'train')
    assert cache_source(source, 'auto', 2) is source
    assert cache_source(source, 'never', 2) is source
    assert isinstance(cache_source(source, 'always', 2), CachedSource)


def test_an_unknown_setting_is_refused_for_every_source():
    with pytest.raises(DataError, match=r"data.cache='sometimes'"):
        cache_source(open_source(section('synthetic'), 'test'), 'sometimes', 1)


@pytest.mark.parametrize('cache', ['auto', 'always'])
@pytest.mark.parametrize('kind', ['digits', 'npz', 'synthetic', 'cached'])
def test_what_is_in_memory_or_generated_is_left_alone(folder, kind, cache):
    if kind == 'cached':
        source = cache_source(open_source(section('folder', dir=str(folder)), 'train'), 'always', 2)
    else:
        np.savez(folder / 'a.npz', images=np.zeros((3, 4, 4), np.uint8))
        source = open_source(section(kind, dir=str(folder / 'a.npz')), 'train')
    assert cache_source(source, cache, 2) is source
