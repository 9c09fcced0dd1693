"""Every file of configs/: the whole recipe at full size, and real steps on one and on eight devices."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_runs import QUICK, leaves

from mim_jax.config import check_config, load_config
from mim_jax.forward import create_parameters
from mim_jax.methods import BASES, PAPERS, build
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.training.assemble import assemble, make_loader, make_program

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
METHODS = {**BASES, **PAPERS}
IMAGENET = 1_281_167
ON_MCMAE = ('mcmae', 'mr_mae')

# Millions of parameters of the encoder, by the papers' tables: a ViT has 85.8 and 303.3 without its 1000-way head and
# positions; SimMIM and ConMIM add the bias table, a mask token and LayerScale and lack the bias of keys.
ENCODERS = {'vit_b16': 85.65, 'vit_l16': 303.1, 'cvit_b16': 84.0, 'cvit_l16': 309.0}


def size_of(tree):
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(tree))


def test_every_base_has_a_config():
    assert set(BASES) <= set(NAMES)


@pytest.mark.parametrize('size', ['b', pytest.param('l', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', NAMES)
def test_builds_at_full_size(name, size):
    """Parameters of the encoder, of the teacher beside it, and that every parameter has a loss to learn from."""
    variant = f'{"cvit" if name in ON_MCMAE else "vit"}_{size}16'
    trial = ['--config.mr_mae.teachers=random'] if name == 'mr_mae' else []  # its files are not here
    config, _ = load_config(f'{ROOT / "configs" / name}.py:{variant}', trial, METHODS)
    check_config(config, METHODS)
    recipe = build(config, IMAGENET, 1000)
    params, _, teachers = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    encoder = size_of(params['encoder'])
    print(name, variant, {role: f'{size_of(tree) / 1e6:.2f} M' for role, tree in params.items()})
    np.testing.assert_allclose(encoder / 1e6, ENCODERS[variant], rtol=0.01)
    for held in teachers.values():
        assert 0.99 * encoder < size_of(held['params']) <= size_of(params)
    assert recipe.config.steps == round(config.epochs * IMAGENET / config.batch_size)


# MCMAE's encoder is MR-MAE's in configs/mr_mae.py, which stays; BootMAE takes the longest
SLOW = ('bootmae', 'mcmae')


@pytest.mark.parametrize('name', [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NAMES])
def test_two_smoke_steps_on_one_and_on_eight_devices(name):
    """Same batches, same masks, same losses; every parameter that should learn has moved."""
    config, _ = load_config(f'{ROOT / "configs" / name}.py:smoke', ['--config.optim.warmup_epochs=0'], METHODS)
    check_config(config, METHODS)
    recipe, source = assemble(config)
    losses, moved = {}, {}
    for data, fsdp in ((1, 1), (2, 4)):
        mesh = make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
        program = make_program(recipe, mesh)
        state, before, seen = program.init(), None, []
        before = leaves(state.params)
        step = None
        batches = make_loader(recipe, source, mesh).batches(0, 2)
        for local in batches:
            batch = to_global(mesh, {name: local[name] for name in recipe.inputs})
            step = step or program.step.lower(state, program.frozen, batch).compile(compiler_options=QUICK)
            state, logs = step(state, program.frozen, batch)
            seen.append({key: float(value) for key, value in logs.items() if key.startswith('loss/')})
        losses[data * fsdp], after = seen, leaves(state.params)
        moved[data * fsdp] = {path for path in after if (after[path] != before[path]).any()}
    assert moved[1] == moved[8] == set(before)
    for one, eight in zip(losses[1], losses[8], strict=True):
        for key, value in one.items():
            np.testing.assert_allclose(eight[key], value, rtol=2e-5, err_msg=key)
    assert losses[1][0] != losses[1][1]
