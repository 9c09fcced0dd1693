"""MAE's RandomResizedCrop of the linear probe: one draw, rounded, clipped to the image."""

import math

import numpy as np
import pytest
from PIL import Image

from mim_jax.data.augment import Box, Crop, draw_box, draw_box_once

RATIO, SCALE = (3 / 4, 4 / 3), (0.08, 1.0)


class Script:
    """A generator that returns given numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


def transcribed_box(width, height, area, aspect, row, column):
    """The released rule for four draws from U[0, 1)."""
    target = width * height * (SCALE[0] + area * (SCALE[1] - SCALE[0]))
    ratio = math.exp(math.log(RATIO[0]) + aspect * (math.log(RATIO[1]) - math.log(RATIO[0])))
    w = min(round(math.sqrt(target * ratio)), width)
    h = min(round(math.sqrt(target / ratio)), height)
    return Box(math.floor(column * (width - w + 1)), math.floor(row * (height - h + 1)), w, h)


@pytest.mark.parametrize('size', [(500, 375), (375, 500), (224, 224), (32, 32), (300, 40)])
def test_box_follows_the_released_rule_draw_by_draw(size):
    for draws in np.random.default_rng(size[0]).random((300, 4)):
        script = Script(*draws)
        assert draw_box_once(*size, SCALE, RATIO, script) == transcribed_box(*size, *draws)
        assert script.numbers == []  # four draws, whatever they are


@pytest.mark.parametrize(
    ('draws', 'expected'),
    [
        ((1.0, 0.5, 0.9, 0.9), Box(0, 0, 100, 100)),  # all of it
        ((1.0, 1.0, 0.5, 0.5), Box(0, 7, 100, 87)),  # 115 x 87 is clipped, not drawn again
        ((1.0, 0.0, 0.5, 0.5), Box(7, 0, 87, 100)),
        ((0.0, 0.5, 0.0, 0.999), Box(72, 0, 28, 28)),  # sqrt(800) = 28.3
    ],
)
def test_hand_worked_boxes(draws, expected):
    assert draw_box_once(100, 100, SCALE, RATIO, Script(*draws)) == expected


def test_it_is_the_retrying_crop_where_the_first_try_fits_and_differs_elsewhere():
    same = clipped = 0
    for seed in range(500):
        once, retried = (draw(90, 60, SCALE, RATIO, np.random.default_rng(seed)) for draw in (draw_box_once, draw_box))
        same += once == retried
        clipped += once != retried
        assert once == retried or once.width == 90 or once.height == 60
    assert same > 250
    assert clipped > 30


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (7, 3), (224, 224), (300, 200)])
def test_every_size_of_image_gives_the_asked_shape(size):
    rng = np.random.default_rng(0)
    for _ in range(20):
        pixels = Crop('rrc_once', 16, scale=SCALE)(Image.new('RGB', size, (255, 255, 255)), rng)
        assert pixels.shape == (16, 16, 3)
        assert (pixels == 255).all()  # nothing from outside the image, which Pillow fills with black
