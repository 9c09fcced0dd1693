"""Crops against a plain transcription of torchvision's rules, and the distributions they promise."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from mim_jax.data.augment import (
    Box,
    Crop,
    central_box,
    crop_and_resize,
    crop_center,
    draw_box,
    draw_window,
    eval_resize,
    resize_pad_and_crop,
    resized_shape,
)
from mim_jax.errors import ConfigError

RATIO = (3 / 4, 4 / 3)
BICUBIC = Image.Resampling.BICUBIC


class Script:
    """A generator that returns given numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def transcribed_params(width, height, scale, ratio, tries):
    """torchvision.transforms.RandomResizedCrop.get_params for given uniform draws (area, aspect, row, column)."""
    log_ratio = [math.log(r) for r in ratio]
    for u_area, u_aspect, u_row, u_column in tries:
        target_area = height * width * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect_ratio = math.exp(log_ratio[0] + u_aspect * (log_ratio[1] - log_ratio[0]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(u_row * (height - h + 1)), math.floor(u_column * (width - w + 1)), h, w
    return None


@pytest.mark.parametrize('size', [(500, 375), (375, 500), (32, 32), (100, 40), (3, 9)])
def test_box_follows_torchvision_draw_by_draw(size):
    width, height = size
    rng = np.random.default_rng(width)
    compared = 0
    for _ in range(300):
        tries = rng.random((10, 4))
        expected = transcribed_params(width, height, (0.08, 1.0), RATIO, tries)
        if expected is None:
            continue
        # Only the accepted try draws a position, so rejected tries consume two numbers.
        accepted = next(
            k for k in range(10) if transcribed_params(width, height, (0.08, 1.0), RATIO, tries[k : k + 1]) == expected
        )
        script = Script(*tries[:accepted, :2].ravel(), *tries[accepted])
        top, left, h, w = expected
        assert draw_box(width, height, (0.08, 1.0), RATIO, script) == Box(left, top, w, h)
        assert script.numbers == []
        compared += 1
    assert compared > 200


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        ((100, 100), Box(0, 0, 100, 100)),
        ((120, 100), Box(0, 0, 120, 100)),
        ((100, 1000), Box(0, 433, 100, 133)),
        ((1001, 100), Box(434, 0, 133, 100)),
        ((1, 1), Box(0, 0, 1, 1)),
        ((1, 9), Box(0, 4, 1, 1)),
    ],
)
def test_fallback_is_the_central_box_with_clamped_ratio(size, expected):
    assert central_box(*size, RATIO) == expected
    # A whole-area square box fits only squares: all ten tries of the thin images fail.
    if size[0] != size[1]:
        assert draw_box(*size, (1.0, 1.0), RATIO, Script(*[0.5] * 20)) == expected


def kolmogorov_distance(samples, cdf):
    samples = np.sort(samples)
    return np.abs(cdf(samples) - (np.arange(samples.size) + 0.5) / samples.size).max()


def test_area_is_uniform_and_aspect_log_uniform():
    """Scale at most .7, so that no try is rejected on a square image and the law is exact up to rounding."""
    rng = np.random.default_rng(0)
    boxes = np.array([draw_box(2000, 2000, (0.2, 0.7), RATIO, rng) for _ in range(4000)])
    left, top, w, h = boxes.T
    area, aspect = w * h / 2000**2, np.log(w / h)
    limit = 1.63 / math.sqrt(4000)  # p = 0.01
    assert kolmogorov_distance(area, lambda x: (x - 0.2) / 0.5) < limit
    span = math.log(4 / 3)
    assert kolmogorov_distance(aspect, lambda x: (x + span) / (2 * span)) < limit
    assert kolmogorov_distance((left + rng.random(4000)) / (2001 - w), lambda x: x) < limit
    assert kolmogorov_distance((top + rng.random(4000)) / (2001 - h), lambda x: x) < limit


def cubic_reference(pixels, size):
    """Separable antialiased resize with Keys' kernel, a = -0.5, in floating point."""

    def matrix(length):
        ratio = length / size
        stretch = max(ratio, 1.0)
        centres = (np.arange(size) + 0.5) * ratio
        x = np.abs((np.arange(length) + 0.5 - centres[:, None]) / stretch)
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
        return weights / weights.sum(1, keepdims=True)

    return np.einsum('yh,hwc,xw->yxc', matrix(pixels.shape[0]), pixels, matrix(pixels.shape[1]))


@pytest.mark.parametrize('box', [Box(5, 3, 40, 31), Box(10, 20, 7, 9)])
def test_resize_is_antialiased_bicubic_of_the_cut_alone(box):
    smooth = Image.fromarray(np.asarray(picture(60, 50)) // 2 + 64)  # no overshoot, hence no clipping
    pixels = np.asarray(smooth, np.float64)[box.top : box.top + box.height, box.left : box.left + box.width]
    result = np.asarray(crop_and_resize(smooth, box, 16, BICUBIC), np.float64)
    assert np.abs(result - cubic_reference(pixels, 16)).max() < 1.6  # Pillow rounds after each axis


def test_resized_shape_truncates_the_longer_side():
    assert resized_shape(500, 375, 224) == (298, 224)  # 298.67
    assert resized_shape(375, 500, 224) == (224, 298)
    assert resized_shape(32, 32, 224) == (224, 224)


def test_simple_resized_window_covers_every_offset_equally():
    rng = np.random.default_rng(0)
    draws = [draw_window(40, 32, 32, 4, rng) for _ in range(6000)]
    assert {(box.width, box.height) for box in draws} == {(32, 32)}
    tops = np.bincount([box.top for box in draws])
    lefts = np.bincount([box.left for box in draws])
    assert tops.size == 9  # 32 + 8 - 32 + 1
    assert lefts.size == 17  # 40 + 8 - 32 + 1
    assert np.abs(tops - 6000 / 9).max() < 4 * math.sqrt(6000 / 9)
    assert np.abs(lefts - 6000 / 17).max() < 4 * math.sqrt(6000 / 17)


def test_simple_resized_crop_reflects_without_repeating_the_edge():
    image = picture(8, 8)
    result = resize_pad_and_crop(image, Box(0, 8, 8, 8), 8, 4, BICUBIC)
    rows, columns = [4, 5, 6, 7, 6, 5, 4, 3], [4, 3, 2, 1, 0, 1, 2, 3]
    np.testing.assert_array_equal(result, np.asarray(image)[rows][:, columns])


def test_center_takes_the_middle_of_the_resized_image():
    image = picture(70, 50)
    resized = np.asarray(image.resize((44, 32), BICUBIC))  # 28 * 256 / 224 = 32, int(32 * 70 / 50) = 44
    np.testing.assert_array_equal(np.asarray(crop_center(image, 28, BICUBIC)), resized[2:30, 8:36])


@pytest.mark.parametrize(
    ('size', 'side'), [(32, 36), (96, 109), (160, 182), (224, 256), (225, 225), (384, 384), (448, 448)]
)
def test_center_is_maes_evaluation_crop(size, side):
    assert eval_resize(size) == side == (int(size / (224 / 256)) if size <= 224 else int(size / 1.0))
    image, margin = picture(side, side), round((side - size) / 2)
    cut = np.asarray(crop_center(image, size, BICUBIC))
    np.testing.assert_array_equal(cut, np.asarray(image)[margin : margin + size, margin : margin + size])


def test_center_leaves_an_image_of_the_right_size_alone():
    image = picture(32, 32)
    np.testing.assert_array_equal(Crop('center', 32)(image, np.random.default_rng(0)), np.asarray(image))


@pytest.mark.parametrize('kind', ['rrc', 'src', 'center'])
@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
@pytest.mark.parametrize('size', [(1, 1), (1, 5), (7, 3), (224, 224), (300, 200)])
def test_every_size_of_image_gives_the_asked_shape(kind, interpolation, size):
    pixels = Crop(kind, 16, interpolation)(picture(*size), np.random.default_rng(0))
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize('kind', ['rrc', 'src', 'center'])
@pytest.mark.parametrize('size', [(90, 9), (9, 90), (31, 33)])
def test_no_crop_reaches_outside_the_image(kind, size):
    """Pillow fills what lies outside with black, without a word."""
    rng = np.random.default_rng(0)
    crop = Crop(kind, 16, scale=(0.05, 1.0))
    assert all((crop(Image.new('RGB', size, (255, 255, 255)), rng) == 255).all() for _ in range(50))


@pytest.mark.parametrize('kind', ['rrc', 'src'])
def test_flip_mirrors_half_of_the_draws_and_nothing_else(kind):
    image, flips = picture(20, 20), 0
    for seed in range(200):
        plain = Crop(kind, 8, flip=False)(image, np.random.default_rng(seed))
        maybe = Crop(kind, 8)(image, np.random.default_rng(seed))
        mirrored = not np.array_equal(plain, maybe)
        np.testing.assert_array_equal(maybe, plain[:, ::-1] if mirrored else plain)
        flips += mirrored
    assert 70 < flips < 130


@pytest.mark.parametrize(
    'wrong',
    [
        {'kind': 'random'},
        {'interpolation': 'nearest'},
        {'scale': (0.0, 1.0)},
        {'scale': (0.9, 0.2)},
        {'ratio': (2, 1)},
        {'size': 0},
        {'padding': -1},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ConfigError, match=re.escape(str(next(iter(wrong.values()))))):
        Crop(**{'kind': 'rrc', 'size': 8} | wrong)
