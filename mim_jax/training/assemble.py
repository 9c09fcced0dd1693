"""From a checked config to the parts of a run: dataset, loader, recipe."""

from __future__ import annotations

from typing import Any

import jax

from mim_jax.config import check_devices
from mim_jax.data.augment import Crop
from mim_jax.data.cache import cache_source
from mim_jax.data.loader import Loader
from mim_jax.data.sources import Source, open_source
from mim_jax.methods import build
from mim_jax.recipe import Recipe


def assemble(config: Any) -> tuple[Recipe, Source]:
    """The recipe and its training images. Raises ConfigError, DataError or Refused before any device is used."""
    source = open_source(config.data, config.data.split)
    check_devices(config, jax.device_count(), jax.process_count(), len(source))
    recipe = build(config, len(source))
    return recipe, cache_source(source, config.data.cache, config.data.threads)


def make_loader(recipe: Recipe, source: Source) -> Loader:
    """This host's share of every global batch; each crop of the recipe has its own random stream."""
    config, data = recipe.config, recipe.config.data
    crop = Crop(
        data.crop, config.image_size, data.interpolation, tuple(data.scale), tuple(data.ratio), data.padding, data.flip
    )
    return Loader(
        source,
        dict.fromkeys(recipe.crops, crop),
        config.batch_size,
        config.seed,
        host=jax.process_index(),
        hosts=jax.process_count(),
        threads=data.threads,
        workers=data.workers,
        on_bad_image=data.on_bad_image,
    )
