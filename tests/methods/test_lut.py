"""LUT as Recipe -> Recipe: views and masks, every switch, its config, what it refuses."""

from pathlib import Path

import jax
import numpy as np
import pytest
from lut_ours import STEERABLE, abstract_parts, draw_parts, forward_of, make, run, run_logs, transcribe, values_read
from test_precision import OPTIONS
from tiny_runs import QUICK, tiny_config, trace_forward

from mim_jax.config import bind_method, load_config
from mim_jax.errors import Refused
from mim_jax.forward import evaluate
from mim_jax.methods import BASES, PAPERS
from mim_jax.methods.lut import lut
from mim_jax.methods.mae import mae
from mim_jax.photometric import jitter_then_one_of_three
from mim_jax.recipe import View

ROOT = Path(__file__).parents[2]


# -- views and masks -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', STEERABLE)
def test_visible_sets_are_disjoint(base):
    recipe = make(base)
    keep = run(recipe, lambda forward: {view: forward.plan(view).keep for view in ('main', 'lut')})
    for main, second in zip(keep['main'], keep['lut'], strict=True):
        assert len({*main.tolist(), *second.tolist()}) == 2 * recipe.masking.visible


@pytest.mark.parametrize('base', STEERABLE)
def test_the_base_reads_the_main_view_alone(base):
    plain, recipe = BASES[base](tiny_config(), **OPTIONS[base]), lut(BASES[base](tiny_config(), **OPTIONS[base]))
    assert recipe.views == plain.views | {'lut': View('second', jitter_then_one_of_three, block=1)}
    assert not [slot for slot in values_read(recipe, plain.objectives) if 'lut' in slot]
    assert "levels('lut')" in values_read(recipe, ['lut'])


def test_one_direction_reads_the_second_view_through_the_teacher_only():
    """The teacher sees it whole; the student never, and so two disjoint sets need not fit."""
    recipe = make(symmetric=False, options={'mask_ratio': 0.4})
    assert recipe.views['lut'].block is None
    read = values_read(recipe, recipe.objectives)
    assert "pixels('lut')" in read
    assert not [slot for slot in read if 'lut' in slot and slot.startswith(('images', 'levels', 'latent', 'plan'))]


def test_the_symmetric_loss_is_the_mean_of_both_directions():
    recipe = make()
    parts = draw_parts(recipe)

    def read(forward):
        held = forward.teacher('lut')
        output, target = {}, {}
        for view in ('main', 'lut'):
            pooled = forward.visible(view).mean(axis=1)
            output[view] = forward.head('lut/predictor', forward.head('lut/projector', pooled))
            target[view] = held.head('lut/projector', held.latent(view).patches.mean(axis=1))
        return output, target, recipe.objectives['lut'].loss(forward)['']

    output, target, loss = run(recipe, read, parts)
    assert target['lut'].shape == (4, recipe.encoder.width)
    crossed = [
        transcribe('cosine', output[student].astype(np.float64), target[teacher].astype(np.float64))
        for student, teacher in (('main', 'lut'), ('lut', 'main'))
    ]
    np.testing.assert_allclose(loss, np.mean(crossed), rtol=1e-5)
    np.testing.assert_allclose(run_logs(make(symmetric=False), parts)['loss/lut'], crossed[0], rtol=1e-5)


# -- switches ----------------------------------------------------------------------------------------------------------------
SWITCHES = {
    'symmetric': False,
    'distance': 'smooth_l1',
    'supervision': 'token',
    'context': 'cls',
    'pooled': 'both',
    'average_batch_stats': False,
    'teacher_mask_ratio': 0.5,
    'bn_images': 2,
}


@pytest.fixture(scope='module')
def default_loss():
    return run_logs(make())


@pytest.mark.parametrize('name', SWITCHES)
def test_every_switch_changes_its_own_loss_alone(name, default_loss):
    changed = run_logs(make(**{name: SWITCHES[name]}))
    assert abs(changed['loss/lut'] - default_loss['loss/lut']) > 1e-4
    np.testing.assert_allclose(changed['loss/pixels'], default_loss['loss/pixels'], rtol=1e-6)


def test_temperature_divides_the_cosines():
    logs = run_logs(make(distance='infonce', temperature=1e3))
    np.testing.assert_allclose(logs['loss/lut'], np.log(4), rtol=1e-2)  # of the four images


@pytest.mark.parametrize(('width', 'alpha'), [(192, 0.25), (384, 1.0), (768, 0.25), (1024, 0.25)])
def test_alpha_is_the_paper_s_unless_given(width, alpha):
    recipe = BASES['mae'](tiny_config({'width': width, 'heads': 2}), **OPTIONS['mae'])
    assert lut(recipe).objectives['lut'].weight == alpha
    assert lut(recipe, alpha=0.5).objectives['lut'].weight == 0.5


def test_the_total_is_weighted():
    logs = run_logs(make(alpha=0.5))
    np.testing.assert_allclose(logs['loss/total'], logs['loss/pixels'] + 0.5 * logs['loss/lut'], rtol=1e-6)


def test_momentum_rises_to_one():
    rate_at = make(momentum=0.9).teachers['lut'].rate_at
    np.testing.assert_allclose([rate_at(0), rate_at(10), rate_at(20)], [0.1, 0.05, 0.0], atol=1e-7)


def test_tokens_are_compared_place_by_place():
    """Without augmentation and with a teacher equal to the student's head, a token's target is its own place's."""
    recipe = make(supervision='token', symmetric=False)
    assert recipe.crops == ('main',)
    assert make(supervision='both').crops == ('main',)

    def read(forward):
        held = forward.teacher('lut')
        target = held.head('lut/token_projector', held.visible('lut'))
        output = forward.head('lut/token_projector', forward.visible('main'))
        return target, forward.head('lut/token_predictor', output), forward.plan('main').keep, evaluate(forward)[1]

    target, output, keep, logs = run(recipe, read)
    pairs = [(output[b, v], target[b, n]) for b in range(4) for v, n in enumerate(keep[b])]
    outputs, targets = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    np.testing.assert_allclose(logs['loss/lut'], transcribe('cosine', outputs, targets), rtol=1e-5)


def test_both_supervisions_are_two_terms():
    logs = run_logs(make(supervision='both', alpha=0.5))
    terms = logs['loss/lut/context'] + logs['loss/lut/token']
    np.testing.assert_allclose(logs['loss/total'], logs['loss/pixels'] + 0.5 * terms, rtol=1e-6)


@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_steering_masked_tokens_gives_them_a_gradient_from_the_loss(base):
    """MAE's mask token lives in its decoder, SimMIM's in its encoder."""
    role, moved = {'mae': 'decoder/pixels', 'simmim': 'encoder'}[base], {}
    for pooled in ('unmasked', 'both'):
        recipe = make(base, pooled=pooled, symmetric=False)
        params, *rest = draw_parts(recipe)

        def loss(token, params, *rest, recipe=recipe):
            params = params | {role: params[role] | {'mask_token': token}}
            return recipe.objectives['lut'].loss(forward_of(recipe, params, *rest))['']

        gradient = jax.jit(jax.grad(loss), compiler_options=QUICK)(params[role]['mask_token'], params, *rest)
        moved[pooled] = np.abs(gradient).max()
        assert ('objectives/lut/masked' in params) == (base == 'mae' and pooled == 'both')
    assert moved['both'] > 0
    assert (moved['unmasked'] == 0) == (base == 'mae')  # SimMIM's reach visible tokens through attention


# -- other papers ------------------------------------------------------------------------------------------------------------
def test_the_teacher_fuses_as_the_student_does():
    """MFF's fusion is in the teacher in either order; that papers commute is in test_support_matrix.py."""
    recipe = mae(tiny_config(), **OPTIONS['mae'])
    one, other = lut(PAPERS['mff'](recipe)), PAPERS['mff'](lut(recipe))
    shapes = [jax.tree.map(lambda a: a.shape, abstract_parts(stacked)) for stacked in (one, other)]
    assert shapes[0] == shapes[1]
    assert shapes[0][2]['lut']['params']['neck/last'] == shapes[0][0]['neck/last']


# -- configuration -----------------------------------------------------------------------------------------------------------
def load_recipe(variant, *overrides):
    config, _ = load_config(f'{ROOT}/configs/lut.py:{variant}', overrides, {**BASES, **PAPERS})
    config = config.copy_and_resolve_references().unlock()
    config.steps, config.steps_per_epoch = 10, 1.0
    return bind_method(config, 'lut', lut)(bind_method(config, 'mae', mae)(config))


def test_the_config_is_the_released_command():
    recipe = load_recipe('')
    config, objective = recipe.config, recipe.objectives['lut']
    assert (config.batch_size, config.epochs, config.data.crop, config.data.interpolation) == (
        4096,
        1600,
        'src',
        'bicubic',
    )
    assert (config.optim.b1, config.optim.b2, config.optim.weight_decay, config.optim.warmup_epochs) == (
        0.9,
        0.95,
        0.05,
        40,
    )
    assert config.optim.base_lr == 1.5e-4
    assert objective.weight == 0.25
    assert objective.heads['projector'].widths == objective.heads['predictor'].widths == (4096, 768)
    assert load_recipe('vit_s16').objectives['lut'].weight == 1.0


ROWS = ('paper', 'steered', 'cls', 'token', 'both', 'infonce', 'smooth_l1', 'half', 'three_quarters', 'rrc')


@pytest.mark.parametrize('row', ROWS)
def test_every_row_of_the_paper_is_a_recipe_of_its_own(row):
    plain, recipe = load_recipe('smoke'), load_recipe(f'smoke,{row}')
    assert recipe.config != plain.config
    logs = trace_forward(replace_side(recipe), lambda forward: evaluate(forward)[1])
    assert 'loss/lut' in logs or {'loss/lut/context', 'loss/lut/token'} <= logs.keys()


def replace_side(recipe):
    """trace_forward's images have 16 pixels."""
    config = recipe.config.copy_and_resolve_references().unlock()
    config.image_size = 16
    return bind_method(config, 'lut', lut)(bind_method(config, 'mae', mae)(config))


# -- refusals ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('base', 'settings', 'sentence'),
    [
        ('conmim', {}, 'lut steers the visible tokens of a masked reconstruction, and conmim has none'),
        ('supervised', {}, 'lut steers the visible tokens of a masked reconstruction, and supervised has none'),
        ('mcmae', {'context': 'cls'}, "lut.context='cls' reads a CLS token, which mcmae's encoder has not"),
        (
            'bootmae',
            {'pooled': 'both'},
            "lut.pooled='both' pools the masked tokens of one network, and bootmae has them in 2",
        ),
        ('mae', {'pooled': 'both', 'context': 'cls'}, "lut.context='cls' pools nothing"),
        ('mae', {'supervision': 'token', 'context': 'cls'}, "lut.supervision='token' has none"),
        ('mae', {'supervision': 'both', 'teacher_mask_ratio': 0.5}, 'set lut.teacher_mask_ratio=0'),
        ('mae', {'teacher_mask_ratio': 1.0}, 'lut.teacher_mask_ratio=1.0 shows the teacher 0 of 16 patches'),
        ('mae', {'teacher_mask_ratio': -0.5}, 'lut.teacher_mask_ratio=-0.5 shows the teacher 24 of 16 patches'),
        ('mae', {'options': {'mask_ratio': 0.4}}, 'two disjoint sets of 9 patches, more than the 16 there are'),
        ('mae', {'distance': 'l2'}, "lut.distance='l2' must be one of cosine, infonce, smooth_l1"),
        ('mae', {'alpha': 0.0}, 'lut.alpha=0.0 must be above 0'),
        ('mae', {'temperature': 0.0}, 'lut.temperature=0.0 must be above 0'),
        ('mae', {'head_width': 0}, 'lut.head_width=0 must be at least 1'),
        ('mae', {'momentum': 1.5}, 'lut.momentum=1.5 must be at least 0 and at most 1'),
        ('mae', {'bn_images': -1}, 'lut.bn_images=-1 must not be negative'),
        ('mae', {'bn_images': 3000}, 'lut.bn_images=3000 does not divide the 4096 images'),
        ('mae', {'bn_images': 1}, '1 image has no variance: lut.bn_images must be larger, or 0'),
        ('mae', {'bn_images': 1, 'supervision': 'both'}, '1 image has no variance: lut.bn_images must be larger'),
        (
            'mae',
            {'config': tiny_config(batch_size=4, accumulate=4)},
            '1 image has no variance: batch_size / accumulate',
        ),
        ('mae', {'temperature': 0.2}, "lut.temperature=0.2 has no effect unless lut.distance='infonce'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(base, settings, sentence):
    with pytest.raises(Refused) as refused:
        make(base, **settings)
    assert sentence in str(refused.value)
    assert str(refused.value).endswith('.')


def test_tokens_have_a_variance_in_one_image():
    recipe = make(config=tiny_config(batch_size=4, accumulate=4), supervision='token', bn_images=1)
    assert np.isfinite(run_logs(recipe)['loss/lut'])


def test_it_is_named_once():
    with pytest.raises(Refused, match='lut is already part of mae'):
        lut(make())
