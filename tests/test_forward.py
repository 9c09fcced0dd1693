"""The lazy forward pass: once per trace, named cycles and leaks, what is created, what is logged."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_runs import QUICK, init_plain, random_batch, tiny_config, tiny_mae, trace_forward

from mim_jax.forward import Forward, Surroundings, create_parameters
from mim_jax.networks import Networks, merge_trees, named_key, prune_tree
from mim_jax.recipe import EMA, Masking, Objective, View
from mim_jax.training.step import compute_loss


class Head(nn.Module):
    """A head with BatchNorm that reports something."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        self.sow('watch', 'size', jnp.abs(x).mean())
        return nn.BatchNorm(use_running_average=not self.is_mutable_collection('batch_stats'))(x)


@pytest.fixture(scope='module')
def recipe():
    return tiny_mae()


def with_loss(recipe, loss, **objective):
    return recipe.extend('new', objectives={'new': Objective(loss, **objective)})


def read_everything(forward):
    return forward.prediction('pixels'), forward.visible(), forward.hidden('pixels'), forward.levels().attention(-1)


# -- memoisation ---------------------------------------------------------------------------------------------------------


def test_a_value_is_computed_once_with_and_without_the_default_view(recipe):
    def read(forward):
        for name in ('pixels', 'images', 'scores', 'plan', 'levels', 'latent', 'visible'):
            value = getattr(forward, name)
            assert value() is value('main')
            assert value() is value(view='main')
        assert forward.decoded('pixels') is forward.decoded('pixels', 'main')
        assert forward.decoded(view='main', name='pixels') is forward.decoded('pixels')
        assert forward.hidden('encoder')[-1] is forward.levels().last.patches
        return forward.latent().patches

    assert trace_forward(recipe, read).shape == (2, 4, 16)


def test_modules_run_once_however_often_they_are_read(recipe, monkeypatch):
    calls = []
    run = Networks.run
    monkeypatch.setattr(Networks, 'run', lambda self, role, *a, **k: calls.append(role) or run(self, role, *a, **k))
    trace_forward(recipe, lambda forward: [read_everything(forward) for _ in range(2)])
    assert sorted(calls) == ['decoder/pixels', 'encoder', 'encoder', 'neck/last']


def test_what_nobody_reads_is_not_run(recipe, monkeypatch):
    calls = []
    run = Networks.run
    monkeypatch.setattr(Networks, 'run', lambda self, role, *a, **k: calls.append(role) or run(self, role, *a, **k))
    trace_forward(recipe, lambda forward: forward.plan())
    assert calls == []
    trace_forward(recipe, lambda forward: forward.hidden('encoder'))
    assert calls == ['encoder']


def test_a_photometric_function_runs_once_for_student_and_teacher(recipe):
    calls = []

    def photometric(pixels, keys):
        calls.append(keys.shape)
        return pixels

    more = recipe.extend('new', views={'v': View('main', photometric)}, teachers={'t': EMA(lambda step: 0.1)})
    trace_forward(more, lambda f: (f.levels('v'), f.pixels('v'), f.teacher('t').levels('v'), f.images('v')))
    assert calls == [(2,)]


# -- mistakes are named --------------------------------------------------------------------------------------------------


def test_a_cycle_is_named(recipe):
    masking = Masking(lambda forward, view: forward.visible(view).mean(-1), 4)
    cyclic = dataclasses.replace(recipe, masking=masking)
    chain = r"scores\('main'\) needs visible\('main'\) needs latent\('main'\).* needs scores\('main'\)"
    with pytest.raises(RecursionError, match=chain) as caught:
        trace_forward(cyclic, lambda forward: forward.scores())
    assert "while computing forward.latent('main')" in caught.value.__notes__


@pytest.mark.parametrize(
    'transform',
    [
        lambda read: jax.checkpoint(read)(),
        lambda read: jax.lax.scan(lambda carry, _: (carry + read(), None), 0.0, None, length=2)[0],
        lambda read: jax.vmap(lambda x: x * read())(jnp.ones(2)),
        lambda read: jax.grad(lambda x: x * read())(1.0),
        lambda read: jax.jit(read)(),
    ],
    ids=['checkpoint', 'scan', 'vmap', 'grad', 'jit'],
)
def test_a_first_read_inside_an_inner_transformation_is_named(recipe, transform):
    message = r"forward\.visible\('main'\) was read inside an inner jax transformation; read it outside"
    with pytest.raises(RuntimeError, match=message):
        trace_forward(recipe, lambda forward: transform(lambda: forward.visible().mean()))


def test_errors_carry_the_way_to_them(recipe):
    def broken(pixels, keys):
        raise ValueError('no such colour')

    more = recipe.extend('new', views={'v': View('main', broken)})
    with pytest.raises(ValueError, match='no such colour') as caught:
        trace_forward(more, lambda forward: forward.visible('v'))
    computing = [note for note in caught.value.__notes__ if note.startswith('while computing')]
    assert computing == [
        f"while computing forward.{name}('v')" for name in ('pixels', 'images', 'levels', 'latent', 'visible')
    ]


def test_after_an_error_the_forward_is_not_in_a_cycle(recipe):
    def read(forward):
        for _ in range(2):
            with pytest.raises(KeyError, match='nowhere'):
                forward.levels('nowhere')
        return forward.levels().last.patches

    assert trace_forward(recipe, read).shape == (2, 4, 16)


# -- noise ---------------------------------------------------------------------------------------------------------------


def make_forward(recipe, rows, key=None):
    key = jax.random.key(5) if key is None else key
    return Forward(recipe, Networks(recipe, {}, {}, key, 'train'), Surroundings({}, rows, key, 0, {}, {}))


def test_noise_belongs_to_the_row_of_the_global_batch(recipe):
    whole = make_forward(recipe, jnp.arange(6)).uniform('mask', (4,))
    part = make_forward(recipe, jnp.array([4, 1])).uniform('mask', (4,))
    np.testing.assert_array_equal(part, whole[jnp.array([4, 1])])
    assert len(np.unique(np.asarray(whole))) == 24


def test_noise_differs_by_name_and_by_step(recipe):
    rows = jnp.arange(2)
    first = make_forward(recipe, rows)
    other = make_forward(recipe, rows, named_key(jax.random.key(5), 'step', 1))
    draws = [first.uniform('a', (4,)), first.uniform('b', (4,)), other.uniform('a', (4,))]
    assert len(np.unique(np.stack(draws))) == 24
    np.testing.assert_array_equal(first.uniform('a', (4,)), draws[0])


def test_named_keys_take_strings_and_traced_integers():
    root = jax.random.key(0)
    data = jax.random.key_data
    traced = jax.jit(lambda step: data(named_key(root, 'step', step)))(7)
    np.testing.assert_array_equal(traced, data(named_key(root, 'step', 7)))
    assert (data(named_key(root, 'a', 'b')) != data(named_key(root, 'b', 'a'))).any()


# -- parameters ----------------------------------------------------------------------------------------------------------


def test_only_what_the_losses_touch_is_created(recipe):
    unused = recipe.extend('new', objectives={'new': Objective(lambda f: {'': 0.0}, heads={'head': Head()})})
    params, batch_stats, teachers = jax.eval_shape(lambda key: create_parameters(unused, key), jax.random.key(0))
    assert sorted(params) == ['decoder/pixels', 'encoder']
    assert batch_stats == teachers == {}


def test_creating_leaves_batch_statistics_alone(recipe):
    used = with_loss(recipe, lambda f: {'': f.head('new/head', 5 + f.visible().mean(1)).mean()}, heads={'head': Head()})
    head = jax.jit(lambda key: create_parameters(used, key)[1])(jax.random.key(0))['objectives/new/head']
    np.testing.assert_array_equal(head['BatchNorm_0']['mean'], 0.0)
    np.testing.assert_array_equal(head['BatchNorm_0']['var'], 1.0)


def test_an_ema_teacher_copies_what_is_read_through_it_and_no_more(recipe):
    """Read for hidden states: no final norm, no decoder, no heads."""
    loss = lambda f: {'': jnp.square(f.visible().mean() - f.teacher('t').hidden('encoder')[-1].mean())}  # noqa: E731
    more = with_loss(recipe, loss).extend('t', teachers={'t': EMA(lambda step: 0.1), 'unread': EMA(lambda step: 0.1)})
    params, _, teachers = jax.eval_shape(lambda key: create_parameters(more, key), jax.random.key(0))
    assert list(teachers) == ['t']
    assert list(teachers['t']['params']) == ['encoder']
    assert set(params['encoder']) - set(teachers['t']['params']['encoder']) == {'norm'}
    assert teachers['t']['batch_stats'] == {}


def test_trees_merge_and_prune():
    first, second = {'a': {'x': 1}}, {'a': {'x': 2, 'y': 3}, 'b': {'z': 4}}
    assert merge_trees(first, second) == {'a': {'x': 1, 'y': 3}, 'b': {'z': 4}}
    assert prune_tree(second, {'a': {'y': 0}}) == {'a': {'y': 3}}
    with pytest.raises(KeyError):
        prune_tree(first, second)


# -- evaluation ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def weighed(recipe):
    """Two terms, one of them on a schedule, a head that reports, a watch."""

    def loss(forward):
        latent = forward.visible().mean(1)
        return {'a': jnp.square(forward.head('new/head', latent)).mean(), 'b': jnp.abs(latent).mean()}

    more = with_loss(recipe, loss, weight={'a': 0.5, 'b': lambda step: 10.0 + step}, heads={'head': Head()})
    more = more.extend('w', watches={'visible': lambda forward: forward.visible().mean()})
    state = init_plain(more)
    batch = {crop: jnp.asarray(pixels) for crop, pixels in random_batch(more, count=4).items()}

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(step):
        now = state.replace(step=step)
        return compute_loss(more, state.params, state.batch_stats, now, {}, batch, jnp.arange(4))

    return state, run


def test_terms_are_logged_alone_and_summed_with_their_weights(weighed):
    for step in (0, 4):
        total, (logs, _) = weighed[1](step)
        assert set(logs) == {
            'loss/total', 'loss/pixels', 'loss/new/a', 'loss/new/b', 'watch/visible', 'watch/objectives/new/head/size',
        }  # fmt: skip
        expected = logs['loss/pixels'] + 0.5 * logs['loss/new/a'] + (10.0 + step) * logs['loss/new/b']
        np.testing.assert_allclose(total, expected, rtol=1e-6)
        assert total == logs['loss/total']


def test_training_moves_batch_statistics(weighed):
    state, run = weighed
    before = state.batch_stats['objectives/new/head']['BatchNorm_0']
    after = run(0)[1][1]['objectives/new/head']['BatchNorm_0']
    assert np.abs(after['mean'] - before['mean']).max() > 0
    np.testing.assert_array_equal(before['mean'], 0.0)


def test_mae_s_loss_is_the_mean_over_masked_patches(recipe):
    """From the prediction, with numpy: unbiased normalisation, only masked patches, as models_mae.py forward_loss."""
    state = init_plain(recipe)
    pixels = random_batch(recipe, count=4)['main']

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(params):
        networks = Networks(recipe, params, {}, jax.random.key(0), 'evaluate')
        around = Surroundings({'main': pixels}, jnp.arange(4), jax.random.key(0), 0, {}, {})
        forward = Forward(recipe, networks, around)
        return recipe.objectives['pixels'].loss(forward)[''], forward.prediction('pixels'), forward.plan().masked

    loss, prediction, masked = run(state.params)
    config = tiny_config()
    images = (pixels / 255.0 - np.array(config.data.mean)) / np.array(config.data.std)
    patches = np.stack(
        [images[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(4, -1) for i in range(4) for j in range(4)], 1
    )
    target = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    errors = ((np.asarray(prediction) - target) ** 2).mean(-1)
    np.testing.assert_allclose(loss, errors[np.asarray(masked)].mean(), rtol=1e-5)
