"""Pictures of what the decoder predicts, with a caption that says which statistics were used to draw them.

Written in NumPy and apart from `mim_jax.tokens` on purpose: a picture that looks right is a check of both.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mim_jax.training.curves import save_picture

GREY = 0.5
GIVEN = (
    'The targets were normalised per patch. Predictions are un-normalised with the true mean and deviation of each '
    'hidden patch{each} of what is predicted, which the model never sees: colours and contrast here are partly given, '
    'not predicted.'
)
CAPTIONS = {
    'patch': GIVEN.format(each=''),
    'channel': GIVEN.format(each=' and channel'),
    'none': 'Predictions are un-normalised with the mean and deviation of the data set only.',
}
EPSILON = {'patch': 1e-6, 'channel': 1e-5}


def cut_patches(images: np.ndarray, patch_size: int) -> np.ndarray:
    """f[B,H,W,C] -> f[B,N,P]: patches row by row, values of a patch ordered (dy, dx, channel)."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return np.einsum('brycxk->brcyxk', grid).reshape(batch, rows * columns, -1)


def join_patches(patches: np.ndarray, patch_size: int, height: int, width: int) -> np.ndarray:
    """f[B,N,P] -> f[B,H,W,C], the inverse of `cut_patches`."""
    rows, columns = height // patch_size, width // patch_size
    grid = patches.reshape(len(patches), rows, columns, patch_size, patch_size, -1)
    return np.einsum('brcyxk->brycxk', grid).reshape(len(patches), height, width, -1)


def reconstruct_images(
    images: np.ndarray,
    predictions: np.ndarray,
    masked: np.ndarray,
    patch_size: int,
    norm_pix: str,
    mean: Sequence[float],
    std: Sequence[float],
    target: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels f[B,H,W,3] in [0,1], predictions f[B,N,P], masked bool[B,N] -> visible, pasted, predicted f[B,H,W,3].

    The first result has grey in place of masked patches, `pasted` has predictions there, `predicted` everywhere.
    Predictions are in the space of the loss: data set normalisation (`mean`, `std` per channel), then, as `norm_pix` says,
    the own mean and deviation of each patch of `target` (f[B,H,W,3] normalised, the images themselves if None): 'patch',
    over all its P values, unbiased variance + 1e-6 (facebookresearch/mae models_mae.py), or 'channel', each channel
    alone, biased variance + 1e-5 (LightDXY/BootMAE). Raises ValueError when shapes disagree.
    """
    images, predictions = np.asarray(images, np.float64), np.asarray(predictions, np.float64)
    masked = np.asarray(masked, bool)
    patches = cut_patches((images - mean) / std, patch_size)
    if predictions.shape != patches.shape or masked.shape != patches.shape[:2]:
        raise ValueError(
            f'predictions {predictions.shape} and masked {masked.shape} do not fit images {images.shape} '
            f'cut into patches {patches.shape}'
        )
    if norm_pix != 'none':
        given = patches if target is None else cut_patches(np.asarray(target, np.float64), patch_size)
        if norm_pix == 'channel':
            given = given.reshape(*given.shape[:2], -1, 3)
        axes = (2,) if norm_pix == 'channel' else (-1,)
        variance = given.var(axis=axes, ddof=int(norm_pix == 'patch'), keepdims=True)
        values = predictions.reshape(given.shape) * np.sqrt(variance + EPSILON[norm_pix])
        predictions = (values + given.mean(axis=axes, keepdims=True)).reshape(patches.shape)
    height, width = images.shape[1:3]
    predicted = np.clip(join_patches(predictions, patch_size, height, width) * std + mean, 0.0, 1.0)
    hidden = join_patches(np.broadcast_to(masked[..., None], patches.shape), patch_size, height, width)
    return np.where(hidden, GREY, images), np.where(hidden, predicted, images), predicted


def reconstruction_grid(
    images: np.ndarray,
    predictions: np.ndarray,
    masked: np.ndarray,
    patch_size: int,
    norm_pix: str,
    mean: Sequence[float],
    std: Sequence[float],
    path: str | Path,
    title: str = 'Reconstructions',
    target: np.ndarray | None = None,
) -> None:
    """Write a PNG of `reconstruct_images`: a row per image; original, masked, reconstruction, full prediction."""
    columns = [images, *reconstruct_images(images, predictions, masked, patch_size, norm_pix, mean, std, target)]
    names = ['original', 'what the model sees', 'hidden patches predicted', 'prediction everywhere']
    count, side = len(images), 1.9
    caption = textwrap.fill(
        f'{CAPTIONS[norm_pix]} With a loss on hidden patches only, the visible part of the last column is untrained.',
        width=110,
    )
    figure = Figure(
        figsize=(4 * side + 0.4, count * side * images.shape[1] / images.shape[2] + 1.5), layout='compressed'
    )
    grid = figure.subplots(count, 4, squeeze=False)
    for row in range(count):
        for column, (name, pictures) in enumerate(zip(names, columns, strict=True)):
            axes = grid[row, column]
            axes.imshow(np.clip(pictures[row], 0.0, 1.0), interpolation='nearest')
            axes.set_axis_off()
            if row == 0:
                axes.set_title(name, fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel(caption, fontsize=7.5)
    save_picture(figure, path)
