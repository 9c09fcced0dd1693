"""Every mode of image becomes upright RGB; what cannot be decoded says which file and what to do."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from mim_jax.data.images import BadImage, decode

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def encode(image, kind='PNG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data):
    image = decode(data, 'a.png', 3)
    assert image.mode == 'RGB'
    return np.asarray(image)


def test_rgb_png_is_returned_unchanged():
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(COLOURS))), COLOURS)


@pytest.mark.parametrize('mode', ['L', 'LA', '1'])
def test_greyscale_fills_three_equal_channels(mode):
    grey = Image.fromarray(COLOURS).convert('L').convert(mode)
    expected = np.repeat(np.asarray(grey.convert('L'))[..., None], 3, axis=2)
    np.testing.assert_array_equal(decoded(encode(grey)), expected)


def test_transparency_is_dropped_without_blending():
    alpha = np.random.default_rng(1).integers(0, 256, (5, 7, 1), np.uint8)
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(np.concatenate([COLOURS, alpha], 2)))), COLOURS)


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('transparency', [None, 0, bytes([0, 128, 255])])
def test_palette_gives_its_colours(transparency):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), 'P')
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    options = {} if transparency is None else {'transparency': transparency}
    expected = [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    np.testing.assert_array_equal(decoded(encode(image, **options)), expected)


def test_cmyk_jpeg_keeps_its_colours():
    solid = Image.new('RGB', (16, 16), (200, 100, 50))
    pixels = decoded(encode(solid.convert('CMYK'), 'JPEG', quality=95)).astype(int)
    assert np.abs(pixels - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize(('kind', 'dtype'), [('PNG', '<u2'), ('TIFF', '<u2'), ('TIFF', '>u2')])
def test_sixteen_bits_keep_their_high_byte(kind, dtype):
    levels = np.array([[0, 255, 256], [32768, 65279, 65535]])
    data = encode(Image.fromarray(levels.astype(dtype)), kind)
    np.testing.assert_array_equal(decoded(data), np.repeat((levels // 256)[..., None], 3, 2))


def test_float_pixels_are_refused_not_blackened():
    with pytest.raises(BadImage, match='floating-point'):
        decode(encode(Image.fromarray(np.ones((2, 2), np.float32)), 'TIFF'), 'a.tif', 0)


@pytest.mark.parametrize(('orientation', 'undo'), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation_is_applied(orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decoded(encode(Image.fromarray(COLOURS), exif=exif)), np.rot90(COLOURS, undo))


@pytest.mark.parametrize('shape', [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_arrays_are_wrapped(shape):
    array = COLOURS[..., : shape[2]] if len(shape) == 3 else COLOURS[..., 0]
    np.testing.assert_array_equal(decoded(array), np.broadcast_to(array.reshape(5, 7, -1), (5, 7, 3)))


@pytest.mark.parametrize('array', [np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2)), np.zeros((0, 3, 3), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(BadImage, match=r'uint8 of shape|no pixels'):
        decode(array, 'row', 1)


def test_one_pixel_decodes():
    assert decode(encode(Image.new('L', (1, 1), 9)), 'dot.png').size == (1, 1)


@pytest.mark.parametrize('fraction', [0.0, 0.01, 0.5, 0.9])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_truncated_file_names_itself_and_the_remedy(kind, fraction):
    noise = Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    with pytest.raises(BadImage) as caught:
        decode(data[: int(len(data) * fraction)], 'cat/1.jpg', 41)
    message = str(caught.value)
    assert (caught.value.name, caught.value.index) == ('cat/1.jpg', 41)
    assert 'cat/1.jpg' in message
    assert '41' in message
    assert 'Repair or replace it, or set data.on_bad_image=skip' in message  # removing it would reorder the run


def test_bad_image_survives_pickling():
    error = BadImage('x.jpg', 7, 'truncated')
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, BadImage)
    assert (str(copy), copy.name, copy.index) == (str(error), 'x.jpg', 7)
