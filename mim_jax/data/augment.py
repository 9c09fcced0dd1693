"""Crops and flips on uint8 images, each in two halves: draw plain integers, then apply them."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from mim_jax.data.rand_augment import RandAugment
from mim_jax.errors import ConfigError

_RESAMPLING = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}
_TRIES = 10


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclasses.dataclass(frozen=True)
class Crop:
    """A random or central crop to `size` x `size` pixels, with torchvision's rules and Pillow's antialiased filters.

    kind:
      'rrc': RandomResizedCrop. A box of area `scale` (fraction, uniform) and aspect `ratio` (width/height,
        log-uniform) is cut out, then resized. MAE's crop.
      'rrc_once': the same with a single draw: a box that is too wide or too high is clipped to the image, not drawn
        again. The crop of MAE's linear probe.
      'src': simple resized crop. The shorter side is resized to `size`, `padding` pixels are reflected on all four
        sides, a uniform window is cut. PixMIM's crop, and the one of MFF's released configs.
      'center': the shorter side is resized to eval_resize(size), the middle is cut. An image of exactly size x size is
        returned as it is, so that CIFAR is evaluated on its own pixels. Nothing is random, `flip` does not apply.
    flip: mirror left-right with probability one half.
    rand_augment: applied last.
    """

    kind: str
    size: int
    interpolation: str = 'bicubic'
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: bool = True
    rand_augment: RandAugment | None = None

    def __post_init__(self):
        if self.kind not in ('rrc', 'rrc_once', 'src', 'center'):
            raise ConfigError(f"data.crop='{self.kind}' is unknown; use 'rrc', 'rrc_once', 'src' or 'center'.")
        if self.kind == 'center' and self.rand_augment:
            raise ConfigError(
                "data.rand_augment has no effect with data.crop='center'; use another crop or leave it empty."
            )
        if self.interpolation not in _RESAMPLING:
            raise ConfigError(f"data.interpolation='{self.interpolation}' is unknown; use 'bicubic' or 'bilinear'.")
        if self.size < 1 or self.padding < 0:
            raise ConfigError(f'A crop needs size >= 1 and padding >= 0, not {self.size} and {self.padding}.')
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f'data.scale={self.scale} must be (low, high) with 0 < low <= high <= 1.')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f'data.ratio={self.ratio} must be (low, high) with 0 < low <= high.')

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """RGB image of any size -> u8[size, size, 3]."""
        resample = _RESAMPLING[self.interpolation]
        if self.kind == 'center':
            return np.asarray(crop_center(image, self.size, resample))
        if self.kind == 'src':
            box = draw_window(image.width, image.height, self.size, self.padding, rng)
            pixels = resize_pad_and_crop(image, box, self.size, self.padding, resample)
        else:
            draw = draw_box if self.kind == 'rrc' else draw_box_once
            box = draw(image.width, image.height, self.scale, self.ratio, rng)
            pixels = np.asarray(crop_and_resize(image, box, self.size, resample))
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        if self.rand_augment is None:
            return pixels
        return np.asarray(self.rand_augment(Image.fromarray(pixels), rng))


def _draw_integer(count: int, rng: np.random.Generator) -> int:
    """Uniform in [0, count). All draws go through rng.random(), NumPy's simplest map from bits to numbers."""
    return int(rng.random() * count)


def draw_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """The box of torchvision's RandomResizedCrop.get_params: ten tries, then the largest central box within `ratio`."""
    for _ in range(_TRIES):
        w, h = _draw_shape(width, height, scale, ratio, rng)
        if 0 < w <= width and 0 < h <= height:
            return _place(width, height, w, h, rng)
    return central_box(width, height, ratio)


def draw_box_once(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """The box of MAE's RandomResizedCrop (facebookresearch/mae util/crop.py, after BYOL's): no second try, but clipped.

    A box that rounds to nothing, on which the released code fails, has one pixel.
    """
    w, h = _draw_shape(width, height, scale, ratio, rng)
    return _place(width, height, max(1, min(w, width)), max(1, min(h, height)), rng)


def _draw_shape(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int]:
    """(width, height) of a box, rounded; it may be empty or larger than the image."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
    aspect = math.exp(low + (high - low) * rng.random())
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _place(width: int, height: int, w: int, h: int, rng: np.random.Generator) -> Box:
    """A box of w x h pixels anywhere in the image."""
    top = _draw_integer(height - h + 1, rng)
    left = _draw_integer(width - w + 1, rng)
    return Box(left, top, w, h)


def central_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """The whole image, or the middle of it where its aspect leaves `ratio`. Never empty."""
    w, h = width, height
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def crop_and_resize(image: Image.Image, box: Box, size: int, resample: Image.Resampling) -> Image.Image:
    """Cuts, then resizes: `Image.resize(box=...)` would let the filter see pixels outside the box."""
    cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return cut.resize((size, size), resample)


def resized_shape(width: int, height: int, size: int) -> tuple[int, int]:
    """(width, height) after torchvision's Resize(size): the shorter side becomes `size`, the longer is truncated."""
    if width <= height:
        return size, int(size * height / width)
    return int(size * width / height), size


def draw_window(width: int, height: int, size: int, padding: int, rng: np.random.Generator) -> Box:
    """The window of torchvision's RandomCrop(size, padding) in the resized and padded image."""
    w, h = resized_shape(width, height, size)
    top = _draw_integer(h + 2 * padding - size + 1, rng)
    left = _draw_integer(w + 2 * padding - size + 1, rng)
    return Box(left, top, size, size)


def resize_pad_and_crop(
    image: Image.Image, box: Box, size: int, padding: int, resample: Image.Resampling
) -> np.ndarray:
    """Resizes the shorter side to `size`, reflects `padding` pixels on all sides, cuts `box` -> u8[size, size, 3]."""
    resized = np.asarray(image.resize(resized_shape(*image.size, size), resample))
    padded = np.pad(resized, ((padding, padding), (padding, padding), (0, 0)), mode='reflect')
    return padded[box.top : box.top + box.height, box.left : box.left + box.width]


def eval_resize(size: int) -> int:
    """The shorter side before the middle `size` x `size` is cut: size * 256/224, truncated; above 224 size itself.

    Source: facebookresearch/mae util/datasets.py (build_transform).
    """
    return size * 256 // 224 if size <= 224 else size


def crop_center(image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """Resize(eval_resize(size)) and CenterCrop(size), MAE's evaluation crop; the identity on size x size."""
    if image.size == (size, size):
        return image
    w, h = resized_shape(*image.size, eval_resize(size))
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), resample).crop((left, top, left + size, top + size))
