"""Tensor parallelism: a group of devices that share every block gives the losses, masks and parameters of one device.

Every kind of part: encoders with and without mask tokens and relative positions, blocks unrolled and scanned, convolution
stages, a cross decoder, attention in the neck, BatchNorm heads with a moving teacher, a frozen tower.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import leaves, random_batch, start, tiny_config

from mim_jax.errors import ConfigError
from mim_jax.methods import BASES, PAPERS
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import shardings
from mim_jax.teachers import load_frozen
from mim_jax.training import optim
from mim_jax.training.state import abstract_state

BATCH, HEADS, STEPS = 16, 4, 5
DECODER = {'decoder_width': 16, 'decoder_depth': 1, 'decoder_heads': HEADS}
OPTIONS = {
    'mae': DECODER,
    'mcmae': DECODER | {'stage_widths': (16, 24), 'stage_depths': (1, 1)},
    'bootmae': {'decoder_width': 48},  # 12 heads
    'simmim': {},
    'mff': {'fusion': 'attention', 'layers': (0, 1)},
    'lut': {'head_width': 64},
    'mr_mae': {'teachers': ('random',)},
}


def stack(names, encoder=()):
    """A base and papers, tiny, that also log the masks of the whole batch: f32[16 images, patches]."""
    base, *papers = names.split('+')
    config = tiny_config({'width': 32, 'heads': HEADS, **dict(encoder)}, {'clip_norm': 1.0})
    recipe = BASES[base](config, **OPTIONS[base])
    for paper in papers:
        recipe = PAPERS[paper](recipe, **OPTIONS[paper])

    def masks(forward):
        masked = forward.plan().masked.astype(jnp.float32)
        return jnp.zeros((BATCH, masked.shape[1])).at[forward.around.rows].set(masked)

    return recipe.extend('watching', watches={'masks': masks})


def train(recipe, sizes, accumulate, first=None):
    """The run, its last state, losses {name: f[steps]} and masks bool[steps,16,patches]; a few steps at 1e-3."""
    data, fsdp, model = sizes
    mesh = make_mesh(*sizes, devices=jax.devices()[: data * fsdp * model])
    frozen = load_frozen(recipe)
    frozen = jax.device_put(frozen, shardings(frozen, mesh, whole=False))
    run = start(recipe, data, fsdp, accumulate, first, frozen, 'constant', model=model)
    last, logs = run.train([random_batch(recipe, seed) for seed in range(STEPS)], frozen)
    losses = {key: np.array([log[key] for log in logs]) for key in logs[0] if key.startswith('loss/')}
    return run, last, losses, np.stack([log['watch/masks'] for log in logs]) * accumulate == 1


@functools.cache
def on_one_device(names, encoder, accumulate):
    return train(stack(names, encoder), (1, 1, 1), accumulate)


def bytes_of_a_device(tree):
    device = jax.devices()[0]
    return sum(s.data.nbytes for a in jax.tree.leaves(tree) for s in a.addressable_shards if s.device == device)


SCAN = (('scan', True),)
CASES = [
    *(('mae', (), sizes, 1) for sizes in ((2, 2, 2), (1, 1, 2), (1, 2, 4))),
    *(('mae', SCAN, sizes, 2) for sizes in ((2, 2, 2), (1, 2, 4))),
    ('mae', (('scan', True), ('remat', 'dots')), (2, 1, 2), 1),
    *(('simmim', (), sizes, 2) for sizes in ((2, 2, 2), (1, 1, 2))),
    ('mcmae', (), (2, 2, 2), 1),
    ('bootmae', (), (1, 2, 4), 1),
    ('mae+mff', (), (2, 2, 2), 1),
    ('mae+lut', (), (2, 2, 2), 1),
    ('mae+lut', (), (1, 2, 4), 1),
    ('mae+mr_mae', (), (2, 2, 2), 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(('names', 'encoder', 'sizes', 'accumulate'), CASES)
def test_sharing_blocks_changes_neither_masks_nor_losses(names, encoder, sizes, accumulate):
    one, last, losses, masks = on_one_device(names, encoder, accumulate)
    _, other, other_losses, other_masks = train(stack(names, encoder), sizes, accumulate, one.first)
    np.testing.assert_array_equal(other_masks, masks)
    assert losses.keys() == other_losses.keys()
    worst = {key: float(np.abs(other_losses[key] / losses[key] - 1).max()) for key in losses}
    print('', names, dict(encoder), sizes, accumulate, {key: f'{value:.1e}' for key, value in worst.items()})
    for key, values in losses.items():
        np.testing.assert_allclose(other_losses[key], values, rtol=1e-5, err_msg=key)
    for part in ('batch_stats', 'teachers'):
        ours, expected = (leaves(getattr(state, part)) for state in (other, last))
        for path, array in expected.items():
            np.testing.assert_allclose(ours[path], array, rtol=1e-4, atol=1e-5, err_msg=path)
    shared = (other.params['encoder'], other.opt_state, other.teachers)
    whole = (last.params['encoder'], last.opt_state, last.teachers)
    assert bytes_of_a_device(shared) < (0.75 if 'mcmae' in names or 'lut' in names else 0.65) * bytes_of_a_device(whole)


@pytest.mark.parametrize(
    ('names', 'model', 'message'),
    [
        ('mae', 8, r'mesh.model=8 must divide .* decoder/pixels 4, encoder 4; it can be 1, 2, 4.$'),
        ('mae+mr_mae', 8, r'decoder/pixels 4, encoder 4, teacher mimic_random 2; it can be 1, 2.$'),
        ('mae+mff', 8, r'neck/last 4; it can be 1, 2, 4.$'),
    ],
)
def test_heads_that_cannot_be_shared_are_named(names, model, message):
    recipe = stack(names)
    with pytest.raises(ConfigError, match=message):
        abstract_state(recipe, optim.make_optimizer(recipe.config.optim, lambda step: 1e-3), make_mesh(model=model))
