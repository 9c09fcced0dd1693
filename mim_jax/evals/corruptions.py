"""CIFAR-10's common corruptions, made here: 11 of the 15 kinds, in NumPy, SciPy and Pillow, repeatable image by image.

The numbers are those of the script that made CIFAR-10-C (hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py), the
random draws are not: a result is 'generated here' (`describe_source`), never the published CIFAR-10-C.
Left out, as they need other programs or files: motion_blur and snow (ImageMagick), frost (photographs), elastic_transform
(OpenCV). The library imagecorruptions 1.1.2 was tried instead: with NumPy 2.4 and scikit-image 0.26 glass_blur, fog and
gaussian_blur fail, impulse_noise ignores the seed, and its severities are those for 224-pixel images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from importlib import metadata

import numpy as np
from PIL import Image
from scipy import ndimage

from mim_jax.errors import DataError
from mim_jax.evals.metrics import SEVERITIES

SIZE = 32


def describe_source() -> str:
    """The label that every result on these images carries."""
    versions = ', '.join(f'{name} {metadata.version(name)}' for name in ('numpy', 'scipy', 'pillow'))
    return f'generated here with {versions}; {len(CORRUPTIONS)} of 15 corruptions, not the published CIFAR-10-C'


def corrupt(images: np.ndarray, corruption: str, severity: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """u8[n,32,32,3] -> u8[n,32,32,3], a name of CORRUPTIONS at severity 1 to 5.

    Image i draws from (seed, corruption, severity, first + i): a batch that begins at `first` gives what the whole gives.
    """
    if corruption not in CORRUPTIONS:
        raise DataError(f"Corruption '{corruption}' is unknown here; use one of {', '.join(CORRUPTIONS)}.")
    if severity not in SEVERITIES:
        raise DataError(f'Severity {severity} of {corruption} does not exist; use 1 to 5.')
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE, 3):
        raise DataError(f'Corruptions are defined for u8[n,32,32,3]; these images are {images.dtype}{images.shape}.')
    distort, parameters = CORRUPTIONS[corruption]
    kind, result = list(CORRUPTIONS).index(corruption), np.empty_like(images)
    for row, image in enumerate(images):
        rng = np.random.default_rng([seed, kind, severity, first + row])
        pixels = distort(image, parameters[severity - 1], rng)
        # The published script truncates, so this does too.
        result[row] = pixels if pixels.dtype == np.uint8 else (np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return result


def gaussian_noise(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    return image / 255 + rng.normal(size=image.shape, scale=deviation)


def shot_noise(image: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts of `photons` at white."""
    return rng.poisson(image / 255 * photons) / photons


def impulse_noise(image: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the values, channel by channel, becomes 0 or 1 with equal chance."""
    struck, white = rng.random(image.shape) <= share, rng.random(image.shape) <= 0.5
    return np.where(struck, white, image / 255)


def defocus_blur(image: np.ndarray, disk: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """A disk of the given radius, itself blurred by a 3-tap Gaussian of the given deviation; edges reflect."""
    del rng
    radius, deviation = disk
    offsets = np.arange(-2, 3)  # both radii and the blur stay within two pixels
    kernel = (offsets**2 + offsets[:, None] ** 2 <= radius**2).astype(np.float64)
    taps = np.exp(-(np.array([-1.0, 0.0, 1.0]) ** 2) / (2 * deviation**2))
    taps /= taps.sum()
    for axis in (0, 1):
        kernel = ndimage.correlate1d(kernel, taps, axis, mode='constant')
    return ndimage.correlate(image / 255, (kernel / kernel.sum())[..., None], mode='mirror')


def glass_blur(image: np.ndarray, glass: tuple[float, int], rng: np.random.Generator) -> np.ndarray:
    """Blur, let every pixel take the value of itself or of its upper, left or upper left neighbour, blur again.

    The published script means to swap pixels, but its assignment copies; images agree with what it does.
    """
    deviation, rounds = glass

    def blur(pixels: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(pixels / 255, (deviation, deviation, 0), mode='nearest')

    pixels = (blur(image) * 255).astype(np.uint8)
    inner = np.arange(2, SIZE)
    for _ in range(rounds):
        left, up = rng.integers(0, 2, (2, len(inner), len(inner)))
        pixels[2:, 2:] = pixels[inner[:, None] - up, inner - left]
    return blur(pixels)


def zoom_blur(image: np.ndarray, largest: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of its bilinear enlargements by 1.00, 1.01, ... about the centre."""
    del rng
    image = (image / 255).astype(np.float32)
    factors, total = np.arange(1, largest, 0.01), image.copy()
    for factor in factors:
        crop = math.ceil(SIZE / factor)
        start = (SIZE - crop) // 2
        window = image[start : start + crop, start : start + crop]
        large = ndimage.zoom(window, (factor, factor, 1), order=1)
        trim = (len(large) - SIZE) // 2
        total += large[trim : trim + SIZE, trim : trim + SIZE]
    return total / (len(factors) + 1)


def fog(image: np.ndarray, haze: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Add a plasma of the given strength and scale back so that the brightest value stays."""
    strength, decay = haze
    pixels = image / 255
    brightest = pixels.max()
    return (pixels + strength * draw_plasma(decay, rng)[..., None]) * brightest / (brightest + strength)


def draw_plasma(decay: float, rng: np.random.Generator) -> np.ndarray:
    """f64[32,32] in 0 to 1 by the diamond-square algorithm on a torus; the noise shrinks by `decay` at every level."""
    height, spread, step = np.zeros((SIZE, SIZE)), 100.0, SIZE

    def displace(total: np.ndarray) -> np.ndarray:
        return total / 4 + spread * rng.uniform(-spread, spread, total.shape)

    while step > 1:
        half, corners = step // 2, height[::step, ::step]
        below = corners + np.roll(corners, -1, axis=0)
        centres = displace(below + np.roll(below, -1, axis=1))
        height[half::step, half::step] = centres
        across = corners + np.roll(corners, -1, axis=1)
        height[::step, half::step] = displace(centres + np.roll(centres, 1, axis=0) + across)
        height[half::step, ::step] = displace(centres + np.roll(centres, 1, axis=1) + below)
        step, spread = half, spread / decay
    height -= height.min()
    return height / height.max()


def brightness(image: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Raise the value of HSV, hue and saturation kept: the channels scale together, black becomes grey."""
    del rng
    pixels = image / 255
    value = pixels.max(axis=-1, keepdims=True)
    raised = np.minimum(value + amount, 1)
    return np.where(value > 0, pixels * (raised / np.maximum(value, 1 / 255)), raised)


def contrast(image: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Move every value towards the mean of its channel."""
    del rng
    means = np.mean(image / 255, axis=(0, 1), keepdims=True)
    return (image / 255 - means) * factor + means


def pixelate(image: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Shrink to int(32 scale) pixels and enlarge again, both with a box filter."""
    del rng
    small = (int(SIZE * scale), int(SIZE * scale))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, quality: int, rng: np.random.Generator) -> np.ndarray:
    del rng
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=quality)
    return np.asarray(Image.open(file))


Distort = Callable[[np.ndarray, object, np.random.Generator], np.ndarray]

# Name -> (u8[32,32,3], parameter, generator -> f64[32,32,3] in 0 to 1 or u8; the parameter of severities 1 to 5).
# The order numbers the random streams: add at the end.
CORRUPTIONS: dict[str, tuple[Distort, tuple]] = {
    'gaussian_noise': (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    'shot_noise': (shot_noise, (500, 250, 100, 75, 50)),
    'impulse_noise': (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    'defocus_blur': (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    'glass_blur': (glass_blur, ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))),
    'zoom_blur': (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    'fog': (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    'brightness': (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    'contrast': (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    'pixelate': (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    'jpeg_compression': (jpeg_compression, (80, 65, 58, 50, 40)),
}
