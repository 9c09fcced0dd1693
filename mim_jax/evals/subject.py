"""What is evaluated: a frozen encoder on a dataset, for protocols that train no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mim_jax.data.augment import Crop
from mim_jax.data.cache import cache_source
from mim_jax.data.sources import Source, open_source
from mim_jax.data.subsets import open_training
from mim_jax.errors import DataError
from mim_jax.evals.features import extract_features, read_split
from mim_jax.evals.ledger import Ledger, watch_batches
from mim_jax.forward import Forward, Surroundings
from mim_jax.methods.linear_probe import frozen_encoder, pool_tokens
from mim_jax.networks import Networks
from mim_jax.parallel.hosts import place
from mim_jax.parallel.mesh import replicated
from mim_jax.recipe import Recipe, View
from mim_jax.weights.encoders import load_encoder


@dataclass(frozen=True)
class Subject:
    """recipe: of the base alone, with the config of the protocol; weights: the encoder's file; ledger: of what was
    found so far; report: gets lines to read."""

    recipe: Recipe
    weights: Path
    mesh: Mesh
    ledger: Ledger
    report: Callable[[str], None]

    @cached_property
    def parameters(self) -> Any:
        """Of the encoder, on every device."""
        return place(load_encoder(self.weights, self.encoder), replicated(self.mesh))

    @property
    def encoder(self) -> Any:
        """For whole images, blocks apart, as they are in the file."""
        return frozen_encoder(self.recipe)

    def open(self) -> tuple[Source, Source]:
        """The protocol's training images, and those it is tested on. Raises DataError where they share no classes."""
        data = self.recipe.config.data
        train, test = open_training(data), open_source(data, data.eval_split)
        if not 0 < train.num_classes == test.num_classes:
            raise DataError(
                f'{train.description} and {test.description} need labels of the same classes; set data.split and '
                'data.eval_split.'
            )
        return tuple(cache_source(source, data.cache, data.threads) for source in (train, test))

    def features(self, source: Source, layer: int, pool: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        """f32[n,D], i32[n]: all images by the evaluation's crop, in stored order; see linear_probe.pool_tokens."""
        encode = make_encode(replace(self.recipe, encoder=self.encoder), pool, norm, layer)
        run = jax.jit(encode, out_shardings=replicated(self.mesh))
        config = self.recipe.config
        crop = Crop('center', config.image_size, config.data.interpolation)
        batches = watch_batches(read_split(source, crop, self.mesh, config), len(source), self.report)
        return extract_features(lambda images: run(self.parameters, images), batches, self.mesh)


def make_encode(
    recipe: Recipe, pool: str, norm: str = 'encoder', layer: int = 0
) -> Callable[[Mapping[str, Any], jax.Array], jax.Array]:
    """(the encoder's parameters, images u8[B,S,S,3]) -> f32[B,D]: features of whole images; see linear_probe.pool_tokens."""
    recipe = replace(recipe, views={'main': View('main', block=None)}, labels=False)

    def encode(parameters: Mapping[str, Any], images: jax.Array) -> jax.Array:
        rows, key = jnp.arange(len(images)), jax.random.key(0)  # nothing is drawn
        around = Surroundings({'main': images}, rows, key, jnp.zeros((), jnp.int32), {}, {})
        forward = Forward(recipe, Networks(recipe, {'encoder': parameters}, {}, key, 'evaluate'), around)
        return pool_tokens(forward, layer, pool, norm)

    return encode
