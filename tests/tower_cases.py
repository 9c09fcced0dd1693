"""The towers that are compared with transformers: sizes, folders of weights as transformers writes them, and our side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from parity_rules import draw_weights, photographs

from mim_jax.models.towers import FEATURES, Tower
from mim_jax.weights.describe import parameter_shapes
from mim_jax.weights.files import read_weights, write_safetensors
from mim_jax.weights.layout import Layout, to_theirs
from mim_jax.weights.tower_layouts import CLIP, DINO, DINOV2, FAMILIES
from mim_jax.weights.towers import Teacher, open_teacher

Arrays = dict[str, np.ndarray]
LAYOUTS: dict[str, Layout] = {'clip': CLIP, 'dino': DINO[0], 'dinov2': DINOV2[0]}  # names of the hub
MODEL_TYPES = {'clip': 'clip_vision_model', 'dino': 'vit', 'dinov2': 'dinov2'}


@dataclass(frozen=True)
class Case:
    """table: pixels a side for which positions are stored; image_size: of the images, table where it is 0."""

    kind: str
    patch_size: int
    table: int
    image_size: int = 0
    activation: str = ''
    epsilon: float = 0.0
    width: int = 128
    depth: int = 3
    projected: int = 48

    @property
    def side(self) -> int:
        return self.image_size or self.table

    def config(self) -> dict[str, Any]:
        """config.json of transformers' model."""
        family = FAMILIES[self.kind]
        config = {
            'architectures': [family.opens],
            'model_type': MODEL_TYPES[self.kind],
            'image_size': self.table,
            'patch_size': self.patch_size,
            'hidden_size': self.width,
            'num_hidden_layers': self.depth,
            'num_attention_heads': self.width // 64,
            'hidden_act': self.activation or family.activation,
            'layer_norm_eps': self.epsilon or family.epsilon,
        }
        if self.kind == 'clip':
            config['projection_dim'] = self.projected
        return config | ({} if self.kind == 'dinov2' else {'intermediate_size': 4 * self.width})


CASES = {
    'clip': Case('clip', 16, 64),
    'clip_larger': Case('clip', 16, 64, 96),
    'clip_smaller': Case('clip', 16, 64, 48),
    'openclip': Case('clip', 16, 64, activation='gelu'),
    'dino': Case('dino', 16, 64),
    'dino_larger': Case('dino', 8, 32, 48),
    'dino_epsilon': Case('dino', 16, 64, epsilon=1e-2),  # as large as none has it, so that it shows
    'dinov2': Case('dinov2', 14, 56),
    'dinov2_smaller': Case('dinov2', 14, 98, 56),  # published with 37 x 37 positions, used with 16 x 16
}


def write_folder(case: Case, folder: Path, weights: Mapping[str, np.ndarray]) -> Path:
    """model.safetensors and config.json of {role path: array}, as transformers saves a model."""
    state, prefix = to_theirs(weights, LAYOUTS[case.kind]), FAMILIES[case.kind].prefix
    if case.kind == 'clip':  # its model with a projection has the tower under a name
        state = {name if name.startswith('visual_projection') else f'{prefix}{name}': a for name, a in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / 'model.safetensors', state, {'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(case.config()))
    return folder


def write_small(kind: str, folder: Path) -> Path:
    """The folder of a tower of one block of width 64, with weights by rule."""
    case = Case(kind, 16, 64, width=64, depth=1)
    return write_folder(case, folder, draw_weights(shapes_of(case)))


def write_all(root: Path) -> dict[str, Path]:
    """{name of a case: its folder, with weights by rule}."""
    return {name: write_folder(case, root / name, draw_weights(shapes_of(case))) for name, case in CASES.items()}


def write_changed(folder: Path, target: Path, **changes: np.ndarray | None) -> Path:
    """The file of a folder with arrays changed: a new array, or None to leave it out. Returns the new folder."""
    arrays = read_weights(folder).arrays
    for name, array in changes.items():
        arrays.pop(name) if array is None else arrays.update({name: array})
    target.mkdir(exist_ok=True)
    write_safetensors(target / 'model.safetensors', arrays, {})
    (target / 'config.json').write_text((folder / 'config.json').read_text())
    return target


def make_images(case: Case) -> np.ndarray:
    """f32[2,S,S,3] photographs, normalised for the tower."""
    family = FAMILIES[case.kind]
    return normalise(photographs(case.side), family.mean, family.std)


def normalise(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """u8[B,S,S,3] -> f32."""
    return (pixels.astype(np.float32) / np.float32(255.0) - np.float32(mean)) / np.float32(std)


def shapes_of(case: Case) -> dict[str, tuple[int, ...]]:
    """{role path: shape} of our tower, on the grid of its file."""
    tower = Tower(
        case.patch_size,
        case.width,
        case.depth,
        case.width // 64,
        (case.table // case.patch_size,) * 2,
        pre_norm=case.kind == 'clip',
        layer_scale=case.kind == 'dinov2',
        projected=case.projected if case.kind == 'clip' else 0,
    )
    return {path: leaf.shape for path, leaf in parameter_shapes(tower).items()}


def open_case(case: Case, folder: Path, dtype: Any = jnp.float32) -> Teacher:
    """The teacher of a folder, for a student with as many patches."""
    return open_teacher(case.kind, folder, case.side, case.patch_size, dtype)


def run_tower(teacher: Teacher, images: np.ndarray) -> Arrays:
    """Patches at every choice, CLS after the final norm as 'cls', the last block's attention as 'attention'."""
    tower = teacher.tower
    choices = FEATURES if tower.projected else FEATURES[:2]

    @jax.jit
    def run(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        def read(module: Any, images: jax.Array) -> dict[str, jax.Array]:
            levels = module.levels(images)
            found = {choice: module.features(levels, choice) for choice in choices}
            return found | {'cls': module.finish(levels.last).prefix[:, 0], 'attention': levels.attention(-1)}

        return tower.apply({'params': params}, images, method=read)

    return jax.tree.map(np.asarray, run(teacher.load(), images))


def flatten(params: Any) -> Arrays:
    """Nested parameters -> {path: array}."""
    return traverse_util.flatten_dict(params, sep='/')
