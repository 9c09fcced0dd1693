"""RandAugment as timm defines it, on 8-bit PIL images, in two halves: draw plain numbers, then apply them.

Source: timm 1.0.31, timm/data/auto_augment.py; Cubuk et al. 2020. The operations are Pillow's, so results are equal to the
last bit. timm's `translate_const` plays no part: its RandAugment moves by a fraction of the image.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mim_jax.errors import ConfigError

LEVELS = 10.0  # the largest magnitude; arguments are linear in magnitude / LEVELS
_BLENDS = {
    'color': ImageEnhance.Color,
    'contrast': ImageEnhance.Contrast,
    'brightness': ImageEnhance.Brightness,
    'sharpness': ImageEnhance.Sharpness,
}
OPERATIONS = (
    *('auto_contrast', 'equalize', 'invert', 'rotate', 'posterize', 'solarize', 'solarize_add'),
    *_BLENDS,
    *('shear_x', 'shear_y', 'translate_x', 'translate_y'),
)


class Step(NamedTuple):
    """One operation: its name, its magnitude in [0, LEVELS], and whether it turns, moves or blends the other way."""

    operation: str
    magnitude: float
    negated: bool


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Chooses `operations` of OPERATIONS with replacement; each happens with `probability`, on its own.

    magnitude, deviation: of a normal distribution, clipped to [0, LEVELS], drawn anew for every operation.
    increasing: the six operations that have two scales use the one on which a larger magnitude changes more.
    fill, resample: the colour of what a turn, a shear or a move uncovers, and their filter.
    """

    magnitude: float
    deviation: float
    operations: int = 2
    probability: float = 0.5
    increasing: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)
    resample: Image.Resampling = Image.Resampling.BICUBIC

    def __post_init__(self):
        if not 0 <= self.magnitude <= LEVELS:
            raise ConfigError(f'data.rand_augment: the magnitude m={self.magnitude} must be from 0 to {LEVELS:g}.')
        if not 0 <= self.deviation <= 100:
            raise ConfigError(f'data.rand_augment: the deviation mstd={self.deviation} must be from 0 to 100.')
        if self.operations < 1:
            raise ConfigError(f'data.rand_augment: the number of operations n={self.operations} must be at least 1.')
        if not 0 <= self.probability <= 1:
            raise ConfigError(f'data.rand_augment: the probability p={self.probability} must be from 0 to 1.')

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image -> one of the same size."""
        for step in self.draw(rng):
            image = self.apply(image, step)
        return image

    def draw(self, rng: np.random.Generator) -> list[Step]:
        """What happens to one image, in this order. Five numbers of rng.random() per operation, whether it happens or not."""
        steps = []
        for _ in range(self.operations):
            choice, chance, distance, angle, side = (rng.random() for _ in range(5))
            # Box-Muller: NumPy may change the stream of its own normal numbers.
            normal = math.sqrt(-2.0 * math.log(1.0 - distance)) * math.cos(2.0 * math.pi * angle)
            magnitude = min(max(self.magnitude + self.deviation * normal, 0.0), LEVELS)
            if chance < self.probability:
                steps.append(Step(OPERATIONS[int(choice * len(OPERATIONS))], magnitude, side < 0.5))
        return steps

    def apply(self, image: Image.Image, step: Step) -> Image.Image:
        """An RGB image -> one of the same size."""
        part = step.magnitude / LEVELS
        sign = -1.0 if step.negated else 1.0
        match step.operation:
            case 'auto_contrast':
                return ImageOps.autocontrast(image)
            case 'equalize':
                return ImageOps.equalize(image)
            case 'invert':
                return ImageOps.invert(image)
            case 'posterize':  # keeps the highest 4 to 0 bits; of 0 Pillow 13's own no longer makes black, but an error
                bits = int(part * 4.0)
                levels = 2 ** (8 - (4 - bits if self.increasing else bits))
                return image.point([level // levels * levels for level in range(256)] * 3)
            case 'solarize':  # inverts levels from the threshold on: 256 to 0
                threshold = int(part * 256.0)
                return ImageOps.solarize(image, 256 - threshold if self.increasing else threshold)
            case 'solarize_add':
                added = int(part * 110.0)
                return image.point([level + added if level < 128 else level for level in range(256)] * 3)
            case 'rotate':  # degrees
                return image.rotate(sign * (part * 30.0), self.resample, fillcolor=self.fill)
            case 'shear_x':
                return self._transform(image, (1.0, sign * (part * 0.3), 0.0, 0.0, 1.0, 0.0))
            case 'shear_y':
                return self._transform(image, (1.0, 0.0, 0.0, sign * (part * 0.3), 1.0, 0.0))
            case 'translate_x':
                return self._transform(image, (1.0, 0.0, sign * (part * 0.45) * image.width, 0.0, 1.0, 0.0))
            case 'translate_y':
                return self._transform(image, (1.0, 0.0, 0.0, 0.0, 1.0, sign * (part * 0.45) * image.height))
        # A blend with grey, black or a blurred image; 1 leaves the image as it is.
        factor = 1.0 + sign * (part * 0.9) if self.increasing else part * 1.8 + 0.1
        return _BLENDS[step.operation](image).enhance(factor)

    def _transform(self, image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
        """matrix: (a, b, c, d, e, f); the pixel at (x, y) comes from (ax + by + c, dx + ey + f)."""
        return image.transform(image.size, Image.Transform.AFFINE, matrix, self.resample, fillcolor=self.fill)


_PARTS = {  # of timm's string: field, what follows the letters, in words
    'm': ('magnitude', r'\d+', 'magnitude, 0 to 10'),
    'mstd': ('deviation', r'\d+(?:\.\d*)?', 'its standard deviation'),
    'n': ('operations', r'\d+', 'operations per image'),
    'p': ('probability', r'\d+(?:\.\d*)?', 'probability of each'),
    'inc': ('increasing', '[01]', '1: all operations grow with the magnitude'),
}


def parse_rand_augment(
    text: str, mean: Sequence[float] = (0.485, 0.456, 0.406), interpolation: str = 'bicubic'
) -> RandAugment:
    """timm's string, such as rand-m9-mstd0.5-inc1, with timm's defaults: m10, mstd0, n2, p0.5, inc0.

    mean: per channel, of pixels in 0..1; the colour that fills. interpolation: 'bicubic' or 'bilinear'. timm's create_transform
    passes both on. ConfigError: a part that is unknown, written wrongly, there twice or out of range.
    """
    name, *parts = text.split('-')
    if name != 'rand':
        raise ConfigError(f"data.rand_augment='{text}' must begin with rand, as rand-m9-mstd0.5-inc1 does.")
    fields = {'magnitude': 10.0, 'deviation': 0.0, 'increasing': False}
    seen = set()
    for part in parts:
        letters, value = re.fullmatch(r'([a-z]*)(.*)', part, re.DOTALL).groups()
        if letters not in _PARTS or not re.fullmatch(_PARTS[letters][1], value):
            known = ', '.join(f'{letters} ({words})' for letters, (_, _, words) in _PARTS.items())
            raise ConfigError(
                f"data.rand_augment='{text}': '{part}' is no part of it; a number follows one of {known}."
            )
        if letters in seen:
            raise ConfigError(f"data.rand_augment='{text}' has two parts {letters}; keep one.")
        seen.add(letters)
        field = _PARTS[letters][0]
        fields[field] = {'operations': int, 'increasing': lambda digit: digit == '1'}.get(field, float)(value)
    fill = tuple(min(255, round(255 * channel)) for channel in mean)
    return RandAugment(**fields, fill=fill, resample=Image.Resampling[interpolation.upper()])
