"""Did the weights arrive? Features or logits on real images, ours twice, or ours beside another library's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from mim_jax.data.augment import Crop
from mim_jax.data.images import decode
from mim_jax.data.sources import open_source
from mim_jax.errors import DataError
from mim_jax.interop.classifier import Part, ends_without_norm, explain_unused, find_classifier
from mim_jax.interop.formats import Format, find_timm_format
from mim_jax.interop.hf import hf_config, hf_features
from mim_jax.interop.mae import VITMAES
from mim_jax.interop.timm import timm_outputs
from mim_jax.interop.transfer import MASK_TOKEN, export_arrays
from mim_jax.methods.linear_probe import frozen_encoder
from mim_jax.recipe import Recipe
from mim_jax.weights.files import write_safetensors
from mim_jax.weights.layout import Arrays

SCANS = 2
NOT_COMPARED = 'not compared'


def load_images(recipe: Recipe, path: Path | None = None) -> tuple[np.ndarray, str]:
    """(f32[B,S,S,3], normalised as the recipe wants them; what they are): one file, or the first embedded scans."""
    config = recipe.config
    crop = Crop('center', config.image_size, config.data.interpolation)
    if path is None:
        scans = open_source(ml_collections.ConfigDict({'source': 'digits', 'name': '', 'dir': ''}), 'test')
        images, name = [decode(scans[i].image, scans[i].name) for i in range(SCANS)], f'{SCANS} embedded scans'
    elif not path.is_file():
        raise DataError(f'There is no image {path}; name another with --image, or leave it out for an embedded one.')
    else:
        images, name = [decode(path.read_bytes(), str(path))], str(path)
    # A scan as large as the images is itself, a smaller one is enlarged.
    pixels = np.stack([crop(image, np.random.default_rng(0)) for image in images]).astype(np.float32) / 255
    return ((pixels - np.asarray(recipe.mean)) / np.asarray(recipe.std)).astype(np.float32), name


def network_outputs(recipe: Recipe, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits f32[B,K] where the arrays hold a classifier on the last block, else `encoder_features`."""
    part = find_classifier(recipe)
    if part and any(path.startswith(f'{part.linear}/') for path in arrays):
        return class_logits(recipe, part, arrays, images)
    return encoder_features(recipe, arrays, images)


def class_logits(recipe: Recipe, part: Part, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """f32[B,K]: the classifier on whole images f32[B,S,S,3], from unstacked {path: array}, in fp32."""
    used = {path: array for path, array in arrays.items() if not explain_unused(recipe, path)}
    tokens, head = encoder_features(recipe, used, images), recipe.module(part.role)
    pooled = tokens[:, int(recipe.encoder.cls) :].mean(axis=1) if part.pool == 'mean' else tokens[:, 0]
    with jax.default_matmul_precision('highest'):
        return np.asarray(head.apply({'params': nest_under(arrays, f'{part.role}/')}, pooled))


def encoder_features(recipe: Recipe, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """f32[B,C+N,D]: whole images f32[B,S,S,3] through encoder and final norm, from unstacked {path: array}, in fp32.

    Without the norm where the arrays have none. A mask token may be missing: nothing is masked.
    """
    encoder = frozen_encoder(recipe).clone(dtype=jnp.float32)
    params = nest_under(arrays, 'encoder/')

    def run(params: Any, images: jax.Array) -> jax.Array:
        def encode(module: Any, x: jax.Array) -> jax.Array:
            last = module.levels(x, None).last
            return (module.finish(last) if 'norm' in params else last).joined()

        return encoder.apply({'params': params}, images, method=encode)

    with jax.default_matmul_precision('highest'):
        return np.asarray(jax.jit(run)(params, images))


def nest_under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The parameters of one role from {path: array}."""
    own = {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
    return traverse_util.unflatten_dict(own, sep='/')


def describe_difference(found: np.ndarray, expected: np.ndarray) -> str:
    """'features differ by at most 1.2e-06 (largest 3.4)'; 'logits' for f[B,K]."""
    what = 'features' if expected.ndim == 3 else 'logits'
    return f'{what} differ by at most {np.abs(found - expected).max():.1e} (largest {np.abs(expected).max():.2g})'


def library_difference(run: Callable[[], tuple[str, np.ndarray]], expected: np.ndarray, library: str) -> str:
    """A line on the library's own outputs; or that it cannot be imported here, and why."""
    try:
        version, found = run()
    except ImportError as error:
        return f'{NOT_COMPARED} with {library} ({error})'
    return f'{version}: {describe_difference(found, expected)}'


def compare_exported(recipe: Recipe, library: str, path: Path, images: np.ndarray, expected: np.ndarray) -> str:
    """An exported file or folder, opened by the library it is for."""
    run = {'timm': lambda: timm_outputs(recipe, path, images), 'hf': lambda: hf_features(path, images)}[library]
    return library_difference(run, expected, library)


def compare_imported(
    recipe: Recipe,
    form: Format,
    state: Mapping[str, np.ndarray],
    arrays: Arrays,
    images: np.ndarray,
) -> str | None:
    """A file's own arrays, given to transformers or timm where that has this network under these names; None elsewhere.

    Many released encoders are timm's, but for an 'encoder.' before their names.
    """
    library = 'hf' if form.name == 'hf' else 'timm'
    if library == 'hf' and (ends_without_norm(recipe) or (form.layout in VITMAES and not recipe.decoders)):
        return None
    target = form if library == 'hf' else find_timm_format(recipe, arrays)
    if target is None:
        return None
    own = {path: array for path, array in arrays.items() if path != MASK_TOKEN}
    taken = {
        path: array
        for path, array in own.items()
        if library == 'hf' or path.startswith('encoder/') or target.layout.covers(path)
    }
    expected = network_outputs(recipe, taken, images)
    named = {name.removeprefix('encoder.'): array for name, array in state.items()} if library == 'timm' else state
    needed = export_arrays(taken, target, recipe)[0].keys()
    if not needed <= named.keys():
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'model.safetensors'
        write_safetensors(path, {name: named[name] for name in needed}, {'format': 'pt'})
        if library == 'timm':
            return compare_exported(recipe, library, path, images, expected)
        config = hf_config(recipe, full=form.layout in VITMAES)
        (path.parent / 'config.json').write_text(json.dumps(config))
        return compare_exported(recipe, library, path.parent, images, expected)
