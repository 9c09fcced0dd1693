"""Tokens, masks and positions: the vocabulary every other room speaks.

Shapes legend, used in every docstring of the project:
  B images in the (micro-)batch    H, W image height and width in pixels    C prefix tokens (CLS: 0 or 1)
  N patches of an image, row-major: index = columns * row + column          P values of a patch = patch_size^2 * 3
  V visible patches, M masked patches, V + M = N, both static               D width of a token
True in a mask means masked (hidden from the encoder).
"""

from mim_jax.tokens.blocks import check_blocks, sample_blocks
from mim_jax.tokens.masking import MaskPlan, plan_from_scores
from mim_jax.tokens.patches import normalise_channels, normalise_patches, patch_statistics, patchify, unpatchify
from mim_jax.tokens.positions import relative_index, sincos_positions
from mim_jax.tokens.sequence import Tokens, gather_tokens

__all__ = [
    'MaskPlan',
    'Tokens',
    'check_blocks',
    'gather_tokens',
    'normalise_channels',
    'normalise_patches',
    'patch_statistics',
    'patchify',
    'plan_from_scores',
    'relative_index',
    'sample_blocks',
    'sincos_positions',
    'unpatchify',
]
