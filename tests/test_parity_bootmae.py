"""BootMAE against LightDXY/BootMAE (golden of make_bootmae_golden.py): one pass, ten steps, schedules, initial values."""

from dataclasses import replace

import bootmae_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mae_ours import fill_tree, to_arrays
from parity_rules import GOLDEN, largest_difference, under
from tiny_runs import QUICK

from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.interop.bootmae import BOOTMAE
from mim_jax.methods.bootmae import feature_ramp, momentum_ramp
from mim_jax.networks import Networks
from mim_jax.objectives.bootstrap import depth_weights, normalise_features
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.tokens import normalise_channels, patchify
from mim_jax.training.assemble import make_program
from mim_jax.training.state import TrainState, state_shardings
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'bootmae.npz') as arrays:
        return dict(arrays)


@pytest.fixture(scope='module')
def recipe(stored):
    """With the released masks in place of our draws: the places of the patches in the released order, step by step."""
    places = np.argsort(stored['order'], axis=-1)
    made = cases.make_recipe()
    scores = lambda forward, view: jnp.asarray(places)[forward.step][forward.around.rows]  # noqa: E731
    return replace(made, masking=replace(made.masking, scores=scores))


@pytest.fixture(scope='module')
def program(recipe):
    return make_program(recipe, make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope='module')
def first(program, recipe):
    """The state before the first step: weights by rule, and others for the teacher."""
    key, weights, others = jax.random.key(0), cases.make_weights(recipe), cases.make_weights(recipe, 'teacher/')
    held = to_arrays(program.abstract.teachers['bootmae']['params'])
    params = fill_tree(program.abstract.params, weights)
    held = fill_tree(program.abstract.teachers['bootmae']['params'], {path: others[path] for path in held})
    teachers = {'bootmae': {'params': held, 'batch_stats': {}}}
    return TrainState(jnp.zeros((), jnp.int32), params, {}, program.optimizer.init(params), teachers, key)


def read(forward):
    """{place: array}, with the places' names of the golden, and the plan's order."""
    levels, plan = forward.levels(), forward.plan()
    seen = {f'encoder/block_{i:02d}': block.joined() for i, block in enumerate(levels.blocks)}
    seen['latent'] = forward.latent().joined()
    for name in ('pixels', 'features'):
        for i, block in enumerate(forward.decoded(name).blocks):
            seen[f'decoder/{name}/block_{i:02d}'] = block.joined()
        weights = depth_weights(plan.masked.reshape(-1, 14, 14)).reshape(-1, cases.PATCHES)
        seen[f'weights/{name}'] = weights
    seen['prediction/pixels'] = forward.prediction('pixels')
    seen['prediction/features'] = normalise_features(forward.prediction('features'))
    seen['target/pixels'] = normalise_channels(patchify(forward.images(), cases.PATCH))
    seen['target/features'] = normalise_features(forward.teacher('bootmae').levels().last.patches)
    return seen, jnp.concatenate([plan.keep, plan.drop], axis=1)


def test_one_pass_agrees_with_the_released_code(recipe, first, stored):
    def loss(params):
        batch, step = {'main': jnp.asarray(cases.make_images(0))}, jnp.zeros((), jnp.int32)
        around = Surroundings(batch, jnp.arange(cases.IMAGES), first.root_key, step, first.teachers, {})
        forward = Forward(recipe, Networks(recipe, params, {}, first.root_key, 'train'), around)
        total, logs = evaluate(forward)
        return total, (logs, *read(forward))

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (_, (logs, seen, order)), gradients = run(first.params)
    np.testing.assert_array_equal(order, stored['order'][0])
    losses = {name: (float(value) / stored[f'steps/{name}'][0] - 1, name) for name, value in logs.items()}
    differences = {
        'seen': largest_difference(seen, under(stored, 'seen/'), relative=False),
        'loss': max((abs(value), name) for value, name in losses.values()),
        'gradients': largest_difference(to_arrays(gradients), under(stored, 'gradients/'), relative=True),
    }
    print('  '.join(f'{kind} {value:.1e} {name}' for kind, (value, name) in differences.items()))
    assert set(losses) == {'loss/total', 'loss/pixels', 'loss/features'}
    assert differences['seen'][0] < 1e-4
    assert differences['loss'][0] < 1e-5
    assert differences['gradients'][0] < 1e-3


def test_ten_steps_agree_with_the_released_loop(recipe, program, first, stored):
    """Losses, rates, parameters and teacher, through the program that trains."""
    before, held = to_arrays(first.params), to_arrays(first.teachers['bootmae']['params'])
    batches = [to_global(program.mesh, {'main': cases.make_images(step)}) for step in range(cases.STEPS)]
    step = program.step.lower(first, {}, batches[0]).compile(compiler_options=QUICK)
    state, logs = jax.device_put(first, state_shardings(program.abstract)), []
    for batch in batches:
        state, out = step(state, {}, batch)
        logs.append(jax.device_get(out))
    seen = {name: np.array([one[name] for one in logs], np.float64) for name in logs[0]}
    differences = {name: np.abs(values - stored[f'steps/{name}']).max() for name, values in seen.items()}
    steps = range(cases.STEPS)
    weights = [recipe.objectives['features'].weight_of('', step) for step in steps]
    rates = [recipe.teachers['bootmae'].rate_at(step) for step in steps]
    np.testing.assert_allclose(weights, stored['steps/weight'], rtol=1e-6)
    np.testing.assert_allclose(rates, 1.0 - stored['steps/momentum'], rtol=1e-6)
    moved = {path: value - before[path] for path, value in to_arrays(state.params).items()}
    followed = {path: value - held[path] for path, value in to_arrays(state.teachers['bootmae']['params']).items()}
    differences |= {
        'moved': largest_difference(moved, under(stored, 'moved/'), relative=True),
        'teacher': largest_difference(followed, under(stored, 'teacher/'), relative=True),
    }
    print('  '.join(f'{name} {value}' for name, value in differences.items()))
    assert max(value for name, value in differences.items() if name.startswith('loss/')) < 1e-5  # issue B asks for 1e-4
    assert differences['lr'] < 1e-8
    assert differences['grad_norm'] < 1e-4
    assert differences['moved'][0] < 1e-4  # the share of weight decay is 1e-2
    assert differences['teacher'][0] < 1e-4


@pytest.mark.parametrize('dynamic', [True, False])
def test_momentum_follows_the_released_ramp(stored, dynamic):
    per_epoch, ramp = 312.78, momentum_ramp(0.999, dynamic, 312.78)
    for epoch, momentum in zip(stored['ramp/epochs'], stored[f'ramp/{dynamic}'], strict=True):
        for place in (0.01, 0.5, 0.99):
            np.testing.assert_allclose(ramp(round((epoch + place) * per_epoch)), 1.0 - momentum, rtol=1e-5)


def test_feature_weight_is_full_after_a_quarter_of_the_run():
    ramp = feature_ramp(0.5, 312.78, 800.0)
    expected = {0: 0.5 * 4 / 800, 99: 0.25, 198: 0.5 * 199 / 200, 199: 0.5, 799: 0.5}
    for epoch, weight in expected.items():
        np.testing.assert_allclose([ramp(round((epoch + place) * 312.78)) for place in (0.01, 0.99)], weight, rtol=1e-6)


def test_channels_are_normalised_by_their_biased_variance():
    draw = np.random.default_rng(0).normal(2.0, 0.01, (1, 2, 12)).astype(np.float32)
    found = np.asarray(normalise_channels(jnp.asarray(draw))).reshape(2, 4, 3)
    values = draw.astype(np.float64).reshape(2, 4, 3)
    for patch in range(2):
        for channel in range(3):
            one = values[patch, :, channel]
            expected = (one - one.mean()) / (((one - one.mean()) ** 2).sum() / 4 + 1e-5) ** 0.5
            np.testing.assert_allclose(found[patch, :, channel], expected, atol=1e-3)


def test_weights_are_one_plus_the_share_of_masked_neighbours():
    masked = np.zeros((1, 4, 4), bool)
    masked[0, :3, :3] = True
    expected = np.array([[4, 6, 4, 0], [6, 9, 6, 0], [4, 6, 4, 0], [0, 0, 0, 0]]) / 9.0
    np.testing.assert_allclose(
        depth_weights(jnp.asarray(masked))[0], np.where(masked[0], 1.0 + expected, 0.0), rtol=1e-6
    )


# -- names and initial values ------------------------------------------------------------------------------------------
def test_names_and_shapes_are_the_released_ones(recipe, stored):
    weights = cases.make_weights(recipe)
    constants = {name: value(recipe) for name, value in BOOTMAE.constants.items()}
    state = to_theirs(weights, BOOTMAE)
    assert {f'{name} {a.shape}' for name, a in (state | constants).items()} == set(stored['names'].tolist())
    assert largest_difference(constants, under(stored, 'constants/'), relative=False)[0] < 1e-5
    back = to_ours(state, BOOTMAE, tuple(weights))
    for path, value in weights.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)


def test_initial_values_are_distributed_as_the_released_ones(stored):
    """Deviation and largest value of each parameter, within what draws of its size scatter."""
    recipe = cases.make_fresh_recipe()
    create = jax.jit(lambda key: create_parameters(recipe, key)[0], compiler_options=QUICK)
    ours = to_arrays(create(jax.random.key(0)))
    assert set(ours) == set(stored['initial/paths'].tolist())
    for path, (deviation, largest) in zip(stored['initial/paths'].tolist(), stored['initial/values'], strict=True):
        value = ours[path]
        if deviation < 1e-8:
            np.testing.assert_array_equal(value, largest, err_msg=path)  # norms' scales and zeros
        elif path.endswith('head/bias'):
            assert 0 < np.abs(value).max() <= 48**-0.5  # three values
        else:
            scatter = 4 * value.size**-0.5
            np.testing.assert_allclose(value.std(), deviation, rtol=scatter, err_msg=path)
            np.testing.assert_allclose(np.abs(value).max(), largest, rtol=max(scatter, 0.02), err_msg=path)
