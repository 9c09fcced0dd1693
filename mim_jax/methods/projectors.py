"""What methods with BatchNorm in their heads share."""

from __future__ import annotations

from typing import Any

from mim_jax.errors import Refused


def check_bn_images(method: str, bn_images: int, config: Any, least: int = 2) -> None:
    """Raise Refused unless a micro-batch falls into groups of this many images, which share BatchNorm statistics.

    least: how many images have a variance; 1 where an image alone has many values of a channel.
    """
    if bn_images < 0:
        raise Refused(f'{method}.bn_images={bn_images} must not be negative; 0 takes all images of a micro-batch.')
    images = config.batch_size // config.accumulate
    if bn_images and images > bn_images and images % bn_images:
        raise Refused(
            f'{method}.bn_images={bn_images} does not divide the {images} images of a micro-batch (batch_size / accumulate); '
            'choose a divisor of it, or 0 for statistics over all of them.'
        )
    if min(bn_images or images, images) < least:
        remedy = (
            'batch_size / accumulate must be larger' if images < least else f'{method}.bn_images must be larger, or 0'
        )
        raise Refused(f'{method} takes BatchNorm statistics over images, and 1 image has no variance: {remedy}.')
