"""MR-MAE: mimic before reconstruct (Gao et al., "Mimic before Reconstruct: Enhancing Masked Autoencoders with Feature
Mimicking", 2023).

The encoder's visible tokens mimic a frozen teacher's features of the same places, through one linear layer; the decoder
reconstructs the masked pixels as before. The visible patches are those that the teacher's CLS looks at most, and several blocks
of the encoder are added up before both. There is no released code; the readings:

- Features: the teacher's last block after its final norm, before any projection (feature), as they are (target_norm).
- Focus: the patches of highest attention from CLS, last layer, mean over heads, stay visible (topk). 'sample' draws them with
  that probability and without replacement, as MILAN does; 'random' leaves the base's masks. A focus ranks single patches,
  which loses SimMIM's cells and BootMAE's blocks. A third reading, random masks and mimicry by the most looked at of the
  visible tokens alone, is left out.
- Blocks 2, 5, 8 and 11 of 12 are added, the last before the final norm; MCMAE's stages are added as before, and 2, 5, 8, 10 of
  its 11 blocks (fusion=False: its stages alone).
- Both losses are means over channels; reconstruction and mimicry weigh 0.5 each; several teachers share the mimicry's weight.
- CLS does not mimic. The teacher sees the same crop, whole, normalised as it was trained, resized where its patches have
  another size. Targets normalised within patches, learning rate and the rest are the base's.
- mimic_on='decoder' is table 3's ablation: the features of the masked tokens, predicted from the decoder's last block by a norm
  and a linear layer of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mim_jax.errors import Refused
from mim_jax.methods.checks import check_choices
from mim_jax.models.layers import layer_norm, xavier
from mim_jax.models.neck import AddLevels
from mim_jax.models.towers import FEATURES
from mim_jax.objectives.mimic import NORMS, mimic_distance, normalise_target
from mim_jax.recipe import Frozen, Masking, Objective, Recipe, View, scale_weight
from mim_jax.tokens import gather_tokens
from mim_jax.weights.towers import KINDS, Teacher, open_teacher

if TYPE_CHECKING:
    from mim_jax.forward import Forward

CHOICES = {
    'feature': FEATURES,
    'target_norm': NORMS,
    'focus': ('topk', 'sample', 'random'),
    'mimic_on': ('encoder', 'decoder'),
}


class FeatureHead(nn.Module):
    """A linear layer to a teacher's width, after a norm of its own where the tokens have had none."""

    width: int
    norm: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """f[B,T,D] -> f[B,T,C]."""
        x = layer_norm(self.dtype, 'norm')(x) if self.norm else x
        return nn.Dense(self.width, kernel_init=xavier, dtype=self.dtype, name='linear')(x)


def mr_mae(
    recipe: Recipe,
    *,
    teachers: tuple = ('clip',),
    clip_weights: str = '',
    dino_weights: str = '',
    dinov2_weights: str = '',
    feature: str = 'ln_post',
    target_norm: str = 'none',
    focus: str = 'topk',
    fusion: bool = True,
    layers: tuple = (),
    mimic_on: str = 'encoder',
    reconstruct_weight: float = 0.5,
    mimic_weight: float = 0.5,
) -> Recipe:
    """`recipe` with frozen teachers to mimic. Raises Refused, and WeightsError where a file is missing or not as expected.

    teachers: of clip, dino, dinov2, random; *_weights: their safetensors files; the first teacher decides the focus; layers:
    blocks added to the last, from 0 (default: see spread_levels); reconstruct_weight: of the base's own losses, 0 drops them
    and the decoder; mimic_weight: of all teachers together. The others: see above.
    """
    given = {'feature': feature, 'target_norm': target_norm, 'focus': focus, 'mimic_on': mimic_on}
    check_choices('mr_mae', CHOICES, given)
    _check_numbers(reconstruct_weight, mimic_weight)
    _check_base(recipe, mimic_on)
    files = {'clip': clip_weights, 'dino': dino_weights, 'dinov2': dinov2_weights, 'random': ''}
    opened = _open(recipe, teachers, files)
    dtype, depth = jnp.dtype(recipe.config.dtype), recipe.encoder.depth
    decoder = recipe.mixed_places()[0] if mimic_on == 'decoder' else ''

    def predict(forward: Forward, kind: str) -> tuple[jax.Array, jax.Array]:
        """(prediction f[B,T,C], the patches it is of i32[B,T])."""
        plan = forward.plan('main')
        if decoder:
            tokens, places = gather_tokens(forward.hidden(decoder)[-1], plan.drop), plan.drop
        else:
            tokens, places = forward.visible('main'), plan.keep
        return forward.head(f'mimic/{kind}', tokens), places

    def loss(forward: Forward) -> dict[str, jax.Array]:
        terms = {}
        for kind in opened:
            prediction, places = predict(forward, kind)
            target = gather_tokens(read_features(forward.teacher(f'mimic_{kind}'), feature), places)
            terms[kind] = mimic_distance(prediction, normalise_target(target, target_norm))
        return terms if len(terms) > 1 else {'': next(iter(terms.values()))}

    heads = {kind: FeatureHead(teacher.width_of(feature), bool(decoder), dtype) for kind, teacher in opened.items()}
    frozen = {
        f'mimic_{kind}': Frozen(t.tower, t.load, t.mean, t.std, lambda t=t: t.sha256, t.summary)
        for kind, t in opened.items()
    }
    if layers and not fusion:
        raise Refused(f'mr_mae.layers={layers} has no effect with mr_mae.fusion=False; leave one of them out.')
    added = spread_levels(layers, depth) if fusion else ()
    changed = _weigh_base(recipe, reconstruct_weight)
    if focus != 'random':
        changed = replace(changed, masking=Masking(focus_scores(next(iter(frozen)), focus), recipe.masking.visible))
    return changed.extend(
        'mr_mae',
        neck={'added': AddLevels(added)} if added else {},
        objectives={'mimic': Objective(loss, mimic_weight / len(opened), heads)},
        teachers=frozen,
    )


def read_features(teacher: Forward, feature: str) -> jax.Array:
    """f[B,N,C] of the main view's patches."""
    return teacher.networks.run('encoder', teacher.levels('main'), feature, method='features')


def focus_scores(teacher: str, focus: str) -> Any:
    """(forward, view) -> f32[B,N], low where the teacher's CLS looks: minus its attention, or minus log attention and Gumbel
    noise, whose lowest V are V draws without replacement."""

    def scores(forward: Forward, view: str) -> jax.Array:
        seen = ranking_view(forward.recipe.views, view)
        attention = forward.teacher(teacher).levels(seen).attention(-1)[:, :, 0, 1:].mean(1)
        if focus == 'topk':
            return -attention
        noise = jnp.maximum(forward.uniform('mask', attention.shape[1:]), jnp.finfo(jnp.float32).tiny)
        return jnp.log(-jnp.log(noise)) - jnp.log(attention)

    return scores


def ranking_view(views: Mapping[str, View], view: str) -> str:
    """Whose attention ranks a view: its own, but for a later block of a crop that of its first, to keep them disjoint."""
    crop, block = views[view].crop, views[view].block
    return next(name for name, one in views.items() if name == view or (block and (one.crop, one.block) == (crop, 0)))


def spread_levels(layers: tuple, depth: int) -> tuple[int, ...]:
    """The blocks to add to the last: those given, or every third of 12, (2, 5, 8); (2, 5, 8) of 11 too. Raises Refused."""
    if not layers:
        return tuple(sorted({-(-i * depth // 4) - 1 for i in (1, 2, 3)} - {-1, depth - 1}))
    if not all(type(layer) is int and 0 <= layer < depth - 1 for layer in layers) or len(set(layers)) < len(layers):
        raise Refused(
            f'mr_mae.layers={layers} must be different blocks from 0 to {depth - 2}; the last of these {depth} is always read.'
        )
    return tuple(layers)


def _weigh_base(recipe: Recipe, weight: float) -> Recipe:
    """The base's own tasks scaled; for 0 dropped, and with them the pictures of what is then no longer predicted."""
    objectives = dict(recipe.objectives)
    for name, own in recipe.objectives.items():
        if own.kind == 'reconstruct' and weight:
            objectives[name] = replace(own, weight=scale_weight(own.weight, weight))
        elif own.kind == 'reconstruct':
            del objectives[name]
    return replace(recipe, objectives=objectives, pictures=recipe.pictures if weight else {})


def _open(recipe: Recipe, kinds: tuple, files: dict[str, str]) -> dict[str, Teacher]:
    if not kinds or not set(kinds) <= set(KINDS) or len(set(kinds)) < len(kinds):
        raise Refused(f'mr_mae.teachers={kinds} must be at least one of {", ".join(KINDS)}, each once.')
    for kind, path in files.items():
        if path and kind not in kinds:
            raise Refused(f'mr_mae.{kind}_weights has no effect: {kind} is not among mr_mae.teachers={kinds}.')
    sizes = recipe.config.image_size, recipe.encoder.patch_size, jnp.dtype(recipe.config.dtype)
    return {
        kind: open_teacher(kind, files[kind], *sizes, key=f'mr_mae.{kind}_weights', seed=recipe.config.seed)
        for kind in kinds
    }


def _check_base(recipe: Recipe, mimic_on: str) -> None:
    base = recipe.papers[0]
    if not recipe.reconstructs:
        raise Refused(f'mr_mae mimics before a masked reconstruction, and {base} has none; choose another config.base.')
    places = recipe.mixed_places()
    if mimic_on == 'decoder' and (len(places) != 1 or places[0] == 'encoder'):
        raise Refused(
            f"mr_mae.mimic_on='decoder' needs one decoder with mask tokens, and {base} has them in {' and '.join(places)}; use "
            "mr_mae.mimic_on='encoder'."
        )


def _check_numbers(reconstruct_weight: float, mimic_weight: float) -> None:
    if reconstruct_weight < 0:
        raise Refused(
            f'mr_mae.reconstruct_weight={reconstruct_weight} must not be negative; 0 drops the reconstruction.'
        )
    if mimic_weight <= 0:
        raise Refused(f'mr_mae.mimic_weight={mimic_weight} must be above 0.')
