"""MFF: multi-level feature fusion (Liu et al., "Improving Pixel-based MIM by Reducing Wasted Modeling Capability", ICCV 2023).

The decoder reads a fusion of shallow and deep blocks of the encoder in place of the last block alone, so that the last
need not carry low-level detail. Target, loss and everything else stay the base's. Numerics:
open-mmlab/mmpretrain (models/selfsup/mff.py), which is MAE with six layers, linear projections and a softmax of weights.

Where it is silent, or we differ:
- On other bases the fusion takes the place of the last block wherever the latent is read: SimMIM's head, ConMIM's projector
  (of student and teacher, which holds a copy of the fusion), both of BootMAE's decoders. What reads a single block there
  (the decoders' memories, BootMAE's teacher) still does. MCMAE fuses its transformer's blocks and adds its stages as before.
- Attention fusion, nonlinear projections and detach have no released code: they follow equation 5, section 3.3 and appendix
  A.8, with a hidden layer as wide as the token and as many heads as the encoder.
- Depths other than 12: five layers evenly from the first, then the last; see spread_layers.
- Their biases in the encoder's MLP start from a normal distribution of deviation 1e-6, ours at 0; their warm-up starts at
  1e-4 (300 epochs) or 1e-9 (800) of the peak, the configs' at 0; their positions have MAE's halves exchanged
  (interop/pixmim.py).
"""

from __future__ import annotations

import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.models.fusion import Fusion
from mim_jax.models.neck import Last
from mim_jax.recipe import Chart, Recipe

EVENLY = 6  # layers fused in the paper's final setting, the last one included
CHOICES = {'projection': ('none', 'linear', 'nonlinear'), 'fusion': ('pool', 'attention')}


def mff(
    recipe: Recipe,
    *,
    layers: tuple = (),
    projection: str = 'linear',
    fusion: str = 'pool',
    detach: bool = False,
    decay_logits: bool = True,
) -> Recipe:
    """`recipe` with its neck's last block replaced by a fusion of several. Raises Refused.

    layers: blocks from 0, negative ones from the end, rising to the last; (): see spread_layers; ('all',): every one;
    projection: none, linear, nonlinear; fusion: pool, attention; detach: no gradient through the projections into the
    encoder; decay_logits: weight decay pulls the weights of 'pool' towards equality, as the released code has it.
    """
    for name, value in (('projection', projection), ('fusion', fusion)):
        if value not in CHOICES[name]:
            raise Refused(f'mff.{name}={value!r} must be one of {", ".join(CHOICES[name])}.')
    if fusion == 'attention' and not decay_logits:
        raise Refused("mff.decay_logits=False has no effect unless mff.fusion='pool', which alone has logits.")
    chosen = choose_layers(layers, recipe.encoder.depth)
    heads, dtype = recipe.config.encoder.heads, jnp.dtype(recipe.config.dtype)
    reader = Fusion(chosen, projection, fusion, detach, heads, dtype)
    watched = 'watch/neck/last'
    charts = {'fusion_weights': Chart(f'{watched}/weight_', 'weight in the fusion')}
    if fusion == 'pool':
        charts['fusion_shares'] = Chart(f'{watched}/share_', 'share of the fused norm')
    extended = recipe.extend('mff', charts=charts if len(chosen) > 1 else {}, decay={r'neck/last/logits': decay_logits})
    return extended.swap('neck', last=(Last, reader))


def spread_layers(depth: int) -> tuple[int, ...]:
    """Five blocks evenly from the first, and the last: (0,2,4,6,8,11) of 12, the paper's; fewer where there are fewer.

    i * depth // 6 for i = 0..4: (0,4,8,12,16,23) of 24, (0,1,3,5,7,10) of MCMAE's 11.
    """
    return tuple(sorted({*(i * depth // EVENLY for i in range(EVENLY - 1)), depth - 1}))


def choose_layers(layers: tuple, depth: int) -> tuple[int, ...]:
    """The blocks that a setting names, from 0, rising. Raises Refused."""
    if not layers:
        return spread_layers(depth)
    if layers == ('all',):
        return tuple(range(depth))
    if not all(type(layer) is int for layer in layers):
        raise Refused(f"mff.layers={layers} must be blocks by number, such as 0,4,8,11, or 'all'.")
    chosen = tuple(layer + depth if layer < 0 else layer for layer in layers)
    if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] != depth - 1:
        raise Refused(
            f'mff.layers={layers} must rise without repetition and end with the last block, which is {depth - 1} or -1 '
            f'with encoder.depth={depth}.'
        )
    return chosen
