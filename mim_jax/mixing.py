"""What fine-tuning does to a batch on the device, in f32: random erasing, mixup and CutMix, and the labels that go with them.

Each in two halves: what is drawn, then what is done with it. Here pixels are in [0,1]. timm erases and mixes normalised
ones, which comes to the same. Sources: timm 1.0.31, timm/data/random_erasing.py and mixup.py; Zhong et al. 2020 (random
erasing), Zhang et al. 2018 (mixup), Yun et al. 2019 (CutMix).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

ERASED_AREA = (0.02, 1 / 3)  # fraction of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width
TRIES = 10


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right), i32[]; empty where they are equal."""

    top: jax.Array
    bottom: jax.Array
    left: jax.Array
    right: jax.Array

    def mask(self, height: int, width: int) -> jax.Array:
        """bool[height, width, 1]: inside."""
        row, column = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
        return (self.top <= row) & (row < self.bottom) & (self.left <= column) & (column < self.right)


def draw_erased_box(key: jax.Array, height: int, width: int, probability: float) -> Box:
    """Where one image is erased, if at all: area uniform, aspect log-uniform, place uniform.

    A box that is as wide or as high as the image is drawn again. All tries are made at once; the first good one counts.
    """
    noise = jax.random.uniform(key, (2 * TRIES + 3,))
    areas, aspects = noise[: 2 * TRIES].reshape(2, TRIES)
    happens, row, column = noise[2 * TRIES :]
    low, high = (math.log(aspect) for aspect in ERASED_ASPECT)
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * areas)
    aspect = jnp.exp(low + (high - low) * aspects)
    heights, widths = (jnp.rint(jnp.sqrt(x)).astype(jnp.int32) for x in (area * aspect, area / aspect))
    good = (heights < height) & (widths < width)
    first, erased = jnp.argmax(good), (happens < probability) & good.any()
    h, w = (jnp.where(erased, sides[first], 0) for sides in (heights, widths))
    top, left = _draw_integer(row, height - h + 1), _draw_integer(column, width - w + 1)
    return Box(top, top + h, left, left + w)


def erase(
    pixels: jax.Array, keys: jax.Array, probability: float, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """Random erasing: with `probability` one box of an image becomes noise, mean + std * N(0, 1) in every pixel and channel.

    pixels f32[B,H,W,3] in [0,1], keys [B] -> the same, outside [0,1] in the boxes. timm's mode 'pixel' with one box.
    """

    def erase_one(image: jax.Array, key: jax.Array) -> jax.Array:
        box_key, noise_key = jax.random.split(key)
        box = draw_erased_box(box_key, *image.shape[:2], probability)
        noise = jnp.asarray(mean) + jnp.asarray(std) * jax.random.normal(noise_key, image.shape)
        return jnp.where(box.mask(*image.shape[:2]), noise, image)

    return jax.vmap(erase_one)(pixels, keys)


class Mix(NamedTuple):
    """How a batch is mixed with itself reversed.

    weight f32[]: of an image's own label; with mixup also of its own pixels. cut bool[]: CutMix, which takes the partner's
    pixels in `box` and leaves the others.
    """

    weight: jax.Array
    cut: jax.Array
    box: Box


def draw_mix(key: jax.Array, size: int, mixup_alpha: float, cutmix_alpha: float, switch_probability: float) -> Mix:
    """One draw for a batch of size x size pixels: timm's Mixup in mode 'batch' with probability 1.

    An alpha, the parameter of the weight's Beta(alpha, alpha), switches its half off with 0; one of them must be above 0.
    Both on: CutMix with switch_probability. CutMix weighs labels by the area that is left once its box is clipped.
    """
    mixup_key, cutmix_key, key = jax.random.split(key, 3)
    switch, row, column = jax.random.uniform(key, (3,))
    cut = switch < (switch_probability if mixup_alpha and cutmix_alpha else float(cutmix_alpha > 0))
    mixup, cutmix = (
        jax.random.beta(key, alpha, alpha) if alpha else jnp.ones(())
        for key, alpha in ((mixup_key, mixup_alpha), (cutmix_key, cutmix_alpha))
    )
    box = place_cut(cutmix, _draw_integer(row, size), _draw_integer(column, size), size)
    return Mix(jnp.where(cut, weigh_uncut(box, size), mixup), cut, box)


def place_cut(weight: jax.Array, row: jax.Array, column: jax.Array, size: int) -> Box:
    """The square of area 1 - weight, f32[], about a pixel (row, column) i32[], clipped to the image of size x size."""
    side = jnp.floor(size * jnp.sqrt(1.0 - weight)).astype(jnp.int32)
    edges = [edge for place in (row, column) for edge in (place - side // 2, place + (side + 1) // 2)]
    return Box(*(jnp.clip(edge, 0, size) for edge in edges))


def weigh_uncut(box: Box, size: int) -> jax.Array:
    """The fraction f32[] of an image of size x size that lies outside the box."""
    return 1.0 - (box.bottom - box.top) * (box.right - box.left) / size**2


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
    """f[B,H,W,3] -> f32[B,H,W,3]: image i with image B-1-i of the global batch (timm: of one device's batch)."""
    images = images.astype(jnp.float32)
    own = jnp.where(mix.cut, 1.0 - mix.box.mask(*images.shape[1:3]), mix.weight)
    return own * images + (1.0 - own) * images[::-1]


def smooth_labels(labels: jax.Array, classes: int, smoothing: float) -> jax.Array:
    """i32[B] -> probabilities f32[B,K]: 1 - s on the label plus s / K on every class, s being `smoothing`."""
    return (1.0 - smoothing) * jax.nn.one_hot(labels, classes) + smoothing / classes


def mix_labels(labels: jax.Array, mix: Mix, classes: int, smoothing: float) -> jax.Array:
    """i32[B] -> probabilities f32[B,K]: smoothed, then mixed as the images are."""
    targets = smooth_labels(labels, classes, smoothing)
    return mix.weight * targets + (1.0 - mix.weight) * targets[::-1]


def _draw_integer(noise: jax.Array, count: jax.Array | int) -> jax.Array:
    """Uniform in [0, count) i32[] from noise in [0, 1)."""
    return jnp.floor(noise * count).astype(jnp.int32)
