"""Which device holds which part of the training state: ordered rules from parameter path to PartitionSpec.

Rules are searched (`re.search`) in a path such as 'params/encoder/block_00/mlp/fc1/kernel'; the first match decides.
Patterns are anchored at the end only, so that optimizer moments and EMA teachers, whose paths end like their
parameter's, are split like it. Specs are aligned to the last axis: the leading depth axis of blocks stacked by
`nn.scan` ('encoder/blocks/...') is never split.
"""

import math
import re
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mim_jax.errors import ConfigError
from mim_jax.parallel.mesh import replicated

AUTO = 'auto'
# Below this many elements an array is copied to every device: gathering it would cost more than it saves.
AUTO_MIN_SIZE = 2**14


class Rule(NamedTuple):
    """`spec` is a PartitionSpec or AUTO: the largest axis that mesh.fsdp divides, or a full copy of small arrays.

    A rule that decides no array of the tree is an error (a typing mistake, or an earlier rule that takes all of its
    arrays) unless it is `optional`.
    """

    pattern: str
    spec: PartitionSpec | str
    optional: bool = False


# 'fsdp' splits the residual width: one axis of every large matrix of a ViT. Small arrays are copied: the partitioner would
# otherwise rematerialise the activations they are added to. 'model' splits heads and hidden units; of qkv's columns
# [q | k | v] no contiguous part is a set of heads, so they are stored split by rows and used split by heads
# (models/layers.QueriesKeysValues). Every recipe has blocks, so a rule for them that matches nothing is a mistake; the
# last one says what happens to everything else.
RULES = (
    Rule(r'(^|/)mlp/fc1/bias$', PartitionSpec('model')),
    Rule(r'(^|/)attn/[qv]_bias$', PartitionSpec('model'), optional=True),
    Rule(r'(^|/)(bias|scale|cls_token|mask_token)$', PartitionSpec()),
    Rule(r'(^|/)attn/qkv/kernel$', PartitionSpec(('fsdp', 'model'), None)),
    Rule(r'(^|/)mlp/fc1/kernel$', PartitionSpec('fsdp', 'model')),
    Rule(r'(^|/)(attn/out|mlp/fc2)/kernel$', PartitionSpec('model', 'fsdp')),
    Rule(r'(^|/)depthwise/kernel$', PartitionSpec(), optional=True),
    Rule('.*', AUTO, optional=True),
)


def shardings(tree: Any, mesh: Mesh, rules: tuple[Rule, ...] = RULES, whole: bool = True) -> Any:
    """Pytree of arrays or ShapeDtypeStructs -> the same tree of NamedShardings. Scalars are copied, whatever the rules.

    whole: the tree is a whole state; False for a part of one, in which a rule may have nothing to decide.
    Raises ConfigError naming the path that no rule matches or whose axis the mesh does not divide, or the rule that
    matches nothing.
    """
    unused = {index: rule for index, rule in enumerate(rules) if not rule.optional}
    found = []
    for path, leaf in flatten_with_paths(tree):
        if not leaf.shape:
            found.append(replicated(mesh))
            continue
        index = next((i for i, rule in enumerate(rules) if re.search(rule.pattern, path)), None)
        if index is None:
            raise ConfigError(
                f'No sharding rule matches {path} {leaf.shape}: add one, or end the rules with (".*", AUTO).'
            )
        unused.pop(index, None)
        found.append(NamedSharding(mesh, _spec(path, leaf.shape, rules[index], mesh)))
    if whole and unused:
        patterns = ', '.join(repr(rule.pattern) for rule in unused.values())
        raise ConfigError(f'Sharding rules that decide no array: {patterns}. Correct, reorder or remove them.')
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def flatten_with_paths(tree: Any) -> list[tuple[str, Any]]:
    """The leaves in jax.tree order, each with its path: keys, attribute names and indices joined by '/'."""
    return [(path_of(keypath), leaf) for keypath, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def path_of(keypath: tuple) -> str:
    """A jax key path -> 'params/encoder/block_00/mlp/fc1/kernel'."""
    return jax.tree_util.keystr(keypath, simple=True, separator='/')


def _spec(path: str, shape: tuple[int, ...], rule: Rule, mesh: Mesh) -> PartitionSpec:
    stacked = '/blocks/' in f'/{path}'
    if rule.spec == AUTO:
        return _auto_spec(shape[1:] if stacked else shape, mesh.shape['fsdp'], len(shape))
    missing = len(shape) - len(rule.spec)
    if missing < 0:
        raise ConfigError(f'Sharding rule {rule.pattern!r} names {len(rule.spec)} axes, but {path} has shape {shape}.')
    # An empty spec, P(), stays empty: a full copy.
    spec = PartitionSpec(*[None] * missing, *rule.spec) if rule.spec else rule.spec
    if mesh.shape['model'] == 1:
        spec = _without_model(spec)
    for axis, names in enumerate(spec):
        parts = math.prod(mesh.shape[name] for name in _listed(names))
        if shape[axis] % parts:
            raise ConfigError(
                f'{path} has shape {shape}, and mesh axis {names} splits its axis {axis} into {parts} parts: '
                f'choose a number that divides {shape[axis]}.'
            )
    return spec


def _without_model(spec: PartitionSpec) -> PartitionSpec:
    """What a spec says where there is no axis 'model': the same placement as one that does not name it."""
    left = [tuple(name for name in _listed(names) if name != 'model') or None for names in spec]
    return PartitionSpec(*left) if any(left) else PartitionSpec()


def _listed(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names or ()


def _auto_spec(shape: tuple[int, ...], parts: int, ndim: int) -> PartitionSpec:
    """The last of the largest divisible axes of `shape`, which are the last ones of an array of `ndim` axes."""
    divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if parts == 1 or math.prod(shape) < AUTO_MIN_SIZE or not divisible:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: (shape[axis], axis))
    names = [None] * ndim
    names[largest + ndim - len(shape)] = 'fsdp'
    return PartitionSpec(*names)
