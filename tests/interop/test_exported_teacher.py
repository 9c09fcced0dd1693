"""A run of ours, exported to transformers' layout, is a DINO teacher: the same features, statistics and heads."""

import jax
import numpy as np
import pytest
import tower_cases as cases
from flax import traverse_util
from parity_rules import photographs
from trained_runs import run_export, save_random_run, settings_of

from mim_jax.command import read_config
from mim_jax.interop.runs import build_recipe
from mim_jax.training.checkpoint import read_arrays
from mim_jax.weights.towers import open_teacher


@pytest.mark.parametrize('positions', ['fixed', 'learned'])
def test_an_exported_run_is_a_teacher(positions, tmp_path, capsys):
    run, folder = tmp_path / 'run', tmp_path / 'hf'
    save_random_run(run, 'mae', encoder__positions=positions)
    run_export(capsys, run, 'hf', folder)
    _, spec, *overrides = settings_of('mae', encoder__positions=positions)
    recipe = build_recipe(read_config(spec, overrides)[0])
    encoder, side = recipe.encoder, recipe.config.image_size
    teacher = open_teacher('dino', folder, side, encoder.patch_size)
    assert (teacher.tower.heads, teacher.tower.epsilon) == (encoder.heads, 1e-6)
    assert encoder.heads != encoder.width // 64
    np.testing.assert_allclose((teacher.mean, teacher.std), (recipe.mean, recipe.std))

    arrays, _, _ = read_arrays(str(run / 'checkpoints'), None, ('params',))
    prefix = 'params/encoder/'
    flat = {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
    images = cases.normalise(photographs(side), recipe.mean, recipe.std)
    own = jax.jit(encoder.apply)({'params': traverse_util.unflatten_dict(flat, sep='/')}, images)
    found = cases.run_tower(teacher, images)
    np.testing.assert_allclose(found['ln_post'], own.patches, atol=1e-5)
    np.testing.assert_allclose(found['cls'], own.prefix[:, 0], atol=1e-5)
