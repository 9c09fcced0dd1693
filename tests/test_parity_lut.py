"""LUT against its released model, engine, momentum teacher and schedules (golden of golden/make_lut_golden.py)."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from base_ours import assert_close
from lut_cases import (
    ALPHA,
    DECODER,
    DEPTH,
    HEAD_WIDTH,
    HEADS,
    IMAGES,
    MASK_RATIO,
    MEAN,
    MOMENTUM,
    OPTIM,
    PATCH,
    SIDE,
    STD,
    STEPS,
    STEPS_PER_EPOCH,
    WIDTH,
    clear_key_biases,
    noise_of,
    views_of,
)
from mae_ours import fill_tree, to_arrays
from parity_rules import GOLDEN, draw_weights, under
from tiny_runs import QUICK

from mim_jax.config import default_config
from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.interop.lut import LUT
from mim_jax.methods.lut import lut
from mim_jax.methods.mae import mae
from mim_jax.networks import Networks
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.training.assemble import Program, make_program
from mim_jax.training.state import TrainState, state_shardings
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / 'lut.npz') as stored:
        return dict(stored)


def make_recipe() -> Recipe:
    """LUT on MAE, of the case, with given noise and without photometric augmentation: the second crop has it already."""
    config = default_config()
    config.update({'image_size': SIDE, 'batch_size': IMAGES, 'dtype': 'float32', 'steps': STEPS})
    config.steps_per_epoch = float(STEPS_PER_EPOCH)
    config.encoder.update(patch_size=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
    config.optim.update(lr_scaling='sqrt', **OPTIM)
    config.data.update(mean=MEAN, std=STD)
    recipe = lut(mae(config, mask_ratio=MASK_RATIO, **DECODER), alpha=ALPHA, head_width=HEAD_WIDTH, momentum=MOMENTUM)
    given = jnp.asarray(np.stack([noise_of(step) for step in range(STEPS)]))
    masking = replace(recipe.masking, scores=lambda forward, view: given[forward.step][forward.around.rows])
    plain = replace(recipe.views['lut'], photometric=None)
    return replace(recipe, masking=masking, views={**recipe.views, 'lut': plain})


def by_rule(like: Any) -> Any:
    """A tree like an abstract one of parameters, with weights by rule."""
    return fill_tree(like, draw_weights({path: leaf.shape for path, leaf in flatten_with_paths(like)}))


def first_state(program: Program) -> TrainState:
    """Step 0: weights by rule, the teacher a copy of the student, running statistics at 0 and 1."""
    abstract = program.abstract
    params, held = by_rule(abstract.params), by_rule(abstract.teachers['lut']['params'])

    def fresh(tree: Any) -> Any:
        return jax.tree.map_with_path(lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == 'var')), tree)

    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        fresh(abstract.batch_stats),
        program.optimizer.init(params),
        {'lut': {'params': held, 'batch_stats': fresh(abstract.teachers['lut']['batch_stats'])}},
        jax.random.key(0),
    )
    return jax.device_put(state, state_shardings(abstract))


def look(recipe: Recipe, state: TrainState) -> dict[str, Any]:
    """All that the losses of the first batch depend on, and their gradients."""
    batch = {crop: jnp.asarray(images) for crop, images in views_of(0).items()}

    def loss(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        around = Surroundings(batch, jnp.arange(IMAGES), state.root_key, jnp.zeros((), jnp.int32), state.teachers, {})
        forward = Forward(recipe, Networks(recipe, params, state.batch_stats, state.root_key, 'train'), around)
        total, logs = evaluate(forward)
        seen = {'prediction': forward.prediction('pixels')}
        for name, network in (('student', forward), ('teacher', forward.teacher('lut'))):
            for view in ('main', 'lut'):
                blocks = network.levels(view).blocks
                places = {f'block_{i:02d}': block.joined() for i, block in enumerate(blocks)}
                places['context'] = network.visible(view).mean(axis=1)
                output = network.head('lut/projector', places['context'])
                places['output'] = network.head('lut/predictor', output) if network is forward else output
                seen |= {f'{name}/{view}/{place}': value for place, value in places.items()}
        masked = {view: forward.plan(view).masked for view in ('main', 'lut')}
        return total, {'seen': seen, 'masked': masked, 'logs': logs}

    program = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (_, found), gradients = program(state.params)
    return {**jax.device_get(found), 'gradients': clear_key_biases(to_arrays(gradients))}


@pytest.fixture(scope='module')
def run() -> SimpleNamespace:
    """Ours: the first batch looked at, then ten steps of the real train step."""
    recipe = make_recipe()
    mesh = make_mesh(devices=jax.devices()[:1])
    program = make_program(recipe, mesh)
    state = first_state(program)
    found = SimpleNamespace(**look(recipe, state), steps=[])
    batches = [to_global(mesh, views_of(step)) for step in range(STEPS)]
    train_step = program.step.lower(state, {}, batches[0]).compile(compiler_options=QUICK)
    for step, batch in enumerate(batches):
        state, logs = train_step(state, {}, batch)
        found.steps.append(jax.device_get(logs))
        if step == 0:
            found.running = to_arrays(state.batch_stats)
    teacher = state.teachers['lut']
    found.final = {
        'student': clear_key_biases(to_arrays(state.params)),
        'teacher': clear_key_biases(to_arrays(teacher['params'])),
        'student_statistics': to_arrays(state.batch_stats),
        'teacher_statistics': to_arrays(teacher['batch_stats']),
    }
    return found


def test_everything_on_the_way_agrees(run, golden):
    """Every block of student and teacher on both views, what is pooled, the heads' outputs, the predicted pixels."""
    assert_close(run.seen, under(golden, 'seen/'), 1e-4, relative=False)


def test_masks_agree_and_visible_sets_are_disjoint(run, golden):
    for view, masked in run.masked.items():
        np.testing.assert_array_equal(masked, golden[f'masked/{view}'], err_msg=view)
        np.testing.assert_array_equal((~masked).sum(axis=1), 49)
    assert (run.masked['main'] | run.masked['lut']).all()


def test_losses_and_gradients_agree(run, golden):
    np.testing.assert_allclose(run.logs['loss/pixels'], golden['reconstruction'][0], rtol=1e-5)
    np.testing.assert_allclose(run.logs['loss/lut'], golden['context'][0], rtol=1e-5)
    assert_close(run.gradients, under(golden, 'gradients/'), 1e-3, relative=True)


def test_ten_steps_agree(run, golden):
    logged = {name: np.array([log[name] for log in run.steps]) for name in run.steps[0]}
    for name, key in (('loss/pixels', 'reconstruction'), ('loss/lut', 'context'), ('grad_norm', 'grad_norms')):
        print(name, np.abs(logged[name] / golden[key] - 1.0).max())
    np.testing.assert_allclose(logged['loss/pixels'], golden['reconstruction'], rtol=1e-5)
    np.testing.assert_allclose(logged['loss/lut'], golden['context'], rtol=1e-5)
    np.testing.assert_allclose(logged['loss/total'], golden['reconstruction'] + ALPHA * golden['context'], rtol=1e-5)
    np.testing.assert_allclose(logged['grad_norm'], golden['grad_norms'], rtol=1e-3)
    np.testing.assert_allclose(logged['lr'], golden['lrs'], rtol=1e-6, atol=1e-12)
    assert golden['reconstruction'][-1] < 0.9 * golden['reconstruction'][0]
    assert golden['context'][-1] < 0.9 * golden['context'][0]


@pytest.mark.parametrize('statistics', [False, True])
@pytest.mark.parametrize('network', ['student', 'teacher'])
def test_student_and_teacher_agree_after_ten_steps(run, golden, network, statistics):
    """The released teacher has a decoder and a predictor too, which nothing reads."""
    name = f'{network}_statistics' if statistics else network
    ours, reference = run.final[name], under(golden, f'final/{name}/')
    unread = reference.keys() - ours.keys()
    if network == 'teacher':
        assert unread
        assert all(path.startswith(('decoder/', 'objectives/lut/predictor/')) for path in unread)
    else:
        assert not unread
    assert_close(ours, {path: reference[path] for path in ours}, 1e-5, relative=False)


def test_running_statistics_agree_after_one_step(run, golden):
    """Each BatchNorm saw view main, then view lut."""
    assert_close(run.running, under(golden, 'running/'), 1e-5, relative=True)


# -- schedules, initial weights, names -----------------------------------------------------------------------------------


def test_the_momentum_is_the_released_table(golden):
    rate_at = make_recipe().teachers['lut'].rate_at
    np.testing.assert_allclose([1.0 - float(rate_at(step)) for step in range(STEPS)], golden['momenta'], atol=1e-7)


def test_initial_weights_are_drawn_as_the_released_ones(golden):
    """Mean, deviation and largest value of each parameter; bounds are five standard errors of two independent draws."""
    recipe = make_recipe()
    params, _, teachers = jax.jit(lambda key: create_parameters(recipe, key), compiler_options=QUICK)(jax.random.key(0))
    ours, released = to_arrays(params), under(golden, 'initial/')
    assert ours.keys() == released.keys()
    for path, (mean, deviation, largest, count) in released.items():
        assert ours[path].size == count, path
        if deviation == 0.0:
            np.testing.assert_array_equal(ours[path], np.float32(mean), err_msg=path)
            continue
        np.testing.assert_allclose(ours[path].mean(), mean, atol=7 * deviation / count**0.5, err_msg=path)
        np.testing.assert_allclose(ours[path].std(), deviation, rtol=5 / count**0.5, err_msg=path)
        np.testing.assert_allclose(np.abs(ours[path]).max(), largest, rtol=5 / count**0.5, err_msg=path)
    for path, held in to_arrays(teachers['lut']['params']).items():
        np.testing.assert_array_equal(held, ours[path], err_msg=path)


def test_released_names_lead_back_to_every_array_of_ours():
    recipe = make_recipe()
    params, statistics, _ = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    arrays = draw_weights(
        {path: leaf.shape for path, leaf in [*flatten_with_paths(params), *flatten_with_paths(statistics)]}
    )
    state = to_theirs(arrays, LUT)
    assert state['head.0.weight'].shape == (HEAD_WIDTH, WIDTH)
    assert state['predictor.1.running_var'].shape == (HEAD_WIDTH,)
    assert state['predictor.3.weight'].shape == (WIDTH, HEAD_WIDTH)
    back = to_ours(state, LUT, tuple(arrays))
    for path, array in arrays.items():
        np.testing.assert_array_equal(back[path], array, err_msg=path)
