"""Frozen teachers from safetensors files, straight into JAX: CLIP, DINO, DINOv2, and a small random one for trials.

`open_teacher` reads a file's header and checks every name and shape; arrays are read by `Teacher.load`. A position table
of another grid is resized as transformers does with interpolate_pos_encoding=True: bicubic, no anti-aliasing, the entry of
CLS as it is. OpenCLIP and DINO's own code differ there (OpenCLIP anti-aliases, DINO adds 0.1 to the grid before it divides).
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import traverse_util

from mim_jax.errors import Refused
from mim_jax.models.towers import FEATURES, Tower
from mim_jax.weights.beside import Settings, read_settings
from mim_jax.weights.describe import Described, describe, parameter_shapes
from mim_jax.weights.encoders import frozen_dtype
from mim_jax.weights.files import DTYPES, WeightsError, digest_file, find_file, tell_kind
from mim_jax.weights.layout import to_ours
from mim_jax.weights.resize import resize_positions
from mim_jax.weights.tower_layouts import CLIP_MEAN, CLIP_STD, FAMILIES, POSITIONS, Family

Grid = tuple[int, int]
Statistics = tuple[float, float, float]
KINDS = (*FAMILIES, 'random')
_published: ContextVar[bool] = ContextVar('published', default=False)


@contextmanager
def sizes_as_published() -> Iterator[None]:
    """While building inside, a teacher of no file has its family's published sizes, and no weights: to plan, not to run."""
    token = _published.set(True)
    try:
        yield
    finally:
        _published.reset(token)


@dataclass(frozen=True)
class Teacher:
    """tower: the module, on the student's grid; load: () -> its parameters; mean, std: of the images that it expects.

    summary: what it is and what was adapted, in a line; path: None for the random one.
    """

    kind: str
    tower: Tower
    load: Callable[[], Any]
    mean: Statistics
    std: Statistics
    summary: str
    path: Path | None = None

    @functools.cached_property
    def sha256(self) -> str:
        """Of the whole file, read when first asked for; '' of the random one, which its seed determines."""
        return '' if self.path is None else digest_file(self.path)

    def width_of(self, feature: str) -> int:
        """Channels of a feature. Refuses one that this tower does not have."""
        if feature not in FEATURES:
            raise Refused(f'{feature!r} is no feature of a teacher; there are {", ".join(FEATURES)}.')
        if feature == 'proj' and not self.tower.projected:
            raise Refused(
                f'The {self.kind} teacher has no projection, so the feature proj does not exist: take ln_post or pre_ln, or '
                f'a CLIP file saved with it ({FAMILIES["clip"].opens}).'
            )
        return self.tower.projected if feature == 'proj' else self.tower.width


def open_teacher(
    kind: str,
    path: str | Path,
    image_size: int,
    patch_size: int,
    dtype: Any = jnp.float32,
    key: str = 'path',
    seed: int = 0,
) -> Teacher:
    """A teacher for a student of this image and patch size: as many patches, whatever its own patch size is.

    kind: one of KINDS; path: a safetensors file, or a folder with model.safetensors and, where transformers saved it,
    config.json and preprocessor_config.json, which are then followed (do_normalize false too); dtype: of the tower's products
    and kernels, the other parameters stay fp32; key: the setting that holds `path`, for messages; seed: of the random one.
    Raises WeightsError.
    """
    grid = (image_size // patch_size,) * 2
    if kind not in KINDS:
        raise Refused(f'{kind!r} is no kind of teacher; there are {", ".join(KINDS)}.')
    if kind == 'random':
        return random_teacher(grid, patch_size, dtype, seed)
    if _published.get() and not str(path):
        return published_teacher(kind, grid, dtype, key)
    file = _find(kind, path, key)
    config, preprocessor = (read_settings(file.with_name(f'{name}config.json')) for name in ('', 'preprocessor_'))
    with _opened(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  not a dict
        header = {name: _describe_slice(file, name, one) for name, one in slices.items()}
    found = describe(header, config, str(file))
    if found.kind != kind:
        raise WeightsError(
            f'{file} holds a {found.kind} tower ({found.layout.name}): ask for that kind, or set {key} to a {kind} file.'
        )
    tower, (mean, std) = found.tower.clone(grid=grid, dtype=dtype), _read_statistics(preprocessor, FAMILIES[kind])

    def load() -> Any:
        with _opened(file) as again:
            arrays = {name: again.get_tensor(theirs) for name, theirs in found.names.items()}
        return _take_params(arrays, found, tower, str(file))

    return Teacher(
        kind=kind,
        tower=tower,
        load=load,
        mean=mean,
        std=std,
        summary=_summarise(found, tower, str(file)),
        path=file,
    )


def published_teacher(kind: str, grid: Grid, dtype: Any, key: str) -> Teacher:
    """The tower of a family's first published model on a student's grid. Its load() raises the WeightsError of no file."""
    family = FAMILIES[kind]
    tower = Tower(
        **family.sizes,
        grid=grid,
        pre_norm=kind == 'clip',
        layer_scale=kind == 'dinov2',
        activation=family.activation,
        epsilon=family.epsilon,
        dtype=dtype,
    )
    summary = f'{kind} teacher of the sizes of {family.repositories[0]}, weights not read'
    return Teacher(kind, tower, lambda: _find(kind, '', key), family.mean, family.std, summary)


def from_state_dict(
    state: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
    dtype: Any = jnp.float32,
) -> tuple[Tower, Any]:
    """(tower, its parameters) of a state dict of transformers, or of the arrays of a file: {name: anything NumPy reads}.

    config: the model's configuration as a dict (what config.json holds); grid: rows and columns wanted, else its own.
    Raises WeightsError listing every array that is missing, unknown or mis-shaped.
    """
    arrays = {name: np.asarray(array) for name, array in state.items()}
    header = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in arrays.items()}
    found = describe(header, Settings('The config', config or {}), 'The state dict')
    tower = found.tower.clone(grid=grid or found.tower.grid, dtype=dtype)
    present = {name: arrays[theirs] for name, theirs in found.names.items()}
    return tower, _take_params(present, found, tower, 'The state dict')


def random_teacher(grid: Grid, patch_size: int, dtype: Any, seed: int) -> Teacher:
    """A small tower of CLIP's form, with a projection, and weights drawn from the seed: for trials without a file."""
    tower = Tower(
        patch_size,
        width=32,
        depth=2,
        heads=2,
        grid=grid,
        pre_norm=True,
        projected=16,
        activation='quick_gelu',
        epsilon=1e-5,
        dtype=dtype,
    )

    def load() -> Any:
        shapes = {path: leaf.shape for path, leaf in parameter_shapes(tower).items()}
        return _nest({path: _draw(path, shape, seed) for path, shape in shapes.items()}, dtype)

    return Teacher('random', tower, load, CLIP_MEAN, CLIP_STD, f'random teacher of seed {seed}')


def _draw(path: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """f32: norms as the identity, biases 0, else normal with deviation (inputs of a kernel, or width)^-1/2."""
    name = path.rpartition('/')[2]
    if name in ('scale', 'bias'):
        return np.full(shape, name == 'scale', np.float32)
    draw = np.random.default_rng([seed, zlib.crc32(path.encode())])
    return (draw.normal(size=shape) * shape[0 if name == 'kernel' else -1] ** -0.5).astype(np.float32)


def _take_params(arrays: Mapping[str, np.ndarray], found: Described, tower: Tower, origin: str) -> Any:
    """The nested parameters of `tower`: renamed, positions on its grid, kernels in its dtype."""
    broken = [found.names[name] for name, array in arrays.items() if not np.isfinite(array.astype(np.float32)).all()]
    if broken:
        raise WeightsError(f'{origin} has values that are NaN or infinite in {", ".join(broken)}; fetch it again.')
    params = to_ours(arrays, found.layout, tuple(parameter_shapes(found.tower)))
    if tower.grid != found.tower.grid:
        table = params[POSITIONS][0].astype(np.float32)
        patches = resize_positions(table[1:], found.tower.grid, tower.grid)
        params[POSITIONS] = np.concatenate([table[:1], patches])[None]
    return _nest(params, tower.dtype)


def _nest(arrays: Mapping[str, np.ndarray], dtype: Any) -> Any:
    """{role path: array} -> nested parameters, each in the dtype of frozen ones."""
    flat = {
        path.removeprefix('encoder/'): np.array(array, frozen_dtype(path, dtype), order='C')
        for path, array in arrays.items()
    }
    return traverse_util.unflatten_dict(flat, sep='/')


def _summarise(found: Described, tower: Tower, origin: str) -> str:
    here, there = (f'{grid[0]} x {grid[1]}' for grid in (tower.grid, found.tower.grid))
    resized = f', positions resized from {there} to {here} patches' if here != there else f', {here} patches'
    side = tower.grid[0] * tower.patch_size
    return (
        f'{found.kind} teacher of {origin}: width {tower.width}, depth {tower.depth}, heads {tower.heads}, patch size '
        f'{tower.patch_size}{resized}, images of {side} x {side}'
    )


def _find(kind: str, path: str | Path, key: str) -> Path:
    """The file, if it is there and safetensors; WeightsError with what to put where, if not."""
    family = FAMILIES[kind]
    remedy = (
        f'Set {key} to model.safetensors of {family.repositories[0]} (or {", ".join(family.repositories[1:])}) from '
        f"huggingface.co, or to the folder with it and its config.json, in the layout of transformers' {family.opens}. Where "
        f'transformers is installed: python -c "from transformers import {family.opens} as M; '
        f"M.from_pretrained('{family.repositories[0]}').save_pretrained('weights/{family.repositories[0].split('/')[1]}')\". "
        'For a trial without a file there is the kind random.'
    )
    if not str(path):
        raise WeightsError(f'A {kind} teacher needs a file of weights. {remedy}')
    try:
        file = find_file(Path(path))
    except WeightsError as error:
        raise WeightsError(f'{error} {remedy}') from error
    if tell_kind(file) != 'safetensors':
        raise WeightsError(f'{file} is a PyTorch file; teachers are read from safetensors alone. {remedy}')
    return file


def _opened(file: Path) -> Any:
    try:
        return safetensors.safe_open(file, 'np')
    except safetensors.SafetensorError as error:
        raise WeightsError(f'{file} is truncated or damaged ({error}); fetch it again.') from error


def _describe_slice(file: Path, name: str, one: Any) -> jax.ShapeDtypeStruct:
    if one.get_dtype() not in DTYPES:
        raise WeightsError(f'{file}: {name} is stored as {one.get_dtype()}; quantised weights are not read.')
    return jax.ShapeDtypeStruct(tuple(one.get_shape()), DTYPES[one.get_dtype()])


def _read_statistics(preprocessor: Settings, family: Family) -> tuple[Statistics, Statistics]:
    """Mean and deviation of the images that a tower expects; 0 and 1, which change nothing, where they are not normalised."""
    mean, std = preprocessor.get('image_mean', family.mean), preprocessor.get('image_std', family.std)
    if not preprocessor.get('do_normalize', True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return tuple(mean), tuple(std)
