"""Bytes or arrays -> RGB images. Every mode is converted, only what cannot be decoded is refused."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from mim_jax.errors import DataError


class BadImage(DataError):
    """One image that cannot be decoded; `name` and `index` say which. Survives pickling, hence worker processes."""

    def __init__(self, name: str, index: int | None, reason: str):
        self.name, self.index, self.reason = name, index, reason
        place = name if index is None else f'{name} (index {index})'
        super().__init__(
            f'cannot decode image {place}: {reason}. '
            'Repair or replace it, or set data.on_bad_image=skip to use the next image in its place.'
        )

    def __reduce__(self):
        return BadImage, (self.name, self.index, self.reason)


def decode(data: bytes | np.ndarray, name: str, index: int | None = None) -> Image.Image:
    """Decodes encoded bytes, or wraps u8[H,W], u8[H,W,1] or u8[H,W,3], as an upright RGB image.

    Transparency is dropped and not blended, as `Image.convert('RGB')` (torchvision's ImageFolder) does; 16-bit
    greyscale keeps its high byte; the EXIF orientation is applied. `name` and `index` only serve the message.

    Raises:
      BadImage: the bytes are damaged or of no known format, or the image has no pixels.
    """
    try:
        image = _wrap_array(data) if isinstance(data, np.ndarray) else _open_bytes(data)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError and others
        raise BadImage(name, index, str(error) or type(error).__name__) from error
    if 0 in image.size:
        raise BadImage(name, index, f'it has no pixels ({image.width} x {image.height})')
    return image


def _open_bytes(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:  # its own text names a BytesIO object
        raise ValueError(f'no known image format in its {len(data)} bytes') from error
    image.load()  # open() is lazy: damage must show here
    ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'RGB':
        return image
    if image.mode == 'F':
        raise ValueError('floating-point pixels have no agreed range')
    if image.mode.startswith('I'):  # convert() would clip 16 bits to 255
        levels = np.clip(np.asarray(image, np.int64), 0, 65535)
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert('RGB')
    if image.mode in ('P', 'PA') and 'transparency' in image.info:
        image = image.convert('RGBA')  # the step Pillow asks for; the colours are the palette's either way
    return image.convert('RGB')


def _wrap_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f'an array must be uint8 of shape HxW, HxWx1 or HxWx3, not {array.dtype} of {array.shape}')
    if array.size == 0:
        raise ValueError(f'it has no pixels, its shape is {array.shape}')
    if array.shape[2:] == (1,):
        array = array[..., 0]
    return Image.fromarray(array).convert('RGB')
