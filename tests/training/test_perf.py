"""The meter against a clock that is moved by hand; the FLOP counter against hand counts and the compiler."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mim_jax.training import perf


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def run_steps(meter, clock, count, wait=0.25, compute=0.75):
    for _ in range(count):
        with meter.wait():
            clock.now += wait
        clock.now += compute
        meter.step()


def test_meter_leaves_out_the_first_step_and_pauses():
    clock = Clock()
    meter = perf.Meter(batch_size=8, total_steps=100, clock=clock)
    run_steps(meter, clock, 1, wait=50.0, compute=50.0)  # compiles
    assert meter.read(1) == {}
    run_steps(meter, clock, 4)
    with meter.pause():
        clock.now += 6.0
    values = meter.read(5)
    assert values == pytest.approx(
        {
            'images_per_second': 8.0,
            'data_wait_ms': 250.0,
            'data_wait_share': 0.25,
            'step_ms': 1000.0,
            'eta_seconds': 95 * 10.0 / 4,  # the pause counts: 10 s for 4 steps
        }
    )
    run_steps(meter, clock, 2, wait=0.0, compute=0.5)
    values = meter.read(7)
    assert values['images_per_second'] == pytest.approx(16.0)
    assert values['data_wait_ms'] == 0.0
    assert values['eta_seconds'] == pytest.approx(93 * 11.0 / 6)
    assert meter.read(7) == {}


def count(function, *arguments):
    return perf.count_flops(jax.make_jaxpr(function)(*arguments))


x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
ONE = 2 * 4 * 8 * 8


def test_dot_general_with_batch_axes():
    assert count(lambda a, b: jnp.einsum('bhnd,bhmd->bhnm', a, b), jnp.ones((2, 3, 5, 7)), jnp.ones((2, 3, 11, 7))) == (
        2 * 2 * 3 * 5 * 11 * 7
    )


@pytest.mark.parametrize(
    ('function', 'products'),
    [
        (jax.jit(lambda x: x @ w), 1),
        (jax.checkpoint(lambda x: jnp.sin(x @ w)), 1),
        (lambda x: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0], 5),
        (lambda x: jax.lax.fori_loop(0, 3, lambda _, c: c @ w, x), 3),
        (lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ w @ w, lambda x: x @ w, x), 2),
        (lambda x: jax.lax.while_loop(lambda c: c[0, 0] > 0, lambda c: c @ w, x) @ w, 1),
        (jax.grad(lambda x: jax.nn.gelu(x @ w).sum()), 2),
        # both products forward, the first one again, both transposes
        (jax.grad(lambda x: jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x).sum()), 5),
        (jax.vmap(lambda row: row @ w), 1),
    ],
)
def test_transformations_are_entered(function, products):
    assert count(function, x) == products * ONE


def test_custom_vjp_is_entered():
    @jax.custom_vjp
    def product(x):
        return x @ w

    product.defvjp(lambda x: (x @ w, None), lambda _, g: (g @ w.T,))
    assert count(product, x) == ONE
    assert count(jax.grad(lambda x: product(x).sum()), x) == 2 * ONE


def test_gradient_of_an_mlp_costs_three_forwards_less_the_input():
    params = {'a': jnp.ones((8, 16)), 'b': jnp.ones((16, 2))}

    def loss(params, x):
        return jnp.square(jax.nn.relu(x @ params['a']) @ params['b']).sum()

    first, second = 2 * 4 * 8 * 16, 2 * 4 * 16 * 2
    assert count(loss, params, x) == first + second
    assert count(jax.grad(loss), params, x) == 2 * first + 3 * second  # nobody asks for dx


def test_shard_map_counts_every_device():
    mesh = Mesh(np.array(jax.devices()[:1]), ('data',))
    mapped = jax.shard_map(lambda x: x @ w, mesh=mesh, in_specs=PartitionSpec('data'), out_specs=PartitionSpec('data'))
    assert count(mapped, x) == ONE
    # Four devices without four devices: the equation itself, on an abstract mesh.
    mesh = jax.sharding.AbstractMesh((4,), ('data',))
    mapped = jax.shard_map(lambda x: x @ w, mesh=mesh, in_specs=PartitionSpec('data'), out_specs=PartitionSpec('data'))
    assert count(mapped, x) == ONE


def conv(x, kernel, stride, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups
    )


def test_convolutions_and_their_gradients():
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((4, 4, 3, 5))
    forward = 2 * 2 * (2 * 2) * 5 * (4 * 4 * 3)
    assert count(lambda x, k: conv(x, k, 4), images, kernel) == forward
    gradients = jax.grad(lambda x, k: conv(x, k, 4).sum(), argnums=(0, 1))
    assert count(gradients, images, kernel) == 3 * forward
    depthwise = jnp.ones((3, 3, 1, 6))
    forward = 2 * 2 * (6 * 6) * 6 * 9
    assert count(lambda x, k: conv(x, k, 1, groups=6), jnp.ones((2, 8, 8, 6)), depthwise) == forward


def test_agrees_with_the_compiler_on_a_chain_of_products():
    def chain(a, b, c):
        return jnp.tanh(a @ b) @ c

    arguments = jnp.ones((64, 128)), jnp.ones((128, 256)), jnp.ones((256, 32))
    compiled = jax.jit(chain).lower(*arguments).compile().cost_analysis()['flops']
    assert count(chain, *arguments) == pytest.approx(compiled, rel=0.03)


@pytest.mark.parametrize(
    ('kind', 'teraflops'),
    [
        ('TPU v3', 61.5),  # a device is one of a chip's two cores
        ('TPU v4', 275),
        ('TPU v5 lite', 197),
        ('TPU v5', 459),
        ('TPU v5p', 459),
        ('TPU v6 lite', 918),
        ('NVIDIA H100 80GB HBM3', 989),
        ('NVIDIA H100 PCIe', 756),
        ('NVIDIA H200', 989),
        ('NVIDIA A100-SXM4-40GB', 312),
    ],
)
def test_peak_by_device_kind(kind, teraflops):
    assert perf.find_peak(kind) == teraflops * 1e12


def test_mfu_is_a_fraction_of_all_devices_and_unknown_on_a_cpu():
    chip = types.SimpleNamespace(device_kind='TPU v4')
    assert perf.mfu(275e12, 64.0, 128, [chip] * 2) == pytest.approx(0.25)
    assert perf.mfu(1.0, 1.0, 1, jax.devices('cpu')) is None
