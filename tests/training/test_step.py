"""The one step on one, two and eight devices, data and FSDP, with and without accumulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import PATCHES, STEPS, VISIBLE, leaves, random_batch, start, tiny_config, tiny_mae

from mim_jax.parallel.hosts import to_global
from mim_jax.training.step import make_train_step

BATCH = 16


def watched_mae():
    """MAE that also logs its masks, as f32[16 images, 16 patches]: a mean over micro-batches of rows put in place."""

    def masks(forward):
        whole = jnp.zeros((BATCH, PATCHES))
        return whole.at[forward.around.rows].set(forward.plan().masked.astype(jnp.float32))

    return tiny_mae(tiny_config(optim={'clip_norm': 1.0})).extend('watching', watches={'masks': masks})


@pytest.fixture(scope='module')
def recipe():
    return watched_mae()


@pytest.fixture(scope='module')
def batches(recipe):
    """Each of four batches comes five times, so that steps differ by more than their images."""
    return [random_batch(recipe, seed % 4) for seed in range(STEPS)]


@pytest.fixture(scope='module')
def runs(recipe):
    """(data, fsdp, accumulate, model) -> Run; every one is compiled once, and the state is created once."""

    @functools.cache
    def run(data, fsdp, accumulate, model=1):
        first = None if (data, fsdp, accumulate, model) == (1, 1, 1, 1) else run(1, 1, 1).first
        return start(recipe, data, fsdp, accumulate, first, model=model)

    return run


@pytest.fixture(scope='module')
def train(runs, batches):
    """(data, fsdp, accumulate, model) -> last state, losses f[20], masks bool[20,16,16], logs."""

    @functools.cache
    def train(data, fsdp, accumulate, model=1):
        state, logs = runs(data, fsdp, accumulate, model).train(batches)
        masks = np.stack([log['watch/masks'] for log in logs]) * accumulate
        assert np.isin(masks, [0, 1]).all()
        return state, np.array([log['loss/total'] for log in logs]), masks == 1, logs

    return train


@pytest.mark.parametrize(('data', 'fsdp', 'model'), [(2, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_devices_change_neither_masks_nor_losses(train, data, fsdp, model):
    _, losses, masks, _ = train(1, 1, 1)
    _, others, other_masks, _ = train(data, fsdp, 1, model)
    np.testing.assert_array_equal(other_masks, masks)
    np.testing.assert_allclose(others, losses, rtol=1e-5)


@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulation_changes_neither_masks_nor_losses(train, accumulate):
    _, losses, masks, logs = train(1, 1, 1)
    _, others, other_masks, other_logs = train(1, 1, accumulate)
    np.testing.assert_array_equal(other_masks, masks)
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    norms, other_norms = ([float(log['grad_norm']) for log in run] for run in (logs, other_logs))
    np.testing.assert_allclose(other_norms, norms, rtol=1e-4)


def test_the_loss_falls_and_everything_is_counted(train):
    state, losses, _, logs = train(1, 1, 1)
    assert losses[-4:].mean() < 0.9 * losses[:4].mean()
    assert int(state.step) == STEPS
    assert {'loss/total', 'loss/pixels', 'grad_norm', 'lr', 'watch/masks'} == set(logs[0])
    np.testing.assert_allclose([log['lr'] for log in logs[:3]], [0.0, 5e-4, 1e-3], rtol=1e-6)


def test_the_first_step_of_a_warmup_moves_nothing_but_the_moments(runs, batches):
    before = leaves(runs(1, 1, 1).first.params)
    state, _ = runs(1, 1, 1).train(batches[:1])
    after, moments = leaves(state.params), leaves(state.opt_state)
    for path, array in before.items():
        np.testing.assert_array_equal(after[path], array, err_msg=path)
    assert any(array.any() for array in moments.values())


def test_masks_are_exact_and_differ_between_images_steps_and_epochs(train):
    masks = train(1, 1, 1)[2]
    np.testing.assert_array_equal(masks.sum(-1), PATCHES - VISIBLE)
    assert len({row.tobytes() for row in masks.reshape(-1, PATCHES)}) > 0.85 * masks.shape[0] * BATCH
    for epoch in (4, 8):  # the same images come again after four steps
        assert (masks[epoch] != masks[0]).any(axis=-1).mean() > 0.9


def test_parameters_moments_and_batch_are_really_split(train):
    state = train(2, 4, 1)[0]
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
        for name, shape in (('qkv', (4, 48)), ('out', (16, 4))):
            kernel = tree['encoder']['block_00']['attn'][name]['kernel']
            assert {shard.data.shape for shard in kernel.addressable_shards} == {shape}
            assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
            per_device = {shard.device: shard.data.nbytes for shard in kernel.addressable_shards}
            assert set(per_device.values()) == {kernel.nbytes // 4}
            assert len(per_device) == 8
    copied = train(8, 1, 1)[0].params['encoder']['block_00']['attn']['qkv']['kernel']
    assert {shard.data.nbytes for shard in copied.addressable_shards} == {copied.nbytes}


def test_heads_and_hidden_units_are_really_shared(train):
    state = train(2, 2, 1, 2)[0]
    for tree in (state.params, state.opt_state[1].mu, state.opt_state[1].nu):
        block = tree['encoder']['block_00']
        for kernel, shape in (
            (block['attn']['qkv']['kernel'], (4, 48)),
            (block['attn']['out']['kernel'], (8, 8)),
            (block['mlp']['fc1']['kernel'], (8, 32)),
            (block['mlp']['fc2']['kernel'], (32, 8)),
        ):
            assert {shard.data.shape for shard in kernel.addressable_shards} == {shape}
            assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
        assert {shard.data.shape for shard in block['mlp']['fc1']['bias'].addressable_shards} == {(32,)}


def test_fsdp_saves_the_memory_it_promises(train):
    def bytes_of_a_device(state):
        device = jax.devices()[0]
        arrays = jax.tree.leaves((state.params, state.opt_state))
        return sum(s.data.nbytes for a in arrays for s in a.addressable_shards if s.device == device)

    copied = bytes_of_a_device(train(8, 1, 1)[0])
    assert bytes_of_a_device(train(2, 4, 1)[0]) < 0.55 * copied  # the rest is biases and norms
    assert bytes_of_a_device(train(2, 2, 1, 2)[0]) < 0.55 * copied


def test_the_state_is_donated(runs, batches):
    given = runs(1, 1, 1).fresh_state()
    kernel, count = given.params['encoder']['patch_embed']['kernel'], given.step
    state, _ = runs(1, 1, 1).step(given, {}, to_global(runs(1, 1, 1).mesh, batches[0]))
    assert kernel.is_deleted()
    assert count.is_deleted()
    assert not state.params['encoder']['patch_embed']['kernel'].is_deleted()


def test_the_logged_norm_is_the_unclipped_one_and_clipping_acts(train):
    """The first moment after one step is (1 - b1) times the clipped gradient, whose norm is at most clip_norm = 1."""
    state, _, _, logs = train(1, 1, 1)
    assert max(float(log['grad_norm']) for log in logs) > 1.0
    norm = float(optax.global_norm(state.opt_state[1].mu))
    assert 0 < norm <= 1.0 + 1e-5


def test_crops_nobody_asked_for_are_left_out(recipe, runs, batches):
    step = make_train_step(recipe, optax.sgd(0.1), lambda step: 0.1)
    first = runs(1, 1, 1).first.replace(opt_state=optax.sgd(0.1).init(runs(1, 1, 1).first.params))
    other = {**batches[0], 'other': np.zeros((3, 2), np.uint8)}
    _, logs = jax.eval_shape(step, first, {}, other)
    assert logs['watch/masks'].shape == (BATCH, PATCHES)
