"""AdamW, clipping, schedules and decay masks against numpy, by hand."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import tiny_config, tiny_mae

from mim_jax.config.tree import CHOICES
from mim_jax.forward import create_parameters
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.training.optim import DECAY_EXCLUDE, decay_mask, learning_rate, make_optimizer

GOLDEN = Path(__file__).parents[1] / 'golden' / 'mae_parameters.txt'


def cosine_by_hand(step: float, peak: float, minimum: float, warmup: float, total: float) -> float:
    """facebookresearch/mae util/lr_sched.py, with the epoch as a fraction, in steps."""
    if step < warmup:
        return peak * step / warmup
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize(('warmup', 'minimum'), [(40.0, 0.0), (12.34, 1e-5), (0.0, 0.0), (0.5, 0.0)])
def test_warmup_and_cosine(warmup, minimum):
    rate_at = learning_rate('cosine', 2.4e-3, minimum, warmup, 100)
    for step in (0, 1, 7, 12, 13, 39, 40, 41, 63, 99, 100):
        expected = cosine_by_hand(step, 2.4e-3, minimum, warmup, 100)
        np.testing.assert_allclose(rate_at(step), expected, rtol=1e-5, atol=1e-9, err_msg=str(step))
    assert rate_at(0) == (0.0 if warmup else np.float32(2.4e-3))
    np.testing.assert_allclose(rate_at(1000), minimum, atol=1e-9)  # and no second wave


def test_schedule_is_a_function_of_a_traced_step():
    rate_at = learning_rate('cosine', 1e-3, 0.0, 10.5, 100)
    steps = jnp.arange(100)
    traced = jax.jit(jax.vmap(rate_at))(steps)
    np.testing.assert_allclose(
        traced, [cosine_by_hand(s, 1e-3, 0.0, 10.5, 100) for s in range(100)], rtol=1e-4, atol=1e-9
    )
    assert traced.dtype == jnp.float32


def test_late_steps_of_a_long_run_keep_their_digits():
    rate_at = learning_rate('cosine', 1e-3, 0.0, 25_000.5, 1_000_000)
    np.testing.assert_allclose(rate_at(700_001), cosine_by_hand(700_001, 1e-3, 0, 25_000.5, 1_000_000), rtol=1e-5)


def test_constant_is_the_peak_after_the_warmup():
    rate_at = learning_rate('constant', 1e-3, 0.0, 4.0, 10)
    np.testing.assert_allclose([rate_at(s) for s in (0, 2, 4, 9)], [0.0, 5e-4, 1e-3, 1e-3], rtol=1e-6)


def adamw_by_hand(p, grads, rates, decays, config):
    """torch.optim.AdamW: decoupled decay by lr * wd, bias-corrected moments, epsilon outside the root."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(grads, rates, strict=True), 1):
        m = config.b1 * m + (1 - config.b1) * g
        v = config.b2 * v + (1 - config.b2) * g * g
        p = p - rate * config.weight_decay * p * decays
        p = p - rate * (m / (1 - config.b1**t)) / (np.sqrt(v / (1 - config.b2**t)) + config.eps)
    return p


@pytest.mark.parametrize('clip', [0.0, 0.7])
def test_the_optimizer_is_adamw_with_clipping(clip):
    config = tiny_config(optim={'clip_norm': clip, 'weight_decay': 0.3}).optim
    draw = np.random.default_rng(0)
    start = {'encoder': {'fc1': {'kernel': draw.normal(size=(3, 4)), 'bias': draw.normal(size=4)}}}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), start)
    rate_at = learning_rate('cosine', 0.05, 0.0, 2.0, 6)
    optimizer = make_optimizer(config, rate_at)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    history = {'kernel': [], 'bias': []}
    for step in range(5):
        grads = {name: draw.normal(size=p.shape) for name, p in start['encoder']['fc1'].items()}
        norm = math.sqrt(sum((g * g).sum() for g in grads.values()))
        factor = min(1.0, clip / norm) if clip else 1.0
        assert not clip or factor < 1 or step > 0
        for name, g in grads.items():
            history[name].append(g * factor)
        updates, state = update({'encoder': {'fc1': jax.tree.map(jnp.float32, grads)}}, state, params)
        params = optax.apply_updates(params, updates)
    rates = [cosine_by_hand(step, 0.05, 0.0, 2.0, 6) for step in range(5)]
    for name, decays in (('kernel', True), ('bias', False)):
        expected = adamw_by_hand(start['encoder']['fc1'][name], history[name], rates, decays, config)
        np.testing.assert_allclose(params['encoder']['fc1'][name], expected, rtol=1e-5, atol=1e-6)


def test_clipping_is_by_the_norm_of_everything_together():
    config = tiny_config(optim={'clip_norm': 1.0, 'b1': 0.0, 'b2': 0.0, 'eps': 1e6, 'weight_decay': 0.0}).optim
    optimizer = make_optimizer(config, lambda step: 1e6)  # epsilon dominates: the update is minus the clipped gradient
    grads = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[0.0, 4.0]])}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates['a'], [-0.6, 0.0], rtol=1e-5)
    np.testing.assert_allclose(updates['b'], [[0.0, -0.8]], rtol=1e-5)
    small = jax.tree.map(lambda g: g / 10, grads)
    updates, _ = optimizer.update(small, optimizer.init(grads), grads)
    np.testing.assert_allclose(updates['b'], [[0.0, -0.4]], rtol=1e-5)


# -- decay ---------------------------------------------------------------------------------------------------------------


def parameters_of(scan: bool) -> dict:
    recipe = tiny_mae(tiny_config(encoder={'scan': scan}))
    return jax.eval_shape(lambda key: create_parameters(recipe, key)[0], jax.random.key(0))


def decay_table(params: dict) -> dict[str, tuple]:
    """{path: (shape, {preset: decays})}."""
    masks = {name: dict(flatten_with_paths(decay_mask(params, name))) for name in DECAY_EXCLUDE}
    return {
        path: (leaf.shape, {name: mask[path] for name, mask in masks.items()})
        for path, leaf in flatten_with_paths(params)
    }


def read_golden() -> tuple[list[str], dict[str, tuple]]:
    header, *lines = GOLDEN.read_text().splitlines()
    presets = header.split()[2:]
    table = {}
    for line in lines:
        path, shape, *marks = line.split()
        size = tuple(int(n) for n in shape.split('x'))
        table[path] = (size, {name: mark == 'yes' for name, mark in zip(presets, marks, strict=True)})
    return presets, table


def test_parameters_and_their_decay_are_the_golden_list():
    presets, golden = read_golden()
    assert set(presets) == set(DECAY_EXCLUDE)
    assert decay_table(parameters_of(scan=False)) == golden


def test_scanned_blocks_decay_as_the_unrolled_ones():
    golden = read_golden()[1]
    scanned = decay_table(parameters_of(scan=True))
    covered = set()
    for path, (shape, decays) in scanned.items():
        depth = shape[0] if '/blocks/' in path else 1
        assert depth == (2 if '/blocks/' in path and 'encoder' in path else 1)
        for index in range(depth):
            unrolled = path.replace('/blocks/', f'/block_{index:02d}/')
            assert golden[unrolled] == (shape[1:] if '/blocks/' in path else shape, decays), path
            covered.add(unrolled)
    assert covered == set(golden)


def test_presets_follow_their_sources():
    """What the papers' codes do with one parameter of each sort."""
    params = {
        'encoder': {
            'cls_token': jnp.zeros((1, 1, 4)),
            'mask_token': jnp.zeros((1, 1, 4)),
            'block_00': {'norm1': {'scale': jnp.zeros(4)}, 'gamma_1': jnp.zeros(4)},
            'blocks': {
                'norm1': {'scale': jnp.zeros((2, 4))},
                'fc1': {'kernel': jnp.zeros((2, 4, 4)), 'bias': jnp.zeros((2, 4))},
            },
        },
        'neck/last': {'logits': jnp.zeros(6)},
    }
    decayed = {
        name: {path for path, yes in flatten_with_paths(decay_mask(params, name)) if yes} for name in DECAY_EXCLUDE
    }
    kernel, gamma = 'encoder/blocks/fc1/kernel', 'encoder/block_00/gamma_1'
    assert decayed['mae'] == {kernel, 'encoder/cls_token', 'encoder/mask_token'}
    assert decayed['mmpretrain'] == {kernel, gamma, 'neck/last/logits'}
    assert decayed['simmim'] == {kernel, 'encoder/mask_token'}


def test_every_preset_a_config_may_name_exists():
    assert set(CHOICES['optim.decay_exclude']) <= set(DECAY_EXCLUDE)


def beit_table(base, final, total, warmup, start):
    """BEiT's table of learning rates, by its formula: linspace includes the peak, the cosine starts at it again."""
    warm = [start + (base - start) * i / (warmup - 1) for i in range(warmup)]
    rest = [
        final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / (total - warmup))) for i in range(total - warmup)
    ]
    return warm + rest


def test_cosine_beit_is_the_released_table():
    rate = learning_rate('cosine_beit', 2e-3, 1e-4, 5.0, 40, start=1e-6)
    np.testing.assert_allclose([rate(i) for i in range(40)], beit_table(2e-3, 1e-4, 40, 5, 1e-6), rtol=1e-5)


def test_step_schedule_multiplies_at_each_milestone():
    rate = learning_rate('step', 1.0, 0.0, 4.0, 100, start=0.2, milestones=(50.0, 80.0), factor=0.1)
    found = [float(rate(i)) for i in (0, 2, 4, 49, 50, 79, 80, 99)]
    np.testing.assert_allclose(found, [0.2, 0.6, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)
