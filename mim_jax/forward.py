"""Forward: everything a loss may ask about one batch, computed when asked, once per trace.

A teacher is another Forward with other weights and no gradient. What no loss reads is never traced, so it costs nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from mim_jax.models.levels import Levels
from mim_jax.models.neck import Last
from mim_jax.networks import Networks, drop_empty, named_key, prune_tree
from mim_jax.recipe import EMA, Frozen, Recipe
from mim_jax.tokens import MaskPlan, Tokens, gather_tokens, plan_from_scores

Batch = Mapping[str, jax.Array]
Tree = dict[str, Any]


def _trace() -> Any:
    home = core if hasattr(core, 'get_opaque_trace_state') else jax.core  # it moved in jax 0.10
    return home.get_opaque_trace_state(convention='flax')


def lazy(read: Callable) -> Callable:
    """Compute a value once per trace. A cycle is named; so is a read inside an inner jax transformation."""

    signature = inspect.signature(read)

    @functools.wraps(read)
    def once(self: Forward, *args: str, **kwargs: str) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        slot = f'{read.__name__}({", ".join(map(repr, bound.args[1:]))})'
        return self._remember(slot, lambda: read(*bound.args))

    return once


@dataclass(frozen=True)
class Surroundings:
    """What every Forward of one trace shares.

    batch: {crop: u8[B,S,S,3]}, and 'label' i32[B] where the recipe reads labels; rows i32[B]: each example's place in the
    *global* batch; key: the step's key, from which all noise is derived by name; step: i32[], the optimizer step; teachers:
    {name: {'params', 'batch_stats'}}; frozen: {name: params}.
    """

    batch: Batch
    rows: jax.Array
    key: jax.Array
    step: Any
    teachers: Mapping[str, Tree]
    frozen: Mapping[str, Tree]


class Forward:
    """One pass of one network over one batch; every method is computed when first asked for and remembered."""

    def __init__(self, recipe: Recipe, networks: Networks, around: Surroundings, student: Forward | None = None):
        self.recipe, self.networks, self.around, self.student = recipe, networks, around, student
        self._created_in, self._memo, self._computing = _trace(), {}, []
        self._teacher_plan: Callable | None = None
        self.teachers_read: dict[str, Networks] = {}

    @property
    def step(self) -> Any:
        """The optimizer step, i32[]."""
        return self.around.step

    def _check_trace(self, slot: str) -> None:
        if _trace() != self._created_in:
            raise RuntimeError(
                f'forward.{slot} was read inside an inner jax transformation; read it outside and pass the array in.'
            )

    def _remember(self, slot: str, compute: Callable[[], Any]) -> Any:
        self._check_trace(slot)
        if slot in self._computing:
            raise RecursionError(f'forward values need each other: {" needs ".join([*self._computing, slot])}')
        if slot not in self._memo:
            self._computing.append(slot)
            try:
                self._memo[slot] = compute()
            except Exception as error:
                error.add_note(f'while computing forward.{slot}')
                raise
            finally:
                self._computing.pop()
        return self._memo[slot]

    def shared(self, name: str, compute: Callable[[Forward], Any]) -> Any:
        """compute(self), once per trace under this name: what several losses or watches of a paper read."""
        return self._remember(f'shared({name!r})', lambda: compute(self))

    # -- noise ---------------------------------------------------------------------------------------------------------
    def keys(self, *names: str) -> jax.Array:
        """One key per example, from the step, the names and the example's row of the global batch.

        Device count, host count and accumulation therefore change nothing.
        """
        base = named_key(self.around.key, *names)
        return jax.vmap(lambda row: jax.random.fold_in(base, row))(self.around.rows)

    def uniform(self, name: str, shape: tuple[int, ...]) -> jax.Array:
        """U[0,1) noise f32[B,*shape], keyed per example."""
        return jax.vmap(lambda key: jax.random.uniform(key, shape))(self.keys(name))

    # -- inputs --------------------------------------------------------------------------------------------------------
    @lazy
    def pixels(self, view: str = 'main') -> jax.Array:
        """f32[B,H,W,3] in [0,1], after the view's photometric augmentation; a teacher sees the student's pixels."""
        if self.student is not None:
            return self.student.pixels(view)
        spec = self.recipe.views[view]
        pixels = self.around.batch[spec.crop].astype(jnp.float32) / 255.0
        return spec.photometric(pixels, self.keys('photometric', view)) if spec.photometric else pixels

    @lazy
    def images(self, view: str = 'main') -> jax.Array:
        """f32[B,H,W,3] normalised with the statistics this network expects."""
        mean, std = jnp.asarray(self.recipe.mean, jnp.float32), jnp.asarray(self.recipe.std, jnp.float32)
        return (self.pixels(view) - mean) / std

    @property
    def labels(self) -> jax.Array:
        """i32[B], the class of each image. Raises ValueError unless the recipe says `labels`."""
        if not self.recipe.labels:
            raise ValueError(f'{self.recipe.name} reads forward.labels, but gets none; set labels=True in its recipe.')
        return self.around.batch['label']

    @lazy
    def scores(self, view: str = 'main') -> jax.Array:
        """f[B,N]: what the mask is ranked by; lowest stay visible. Never differentiated."""
        return jax.lax.stop_gradient(self.recipe.masking.scores(self, view))

    @lazy
    def plan(self, view: str = 'main') -> MaskPlan | None:
        """The view's MaskPlan; None for a whole image."""
        if self.student is not None:
            return self._teacher_plan(self.student, view) if self._teacher_plan else None
        block = self.recipe.views[view].block
        return None if block is None else plan_from_scores(self.scores(view), self.recipe.masking.visible, block)

    # -- encoder, neck, decoders ---------------------------------------------------------------------------------------
    @lazy
    def levels(self, view: str = 'main') -> Levels:
        """Every block of the encoder on this view."""
        return self.networks.run('encoder', self.images(view), self.plan(view), method='levels', view=view)

    @lazy
    def latent(self, view: str = 'main') -> Tokens:
        """What the decoders and heads see: the sum of the neck's readers, then the encoder's final norm."""
        levels = self.levels(view)
        parts = [self.networks.run(f'neck/{name}', levels, view=view) for name in self.recipe.neck]
        return self.networks.run('encoder', jax.tree.map(lambda *xs: sum(xs), *parts), method='finish')

    @lazy
    def visible(self, view: str = 'main') -> jax.Array:
        """f[B,V,D]: the latent patches that were shown, in plan.keep's order; all N of a whole image."""
        patches, plan = self.latent(view).patches, self.plan(view)
        if plan is None or not self.recipe.encoder.mask_tokens:
            return patches
        return gather_tokens(patches, plan.keep)

    @lazy
    def decoded(self, name: str, view: str = 'main') -> Levels:
        """Every block of a decoder, and its prediction."""
        part, plan = self.recipe.decoders[name], self.plan(view)
        if plan is None and part.mask_tokens:
            raise ValueError(
                f'decoder {name!r} puts mask tokens where a plan says, but view {view!r} is not masked here'
            )
        memory = () if part.memory is None else (part.memory(self.levels(view)),)
        return self.networks.run(f'decoder/{name}', self.latent(view), plan, *memory, view=view)

    def prediction(self, name: str, view: str = 'main') -> jax.Array:
        """f[B,N,P] of a decoder."""
        return self.decoded(name, view).prediction

    def hidden(self, place: str, view: str = 'main', positions: bool = False) -> list[jax.Array]:
        """Patch tokens of all layers of 'encoder' or of a decoder, f[B,N or V,D] each.

        Entry 0 is before positions are added, or with `positions` what enters the first block; then every block's output.
        """
        levels = self.levels(view) if place == 'encoder' else self.decoded(place, view)
        first = levels.placed if positions else levels.embedding
        return [tokens.patches for tokens in (first, *levels.blocks)]

    def head(self, name: str, *inputs: Any) -> Any:
        """Run a head an objective owns: head('lut/projector', x)."""
        self._check_trace(f'head({name!r})')
        return self.networks.run(f'objectives/{name}', *inputs)

    # -- teachers ------------------------------------------------------------------------------------------------------
    @lazy
    def teacher(self, name: str) -> Forward:
        """Another Forward over the same pixels with the teacher's weights; no gradient reaches them."""
        if self.student is not None:
            raise ValueError(f'a teacher has no teachers; ask the student forward for {name!r}')
        teacher, creating = self.recipe.teachers[name], self.networks.mode == 'create'
        key = named_key(self.networks.key, name) if isinstance(teacher, Frozen) else self.networks.key
        if isinstance(teacher, Frozen):
            recipe = replace(
                self.recipe, encoder=teacher.encoder, neck={'last': Last()}, mean=teacher.mean, std=teacher.std
            )
            weights = ({}, {}) if creating else (jax.lax.stop_gradient({'encoder': self.around.frozen[name]}), {})
            mode = 'create' if creating else 'evaluate'
        else:
            recipe = self.recipe
            if creating:  # a teacher's parameters are copies of the student's: make them there
                weights, mode = (self.networks.params, self.networks.batch_stats), 'create'
            else:
                held = jax.lax.stop_gradient(self.around.teachers[name])
                weights = (held['params'], held['batch_stats'])
                mode = 'evaluate' if teacher.average_batch_stats else 'batch'
        made = Forward(recipe, Networks(recipe, *weights, key, mode), self.around, student=self)
        made._teacher_plan = getattr(teacher, 'plan', None)
        self.teachers_read[name] = made.networks
        return made


def evaluate(forward: Forward) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of all objectives' terms, and every term by itself, unweighted.

    Logs: 'loss/total', 'loss/<objective>' (an only term) or 'loss/<objective>/<term>', then watches. Objectives are added up
    by name, so that the order of papers changes no bit.
    """
    total, logs = jnp.zeros((), jnp.float32), {}
    for name, objective in sorted(forward.recipe.objectives.items()):
        terms = objective.loss(forward)
        if not terms:
            raise ValueError(f'objective {name!r} returned no terms; return {{term name: scalar}}')
        for term, value in terms.items():
            if jnp.shape(value):
                raise ValueError(f'objective {name!r}, term {term!r}: a loss is a scalar, not {jnp.shape(value)}')
            logs[f'loss/{name}' + (f'/{term}' if term else '')] = value
            total = total + objective.weight_of(term, forward.step) * value
    for name, watch in sorted(forward.recipe.watches.items()):
        seen = watch(forward)
        named = {f'{name}/{key}': one for key, one in seen.items()} if isinstance(seen, Mapping) else {name: seen}
        logs |= {f'watch/{key}': jax.lax.stop_gradient(one) for key, one in named.items()}
    return total, {'loss/total': total, **logs, **forward.networks.watched}


def create_parameters(recipe: Recipe, root: jax.Array) -> tuple[Tree, Tree, dict[str, Tree]]:
    """params {role: tree}, batch_stats {role: tree}, teachers {name: {'params', 'batch_stats'}}.

    Found by tracing the losses, and what is predicted, once on two blank images: what they touch exists. Under jit the
    forward pass itself is dead code. An EMA teacher holds what is read through it, as a copy. Raises Refused or ValueError
    from the methods.
    """
    side = recipe.config.image_size
    batch = {crop: jnp.zeros((2, side, side, 3), jnp.uint8) for crop in recipe.crops}
    if recipe.labels:
        batch['label'] = jnp.zeros(2, jnp.int32)
    around = Surroundings(batch, jnp.arange(2), root, jnp.zeros((), jnp.int32), {}, {})
    networks = Networks(recipe, {}, {}, named_key(root, 'init'), 'create')
    forward = Forward(recipe, networks, around)
    evaluate(forward)
    if recipe.predict:  # may read what no loss does: an average of the weights
        recipe.predict(forward)
    teachers = {}
    for name, read in forward.teachers_read.items():
        if isinstance(recipe.teachers[name], EMA):
            teachers[name] = {
                collection: drop_empty(
                    {role: prune_tree(store[role], t.get(collection, {})) for role, t in read.touched.items()}
                )
                for collection, store in (('params', networks.params), ('batch_stats', networks.batch_stats))
            }
    copies = jax.tree.map(jnp.copy, teachers)  # donated buffers must not be shared
    return drop_empty(networks.params), drop_empty(networks.batch_stats), copies
