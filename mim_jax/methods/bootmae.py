"""BootMAE: bootstrapped masked autoencoders (Dong et al., "Bootstrapped Masked Autoencoders for Vision BERT Pretraining",
ECCV 2022).

A quarter of the patches is encoded. One decoder, which may also look at the first block's output, predicts the pixels of
the masked patches; another, which looks at the last block's, predicts what a momentum copy of the encoder makes of the
whole image. Numerics: LightDXY/BootMAE (models/modeling_pretrain_bootmae.py, run_pretraining.py, utils.py,
masking_generator.py), where we differ in this:

- The order of patches is rolled by a number drawn for each image; theirs is drawn once for the batch of each GPU.
- Sizes of blocks are theirs on 14 x 14 patches and scaled with the number of patches elsewhere, where theirs might never end.
- An epoch is a pass over all images, not over the whole batches in it; the epoch of a step is that of its batch's middle.
- A run has 800 epochs, as in the paper. The released scripts run 801, and count the ramp of the feature loss by them.
- The teacher holds what is read, the encoder without its final norm; theirs copies decoders and fixed positions too.
- Losses are in float32; theirs are computed under autocast.
- With encoder.positions=learned, which the released code lacks, the decoders' positions stay fixed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mim_jax.errors import Refused
from mim_jax.methods.masking import visible_count
from mim_jax.models.cross_decoder import CrossDecoder
from mim_jax.models.neck import Last
from mim_jax.models.vit import ViT
from mim_jax.objectives.bootstrap import depth_weights, normalise_features, weighted_distance
from mim_jax.recipe import EMA, DecoderPart, Masking, Objective, Picture, Recipe, View
from mim_jax.tokens import check_blocks, normalise_channels, patchify, sample_blocks

if TYPE_CHECKING:
    from mim_jax.forward import Forward

RELEASED_PATCHES = 196  # of 14 x 14, for which the sizes of blocks are given


def bootmae(
    config: Any,
    *,
    mask_ratio: float = 0.75,
    block_patches: int = 120,
    smallest_block: int = 16,
    largest_block: int = 60,
    mask_roll: int = 4,
    decoder_width: int = 512,
    decoder_depth: int = 2,
    feature_weight: float = 1.0,
    ema_momentum: float = 0.999,
    ema_dynamic: bool = True,
) -> Recipe:
    """The base recipe. Raises Refused.

    mask_ratio: share of patches hidden, in (0,1); block_patches of these lie in blocks of smallest_block to largest_block,
    the rest is random (patches of 14 x 14; scaled on other grids); mask_roll: see block_scores; decoder_width,
    decoder_depth: of the pixel decoder, and blocks of both; feature_weight: of the feature loss after its ramp;
    ema_momentum: at the start; ema_dynamic: let it pass 0.9999 (ViT-B) or stay there (ViT-L).
    """
    sizes, dtype = config.encoder, jnp.dtype(config.dtype)
    side = config.image_size // sizes.patch_size
    patches = side * side
    visible = visible_count(patches, mask_ratio)
    blocks = _scale_blocks(side, block_patches, smallest_block, largest_block)
    _check(patches, sizes.heads, mask_roll, decoder_width, decoder_depth, feature_weight, ema_momentum)
    encoder = ViT(
        sizes.patch_size,
        sizes.width,
        sizes.depth,
        sizes.heads,
        (side, side),
        positions='sincos_rows',
        learned_positions=sizes.positions == 'learned',
        qkv_bias='qv',
        drop_path=sizes.drop_path,
        scheme='bootmae',
        scan=sizes.scan,
        remat=sizes.remat,
        dtype=dtype,
    )
    shared = {'depth': decoder_depth, 'heads': sizes.heads, 'grid': (side, side), 'remat': sizes.remat, 'dtype': dtype}
    pixel_decoder = CrossDecoder(decoder_width, output=sizes.patch_size**2 * 3, pixel_head=True, **shared)
    feature_decoder = CrossDecoder(sizes.width, output=sizes.width, **shared)
    per_epoch = config.steps_per_epoch
    ramp = feature_ramp(feature_weight, per_epoch, config.steps / per_epoch)
    return Recipe(
        config=config,
        papers=('bootmae',),
        encoder=encoder,
        masking=Masking(block_scores(*blocks, mask_roll), visible),
        views={'main': View(crop='main')},
        neck={'last': Last()},
        decoders={
            'pixels': DecoderPart(pixel_decoder, memory=lambda levels: levels.blocks[0].joined()),
            'features': DecoderPart(feature_decoder, memory=lambda levels: levels.last.joined()),
        },
        objectives={
            'pixels': Objective(predict_pixels, kind='reconstruct'),
            'features': Objective(predict_features, ramp, kind='reconstruct'),
        },
        teachers={'bootmae': EMA(momentum_ramp(ema_momentum, ema_dynamic, per_epoch))},
        pictures={'pixels': Picture('pixels', 'channel')},
        mean=tuple(config.data.mean),
        std=tuple(config.data.std),
    )


# -- masks -------------------------------------------------------------------------------------------------------------
def block_scores(masked: int, smallest: int, largest: int, roll: int) -> Callable[[Forward, str], jax.Array]:
    """(forward, view) -> f32[B,N], places in this order: patches outside the blocks first, inside last, random within each.

    The order is then rolled by 0 to roll - 1, so that up to roll - 1 patches of blocks stay visible. Fewer patches lie
    in blocks than are masked: the last of those outside are masked as well. Source: utils.py (mask_to_index).
    """

    def scores(forward: Forward, view: str) -> jax.Array:
        del view
        rows, columns = forward.recipe.grid
        patches = rows * columns
        sample = jax.vmap(lambda key: sample_blocks(key, rows, columns, masked, smallest, largest))
        inside = sample(forward.keys('mask', 'blocks')).reshape(-1, patches)
        order = jnp.argsort(inside + forward.uniform('mask', (patches,)), axis=1)
        rolls = jax.vmap(lambda key: jax.random.randint(key, (1,), 0, roll))(forward.keys('mask', 'roll'))
        return ((jnp.argsort(order, axis=1) + rolls) % patches).astype(jnp.float32)

    return scores


# -- losses ------------------------------------------------------------------------------------------------------------
def predict_pixels(forward: Forward) -> dict[str, jax.Array]:
    """Weighted squared error of the patches, each channel of a patch normalised by itself."""
    target = normalise_channels(patchify(forward.images('main'), forward.recipe.encoder.patch_size))
    return {'': weighted_distance(forward.prediction('pixels'), target, *_mask_and_weights(forward))}


def predict_features(forward: Forward) -> dict[str, jax.Array]:
    """Weighted squared error of the teacher's last block, on the whole image; both sides under a plain LayerNorm."""
    features = forward.teacher('bootmae').levels('main').last.patches
    prediction, target = map(normalise_features, (forward.prediction('features'), features))
    return {'': weighted_distance(prediction, target, *_mask_and_weights(forward))}


def _mask_and_weights(forward: Forward) -> tuple[jax.Array, jax.Array]:
    masked = forward.plan('main').masked
    return masked, depth_weights(masked.reshape(-1, *forward.recipe.grid)).reshape(masked.shape)


# -- schedules, constant within an epoch -------------------------------------------------------------------------------
def epoch_of(step: Any, steps_per_epoch: float) -> jax.Array:
    """f32[], a whole number from 0: the epoch of the middle of the step's batch, which no rounding can move."""
    return jnp.floor((jnp.asarray(step, jnp.float32) + 0.5) / steps_per_epoch)


def feature_ramp(weight: float, steps_per_epoch: float, epochs: float) -> Callable[[Any], jax.Array]:
    """step -> f32[]: `weight` min(4 (e + 1) / epochs, 1) in epoch e = 0, 1, ...; full after a quarter of the run."""
    return lambda step: weight * jnp.minimum(4.0 * (epoch_of(step, steps_per_epoch) + 1.0) / epochs, 1.0)


def momentum_ramp(start: float, dynamic: bool, steps_per_epoch: float) -> Callable[[Any], jax.Array]:
    """EMA.rate_at: the momentum rises from `start` to 0.9999 over 100 epochs, if dynamic to 0.99999 over 300 more.

    In epochs of the run, whatever its length. Source: utils.py (adjust_ema_momentum).
    """
    epochs, rates = (0.0, 100.0, 400.0), (1.0 - start, 1e-4, 1e-5 if dynamic else 1e-4)
    return lambda step: jnp.interp(epoch_of(step, steps_per_epoch), jnp.array(epochs), jnp.array(rates))


# -- settings ----------------------------------------------------------------------------------------------------------
def _scale_blocks(side: int, *sizes: int) -> tuple[int, int, int]:
    """Patches in blocks, in the smallest and in the largest, on a grid of side x side. Raises Refused."""
    if min(sizes) < 1 or sizes[1] > sizes[2]:
        raise Refused(
            f'bootmae.{{block_patches, smallest_block, largest_block}}={sizes} must be at least 1, and smallest_block at most '
            'largest_block.'
        )
    masked, smallest, largest = (max(1, round(size * side * side / RELEASED_PATCHES)) for size in sizes)
    try:
        check_blocks(side, side, masked, smallest, largest)
    except ValueError as error:
        names = 'block_patches, smallest_block, largest_block'
        raise Refused(
            f'bootmae.{{{names}}}={sizes}, scaled to ({masked}, {smallest}, {largest}) for {side} x {side} patches: {error}.'
        ) from error
    return masked, smallest, largest


def _check(patches: int, heads: int, roll: int, width: int, depth: int, feature_weight: float, momentum: float) -> None:
    if not 1 <= roll <= patches:
        raise Refused(f'bootmae.mask_roll={roll} must be at least 1, which rolls nothing, and at most {patches}.')
    if width % 4 or width < heads:
        raise Refused(
            f'bootmae.decoder_width={width} must be divisible by 4 and at least encoder.heads={heads}, the decoders share.'
        )
    if depth < 1:
        raise Refused(f'bootmae.decoder_depth={depth} must be at least 1 block.')
    if feature_weight <= 0:
        raise Refused(f'bootmae.feature_weight={feature_weight} must be above 0, or a decoder would learn nothing.')
    if not 0 < momentum <= 0.9999:
        raise Refused(f'bootmae.ema_momentum={momentum} must be above 0 and at most 0.9999, to which it rises.')
