"""LARS, layer-wise learning rates and the ends of their curves against transcriptions of the definitions in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_runs import tiny_config

from mim_jax.methods.finetune import layer_rates
from mim_jax.training.assemble import make_schedule
from mim_jax.training.optim import learning_rate, make_optimizer

STEPS = 10
RATE = learning_rate('cosine', 6.4, 0.0, 3.0, STEPS)  # another learning rate at each step


def lars_config(weight_decay=0.0, momentum=0.9):
    return tiny_config(optim={'name': 'lars', 'b1': momentum, 'weight_decay': weight_decay}).optim


def lars_by_hand(p, gradients, rates, momentum=0.9, decay=0.0):
    """MoCo v3's LARS, in double precision. Decay and trust ratio: two dimensions only."""
    m = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        if p.ndim > 1:
            g = g + decay * p
            sizes = np.linalg.norm(p), np.linalg.norm(g)
            g = g * (0.001 * sizes[0] / sizes[1] if min(sizes) > 0 else 1.0)
        m = momentum * m + g
        p = p - rate * m
    return p


def run(optimizer, params, gradients):
    """The parameters, in float64, after an update for each tree of gradients."""
    now = jax.tree.map(jnp.float32, params)
    state, update = optimizer.init(now), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(jax.tree.map(jnp.float32, gradient), state, now)
        now = optax.apply_updates(now, updates)
    return jax.tree.map(np.float64, now)


def draw_head(seed=0):
    """A linear layer and ten gradients of it."""
    draw = np.random.default_rng(seed)
    params = {'head': {'kernel': draw.normal(size=(6, 5)), 'bias': draw.normal(size=5)}}
    return params, [jax.tree.map(lambda p: draw.normal(size=p.shape), params) for _ in range(STEPS)]


@pytest.mark.parametrize(('decay', 'momentum'), [(0.0, 0.9), (0.3, 0.9), (0.3, 0.0)])
def test_ten_steps_are_those_of_the_definition(decay, momentum):
    params, gradients = draw_head()
    found = run(make_optimizer(lars_config(decay, momentum), RATE), params, gradients)
    rates = [float(RATE(step)) for step in range(STEPS)]
    assert len(set(rates)) == STEPS
    for name, p in params['head'].items():
        expected = lars_by_hand(p, [g['head'][name] for g in gradients], rates, momentum, decay)
        np.testing.assert_allclose(found['head'][name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_optax_lars_is_another_optimizer_once_the_rate_changes():
    """There the learning rate enters the momentum; with a constant one both are the same."""
    params, gradients = draw_head()
    params, gradients = params['head']['kernel'], [g['head']['kernel'] for g in gradients]

    def distance(rate_at):
        other = run(optax.lars(rate_at, momentum=0.9), params, gradients)
        return np.abs(run(make_optimizer(lars_config(), rate_at), params, gradients) - other).max()

    assert distance(lambda step: 2.0) < 1e-6
    assert distance(RATE) > 1e-2


@pytest.mark.parametrize('zero', ['parameter', 'gradient'])
def test_without_a_norm_nothing_is_scaled(zero):
    p, g = np.full((2, 3), 0.5), np.full((2, 3), 0.25)
    p, g = (0 * p, g) if zero == 'parameter' else (p, 0 * g)
    found = run(make_optimizer(lars_config(), lambda step: 0.1), p, [g])
    np.testing.assert_allclose(found, p - 0.1 * g, rtol=1e-6)


def test_one_dimension_takes_the_plain_gradient_and_no_decay():
    found = run(make_optimizer(lars_config(weight_decay=0.5), lambda step: 0.1), np.full(4, 2.0), [np.full(4, 1.0)] * 2)
    np.testing.assert_allclose(found, 2.0 - 0.1 * 1.0 - 0.1 * 1.9, rtol=1e-6)


def stack(blocks):
    return {'blocks': jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def test_a_stack_is_scaled_block_by_block():
    draw = np.random.default_rng(1)
    blocks = [{'kernel': size * draw.normal(size=(4, 3)), 'bias': draw.normal(size=3)} for size in (0.1, 1.0, 10.0)]
    gradients = [[jax.tree.map(lambda p: draw.normal(size=p.shape), block) for block in blocks] for _ in range(STEPS)]
    optimizer = make_optimizer(lars_config(weight_decay=0.1), RATE)
    apart = {f'block_{i:02d}': block for i, block in enumerate(blocks)}
    steps = [{f'block_{i:02d}': g for i, g in enumerate(one)} for one in gradients]
    found = run(optimizer, {'encoder': apart}, [{'encoder': one} for one in steps])['encoder']
    stacked = run(optimizer, {'encoder': stack(blocks)}, [{'encoder': stack(one)} for one in gradients])['encoder']
    for i in range(3):
        for name in ('kernel', 'bias'):
            np.testing.assert_allclose(stacked['blocks'][name][i], found[f'block_{i:02d}'][name], rtol=1e-6)


# -- a learning rate for each parameter ------------------------------------------------------------------------------------


def test_rates_multiply_what_the_optimizer_wants():
    params, gradients = draw_head()
    params, gradients = {'encoder': params}, [{'encoder': g} for g in gradients]
    factors = {'encoder/head/kernel': 0.25, 'encoder/head/bias': 2.0}
    optimizer = make_optimizer(
        lars_config(), lambda step, factor=1.0: factor * RATE(step), multiplier=lambda path, shape: factors[path]
    )
    found = run(optimizer, params, gradients)['encoder']['head']
    for name, p in params['encoder']['head'].items():
        rates = [factors[f'encoder/head/{name}'] * float(RATE(step)) for step in range(STEPS)]
        expected = lars_by_hand(p, [g['encoder']['head'][name] for g in gradients], rates)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_layers_are_numbered_from_the_classifier_down():
    """Depth 3, decay 1/2: what precedes the blocks 1/16, blocks 1/8, 1/4, 1/2, everything else 1."""
    rate = layer_rates(0.5, 3)
    below = ('patch_embed/kernel', 'cls_token', 'pos_embed', 'stage1/block_00/mlp/fc1/kernel', 'embed4/kernel')
    assert {rate(f'encoder/{name}', (1,)) for name in below} == {1 / 16}
    assert [rate(f'encoder/block_{i:02d}/attn/qkv/kernel', (1, 1)) for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    rest = ('encoder/norm/scale', 'encoder/relative_bias_table', 'objectives/classify/head/linear/kernel')
    assert {rate(path, (1,)) for path in rest} == {1.0}
    np.testing.assert_array_equal(rate('encoder/blocks/norm1/scale', (3, 7)), [[1 / 8], [1 / 4], [1 / 2]])
    assert layer_rates(0.5, 12)('encoder/block_11/gamma_1', (4,)) == 1 / 2


def test_a_stack_has_the_rates_of_its_blocks():
    draw, rate = np.random.default_rng(2), layer_rates(0.6, 3)
    blocks = [{'kernel': draw.normal(size=(4, 3)), 'bias': draw.normal(size=3)} for _ in range(3)]
    gradients = [[jax.tree.map(lambda p: draw.normal(size=p.shape), block) for block in blocks] for _ in range(3)]
    config = tiny_config(
        steps=STEPS, optim={'base_lr': 0.1, 'lr_scaling': 'none', 'warmup_epochs': 0.4, 'min_lr': 0.01}
    )
    for same_ends in (False, True):
        config.optim.same_ends = same_ends
        optimizer = make_optimizer(config.optim, make_schedule(config), multiplier=rate)
        names = [f'block_{i:02d}' for i in range(3)]
        apart = {'encoder': dict(zip(names, blocks, strict=True))}
        found = run(optimizer, apart, [{'encoder': dict(zip(names, one, strict=True))} for one in gradients])
        stacked = run(optimizer, {'encoder': stack(blocks)}, [{'encoder': stack(one)} for one in gradients])
        for i, name in enumerate(names):
            for key in ('kernel', 'bias'):
                one = stacked['encoder']['blocks'][key][i]
                np.testing.assert_allclose(one, found['encoder'][name][key], rtol=1e-6, atol=1e-7)
                assert np.abs(one - blocks[i][key]).max() > 0.01  # it moved


# -- where the curves of slower layers begin and end -----------------------------------------------------------------------


def curve(same_ends, factor, steps):
    """Peak 0.008, 10 steps of warm-up from 0.001 to the peak, cosine to 0.0004 at step 50."""
    config = tiny_config(steps=50)  # five steps an epoch
    config.optim.update(
        {'base_lr': 0.004, 'lr_scaling': 'linear/256', 'warmup_epochs': 2.0, 'warmup_lr': 0.0005, 'min_lr': 0.0004}
    )
    config.batch_size, config.optim.same_ends = 512, same_ends
    rate_at = make_schedule(config)
    return [float(rate_at(step, factor)) for step in steps]


def test_mae_scales_the_whole_curve():
    """util/lr_sched.py: the scheduled rate, floor included, times lr_scale. A quarter of 1e-3, 4.5e-3, 8e-3, 4.2e-3, 4e-4."""
    np.testing.assert_allclose(
        curve(False, 0.25, (0, 5, 10, 30, 50)), [0.00025, 0.001125, 0.002, 0.00105, 0.0001], rtol=1e-5
    )


def test_simmim_scales_the_peak_alone():
    """timm's schedulers, per group: both ends are absolute. From 1e-3 to a peak of 2e-3, half-way down 1.2e-3, then 4e-4."""
    np.testing.assert_allclose(curve(True, 0.25, (0, 5, 10, 30, 50)), [0.001, 0.0015, 0.002, 0.0012, 0.0004], rtol=1e-5)


def test_both_are_the_plain_curve_for_the_last_layer():
    steps = range(51)
    plain = [
        0.001 + 0.007 * s / 10 if s < 10 else 0.0004 + 0.0076 * 0.5 * (1 + math.cos(math.pi * (s - 10) / 40))
        for s in steps
    ]
    np.testing.assert_allclose(curve(False, 1.0, steps), plain, rtol=1e-5)
    np.testing.assert_allclose(curve(True, 1.0, steps), plain, rtol=1e-5)


def test_groups_meet_at_the_floor_or_keep_their_distance():
    for decay_power in (0, 3, 12):
        factor = 0.65**decay_power
        np.testing.assert_allclose(curve(True, factor, (50,)), [0.0004], rtol=1e-5)
        np.testing.assert_allclose(curve(False, factor, (50,)), [0.0004 * factor], rtol=1e-5)
