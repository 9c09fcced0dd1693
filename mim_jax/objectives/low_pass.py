"""PixMIM's low-frequency target."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def low_pass_disc(height: int, width: int, radius: float) -> np.ndarray:
    """bool[height,width], frequency 0 in the middle as fftshift puts it: True within `radius` bins of ((h-1)/2, (w-1)/2).

    For even sides that is half a bin from frequency 0, so the disc keeps some bins without their mirror images, and a
    filtered image has a small imaginary part.
    Source: open-mmlab/mmselfsup models/target_generators/low_freq_generator.py.
    """
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    return rows[:, None] ** 2 + columns**2 <= radius**2


def low_pass(pixels: jax.Array, radius: float) -> jax.Array:
    """f32[B,H,W,C] -> f32[B,H,W,C]: the magnitude of every channel's frequencies within the disc.

    Source (the file above): fft2, fftshift, the disc, ifft2 without shifting back, magnitude. Not shifting back multiplies
    the image by phases, which the magnitude removes; the magnitude itself belongs to the definition.

    Written as four matrix products with the disc's rows and columns of the Fourier matrices: XLA would gather the whole
    batch on every device for an FFT, and most of an FFT's frequencies would be thrown away. In fp32 throughout.
    """
    chex.assert_rank(pixels, 4)
    height, width = pixels.shape[1:3]
    disc = low_pass_disc(height, width, radius)
    rows, columns = (np.flatnonzero(disc.any(axis)) for axis in (1, 0))
    down, across = _fourier_rows(height, rows), _fourier_rows(width, columns)
    exact = jax.lax.Precision.HIGHEST
    kept = jnp.einsum('bhwc,kh,lw->bklc', pixels.astype(jnp.float32), down, across, precision=exact)
    kept = kept * disc[np.ix_(rows, columns)][..., None]
    filtered = jnp.einsum('bklc,kh,lw->bhwc', kept, down.conj(), across.conj(), precision=exact)
    return jnp.abs(filtered) / (height * width)


def _fourier_rows(length: int, places: np.ndarray) -> np.ndarray:
    """c64[K,length]: the rows of the discrete Fourier transform that fftshift puts at `places`."""
    frequencies = places - length // 2
    return np.exp(-2j * np.pi / length * np.outer(frequencies, np.arange(length))).astype(np.complex64)
