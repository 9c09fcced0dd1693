"""For MTO's tests: tiny recipes of every base with weights by rule, and what the reference makes of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import mto_reference as reference
import numpy as np
from parity_rules import draw_weight, photographs
from tiny_runs import SIDE, tiny_config

from mim_jax.forward import Forward, Surroundings, create_parameters
from mim_jax.methods import BASES
from mim_jax.networks import Networks
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.tokens import MaskPlan

IMAGES = 3
DECODER = {'decoder_width': 16, 'decoder_depth': 2, 'decoder_heads': 2}
OPTIONS = {
    'mae': DECODER,
    'pixmim': DECODER,
    'mcmae': DECODER | {'stage_widths': (8, 8), 'stage_depths': (1, 1)},
    'bootmae': {'decoder_width': 16},
    'simmim': {},
    'conmim': {'projector_width': 32, 'projector_output': 16},
}


def make_base(base: str, **top: Any) -> Recipe:
    """16 patches, 4 visible, two blocks where mask tokens are; a run of 80 steps, whose first epoch of BootMAE ramps."""
    return BASES[base](tiny_config(base=base, **{'steps': 80, **top}), **OPTIONS[base])


def make_weights(recipe: Recipe) -> tuple[Any, Any, Any]:
    """params, batch_stats and teachers, all by rule; nothing is compiled."""
    trees = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))

    def fill(tree: Any) -> Any:
        values = [jnp.asarray(draw_weight(path, leaf.shape)) for path, leaf in flatten_with_paths(tree)]
        return jax.tree.unflatten(jax.tree.structure(tree), values)

    return tuple(fill(tree) for tree in trees)


def make_forward(recipe: Recipe, params: Any, batch_stats: Any = (), teachers: Any = ()) -> Forward:
    """A pass over photographs, in training mode; masks are the same whatever the recipe's papers."""
    key, images = jax.random.key(3), jnp.asarray(photographs(SIDE, IMAGES))
    around = Surroundings({'main': images}, jnp.arange(IMAGES), key, jnp.zeros((), jnp.int32), dict(teachers), {})
    return Forward(recipe, Networks(recipe, params, dict(batch_stats), key, 'train'), around)


class TokensOnly:
    """What MTO's loss asks of a Forward, answered with free tokens: layers f[B,N,D], the first V of N visible."""

    def __init__(self, layers: Sequence[jax.Array], visible: int):
        images, patches = layers[0].shape[:2]
        order = jnp.broadcast_to(jnp.arange(patches), (images, patches))
        self.layers = list(layers)
        self.main = MaskPlan(order[:, :visible], order[:, visible:], order, order >= visible)

    def hidden(self, place: str, view: str = 'main', positions: bool = False) -> list[jax.Array]:
        return self.layers

    def plan(self, view: str) -> MaskPlan:
        return self.main

    def shared(self, name: str, compute: Callable) -> Any:
        return compute(self)


def expected_terms(
    layers: Sequence[np.ndarray],
    keep: np.ndarray,
    scale: str = 'sqrt_dim',
    tau: float = 0.1,
    reduce: str = 'mean',
    exclude_self: bool = False,
    spa_layers: str = 'first',
    layer_norm: bool = False,
    epsilon: float = 1e-6,
    direction: str = 'descending',
) -> tuple[dict[str, float], np.ndarray]:
    """The three terms of one place by the reference, and H f64[B,L+1]. layers: f[B,N,D] of layer 0 to L."""
    prepare = reference.normalise_layer if layer_norm else lambda x: x
    wide = [[prepare(x) for x in np.asarray(layer, np.float64)] for layer in layers]
    images = range(len(keep))
    h = np.array([[reference.heterogeneity(layer[b], keep[b], scale, tau) for layer in wide] for b in images])
    chosen = wide if spa_layers == 'all' else wide[:1]
    rows = [[reference.sparsity(x[b], keep[b], scale, tau, reduce, exclude_self) for x in chosen] for b in images]
    return {
        'sparsity': float(np.mean(rows)),
        'distinctiveness': float(np.mean([reference.distinctiveness(one, epsilon) for one in h[:, 0]])),
        'ranking': float(np.mean([reference.ranking(one, direction) for one in h])),
    }, h
