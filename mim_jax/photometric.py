"""Photometric augmentation on the device: Pillow's operations in f32, one image at a time, and what is drawn for them.

The released codes augment PIL images, so where torchvision's tensor versions and Pillow differ, this is Pillow: grayscale
is .299 R + .587 G + .114 B, a blur is three box blurs. Values are clipped to [0,1] after each operation but not rounded
to 8 bits as Pillow's are. On photographs that moves a pixel by at most one level of 255 for one blend, six for a hue shift
(Pillow stores hue and saturation in 8 bits each) and three for a blur; tests/test_photometric.py holds these bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's mode 'L'
_BOX_BLURS = 3  # passes of Pillow's GaussianBlur
_REACH = 2  # pixels to either side that one of them sees, up to LARGEST_RADIUS
LARGEST_RADIUS = 6**0.5


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """factor x, clipped: a blend with black. x f32[H,W,3] in [0,1], factor f32[] >= 0."""
    return jnp.clip(factor * x, 0.0, 1.0)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the mean of the grayscale image (which Pillow rounds to a whole level). x f32[H,W,3] in [0,1]."""
    return jnp.clip(factor * x + (1.0 - factor) * jnp.mean(_gray(x)), 0.0, 1.0)


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the grayscale image. x f32[H,W,3] in [0,1]."""
    return jnp.clip(factor * x + (1.0 - factor) * _gray(x), 0.0, 1.0)


def adjust_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns the hue by `shift` of a full circle; HSV's value and saturation stay. x f32[H,W,3] in [0,1].

    Value and saturation fix a pixel's largest channel and its chroma (largest minus smallest), so only the hue has to be
    computed. In sixths of the circle from red, a channel falls below the largest by chroma * clip(distance - 1, 0, 1),
    distance being that from the channel's own colour: red 0, green 2, blue 4.
    """
    red, green, blue = x[..., 0], x[..., 1], x[..., 2]
    largest = jnp.max(x, axis=-1)
    chroma = largest - jnp.min(x, axis=-1)
    step = 1.0 / jnp.where(chroma > 0, chroma, 1.0)
    from_blue = jnp.where(largest == green, 2.0 + (blue - red) * step, 4.0 + (red - green) * step)
    hue = jnp.where(largest == red, (green - blue) * step, from_blue)
    channels = []
    for own in (0.0, 2.0, 4.0):
        distance = 3.0 - jnp.abs(jnp.mod(hue + 6.0 * shift - own, 6.0) - 3.0)
        channels.append(largest - chroma * jnp.clip(distance - 1.0, 0.0, 1.0))
    return jnp.stack(channels, axis=-1)


def to_grayscale(x: jax.Array) -> jax.Array:
    """The weighted mean of the channels, in all three. x f32[H,W,3]."""
    return jnp.broadcast_to(_gray(x), x.shape)


def solarize(x: jax.Array) -> jax.Array:
    """Inverts levels from 128 of 255 up: exactly the smaller of x and its inverse. x f32[H,W,3] in [0,1]."""
    return jnp.minimum(x, 1.0 - x)


def gaussian_blur(x: jax.Array, radius: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur(radius), radius f32[] being the standard deviation, 0 <= radius < LARGEST_RADIUS. x f32[H,W,3].

    Three extended box blurs along each axis, edges repeated before each (libImaging/BoxBlur.c; Gwosdek et al. 2011,
    "Theoretical foundations of Gaussian convolution by extended box filtering"). Blurs along rows and columns commute, so
    they alternate here. The window is static; `radius` only sets its weights.
    """
    half = _box_radius(radius)
    weights = jnp.clip(half + 1.0 - jnp.arange(_REACH + 1), 0.0, 1.0) / (2.0 * half + 1.0)

    def blur_once(_, x):
        return _weigh_neighbours(_weigh_neighbours(x, weights, axis=0), weights, axis=1)

    return jax.lax.fori_loop(0, _BOX_BLURS, blur_once, x)  # a loop: unrolled and fused, passes would be recomputed


def _gray(x: jax.Array) -> jax.Array:
    return (_GRAY[0] * x[..., 0] + _GRAY[1] * x[..., 1] + _GRAY[2] * x[..., 2])[..., None]


def _box_radius(radius: jax.Array) -> jax.Array:
    """Half the length, less the middle pixel, of the extended box whose passes have together the variance radius^2."""
    variance = radius**2 / _BOX_BLURS
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) ** 2))
    return whole + part


def _weigh_neighbours(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Symmetric filter along an axis: weights[d] for both pixels at distance d. Edges are repeated."""
    reach, length = len(weights) - 1, x.shape[axis]
    padded = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)], mode='edge')
    shifted = [jax.lax.slice_in_dim(padded, d, d + length, axis=axis) for d in range(2 * reach + 1)]
    total = weights[0] * shifted[reach]
    for d in range(1, reach + 1):
        total += weights[d] * (shifted[reach - d] + shifted[reach + d])
    return total


class Jitter(NamedTuple):
    """Four colour operations. order i32[4]: a permutation of their numbers, which are the order of the other fields."""

    order: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array


def draw_jitter(key: jax.Array, brightness: float, contrast: float, saturation: float, hue: float) -> Jitter:
    """torchvision's ColorJitter: a random order; factors U(max(0, 1 - s), 1 + s), the hue's shift U(-s, s)."""
    order, *keys = jax.random.split(key, 5)
    low_high = [(max(0.0, 1.0 - s), 1.0 + s) for s in (brightness, contrast, saturation)] + [(-hue, hue)]
    factors = (jax.random.uniform(k, (), jnp.float32, *ends) for k, ends in zip(keys, low_high, strict=True))
    return Jitter(jax.random.permutation(order, 4), *factors)


def jitter_colors(x: jax.Array, jitter: Jitter) -> jax.Array:
    """The four operations in the drawn order. x f32[H,W,3] in [0,1]."""
    operations = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]
    branches = [
        lambda x, adjust=adjust, factor=factor: adjust(x, factor)
        for adjust, factor in zip(operations, jitter[1:], strict=True)
    ]
    return jax.lax.fori_loop(0, 4, lambda i, x: jax.lax.switch(jitter.order[i], branches, x), x)


class Draws(NamedTuple):
    """All that is done to one image, in this order: colour jitter, grayscale, blur, solarize; bool[] whether it is."""

    jittered: jax.Array
    jitter: Jitter
    gray: jax.Array
    blurred: jax.Array
    radius: jax.Array
    solarized: jax.Array


def apply_draws(x: jax.Array, draws: Draws) -> jax.Array:
    """x f32[H,W,3] in [0,1] -> the same. Every operation is computed, as any image of a batch may need it."""
    x = jnp.where(draws.jittered, jitter_colors(x, draws.jitter), x)
    x = jnp.where(draws.gray, to_grayscale(x), x)
    x = jnp.where(draws.blurred, gaussian_blur(x, draws.radius), x)
    return jnp.where(draws.solarized, solarize(x), x)


def draw_jitter_gray_blur_solarize(key: jax.Array) -> Draws:
    """Each with a probability of its own: jitter .8, grayscale .2, blur .1, solarize .2."""
    jitter, radius, *choices = jax.random.split(key, 6)
    jittered, gray, blurred, solarized = (
        jax.random.bernoulli(k, p) for k, p in zip(choices, (0.8, 0.2, 0.1, 0.2), strict=True)
    )
    return Draws(jittered, _draw_jitter(jitter), gray, blurred, _draw_radius(radius), solarized)


def draw_jitter_then_one_of_three(key: jax.Array) -> Draws:
    """Jitter with probability .8; then either grayscale or solarize or blur, one third each."""
    jitter, radius, jittered, choice = jax.random.split(key, 4)
    one = jax.random.randint(choice, (), 0, 3)
    return Draws(
        jax.random.bernoulli(jittered, 0.8), _draw_jitter(jitter), one == 0, one == 1, _draw_radius(radius), one == 2
    )


def _draw_jitter(key: jax.Array) -> Jitter:
    return draw_jitter(key, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)


def _draw_radius(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (), jnp.float32, 0.1, 2.0)


def _augment(draw: Callable[[jax.Array], Draws], pixels: jax.Array, keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda x, key: apply_draws(x, draw(key)))(pixels, keys)


def jitter_gray_blur_solarize(pixels: jax.Array, keys: jax.Array) -> jax.Array:
    """ConMIM's teacher view (TencentARC/ConMIM datasets.py). pixels f32[B,H,W,3] in [0,1], a key per image -> the same."""
    return _augment(draw_jitter_gray_blur_solarize, pixels, keys)


def jitter_then_one_of_three(pixels: jax.Array, keys: jax.Array) -> jax.Array:
    """LUT's second view (naver-ai/lut main_lut.py). pixels f32[B,H,W,3] in [0,1], a key per image -> the same."""
    return _augment(draw_jitter_then_one_of_three, pixels, keys)
