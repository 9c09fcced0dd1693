"""LUT's teacher and BatchNorm: no gradient, nothing kept for one, how it moves, what it sees, one and many devices."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lut_ours import STEERABLE, abstract_parts, draw_parts, forward_of, make, run
from tiny_runs import QUICK, leaves, random_batch, start, tiny_config, trace_forward

from mim_jax.forward import Forward, evaluate


@pytest.mark.parametrize('average', [True, False])
def test_no_gradient_reaches_the_teacher(average):
    recipe = make(average_batch_stats=average)

    def loss(params, teachers, batch_stats):
        return evaluate(forward_of(recipe, params, batch_stats, teachers))[0]

    parts, batch_stats, teachers = draw_parts(recipe)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=QUICK)
    params, teachers = (leaves(tree) for tree in gradient(parts, teachers, batch_stats))
    assert teachers.keys() >= {'lut/params/encoder/cls_token', 'lut/batch_stats/objectives/lut/projector/bn1/var'}
    assert all((value == 0.0).all() for value in teachers.values())
    assert all(value.any() for value in params.values())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_teacher_keeps_nothing_for_the_backward_pass_and_runs_in_dtype(dtype):
    """No residual has the shape of what is made in a teacher: CLS and all 16 patches at the encoder's width of 20.

    The student has 5 of them, the decoder all, at its own width of 32.
    """
    recipe = make(config=tiny_config({'width': 20}, dtype=dtype))
    params, batch_stats, teachers = abstract_parts(recipe)

    def residuals(read):
        def pull(params, *rest):
            return jax.tree.leaves(jax.vjp(lambda params: read(forward_of(recipe, params, *rest)), params)[1])

        return {leaf.shape for leaf in jax.eval_shape(pull, params, batch_stats, teachers) if leaf.ndim == 3}

    whole = (4, 17, 20)
    kept = residuals(lambda forward: evaluate(forward)[0])
    assert {(4, 5, 20), (4, 17, 32)} <= kept
    assert whole not in kept
    unmasked = replace(recipe, views={'main': replace(recipe.views['main'], block=None)})
    student = residuals(lambda forward: whole_image(forward, unmasked))
    assert whole in student  # so the test could fail
    queries = trace_forward(recipe, lambda forward: forward.teacher('lut').levels('lut').queries_keys[0][0])
    assert queries.dtype == jnp.dtype(dtype)


def whole_image(forward, unmasked):
    """A number out of a student that sees the whole image."""
    return Forward(unmasked, forward.networks, forward.around).latent().patches.astype(jnp.float32).sum()


def test_the_teacher_moves_towards_the_student_with_its_statistics(one_device):
    _, process, _ = one_device
    now, _ = process.train([random_batch(one_device[0])])
    first, held = leaves(process.first.teachers['lut']), leaves(now.teachers['lut'])
    student = leaves({'params': now.params, 'batch_stats': now.batch_stats})
    assert {path.split('/')[0] for path in held} == {'params', 'batch_stats'}
    assert not [path for path in held if 'decoder' in path or 'predictor' in path]
    for path, value in held.items():
        expected = first[path] + 0.004 * (student[path] - first[path])
        np.testing.assert_allclose(value, expected, atol=1e-7, err_msg=path)
    assert (held['batch_stats/objectives/lut/projector/bn1/var'] != 1.0).any()


@pytest.mark.parametrize('base', STEERABLE)
def test_a_masked_teacher_sees_its_own_patches(base):
    recipe = make(base, teacher_mask_ratio=0.5)

    def read(forward):
        held = forward.teacher('lut')
        return {view: held.plan(view).keep for view in ('main', 'lut')} | {'student': forward.plan('main').keep}

    seen = {name: [{*row.tolist()} for row in keep] for name, keep in run(recipe, read).items()}
    assert all(len(row) == 8 for row in (*seen['main'], *seen['lut']))
    assert seen['main'] != seen['lut']
    assert not all(own <= other for own, other in zip(seen['student'], seen['main'], strict=True))
    visible = trace_forward(recipe, lambda forward: forward.teacher('lut').visible('lut'))
    assert visible.shape == (2, 8, recipe.encoder.width)


# -- BatchNorm on many devices -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('devices', [pytest.param(2, marks=pytest.mark.slow), 8])
def test_statistics_are_global(devices, one_device):
    """Running statistics and losses after two steps are those of one device: with local ones they would differ."""
    recipe, process, (now, logs) = one_device
    again, others = start(recipe, data=devices, first=process.first, schedule='constant').train(
        [random_batch(recipe, seed) for seed in range(2)]
    )
    for path, value in leaves(now.batch_stats).items():
        np.testing.assert_allclose(leaves(again.batch_stats)[path], value, rtol=1e-5, atol=1e-6, err_msg=path)
    for path, value in leaves(now.teachers).items():
        np.testing.assert_allclose(leaves(again.teachers)[path], value, atol=1e-5, err_msg=path)
    for one, other in zip(logs, others, strict=True):
        np.testing.assert_allclose(other['loss/lut'], one['loss/lut'], rtol=2e-5)


@pytest.fixture(scope='module')
def one_device():
    recipe = make(config=tiny_config(batch_size=16))
    process = start(recipe, schedule='constant')
    return recipe, process, process.train([random_batch(recipe, seed) for seed in range(2)])
