"""MTO: masked token optimization (Choi et al., "Emerging Property of Masked Token for Effective Pre-training", ECCV 2024).

Three terms shape the tokens wherever mask tokens live: the encoder of SimMIM and ConMIM, the decoders of MAE, PixMIM, MCMAE
and BootMAE. Before the first block visible tokens are to be like few others (L_spa) and mask tokens like no visible token in
particular (L_e: high heterogeneity H); from layer to layer H is to fall (L_r). Nothing is added to the network. There is no
released code; where the paper is silent or at odds with itself:

- L_r as printed (equation 5) makes H *rise* with depth, against the text, the figures and L_e. rank_direction='descending'
  is the text's form, 'eq5' the printed one.
- Layer 0 is before positions are added, where all mask tokens are equal, as the proof in the supplement supposes
  (x0_with_pos adds them); the other layers are the blocks' raw outputs (layer_norm: after a LayerNorm without parameters). CLS
  is no token of the paper's N patches and left out.
- Affinities are divided by sqrt D. Unscaled, the equation to the letter, H is near 0 after one block of MAE's decoder.
- L_spa is the mean over visible rows, not the sum, of layer 0 alone (spa_layers='all': the mean over layers).
- Losses are per image, then averaged; over BootMAE's two decoders they are summed.
- The paper weighs every term 1 beside the base's loss. Measured, that slows the base's loss badly, so mto_weight multiplies
  all three, by default 0.1 in decoders and 0.01 in an encoder; the paper's is 1, and 0 only watches H.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.checks import check_choices
from mim_jax.objectives.heterogeneity import SCALES, distinctiveness, heterogeneity, ranking, sparsity
from mim_jax.recipe import Chart, Objective, Recipe
from mim_jax.tokens import MaskPlan

if TYPE_CHECKING:
    from mim_jax.forward import Forward

TAU = 0.1  # of cosines
CHOICES = {
    'rank_direction': ('descending', 'eq5'),
    'affinity_scale': SCALES,
    'spa_reduce': ('mean', 'sum'),
    'spa_layers': ('first', 'all'),
}


def mto(
    recipe: Recipe,
    *,
    mto_weight: float = -1.0,
    spa_weight: float = 1.0,
    e_weight: float = 1.0,
    r_weight: float = 1.0,
    rank_direction: str = 'descending',
    affinity_scale: str = 'sqrt_dim',
    tau: float = TAU,
    x0_with_pos: bool = False,
    layer_norm: bool = False,
    spa_reduce: str = 'mean',
    spa_layers: str = 'first',
    exclude_self: bool = False,
    stop_visible: bool = False,
    epsilon: float = 1e-6,
) -> Recipe:
    """`recipe` with the objective 'mto'. Raises Refused where no mask token meets an image token.

    mto_weight: of all terms; -1: 0.1 in decoders, 0.01 in the encoder; spa_weight, e_weight, r_weight: of each;
    affinity_scale: sqrt_dim, none, or cosine, divided by tau; exclude_self: L_spa without a token's affinity to itself;
    stop_visible: no gradient from L_e into visible tokens; epsilon: of L_e. The others: see above.
    """
    given = {'rank_direction': rank_direction, 'affinity_scale': affinity_scale}
    check_choices('mto', CHOICES, given | {'spa_reduce': spa_reduce, 'spa_layers': spa_layers})
    _check_numbers(mto_weight, tau, epsilon, spa_weight=spa_weight, e_weight=e_weight, r_weight=r_weight)
    if tau != TAU and affinity_scale != 'cosine':
        raise Refused(f"mto.tau={tau} has no effect unless mto.affinity_scale='cosine'.")
    places = recipe.mixed_places()
    if not places:
        raise Refused(f'mto shapes mask tokens among image tokens, and {recipe.papers[0]} has none.')
    if mto_weight == -1:
        mto_weight = 0.01 if recipe.encoder.mask_tokens else 0.1

    def prepare(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        return jax.nn.standardize(x, variance=x.var(-1, keepdims=True), epsilon=1e-6) if layer_norm else x

    # Each layer's affinities are made again in the backward pass, which keeps its tokens instead (with remat it has them).
    @jax.checkpoint
    def measure(x: jax.Array, plan: MaskPlan) -> jax.Array:
        return heterogeneity(prepare(x), plan.keep, plan.masked, affinity_scale, tau)

    @jax.checkpoint
    def attend(x: jax.Array, plan: MaskPlan) -> jax.Array:
        return sparsity(prepare(x), plan.keep, affinity_scale, tau, spa_reduce, exclude_self)

    def levels(forward: Forward, place: str) -> jax.Array:
        """H of every layer, f32[B,L+1]."""
        tokens, plan = forward.hidden(place, positions=x0_with_pos), forward.plan('main')
        return forward.shared(f'mto/{place}', lambda _: jnp.stack([measure(x, plan) for x in tokens], axis=-1))

    def loss(forward: Forward) -> dict[str, jax.Array]:
        plan, terms = forward.plan('main'), {'sparsity': [], 'distinctiveness': [], 'ranking': []}
        for place in places:
            tokens, h = forward.hidden(place, positions=x0_with_pos), levels(forward, place)
            first = h[:, 0]
            if stop_visible:
                still = jax.lax.stop_gradient(tokens[0])
                first = measure(jnp.where(plan.masked[..., None], tokens[0], still), plan)
            rows = [attend(x, plan) for x in (tokens if spa_layers == 'all' else tokens[:1])]
            terms['sparsity'].append(jnp.stack(rows).mean())
            terms['distinctiveness'].append(distinctiveness(first, epsilon).mean())
            terms['ranking'].append(ranking(h, rank_direction).mean())
        return {name: sum(values) for name, values in terms.items()}

    def watch(forward: Forward) -> Mapping[str, Any]:
        """H of every layer, and the length of mask and visible tokens before positions, whatever the other settings."""
        seen: dict[str, Any] = {}
        for place in places:
            h = levels(forward, place).mean(0)
            seen |= {f'{place}/heterogeneity_{layer:02d}': h[layer] for layer in range(len(h))}
            norms = jnp.linalg.norm(forward.hidden(place)[0].astype(jnp.float32), axis=-1)
            masked = forward.plan('main').masked
            seen[f'{place}/norm_masked'] = norms.mean(where=masked)
            seen[f'{place}/norm_visible'] = norms.mean(where=~masked)
        return seen

    weights = {'sparsity': spa_weight, 'distinctiveness': e_weight, 'ranking': r_weight}
    weights = {name: mto_weight * weight for name, weight in weights.items()}
    return recipe.extend(
        'mto',
        objectives={'mto': Objective(loss, weights)} if mto_weight else {},
        watches={'mto': watch},
        charts={
            f'heterogeneity_{place}': Chart(f'watch/mto/{place}/heterogeneity_', 'heterogeneity H', 'layers')
            for place in places
        },
    )


def _check_numbers(mto_weight: float, tau: float, epsilon: float, **given: float) -> None:
    for name, value in given.items():
        if value < 0:
            raise Refused(f'mto.{name}={value} must not be negative.')
    if mto_weight < 0 and mto_weight != -1:
        raise Refused(
            f'mto.mto_weight={mto_weight} must not be negative, save for -1, which leaves the choice to the place.'
        )
    for name, value in (('tau', tau), ('epsilon', epsilon)):
        if value <= 0:
            raise Refused(f'mto.{name}={value} must be above 0.')
