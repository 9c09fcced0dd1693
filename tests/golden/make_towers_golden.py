"""Writes towers.npz beside this file: python make_towers_golden.py. Needs torch and transformers.

Folders of weights by rule (tower_cases.py) are opened by transformers itself, by the names of the hub. Keys:
<case>/seen/<what> samples of the patches at every choice (pre_ln, ln_post, proj), of 'cls' and of the last 'attention';
<case>/looks f32[B,heads,N]: that attention from CLS to patches, whole.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / 'parity'), str(HERE.parent)]

from conftest import repair_torchvision  # noqa: E402

repair_torchvision()  # before transformers asks for torchvision
import tower_cases as cases  # noqa: E402
import tower_reference as reference  # noqa: E402
from parity_rules import draw_weights, sample_all  # noqa: E402

from mim_jax.interop.formats import find_paths  # noqa: E402
from mim_jax.weights.files import read_weights  # noqa: E402
from mim_jax.weights.layout import to_ours  # noqa: E402

Arrays = dict[str, np.ndarray]


def open_by_rule(case: cases.Case, folder: Path) -> Any:
    """transformers' model of a case, from a folder with weights by rule; names and shapes are those of its own file."""
    reference.build(case).save_pretrained(folder)
    saved = read_weights(folder).arrays
    saved = {
        name.removeprefix('vision_model.'): array for name, array in saved.items() if not name.startswith('pooler')
    }
    layout = cases.LAYOUTS[case.kind]
    shapes = {path: array.shape for path, array in to_ours(saved, layout, find_paths(saved, layout)).items()}
    assert shapes == cases.shapes_of(case)
    return reference.open_folder(case, cases.write_folder(case, folder, draw_weights(shapes)))


def make_golden() -> Arrays:
    """All arrays of the file."""
    stored: Arrays = {}
    for name, case in cases.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            model = open_by_rule(case, Path(folder))
            seen = reference.run(model, case.kind, cases.make_images(case))
        stored |= sample_all(seen, f'{name}/seen/') | {f'{name}/looks': seen['attention'][:, :, 0, 1:]}
    return stored


if __name__ == '__main__':
    path = HERE / 'towers.npz'
    np.savez_compressed(path, **make_golden())
    print(path, f'{path.stat().st_size / 1e3:.0f} kB')
