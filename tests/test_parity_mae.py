"""MAE against transformers' ViTMAE (goldens of golden/make_mae_golden.py) and against its equations in plain Python."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from layouts import rename_all
from mae_cases import GOLDEN, MEAN, STD, STEPS, check
from mae_ours import run_ours

from mim_jax.interop.mae import VITMAE
from mim_jax.objectives.pixels import masked_distance
from mim_jax.tokens import normalise_patches, patchify, sincos_positions
from mim_jax.weights.layout import to_theirs


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest) -> tuple[str, Mapping[str, np.ndarray]]:
    """A case's name and its file."""
    with np.load(Path(__file__).parent / 'golden' / f'{request.param}.npz') as arrays:
        return request.param, dict(arrays)


def under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The entries below a prefix, in fp32, without it."""
    return {name.removeprefix(prefix): a.astype(np.float32) for name, a in arrays.items() if name.startswith(prefix)}


def read_reference(stored: Mapping[str, np.ndarray], setting: str) -> dict[str, Any]:
    """A golden in the form vitmae_reference.run_reference has, with our names."""
    weights = under(stored, 'weights/')
    moved = {steps: under(stored, f'{setting}/moved_{steps}/') for steps in STEPS}
    return {
        **{name: stored[name] for name in ('masked', 'restore', 'shown', 'prediction')},
        'positions': [stored[f'positions/{name}'] for name in VITMAE.constants],
        'loss': stored[f'{setting}/loss'],
        'gradients': rename_all(under(stored, f'{setting}/gradients/'), VITMAE),
        'after': {
            steps: rename_all({name: weights[name] + change for name, change in moves.items()}, VITMAE)
            for steps, moves in moved.items()
            if moves
        },
    }


@pytest.mark.parametrize('setting', ['norm', 'plain'])
def test_agrees_with_transformers(golden, setting):
    name, stored = golden
    weights = rename_all(under(stored, 'weights/'), VITMAE)
    reference = read_reference(stored, setting)
    steps = max(reference['after'], default=0)
    ours = run_ours(GOLDEN[name], setting == 'norm', stored['images'], stored['noise'], weights, steps)
    check(ours, reference)


def test_weights_travel_both_ways(golden):
    _, stored = golden
    state = under(stored, 'weights/')
    back = to_theirs(rename_all(state, VITMAE), VITMAE)
    assert back.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


# -- the equations, value by value -------------------------------------------------------------------------------------


def transcribe_loss(images, prediction, masked, patch, normalise):
    """Mean over masked patches of (1/P) sum_j (prediction_j - target_j)^2, the P values in (dy, dx, channel) order.

    target = (t - mean t) / sqrt(sum (t - mean t)^2 / (P - 1) + 1e-6) with norm_pix_loss, else t. In float64.
    """
    b, side, _, channels = images.shape
    columns, losses = side // patch, []
    for image in range(b):
        for index in range(columns * columns):
            if not masked[image, index]:
                continue
            row, column = divmod(index, columns)
            target = []
            for dy in range(patch):
                for dx in range(patch):
                    for channel in range(channels):
                        value = images[image, row * patch + dy, column * patch + dx, channel] / 255.0
                        target.append((value - MEAN[channel]) / STD[channel])
            if normalise:
                mean = sum(target) / len(target)
                variance = sum((value - mean) ** 2 for value in target) / (len(target) - 1)
                target = [(value - mean) / (variance + 1e-6) ** 0.5 for value in target]
            errors = [(float(p) - t) ** 2 for p, t in zip(prediction[image, index], target, strict=True)]
            losses.append(sum(errors) / len(errors))
    return sum(losses) / len(losses)


@pytest.mark.parametrize('normalise', [True, False])
def test_loss_follows_the_equations(normalise):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    images[0, :4, 4:8] = (124, 116, 104)  # hardly any contrast: the 1e-6 counts
    masked = rng.uniform(size=(2, 9)) < 0.75
    masked[0, 1] = True
    prediction = rng.normal(size=(2, 9, 48)).astype(np.float32)
    patches = patchify((jnp.asarray(images, jnp.float32) / 255.0 - jnp.array(MEAN)) / jnp.array(STD), 4)
    target = normalise_patches(patches) if normalise else patches
    ours = masked_distance(jnp.asarray(prediction), target, jnp.asarray(masked))
    np.testing.assert_allclose(ours, transcribe_loss(images, prediction, masked, 4, normalise), rtol=1e-5)


@pytest.mark.parametrize('row_first', [False, True])
def test_positions_follow_the_equations(row_first):
    rows, columns, width = 3, 5, 16
    table = sincos_positions(rows, columns, width, row_first)
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (row, column) if row_first else (column, row):
                angles = [place / 10000 ** (k / (width // 4)) for k in range(width // 4)]
                expected += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
            np.testing.assert_allclose(table[columns * row + column], expected, rtol=0, atol=1e-7)
