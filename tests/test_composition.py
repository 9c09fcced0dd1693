"""The proof of the interface: papers written here, in a few lines each, composed with MAE and run by the one step."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_runs import (
    QUICK,
    STEPS,
    init_plain,
    leaves,
    random_batch,
    random_state,
    start,
    tiny_config,
    tiny_mae,
    to_host,
)

from mim_jax.errors import Refused
from mim_jax.models.neck import Last
from mim_jax.recipe import EMA, Objective, View
from mim_jax.training.step import compute_loss

# -- a paper: a head with BatchNorm, a momentum teacher, a second view ---------------------------------------------------


class Projector(nn.Module):
    """Linear, BatchNorm."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name='fc')(x)
        return nn.BatchNorm(use_running_average=not self.is_mutable_collection('batch_stats'), momentum=0.9, name='bn')(
            x
        )


def darken(pixels, keys):
    """A brightness in [1/2, 1] for every image."""
    return pixels * jax.vmap(lambda key: jax.random.uniform(key, (1, 1, 1), minval=0.5))(keys)


def tiny(recipe, *, alpha: float = 0.25):
    """The second view's visible patches predict the teacher's view of the whole first one."""

    def context(forward):
        def project(network, view):
            return network.head('tiny/projector', network.hidden('encoder', view)[-1].mean(1))

        return {'': jnp.square(project(forward, 'tiny') - project(forward.teacher('tiny'), 'main')).mean()}

    def rate_at(step):
        return 0.1 * 0.5 * (1 + jnp.cos(jnp.pi * step / recipe.config.steps))

    return recipe.extend(
        'tiny',
        views={'tiny': View('second', darken, block=1)},
        objectives={'tiny': Objective(context, alpha, {'projector': Projector()})},
        teachers={'tiny': EMA(rate_at)},
    )


# -- a paper that swaps the neck -----------------------------------------------------------------------------------------


class Fusion(nn.Module):
    """A weighted sum of the outputs of all blocks; reports its weights."""

    @nn.compact
    def __call__(self, levels):
        weights = jax.nn.softmax(self.param('logits', nn.initializers.ones, (len(levels.blocks),)))
        for index, weight in enumerate(weights):
            self.sow('watch', f'block_{index}', weight)
        return jax.tree.map(lambda *xs: sum(w * x for w, x in zip(weights, xs, strict=True)), *levels.blocks)


def fused(recipe):
    """The decoder reads all blocks."""
    return recipe.swap('neck', last=(Last, Fusion())).extend('fused')


def add_watches(recipe):
    """How far the two views overlap, and what the photometric function did to each image."""

    def overlap(forward):
        return (~forward.plan('main').masked & ~forward.plan('tiny').masked).sum()

    def brightness(forward):
        pixels = forward.around.batch['second'].astype(jnp.float32) / 255
        return forward.pixels('tiny').sum((1, 2, 3)) / pixels.sum((1, 2, 3))

    return recipe.extend('watching', watches={'overlap': overlap, 'brightness': brightness})


# ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def recipe():
    return add_watches(tiny(fused(tiny_mae())))


@pytest.fixture(scope='module')
def batches(recipe):
    return [random_batch(recipe, seed) for seed in range(3)]


@pytest.fixture(scope='module')
def trained(recipe, batches):
    """Three steps on one device: the states before each and after the last, as {path: array}, and the logs."""
    run = start(recipe)
    states, logs = [run.first], []
    for batch in batches:
        now, (out,) = run._replace(first=states[-1]).train([batch])
        states.append(to_host(now))
        logs.append(out)
    return [leaves(state.replace(root_key=())) for state in states], logs, run.first


def teacher_and_source(state):
    """Pairs of the teacher's arrays and the student's of the same name."""
    prefix = 'teachers/tiny/'
    return {path: (array, state[path.removeprefix(prefix)]) for path, array in state.items() if path.startswith(prefix)}


def test_every_term_is_logged_alone_and_the_total_is_weighted(trained):
    for logs in trained[1]:
        np.testing.assert_allclose(logs['loss/total'], logs['loss/pixels'] + 0.25 * logs['loss/tiny'], rtol=1e-6)
        assert logs['loss/tiny'] > 0
        shares = [logs[f'watch/neck/last/block_{index}'] for index in range(2)]
        np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-6)
    assert trained[1][0]['loss/pixels'] != trained[1][1]['loss/pixels']


def test_the_views_show_disjoint_patches_and_every_image_its_own_brightness(trained):
    gains = np.stack([logs['watch/brightness'] for logs in trained[1]])
    assert ([logs['watch/overlap'] for logs in trained[1]] == np.zeros(3)).all()
    assert gains.shape == (3, 16)
    assert len(np.unique(gains)) == gains.size
    assert 0.5 <= gains.min() < 0.65 < 0.85 < gains.max() <= 1.0


def test_the_teacher_starts_as_a_copy(trained):
    pairs = teacher_and_source(trained[0][0])
    assert len(pairs) > 20
    for path, (teacher, student) in pairs.items():
        np.testing.assert_array_equal(teacher, student, err_msg=path)


def test_the_teacher_holds_what_is_read_through_it(trained):
    """Blocks, CLS and embedding of the encoder, the head with its statistics; no norm, neck or decoder."""
    held = {path.removeprefix('teachers/tiny/') for path in teacher_and_source(trained[0][0])}
    source = {path for path in trained[0][0] if path.startswith(('params/', 'batch_stats/'))}
    expected = {
        path
        for path in source
        if path.startswith(('params/encoder/', 'params/objectives/tiny/', 'batch_stats/objectives/tiny/'))
        and not path.startswith('params/encoder/norm/')
    }
    assert held == expected
    assert {path for path in source - held if 'neck' in path} == {'params/neck/last/logits'}


def test_the_teacher_moves_as_m_t_plus_1_minus_m_s_parameters_and_statistics(trained):
    for step in range(3):
        m = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        before, after = (teacher_and_source(trained[0][step + offset]) for offset in (0, 1))
        for path, (teacher, student) in after.items():
            np.testing.assert_allclose(teacher, m * before[path][0] + (1 - m) * student, atol=1e-6, err_msg=path)
    moved = [path for path, (teacher, _) in after.items() if (teacher != trained[0][0][path]).any()]
    assert set(moved) == set(after)


def test_batch_statistics_of_the_student_follow_its_batches(trained):
    means = [state['batch_stats/objectives/tiny/projector/bn/mean'] for state in trained[0]]
    np.testing.assert_array_equal(means[0], 0.0)
    assert all((later != earlier).all() for earlier, later in itertools.pairwise(means))
    teacher = trained[0][-1]['teachers/tiny/batch_stats/objectives/tiny/projector/bn/mean']
    assert np.abs(teacher).max() < np.abs(means[-1]).max()


def test_every_parameter_learns(trained):
    first, last = trained[0][0], trained[0][-1]
    still = [path for path in first if path.startswith('params/') and (first[path] == last[path]).all()]
    assert still == []


def test_data_and_fsdp_give_the_same_losses_and_split_the_teacher(recipe, batches, trained):
    run = start(recipe, data=2, fsdp=4, first=trained[2])
    state, logs = run.train(batches)
    for ours, expected in zip(logs, trained[1], strict=True):
        assert ours.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(ours[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
    kernel = state.teachers['tiny']['params']['encoder']['block_00']['attn']['qkv']['kernel']
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 48)}
    assert kernel.sharding == state.params['encoder']['block_00']['attn']['qkv']['kernel'].sharding


# -- gradients -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def gradients(recipe, batches, trained):
    """d loss / d (params, teachers) away from the start, where teacher and student differ."""
    state = trained[2]
    teachers = jax.tree.map(lambda x: x + 0.01, state.teachers)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradient(params, teachers):
        now = state.replace(teachers=teachers)

        def loss(params, teachers):
            return compute_loss(
                recipe, params, state.batch_stats, now.replace(teachers=teachers), {}, batches[0], jnp.arange(16)
            )[0]

        return jax.grad(loss, argnums=(0, 1))(params, teachers)

    return gradient(state.params, teachers)


def test_no_gradient_reaches_the_teacher(gradients):
    ours, teachers = (leaves(tree) for tree in gradients)
    assert len(teachers) > 20
    for path, gradient in teachers.items():
        np.testing.assert_array_equal(gradient, 0.0, err_msg=path)
    assert min(np.abs(gradient).max() for gradient in ours.values()) > 0


# -- order, refusals -----------------------------------------------------------------------------------------------------


def first_losses(recipe, state=None, batch_seed=0):
    state = state or init_plain(recipe)
    batch = random_batch(recipe, batch_seed)

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(state):
        return compute_loss(recipe, state.params, state.batch_stats, state, {}, batch, jnp.arange(16))[1][0]

    return jax.device_get(run(state))


def test_both_orders_of_two_papers_are_the_same_recipe(trained):
    """Parameters are made by name, so even the first draw does not know the order."""
    other = fused(tiny(tiny_mae()))
    state = init_plain(other)
    made = leaves({'params': state.params, 'batch_stats': state.batch_stats, 'teachers': state.teachers})
    expected = {
        path: array
        for path, array in trained[0][0].items()
        if path.split('/')[0] in ('params', 'batch_stats', 'teachers')
    }
    assert made.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(made[path], array, rtol=1e-6, atol=1e-8, err_msg=path)
    for name, value in first_losses(other, state).items():
        np.testing.assert_allclose(value, trained[1][0][name], rtol=1e-6, err_msg=name)


def second_view(name):
    """A paper that looks at a second view and no more."""
    return lambda recipe: recipe.extend(
        name,
        views={name: View('main', block=1)},
        objectives={name: Objective(lambda forward: {'': jnp.square(forward.levels(name).last.patches).mean()})},
    )


def test_the_order_of_papers_does_not_reach_drop_path():
    base = tiny_mae(tiny_config(encoder={'drop_path': 0.5}))
    first, second = second_view('first'), second_view('second')
    state = random_state(base)
    ours, theirs = (first_losses(recipe, state) for recipe in (first(second(base)), second(first(base))))
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-6, err_msg=name)


def test_a_paper_twice_or_in_another_s_place_is_refused():
    once = tiny(tiny_mae())
    with pytest.raises(Refused, match=r'tiny is already part of mae\+tiny; name each paper once\.'):
        tiny(once)
    with pytest.raises(Refused, match=r'Fusion takes the place of Last as neck/last, but mae\+fused has Fusion there'):
        fused(fused(tiny_mae()))
    with pytest.raises(Refused, match=r'other would overwrite tiny in the teachers of mae\+tiny'):
        once.extend('other', teachers={'tiny': EMA(lambda step: 0.5)})
