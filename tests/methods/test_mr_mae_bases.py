"""MR-MAE on every base: what trains, what is weighed, dropped, refused; teachers stay outside; papers commute."""

import jax
import numpy as np
import pytest
import tower_cases
from mr_mae_ours import (
    EPSILONS,
    RANDOM,
    TEACHER,
    expected_mimicry,
    expected_target,
    make_base,
    make_forward,
    make_parts,
    make_student,
)
from mto_ours import OPTIONS
from tiny_runs import QUICK, leaves, random_batch, random_state, start

from mim_jax.errors import Refused
from mim_jax.forward import evaluate
from mim_jax.methods.lut import lut
from mim_jax.methods.mff import mff
from mim_jax.methods.mr_mae import mr_mae
from mim_jax.methods.mto import mto
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.teachers import load_frozen
from mim_jax.training import optim, state, step
from mim_jax.weights.files import WeightsError

BASES = [base for base in OPTIONS if base != 'conmim']


# -- training ----------------------------------------------------------------------------------------------------------
def test_the_head_trains_and_the_teacher_does_not():
    """Every base trains in test_support_matrix.py. The teacher is no part of the state, and its bytes stay as they are."""
    recipe = make_student('mae')
    frozen = jax.device_put(load_frozen(recipe))
    run = start(recipe, first=random_state(recipe), frozen=frozen)
    assert run.abstract.teachers == {}
    assert not any('mimic_' in path for path, _ in state.flatten_with_paths(run.abstract.replace(root_key=())))
    last, logs = run.train([random_batch(recipe)] * 2, frozen)
    assert logs[0].keys() >= {'loss/total', 'loss/pixels', 'loss/mimic'}
    first, now = leaves(run.first.params), leaves(last.params)
    for path in ('objectives/mimic/random/linear/kernel', 'objectives/mimic/random/linear/bias'):
        assert (first[path] != now[path]).all(), path
    assert (first['encoder/block_00/mlp/fc1/kernel'] != now['encoder/block_00/mlp/fc1/kernel']).any()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), load_frozen(recipe))


def test_no_gradient_reaches_the_teacher():
    """Exactly zero: of features that are mimicked, and of attention that is ranked or drawn from."""
    for focus in ('topk', 'sample'):
        recipe = make_student('mae', depth=1, focus=focus)
        params, batch_stats, teachers, frozen = make_parts(recipe)

        def loss(both, recipe=recipe, rest=(batch_stats, teachers)):
            return evaluate(make_forward(recipe, (both[0], *rest, both[1])))[0]

        ours, theirs = jax.device_get(jax.jit(jax.grad(loss), compiler_options=QUICK)((params, frozen)))
        assert theirs.keys() == {TEACHER}
        for path, leaf in leaves(theirs).items():
            np.testing.assert_array_equal(leaf, 0.0, err_msg=path)
        assert np.abs(leaves(ours)['objectives/mimic/random/linear/kernel']).min() > 0


# -- weights -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', BASES)
def test_reconstruction_and_mimicry_weigh_a_half_each(base):
    """BootMAE's ramp of its features stays, at half its height."""
    plain, recipe = make_base(base), make_student(base)
    assert recipe.objectives.keys() == plain.objectives.keys() | {'mimic'}
    assert recipe.objectives['mimic'].weight == 0.5
    for name, own in plain.objectives.items():
        for number in (0, 40):
            assert recipe.objectives[name].weight_of('', number) == 0.5 * own.weight_of('', number)


@pytest.mark.parametrize('base', BASES)
def test_mimicry_alone_has_no_decoder_and_no_pictures(base):
    recipe = make_student(base, reconstruct_weight=0.0)
    params, _, teachers, _ = make_parts(recipe)
    assert recipe.objectives.keys() == {'mimic'}
    assert recipe.pictures == {}
    assert not any(role.startswith('decoder/') for role in params)
    assert 'objectives/mimic/random' in params
    assert not teachers  # BootMAE's has nothing left to teach


def test_weights_are_the_users():
    recipe = make_student('mae', reconstruct_weight=2.0, mimic_weight=3.0)
    assert (recipe.objectives['pixels'].weight, recipe.objectives['mimic'].weight) == (2.0, 3.0)
    assert recipe.pictures == make_base('mae').pictures
    both = make_student('mae', reconstruct_weight=0.0, mimic_on='decoder')  # its decoder is there to mimic
    assert 'decoder/pixels' in make_parts(both)[0]


# -- several teachers --------------------------------------------------------------------------------------------------
def test_two_teachers_at_once(tmp_path):
    """Small CLIP and DINO files: a head and a loss each, of a quarter of the weight; the first decides the focus."""
    files = {f'{kind}_weights': str(tower_cases.write_small(kind, tmp_path / kind)) for kind in ('clip', 'dino')}
    made = {order: mr_mae(make_base('mae'), teachers=order, **files) for order in (('clip', 'dino'), ('dino', 'clip'))}
    recipe = made['clip', 'dino']
    parts = make_parts(recipe)
    assert recipe.objectives['mimic'].weight == 0.25
    assert parts[0].keys() >= {'objectives/mimic/clip', 'objectives/mimic/dino'}
    means = {name: teacher.mean for name, teacher in recipe.teachers.items()}
    assert means['mimic_clip'] != means['mimic_dino'] == recipe.mean

    def read(parts):
        found = {}
        for order, one in made.items():
            forward = make_forward(one, parts)
            levels = {name: forward.teacher(name).levels() for name in one.teachers}
            looks = {name: seen.attention(-1)[:, :, 0, 1:].mean(1) for name, seen in levels.items()}
            last = {name: seen.last.patches for name, seen in levels.items()}
            found[' '.join(order)] = evaluate(forward)[1], forward.visible(), forward.plan().keep, last, looks
        return found

    found = jax.device_get(jax.jit(read, compiler_options=QUICK)(parts))
    for order, (logs, tokens, keep, last, looks) in found.items():
        wanted = np.argsort(-looks[f'mimic_{order.split()[0]}'], axis=1, kind='stable')[:, : keep.shape[1]]
        np.testing.assert_array_equal(np.sort(keep, 1), np.sort(wanted, 1))
        for name, features in last.items():
            kind = name.removeprefix('mimic_')
            target = expected_target(features, parts[3][name], 'ln_post', 'none', EPSILONS[name])
            loss = expected_mimicry(tokens, parts[0][f'objectives/mimic/{kind}'], target, keep)
            np.testing.assert_allclose(logs[f'loss/mimic/{kind}'], loss, rtol=1e-5)
        mimicry = logs['loss/mimic/clip'] + logs['loss/mimic/dino']
        np.testing.assert_allclose(logs['loss/total'], 0.5 * logs['loss/pixels'] + 0.25 * mimicry, rtol=1e-6)
    keeps = [np.sort(one[2], 1) for one in found.values()]
    assert (keeps[0] != keeps[1]).any()


# -- with other papers -------------------------------------------------------------------------------------------------
def write_program(recipe):
    """The program that trains a step, as text."""
    rate, mesh = optim.learning_rate('constant', 1e-3, 0.0, 2, 20), make_mesh(devices=jax.devices()[:1])
    optimizer = optim.make_optimizer(recipe.config.optim, rate, recipe.decay)
    abstract, frozen = state.abstract_state(recipe, optimizer, mesh), load_frozen(recipe)
    train = step.jit_train_step(
        step.make_train_step(recipe, optimizer, rate, 1), abstract, jax.device_put(frozen), mesh
    )
    return train.lower(abstract, frozen, to_global(mesh, random_batch(recipe))).as_text()


@pytest.mark.parametrize(
    'base', ['mae', 'simmim', *(pytest.param(b, marks=pytest.mark.slow) for b in ('bootmae', 'mcmae'))]
)
def test_it_commutes_with_the_other_papers(base):
    """Both orders are the same program letter by letter."""

    def add(recipe):
        return mr_mae(recipe, teachers=RANDOM)

    plain = make_base(base)
    for other in (mff, mto):
        one, two = other(add(plain)), add(other(plain))
        assert set(one.roles()) == set(two.roles())
        assert one.objectives.keys() == two.objectives.keys()
        assert write_program(one) == write_program(two)
    everything = mto(mff(add(plain)))
    assert everything.name == f'{base}+mr_mae+mff+mto'
    assert everything.roles() == mff(mto(add(plain))).roles()


@pytest.mark.parametrize('base', BASES)
def test_mimicry_alone_commutes_with_lut(base):
    """What a base does is asked of its recipe, not of its losses, which are dropped here."""

    def mimic(recipe):
        return mr_mae(recipe, teachers=RANDOM, reconstruct_weight=0.0)

    def steer(recipe):
        return lut(recipe, head_width=8)

    one, two = steer(mimic(make_base(base))), mimic(steer(make_base(base)))
    assert one.objectives.keys() == two.objectives.keys() == {'mimic', 'lut'}
    assert write_program(one) == write_program(two)


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', ['conmim', 'supervised'])
def test_a_base_without_a_masked_reconstruction_is_refused(base):
    sentence = f'mr_mae mimics before a masked reconstruction, and {base} has none; choose another config.base.'
    with pytest.raises(Refused) as refused:
        make_student(base)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ('base', 'options', 'message'),
    [
        (
            'mae',
            {'teachers': ()},
            r'mr_mae\.teachers=\(\) must be at least one of clip, dino, dinov2, random, each once\.',
        ),
        ('mae', {'teachers': ('eva',)}, r"mr_mae\.teachers=\('eva',\) must be at least one of"),
        ('mae', {'teachers': ('random', 'random')}, r"mr_mae\.teachers=\('random', 'random'\) must be .* each once\."),
        ('mae', {'clip_weights': 'a'}, r'mr_mae\.clip_weights has no effect: clip is not among mr_mae\.teachers'),
        ('mae', {'feature': 'cls'}, r"mr_mae\.feature='cls' must be one of pre_ln, ln_post, proj\."),
        ('mae', {'target_norm': 'batch'}, r"mr_mae\.target_norm='batch' must be one of none, layer_norm, l2\."),
        ('mae', {'focus': 'most'}, r"mr_mae\.focus='most' must be one of topk, sample, random\."),
        ('mae', {'mimic_on': 'both'}, r"mr_mae\.mimic_on='both' must be one of encoder, decoder\."),
        ('mae', {'reconstruct_weight': -1.0}, r'mr_mae\.reconstruct_weight=-1\.0 must not be negative; 0 drops'),
        ('mae', {'mimic_weight': 0.0}, r'mr_mae\.mimic_weight=0\.0 must be above 0\.'),
        ('mae', {'layers': (0, 0)}, r'mr_mae\.layers=\(0, 0\) must be different blocks from 0 to 0'),
        ('mae', {'layers': (1,)}, r'mr_mae\.layers=\(1,\) must be different blocks'),
        ('mae', {'layers': (-1,)}, r'mr_mae\.layers=\(-1,\) must be different blocks'),
        ('mae', {'layers': (False,)}, r'mr_mae\.layers=\(False,\) must be different blocks'),
        ('mae', {'layers': (0,), 'fusion': False}, r'mr_mae\.layers=\(0,\) has no effect .*mr_mae\.fusion'),
        (
            'simmim',
            {'mimic_on': 'decoder'},
            r"mr_mae\.mimic_on='decoder' needs one decoder .*simmim has them in encoder",
        ),
        ('bootmae', {'mimic_on': 'decoder'}, r"mr_mae\.mimic_on='decoder' .*bootmae has them in pixels and features"),
    ],
)
def test_refusals_name_the_key(base, options, message):
    with pytest.raises(Refused, match=message):
        make_student(base, **options)


def test_it_is_applied_once():
    with pytest.raises(Refused, match=r'mr_mae is already part of mae\+mr_mae; name each paper once'):
        mr_mae(make_student('mae'), teachers=RANDOM)


@pytest.mark.parametrize('kind', ['clip', 'dino', 'dinov2'])
def test_a_file_that_is_not_there(kind, tmp_path):
    """The sentence names the key, the repository to fetch from and the place."""
    for path in ('', str(tmp_path / 'nowhere.safetensors')):
        with pytest.raises(WeightsError) as error:
            make_student('mae', teachers=(kind,), **{f'{kind}_weights': path})
        for word in (f'Set mr_mae.{kind}_weights to model.safetensors', 'huggingface.co', 'weights/', 'random', path):
            assert word in str(error.value)


def test_a_projection_that_a_teacher_lacks(tmp_path):
    folder = tower_cases.write_small('dino', tmp_path)
    with pytest.raises(Refused, match='The dino teacher has no projection, so the feature proj does not exist'):
        make_student('mae', teachers=('dino',), dino_weights=str(folder), feature='proj')
