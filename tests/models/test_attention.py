"""Attention's two forms against the definition in NumPy, against each other, and where each is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models.attention import attend, attend_by_image, attend_plainly
from mim_jax.parallel.activations import split_by_image
from mim_jax.parallel.mesh import make_mesh

B, T, H, D = 3, 7, 2, 4
FORMS = [attend_plainly, attend_by_image]
BIASES = {'none': None, 'shared': 1, 'of each image': B}


def draw(bias=None, images=B, dtype=np.float32, scale=1.0):
    """packed, bias, and a gradient of the result."""
    numbers = np.random.default_rng(0)
    packed = scale * numbers.normal(size=(images, T, 3, H, D))
    of_result = numbers.normal(size=(images, T, H, D))
    added = None if bias is None else numbers.normal(size=(bias, H, T, T)).astype(np.float32)
    return packed.astype(dtype), added, of_result.astype(dtype)


def define(packed, bias=None):
    """softmax(q k / sqrt d + bias) v in fp64, one image and head at a time."""
    packed = np.asarray(packed, np.float64)
    out = np.empty((len(packed), T, H, D))
    for b, h in np.ndindex(len(packed), H):
        q, k, v = packed[b, :, 0, h], packed[b, :, 1, h], packed[b, :, 2, h]
        logits = q @ k.T / np.sqrt(D) + (0 if bias is None else bias[b % len(bias), h])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v
    return out


def gradients(form, packed, bias, of_result):
    out, pull = jax.vjp(form, packed, bias)
    return pull(jnp.asarray(of_result, out.dtype))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('bias', BIASES.values(), ids=BIASES)
def test_it_is_the_definition(form, bias):
    packed, added, _ = draw(bias)
    np.testing.assert_allclose(jax.jit(form)(packed, added), define(packed, added), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('bias', 'images'), [(None, B), (1, B), (B, B), (1, 1)])
def test_gradients_of_both_forms_are_equal_and_those_of_differences(bias, images):
    packed, added, of_result = draw(bias, images)
    plain, ours = (gradients(form, packed, added, of_result) for form in reversed(FORMS))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    moved = np.random.default_rng(1).normal(size=packed.shape) * 1e-5
    slope = ((define(packed + moved, added) - define(packed - moved, added)) * of_result).sum() / 2
    np.testing.assert_allclose((np.asarray(ours[0], np.float64) * moved).sum(), slope, rtol=1e-4)
    if added is not None:
        moved = np.random.default_rng(2).normal(size=added.shape) * 1e-5
        slope = ((define(packed, added + moved) - define(packed, added - moved)) * of_result).sum() / 2
        np.testing.assert_allclose((np.asarray(ours[1], np.float64) * moved).sum(), slope, rtol=1e-4)


def test_in_bf16_it_is_no_less_exact_than_the_plain_form():
    packed, _, of_result = draw(dtype=jnp.bfloat16)
    wide = packed.astype(np.float32), None, of_result.astype(np.float32)
    exact_out, exact = define(packed), np.asarray(gradients(attend_plainly, *wide)[0])

    def errors(form):
        out, gradient = form(jnp.asarray(packed)), gradients(form, jnp.asarray(packed), None, of_result)[0]
        assert out.dtype == gradient.dtype == jnp.bfloat16
        return [
            np.sqrt(np.mean((np.asarray(a, np.float64) - b) ** 2)) for a, b in ((out, exact_out), (gradient, exact))
        ]

    for ours, plain in zip(errors(attend_by_image), errors(attend_plainly), strict=True):
        assert ours < 1.2 * plain


def test_large_logits_overflow_neither_way():
    packed, _, of_result = draw(scale=60.0)
    plain, ours = (gradients(form, packed, None, of_result)[0] for form in reversed(FORMS))
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(attend_by_image(packed), define(packed), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-3)


def test_second_derivatives_by_reverse_over_reverse():
    packed, _, direction = draw()

    def curvature(form):
        def along(packed):
            return jnp.sum(jax.grad(lambda packed: jnp.sum(form(packed) ** 2))(packed)[:, :, 0] * direction)

        return jax.grad(along)(packed)

    np.testing.assert_allclose(curvature(attend_by_image), curvature(attend_plainly), atol=3e-4)


def loops(form, packed):
    """How many loops the traced gradient has."""
    return str(jax.make_jaxpr(jax.grad(lambda packed: form(packed).sum()))(packed)).count('scan[')


@pytest.mark.parametrize(('devices', 'expected'), [(1, 2), (4, 0)])
def test_the_loop_is_for_one_cpu_device_only(devices, expected):
    packed, _, _ = draw()
    with split_by_image(make_mesh(devices=jax.devices()[:devices])):
        assert loops(attend, packed) == expected


def test_outside_the_step_it_is_plain_and_has_every_derivative():
    packed, _, direction = draw()
    assert loops(attend, packed) == 0
    along = jax.jvp(attend, (packed,), (np.repeat(direction[:, :, None], 3, 2),))[1]
    assert along.shape == direction.shape


@pytest.mark.parametrize('bias', [(1, H, T, T), (B, H, T, T), (H, T, T), (B, 1, T, T), (1, 1, 1, T), (T, T)], ids=str)
def test_a_bias_of_any_shape_that_broadcasts(bias):
    packed, _, of_result = draw()
    added = np.random.default_rng(3).normal(size=bias).astype(np.float32)
    plain = gradients(attend, packed, added, of_result)
    with split_by_image(make_mesh(devices=jax.devices()[:1])):
        ours = gradients(attend, packed, added, of_result)
    for a, b in zip(ours, plain, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
