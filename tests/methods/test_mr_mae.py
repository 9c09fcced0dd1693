"""MR-MAE's values: the mimic loss against equation 2, what is fused, which patches the teacher's attention keeps."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mr_mae_ours import (
    IMAGES,
    RANDOM,
    TEACHER,
    apply_norm,
    expected_mimicry,
    expected_target,
    make_base,
    make_forward,
    make_parts,
    make_student,
)
from parity_rules import photographs
from tiny_runs import PATCHES, QUICK, SIDE, VISIBLE

from mim_jax.forward import evaluate
from mim_jax.methods.lut import lut
from mim_jax.methods.mr_mae import focus_scores, mr_mae, spread_levels
from mim_jax.models.stages import AddStages
from mim_jax.models.towers import FEATURES
from mim_jax.objectives.mimic import NORMS
from mim_jax.recipe import View
from mim_jax.tokens import plan_from_scores


def compute(read, *args):
    """read(*args) as NumPy, compiled once."""
    return jax.device_get(jax.jit(read, compiler_options=QUICK)(*args))


# -- equation 2 --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(('base', 'mimic_on'), [('mae', 'encoder'), ('simmim', 'encoder'), ('mcmae', 'decoder')])
def test_the_loss_is_equation_2(base, mimic_on):
    """Every feature under every normalisation, from the tokens and the teacher's last block of the same pass."""
    recipes = {feature: make_student(base, feature=feature, mimic_on=mimic_on) for feature in FEATURES}
    parts = {feature: make_parts(recipe) for feature, recipe in recipes.items()}

    def read(parts):
        found = {}
        for feature, recipe in recipes.items():
            forward = make_forward(recipe, parts[feature])
            losses = {}
            for norm in NORMS:
                normed = make_student(base, feature=feature, mimic_on=mimic_on, target_norm=norm)
                losses[norm] = normed.objectives['mimic'].loss(forward)['']
            tokens = forward.visible() if mimic_on == 'encoder' else forward.hidden('pixels')[-1]
            last = forward.teacher(TEACHER).levels().last.patches
            found[feature] = losses, tokens, last, (forward.plan().keep, forward.plan().drop), evaluate(forward)[1]
        return found

    worst = 0.0
    for feature, (losses, tokens, last, (keep, drop), logs) in compute(read, parts).items():
        params, _, _, frozen = parts[feature]
        head, places = params['objectives/mimic/random'], keep
        if mimic_on == 'decoder':
            places = drop
            tokens = np.take_along_axis(tokens, drop[..., None], 1)
            tokens = apply_norm(tokens, head['norm'], 1e-6)
        assert tokens.shape[:2] == (IMAGES, VISIBLE if mimic_on == 'encoder' else PATCHES - VISIBLE)
        assert ('norm' in head) == (mimic_on == 'decoder')
        for norm in NORMS:
            target = expected_target(last, frozen[TEACHER], feature, norm)
            wanted = expected_mimicry(tokens, head, target, places)
            np.testing.assert_allclose(losses[norm], wanted, rtol=1e-5, err_msg=f'{feature}, {norm}')
            worst = max(worst, abs(losses[norm] / wanted - 1))
        np.testing.assert_allclose(logs['loss/mimic'], losses['none'], rtol=1e-6)
        (own,) = (key for key in logs if key not in ('loss/total', 'loss/mimic') and key.startswith('loss/'))
        np.testing.assert_allclose(logs['loss/total'], 0.5 * logs[own] + 0.5 * logs['loss/mimic'], rtol=1e-6)
    print(f'{base}, {mimic_on}: largest relative difference {worst:.1e}')


def test_the_teacher_sees_the_whole_image_with_its_own_statistics():
    recipe = make_student('mae')
    parts = make_parts(recipe)
    tower, frozen = recipe.teachers[TEACHER], parts[3][TEACHER]
    images = (photographs(SIDE, IMAGES).astype(np.float32) / 255.0 - np.float32(tower.mean)) / np.float32(tower.std)

    def read(parts):
        found = make_forward(recipe, parts).teacher(TEACHER).levels().last.patches
        return found, tower.encoder.apply({'params': parts[3][TEACHER]}, images, method='levels').last.patches

    found, wanted = compute(read, parts)
    assert (tower.mean, tower.std) != (recipe.mean, recipe.std)
    assert found.shape == (IMAGES, PATCHES, frozen['norm']['scale'].size)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


# -- fusion ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('depth', 'layers'),
    [(12, (2, 5, 8)), (11, (2, 5, 8)), (24, (5, 11, 17)), (32, (7, 15, 23)), (4, (0, 1, 2)), (2, (0,)), (1, ())],
)
def test_blocks_are_spread_over_any_depth(depth, layers):
    assert spread_levels((), depth) == layers


@pytest.mark.parametrize(
    ('base', 'depth', 'layers', 'options'),
    [
        ('mae', 12, (2, 5, 8), {}),
        ('mcmae', 4, (0, 2), {'layers': (0, 2)}),
        ('mae', 4, (), {'fusion': False}),
        ('mcmae', 3, (), {'fusion': False}),
    ],
)
def test_blocks_and_stages_are_added_under_the_final_norm(base, depth, layers, options):
    recipe = mr_mae(make_base(base, depth, scan=base == 'mae'), teachers=RANDOM, **options)
    parts = make_parts(recipe)

    def read(parts):
        forward = make_forward(recipe, parts)
        levels = forward.levels()
        stages = 0.0
        if base == 'mcmae':
            stages = AddStages(jnp.float32).apply({'params': parts[0]['neck/stages']}, levels).joined()
        return forward.latent().joined(), [block.joined() for block in levels.blocks], stages

    found, blocks, stages = compute(read, parts)
    assert len(blocks) == depth
    summed = sum(np.asarray(blocks[layer], np.float64) for layer in (*layers, depth - 1)) + stages
    np.testing.assert_allclose(found, apply_norm(summed, parts[0]['encoder']['norm'], 1e-6), atol=2e-5)
    assert not any(role.startswith('neck/added') for role in parts[0])  # it has no weights


# -- focus -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_topk_keeps_what_the_teacher_looks_at_most(base):
    recipe = make_student(base).extend('second', views={'second': View('other')})
    parts, crops = make_parts(recipe), photographs(SIDE, 2 * IMAGES)
    images = {'main': jnp.asarray(crops[:IMAGES]), 'other': jnp.asarray(crops[IMAGES:])}

    def read(parts):
        forward = make_forward(recipe, parts, images)
        looks = {view: forward.teacher(TEACHER).levels(view).attention(-1) for view in recipe.views}
        return {view: (forward.plan(view).keep, forward.plan(view).masked, looks[view]) for view in recipe.views}

    seen = []
    for keep, masked, looks in compute(read, parts).values():
        wanted = np.argsort(-looks[:, :, 0, 1:].mean(1), axis=1, kind='stable')[:, :VISIBLE]
        np.testing.assert_array_equal(np.sort(keep, 1), np.sort(wanted, 1))
        np.testing.assert_array_equal(masked.sum(1), PATCHES - VISIBLE)
        seen.append(np.sort(keep, 1))
    assert (seen[0] != seen[1]).any()  # each view by its own crop


def test_random_leaves_the_masks_of_the_base():
    for base in ('mae', 'bootmae', 'simmim'):
        plain = make_base(base)
        assert mr_mae(plain, teachers=RANDOM, focus='random').masking is plain.masking
        focused = mr_mae(plain, teachers=RANDOM).masking
        assert focused.scores is not plain.masking.scores
        assert focused.visible == plain.masking.visible


@pytest.mark.parametrize('focus', ['topk', 'sample'])
@pytest.mark.parametrize('supervision', ['token', 'both', 'context'])
def test_views_of_one_crop_keep_disjoint_sets(focus, supervision):
    """LUT's augmented view of the main crop is ranked by the plain one; that of a crop of its own by itself."""
    recipe = lut(make_student('mae', focus=focus), supervision=supervision, head_width=8)
    inverted = replace(recipe.views['lut'], photometric=lambda pixels, keys: 1.0 - pixels)
    recipe = replace(recipe, views=recipe.views | {'lut': inverted})
    pixels = jnp.asarray(photographs(SIDE, IMAGES))
    crops = {crop: jnp.roll(pixels, place, axis=0) for place, crop in enumerate(recipe.crops)}

    def read(parts):
        forward = make_forward(recipe, parts, crops)
        plans = {view: forward.plan(view).keep for view in recipe.views}
        looks = {
            view: forward.teacher(TEACHER).levels(view).attention(-1)[:, :, 0, 1:].mean(1) for view in recipe.views
        }
        return plans, looks

    plans, looks = compute(read, make_parts(recipe))
    assert (looks['main'] != looks['lut']).any()  # by itself it would be ranked in another way
    together = [len({*main.tolist(), *second.tolist()}) for main, second in zip(*plans.values(), strict=True)]
    if supervision == 'context':
        assert together != [2 * VISIBLE] * IMAGES
    else:
        assert together == [2 * VISIBLE] * IMAGES
    if focus == 'topk':
        order = np.argsort(-looks['lut' if supervision == 'context' else 'main'], axis=1, kind='stable')
        np.testing.assert_array_equal(plans['lut'], order[:, VISIBLE : 2 * VISIBLE])


class Looks:
    """What focus_scores asks of a pass: attention f[H,1+N] of CLS in every one of B images, and noise."""

    recipe = SimpleNamespace(views={'main': View('main')})

    def __init__(self, attention, noise):
        cls_rows = np.broadcast_to(attention, (len(noise), *attention.shape))[:, :, None]
        self.levels_seen = SimpleNamespace(attention=lambda block: jnp.asarray(cls_rows))
        self.noise = noise

    def teacher(self, name):
        return SimpleNamespace(levels=lambda view: self.levels_seen)

    def uniform(self, name, shape):
        assert (name, shape) == ('mask', self.noise.shape[1:])
        return self.noise


def test_ties_are_broken_by_the_place():
    looks = Looks(np.array([[0.1, 0.2, 0.3, 0.2, 0.0, 0.2]], np.float32), jnp.zeros((2, 5)))
    keep = np.asarray(plan_from_scores(focus_scores('t', 'topk')(looks, 'main'), 3, 0).keep)
    np.testing.assert_array_equal(keep, [[1, 0, 2]] * 2)


def test_sample_draws_without_replacement_by_the_attention():
    """Two of four patches in 20000 images: the first, and the pair in order, by chi-square."""
    draws = 20_000
    heads = np.array([[0.2, 0.1, 0.1, 0.2, 0.4], [0.0, 0.5, 0.1, 0.2, 0.2]], np.float32)  # CLS itself is no patch
    noise = jax.random.uniform(jax.random.key(1), (draws, 4))
    plan = plan_from_scores(focus_scores('t', 'sample')(Looks(heads, noise), 'main'), 2, 0)
    chance = heads.mean(0)[1:] / heads.mean(0)[1:].sum()
    wanted = {(i, j): chance[i] * chance[j] / (1 - chance[i]) * draws for i in range(4) for j in range(4) if i != j}
    keep = np.asarray(plan.keep)
    pairs = {pair: int((keep == pair).all(1).sum()) for pair in wanted}
    assert sum(pairs.values()) == draws
    chi_square = sum((pairs[pair] - count) ** 2 / count for pair, count in wanted.items())
    print(f'chi-square {chi_square:.1f} of {len(wanted) - 1} degrees of freedom')
    assert chi_square < 31.3  # 11 degrees of freedom: one in a thousand


def test_sample_has_no_nan_where_attention_and_noise_are_tiny():
    attention = np.array([[0.5, 0.0, 1e-45, 1e-38, 0.5, 1e-7]], np.float32)
    noise = jnp.tile(jnp.array([[0.0], [np.nextafter(np.float32(1), np.float32(0))], [1e-45], [0.5]]), (1, 5))
    scores = focus_scores('t', 'sample')(Looks(attention, noise), 'main')
    assert not np.isnan(scores).any()
    keep = np.asarray(plan_from_scores(scores, 2, 0).keep)
    assert (np.sort(keep, 1) == [3, 4]).all()  # what has attention, before what has next to none
    assert (np.sort(np.asarray(plan_from_scores(scores, 5, 0).keep), 1) == range(5)).all()
