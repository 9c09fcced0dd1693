"""Running a recipe's modules by role: the only contact between the forward pass and linen."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from mim_jax.recipe import Recipe

Tree = dict[str, Any]


def named_key(root: jax.Array, *names: str | int | jax.Array) -> jax.Array:
    """A key from a root and names: strings by their CRC-32, integers (such as the step) as they are."""
    for name in names:
        root = jax.random.fold_in(root, zlib.crc32(name.encode()) if isinstance(name, str) else name)
    return root


def merge_trees(first: Tree, second: Tree) -> Tree:
    """Union of two nested dicts; a leaf that is in both is taken from `first`."""
    flat = {**traverse_util.flatten_dict(second), **traverse_util.flatten_dict(first)}
    return traverse_util.unflatten_dict(flat)


def prune_tree(tree: Tree, like: Tree) -> Tree:
    """The part of a nested dict whose paths are also in `like`."""
    flat, wanted = traverse_util.flatten_dict(tree), traverse_util.flatten_dict(like)
    return traverse_util.unflatten_dict({path: flat[path] for path in wanted})


class Networks:
    """Parameters and BatchNorm statistics by role, and the one way to run them.

    mode 'train': BatchNorm uses the batch and moves its statistics, drop-path draws; 'batch': BatchNorm uses the batch,
    nothing is random; 'evaluate': running statistics, nothing random; 'create': a role's parameters are made at its
    first touch, from a key named after the role, so that neither the order of papers nor of losses matters. `touched`
    then records what was read, parameter by parameter.
    """

    def __init__(self, recipe: Recipe, params: Tree, batch_stats: Tree, key: jax.Array, mode: str):
        self.recipe, self.params, self.batch_stats, self.key, self.mode = recipe, params, batch_stats, key, mode
        self.touched: Tree = {}
        self.watched: dict[str, jax.Array] = {}

    def run(self, role: str, *args: Any, method: str | None = None, view: str = '') -> Any:
        """Call the module of `role` (its `method`, default __call__). `view` names the call's own random stream.

        Raises KeyError naming the role when the recipe has no such part, or these networks hold no weights for it.
        """
        module = self.recipe.module(role)
        if self.mode == 'create':
            # init_with_output, not apply: BatchNorm leaves its statistics alone while initialising.
            output, made = module.init_with_output({'params': named_key(self.key, role)}, *args, method=method)
            for store, collection in ((self.params, 'params'), (self.batch_stats, 'batch_stats')):
                store[role] = merge_trees(store.get(role, {}), made.get(collection, {}))
            touched = {name: made.get(name, {}) for name in ('params', 'batch_stats')}
            self.touched[role] = merge_trees(self.touched.get(role, {}), touched)
            return output
        variables = {'params': self.params.get(role, {}), 'batch_stats': self.batch_stats.get(role, {})}
        if self.mode == 'evaluate':
            return module.apply(variables, *args, method=method)
        rngs = {}
        if self.mode == 'train':
            rngs['drop_path'] = named_key(self.key, role, 'drop_path', view)
        output, moved = module.apply(variables, *args, method=method, mutable=['batch_stats', 'watch'], rngs=rngs)
        if moved.get('batch_stats'):
            self.batch_stats = {**self.batch_stats, role: merge_trees(moved['batch_stats'], variables['batch_stats'])}
        for path, values in traverse_util.flatten_dict(moved.get('watch', {})).items():
            self.watched['/'.join(('watch', role, *path))] = jax.lax.stop_gradient(values[-1])
        return output


def drop_empty(roles: Mapping[str, Tree]) -> dict[str, Tree]:
    """Roles that own at least one array."""
    return {role: tree for role, tree in roles.items() if jax.tree.leaves(tree)}
