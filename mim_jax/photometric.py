"""Photometric augmentation on the device, in f32: Pillow's operations on one image, what is drawn for them, whole stacks.

The released codes augment PIL images, so where torchvision's tensor versions and Pillow differ, this is Pillow: grayscale
is .299 R + .587 G + .114 B, a blur is three box blurs. As there, values are clipped to [0,1] after every operation; unlike
there, they are not rounded to 8 bits, nor is the hue, which Pillow keeps in 8 bits as well. On photographs one operation
then differs by at most 1.5 levels of 255 (a blend), 2.9 (a blur) or 12.6 (a hue shift; 0.8 on average), a stack by at most
20 (1.1 on average).

One image is f32[3,H,W] here, for with channels last a jitter takes more than twice as long on a CPU. Only the two stacks at
the end, which a View names, take f32[B,H,W,3].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

GRAY = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's mode 'L'
OWN_HUES = (0.0, 2.0, 4.0)  # of red, green and blue, in sixths of the circle
BOX_BLURS = 3  # passes of Pillow's GaussianBlur
REACH = 2  # pixels to either side that one of them may see: enough for radii up to sqrt(6)


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with black. x f32[3,H,W] in [0,1], factor f32[] >= 0 (1: unchanged) -> the same."""
    return jnp.clip(factor * x, 0.0, 1.0)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the mean of the grayscale image, which Pillow rounds. x f32[3,H,W] in [0,1], factor f32[] >= 0."""
    return jnp.clip(factor * x + (1.0 - factor) * jnp.mean(_gray(x)), 0.0, 1.0)


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """A blend with the grayscale image. x f32[3,H,W] in [0,1], factor f32[] >= 0 -> the same."""
    return jnp.clip(factor * x + (1.0 - factor) * _gray(x), 0.0, 1.0)


def adjust_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Turns every hue by `shift` of the circle; HSV's value and saturation stay. x f32[3,H,W] in [0,1], shift f32[].

    These two fix a pixel's largest channel and its chroma, the largest minus the smallest. A channel stays below the
    largest by chroma * clip(d - 1, 0, 1), with d the distance, in sixths of the circle, from its own hue.
    """
    red, green, blue = x
    largest = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = largest - jnp.minimum(jnp.minimum(red, green), blue)
    scale = 1.0 / jnp.where(chroma > 0.0, chroma, 1.0)
    green_or_blue = jnp.where(largest == green, 2.0 + (blue - red) * scale, 4.0 + (red - green) * scale)
    hue = jnp.where(largest == red, (green - blue) * scale, green_or_blue)

    def below_largest(own: float) -> jax.Array:
        turns = (hue - own) / 6.0 + shift
        distance = 6.0 * jnp.abs(turns - jnp.round(turns))
        return chroma * jnp.clip(distance - 1.0, 0.0, 1.0)

    return jnp.stack([largest - below_largest(own) for own in OWN_HUES])


def to_grayscale(x: jax.Array) -> jax.Array:
    """The weighted mean of the channels, in all three. f32[3,H,W] -> the same."""
    return jnp.broadcast_to(_gray(x), x.shape)


def solarize(x: jax.Array) -> jax.Array:
    """Inverts levels of 128 and more of 255: exactly the smaller of x and its inverse. f32[3,H,W] in [0,1] -> the same."""
    return jnp.minimum(x, 1.0 - x)


def gaussian_blur(x: jax.Array, radius: jax.Array) -> jax.Array:
    """Pillow's GaussianBlur. x f32[3,H,W], radius f32[]: the standard deviation in pixels, in [0, sqrt(6)) -> the same.

    Three extended box blurs along each axis, before each of which the edge pixels are repeated (Pillow's BoxBlur.c, after
    Gwosdek et al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering"). The window is
    static, `radius` only sets its weights. Rows and columns commute, so they take turns.
    """
    half = _box_radius(radius)
    weights = jnp.clip(half + 1.0 - jnp.arange(REACH + 1), 0.0, 1.0) / (2.0 * half + 1.0)

    def blur_once(_: int, x: jax.Array) -> jax.Array:
        return _weigh_neighbours(_weigh_neighbours(x, weights, axis=1), weights, axis=2)

    return jax.lax.fori_loop(0, BOX_BLURS, blur_once, x)  # unrolled, the passes fuse and are computed again and again


def _gray(x: jax.Array) -> jax.Array:
    """f32[3,H,W] -> f32[H,W]."""
    return GRAY[0] * x[0] + GRAY[1] * x[1] + GRAY[2] * x[2]


def _box_radius(radius: jax.Array) -> jax.Array:
    """(Length - 1) / 2 of the extended box, all passes of which together have the variance radius^2."""
    variance = radius**2 / BOX_BLURS
    whole = jnp.floor((jnp.sqrt(12.0 * variance + 1.0) - 1.0) / 2.0)
    part = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance) / (6.0 * (variance - (whole + 1.0) ** 2))
    return whole + part


def _weigh_neighbours(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Symmetric filter along an axis: both pixels at distance d weigh weights[d]. Edge pixels are repeated."""
    reach, length = len(weights) - 1, x.shape[axis]
    padded = jnp.pad(x, [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)], mode='edge')
    shifted = [jax.lax.slice_in_dim(padded, d, d + length, axis=axis) for d in range(2 * reach + 1)]
    total = weights[0] * shifted[reach]
    for d in range(1, reach + 1):
        total += weights[d] * (shifted[reach - d] + shifted[reach + d])
    return total


class Jitter(NamedTuple):
    """Brightness (0), contrast (1) and saturation (2) in the order i32[3], the hue after `before_hue` i32[] of them."""

    order: jax.Array
    before_hue: jax.Array
    brightness: jax.Array
    contrast: jax.Array
    saturation: jax.Array
    hue: jax.Array


def draw_jitter(key: jax.Array, brightness: float, contrast: float, saturation: float, hue: float) -> Jitter:
    """torchvision's ColorJitter: factors U(max(0, 1 - s), 1 + s), the hue's shift U(-s, s), all 24 orders alike."""
    noise = jax.random.uniform(key, (8,))  # one draw of everything: each call of jax.random costs time to compile
    low = jnp.array([max(0.0, 1.0 - brightness), max(0.0, 1.0 - contrast), max(0.0, 1.0 - saturation), -hue])
    high = jnp.array([1.0 + brightness, 1.0 + contrast, 1.0 + saturation, hue])
    before_hue = jnp.floor(4.0 * noise[3]).astype(jnp.int32)
    return Jitter(jnp.argsort(noise[:3]), before_hue, *(low + (high - low) * noise[4:]))


def jitter_colors(x: jax.Array, jitter: Jitter) -> jax.Array:
    """The four operations in the drawn order. f32[3,H,W] in [0,1] -> the same.

    In a batch every turn computes every operation it may be, so the costly one, the hue, has a turn of its own.
    """
    blends = [
        lambda x: adjust_brightness(x, jitter.brightness),
        lambda x: adjust_contrast(x, jitter.contrast),
        lambda x: adjust_saturation(x, jitter.saturation),
    ]

    def blend(x: jax.Array, wanted: jax.Array) -> jax.Array:
        def turn(i: int, x: jax.Array) -> jax.Array:
            return jnp.where(wanted[i], jax.lax.switch(jitter.order[i], blends, x), x)

        return jax.lax.fori_loop(0, 3, turn, x)

    first = jnp.arange(3) < jitter.before_hue
    return blend(adjust_hue(blend(x, first), jitter.hue), ~first)


class Draws(NamedTuple):
    """Everything done to one image, in this order: jitter, grayscale, blur, solarize. bool[]: whether it is."""

    jittered: jax.Array
    jitter: Jitter
    gray: jax.Array
    blurred: jax.Array
    radius: jax.Array
    solarized: jax.Array


def apply_draws(x: jax.Array, draws: Draws) -> jax.Array:
    """f32[3,H,W] in [0,1] -> the same."""
    x = jnp.where(draws.jittered, jitter_colors(x, draws.jitter), x)
    x = jnp.where(draws.gray, to_grayscale(x), x)
    x = jnp.where(draws.blurred, gaussian_blur(x, draws.radius), x)
    return jnp.where(draws.solarized, solarize(x), x)


def draw_jitter_gray_blur_solarize(key: jax.Array) -> Draws:
    """Each on its own: jitter with probability .8, grayscale .2, blur .1, solarize .2."""
    jitter, noise = _draw_jitter_and_noise(key)
    jittered, gray, blurred, solarized = noise[:4] < jnp.array([0.8, 0.2, 0.1, 0.2])
    return Draws(jittered, jitter, gray, blurred, _radius(noise[4]), solarized)


def draw_jitter_then_one_of_three(key: jax.Array) -> Draws:
    """Jitter with probability .8, then one of grayscale, blur and solarize, with a third each."""
    jitter, noise = _draw_jitter_and_noise(key)
    gray, blurred, solarized = jnp.floor(3.0 * noise[1]) == jnp.arange(3)
    return Draws(noise[0] < 0.8, jitter, gray, blurred, _radius(noise[4]), solarized)


def _draw_jitter_and_noise(key: jax.Array) -> tuple[Jitter, jax.Array]:
    """What both stacks share: their jitter, and U[0,1) f32[5] for the rest."""
    jitter, rest = jax.random.split(key)
    return draw_jitter(jitter, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1), jax.random.uniform(rest, (5,))


def _radius(noise: jax.Array) -> jax.Array:
    return 0.1 + (2.0 - 0.1) * noise


def jitter_gray_blur_solarize(pixels: jax.Array, keys: jax.Array) -> jax.Array:
    """ConMIM's teacher view (TencentARC/ConMIM datasets.py). pixels f32[B,H,W,3] in [0,1], keys [B] -> the same."""
    return _augment(draw_jitter_gray_blur_solarize, pixels, keys)


def jitter_then_one_of_three(pixels: jax.Array, keys: jax.Array) -> jax.Array:
    """LUT's second view (naver-ai/lut main_lut.py). pixels f32[B,H,W,3] in [0,1], keys [B] -> the same."""
    return _augment(draw_jitter_then_one_of_three, pixels, keys)


def _augment(draw: Callable[[jax.Array], Draws], pixels: jax.Array, keys: jax.Array) -> jax.Array:
    def augment_one(x: jax.Array, key: jax.Array) -> jax.Array:
        return apply_draws(x, draw(key))

    return jnp.moveaxis(jax.vmap(augment_one)(jnp.moveaxis(pixels, -1, 1), keys), 1, -1)
