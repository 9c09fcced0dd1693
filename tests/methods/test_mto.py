"""MTO on every base: which tokens are read, what is weighed, logged, switched and refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mto_ours import IMAGES, OPTIONS, expected_terms, make_base, make_forward, make_weights
from tiny_runs import PATCHES, QUICK, VISIBLE, tiny_mae

from mim_jax.errors import Refused
from mim_jax.forward import evaluate
from mim_jax.methods.mto import mto

PLACES = {'simmim': ('encoder',), 'conmim': ('encoder',), 'bootmae': ('pixels', 'features')}
TERMS = ('sparsity', 'distinctiveness', 'ranking')
SWITCHES = {  # options of mto -> the same to the reference
    'none': ({'affinity_scale': 'none'}, {'scale': 'none'}),
    'cosine': ({'affinity_scale': 'cosine'}, {'scale': 'cosine'}),
    'tau': ({'affinity_scale': 'cosine', 'tau': 0.5}, {'scale': 'cosine', 'tau': 0.5}),
    'layer_norm': ({'layer_norm': True}, {'layer_norm': True}),
    'spa_reduce': ({'spa_reduce': 'sum'}, {'reduce': 'sum'}),
    'spa_layers': ({'spa_layers': 'all'}, {'spa_layers': 'all'}),
    'exclude_self': ({'exclude_self': True}, {'exclude_self': True}),
    'epsilon': ({'epsilon': 0.5}, {'epsilon': 0.5}),
    'rank_direction': ({'rank_direction': 'eq5'}, {'direction': 'eq5'}),
    'x0_with_pos': ({'x0_with_pos': True}, {}),
    'stop_visible': ({'stop_visible': True}, {}),
}
CHANGES = {  # what each switch changes of the default's terms
    'spa_reduce': {'sparsity'},
    'spa_layers': {'sparsity'},
    'exclude_self': {'sparsity'},
    'epsilon': {'distinctiveness'},
    'rank_direction': {'ranking'},
    'stop_visible': set(),  # of the gradient
}


def run(base, switches=()):
    """A dict of arrays: tokens of each place, logs with and without MTO, the terms under each switch."""
    plain = make_base(base)
    recipe = mto(plain)
    params, batch_stats, teachers = make_weights(recipe)
    same = jax.tree.map(jnp.shape, (params, batch_stats, teachers))
    assert same == jax.tree.map(jnp.shape, make_weights(plain))  # nothing is added to network, statistics or teacher

    def read(params):
        forward = make_forward(recipe, params, batch_stats, teachers)
        levels = {place: forward.levels() if place == 'encoder' else forward.decoded(place) for place in places}
        made = {
            'logs': evaluate(forward)[1],
            'plain': evaluate(make_forward(plain, params, batch_stats, teachers))[1],
            'plan': (forward.plan().keep, forward.plan().masked),
            'blocks': {place: [block.joined() for block in levels[place].blocks] for place in places},
            'hidden': {place: forward.hidden(place) for place in places},
            'placed': {place: forward.hidden(place, positions=True) for place in places},
        }
        for name in switches:
            switched = mto(plain, **SWITCHES[name][0])
            made[name] = switched.objectives['mto'].loss(make_forward(switched, params, batch_stats, teachers))
        return made

    places = recipe.mixed_places()
    program = jax.jit(read, compiler_options=QUICK)
    return recipe, params, lambda weights: jax.device_get(program(weights))


@pytest.fixture(scope='module', params=['mae', 'simmim'])
def switched(request):
    """One base of each kind with every switch."""
    return request.param, *run(request.param, SWITCHES)


def check_terms(recipe, found, name='terms'):
    """Terms, watches and total against the reference, fed with the tokens of the same pass."""
    keep, _ = found['plan']
    sums, logs = dict.fromkeys(TERMS, 0.0), found['logs']
    for place, layers in found['hidden'].items():
        terms, h = expected_terms(layers, keep)
        sums = {term: sums[term] + terms[term] for term in TERMS}
        for layer, value in enumerate(h.mean(0)):
            np.testing.assert_allclose(logs[f'watch/mto/{place}/heterogeneity_{layer:02d}'], value, atol=2e-6)
    for term in TERMS:
        np.testing.assert_allclose(logs[f'loss/mto/{term}'], sums[term], rtol=2e-6, err_msg=term)
    weight = 0.01 if recipe.encoder.mask_tokens else 0.1
    np.testing.assert_allclose(
        logs['loss/total'], found['plain']['loss/total'] + weight * sum(sums.values()), rtol=1e-6
    )
    return max(abs(float(logs[f'loss/mto/{term}']) / sums[term] - 1) for term in TERMS)


def check_places(base, recipe, params, found):
    """All N patches without CLS; at layer 0 every masked one is the mask token; then the blocks' outputs."""
    _, masked = found['plan']
    places = PLACES.get(base, ('pixels',))
    assert recipe.mixed_places() == places
    assert masked.sum() == IMAGES * (PATCHES - VISIBLE)
    for place in places:
        role = 'encoder' if place == 'encoder' else f'decoder/{place}'
        first, *blocks = found['hidden'][place]
        token = np.asarray(params[role]['mask_token'])[0]
        np.testing.assert_array_equal(first[masked], np.broadcast_to(token, first[masked].shape))
        assert len(np.unique(first[~masked], axis=0)) == IMAGES * VISIBLE
        moved = found['placed'][place][0]
        places_masked = len(np.unique(np.nonzero(masked)[1]))
        assert len(np.unique(moved[masked].round(5), axis=0)) == (1 if place == 'encoder' else places_masked)
        prefix = found['blocks'][place][0].shape[1] - PATCHES
        assert prefix == (0 if base == 'mcmae' else 1)
        for block, joined in zip(blocks, found['blocks'][place], strict=True):
            assert block.shape == (IMAGES, PATCHES, token.shape[-1])
            np.testing.assert_array_equal(block, joined[:, prefix:])
        norms = np.linalg.norm(first.astype(np.float64), axis=-1)
        logs = found['logs']
        np.testing.assert_allclose(logs[f'watch/mto/{place}/norm_masked'], np.linalg.norm(token), rtol=1e-5)
        np.testing.assert_allclose(logs[f'watch/mto/{place}/norm_visible'], norms[~masked].mean(), rtol=1e-5)
        assert {name for name in logs if name.startswith(f'watch/mto/{place}/')} == {
            *(f'watch/mto/{place}/heterogeneity_{layer:02d}' for layer in range(len(blocks) + 1)),
            f'watch/mto/{place}/norm_masked',
            f'watch/mto/{place}/norm_visible',
        }
        assert recipe.charts[f'heterogeneity_{place}'].prefix == f'watch/mto/{place}/heterogeneity_'


@pytest.mark.parametrize('base', [name for name in OPTIONS if name not in ('mae', 'simmim')])
def test_values_and_places(base):
    """BootMAE's features, whose own loss is ramped here to a quarter, count in full; ConMIM's teacher is as it was."""
    recipe, params, read = run(base)
    found = read(params)
    check_places(base, recipe, params, found)
    print(f'{base}: largest relative difference {check_terms(recipe, found):.1e}')
    if base == 'bootmae':
        assert recipe.objectives['features'].weight_of('', 0) == 0.25


def test_values_places_and_switches(switched):
    base, recipe, params, read = switched
    found = read(params)
    check_places(base, recipe, params, found)
    print(f'{base}: largest relative difference {check_terms(recipe, found):.1e}')
    (place,), (keep, _), worst = PLACES.get(base, ('pixels',)), found['plan'], 0.0
    default = {term: found['logs'][f'loss/mto/{term}'] for term in TERMS}
    for name, (_, options) in SWITCHES.items():
        layers = found['placed' if name == 'x0_with_pos' else 'hidden'][place]
        wanted, _ = expected_terms(layers, keep, **options)
        for term in TERMS:
            worst = max(worst, abs(found[name][term] / wanted[term] - 1))
            np.testing.assert_allclose(found[name][term], wanted[term], rtol=5e-6, err_msg=f'{name}, {term}')
        relative = name == 'x0_with_pos' and place == 'encoder'  # its positions are relative: none are added
        changed = set() if relative else CHANGES.get(name, set(TERMS))
        other = found['cosine'] if name == 'tau' else default
        assert {term for term in TERMS if abs(found[name][term] - other[term]) > 2e-6} == changed, name
    print(f'{base}: {len(SWITCHES)} switches, largest relative difference {worst:.1e}')


def test_a_short_mask_token_is_as_different_as_can_be(switched):
    """Initial values are about 0.02: H0 is ln V but for a thousandth, until positions are added."""
    base, _, params, read = switched
    role = {'mae': 'decoder/pixels', 'simmim': 'encoder'}[base]
    short = {**params, role: {**params[role], 'mask_token': params[role]['mask_token'] / 30.0}}
    found = read(short)
    (place,), (keep, _) = PLACES.get(base, ('pixels',)), found['plan']
    first = found['logs'][f'watch/mto/{place}/heterogeneity_00']
    assert np.log(VISIBLE) - 1e-3 < first <= np.log(VISIBLE) + 1e-6
    if base == 'mae':
        _, placed = expected_terms(found['placed'][place], keep)
        assert placed[:, 0].mean() < first - 0.01


# -- weights -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', OPTIONS)
def test_weights(base):
    plain = make_base(base)
    weight = 0.01 if base in ('simmim', 'conmim') else 0.1
    assert mto(plain).objectives['mto'].weight == dict.fromkeys(TERMS, weight)
    assert mto(plain, mto_weight=1.0).objectives['mto'].weight == dict.fromkeys(TERMS, 1.0)
    terms = mto(plain, mto_weight=0.5, spa_weight=2.0, e_weight=3.0, r_weight=0.0).objectives['mto'].weight
    assert terms == {'sparsity': 1.0, 'distinctiveness': 1.5, 'ranking': 0.0}
    watching = mto(plain, mto_weight=0.0)
    assert watching.objectives == plain.objectives
    assert set(watching.watches) - set(plain.watches) == {'mto'}
    assert watching.name == f'{base}+mto'


def test_watching_leaves_loss_and_gradient_as_they_are():
    plain = make_base('mae')
    params, _, _ = make_weights(plain)

    def gradient(recipe):
        total = jax.value_and_grad(lambda params: evaluate(make_forward(recipe, params))[0])
        return jax.device_get(jax.jit(total, compiler_options=QUICK)(params))

    wanted, found = gradient(plain), gradient(mto(plain, mto_weight=0.0))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_stop_visible_keeps_the_gradient_of_distinctiveness_from_visible_tokens(base):
    plain = make_base(base)
    params, _, _ = make_weights(plain)
    role, embed = {'mae': ('decoder/pixels', 'embed'), 'simmim': ('encoder', 'patch_embed')}[base]

    def gradient(stop_visible):
        recipe = mto(plain, stop_visible=stop_visible)
        return jax.grad(lambda p: recipe.objectives['mto'].loss(make_forward(recipe, p))['distinctiveness'])(params)

    program = jax.jit(lambda: (gradient(False), gradient(True)), compiler_options=QUICK)
    through, stopped = jax.device_get(program())
    assert np.abs(through[role][embed]['kernel']).max() > 1e-6
    np.testing.assert_allclose(stopped[role]['mask_token'], through[role]['mask_token'], rtol=1e-4, atol=1e-8)
    assert np.abs(stopped[role]['mask_token']).max() > 1e-6
    stopped[role].pop('mask_token')
    for leaf in jax.tree.leaves(stopped):
        np.testing.assert_array_equal(leaf, 0.0)


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        ({'rank_direction': 'rising'}, r"mto\.rank_direction='rising' must be one of descending, eq5\."),
        ({'affinity_scale': 'dim'}, r"mto\.affinity_scale='dim' must be one of sqrt_dim, none, cosine\."),
        ({'spa_reduce': 'max'}, r"mto\.spa_reduce='max' must be one of mean, sum\."),
        ({'spa_layers': 'last'}, r"mto\.spa_layers='last' must be one of first, all\."),
        ({'mto_weight': -0.5}, r'mto\.mto_weight=-0\.5 must not be negative, save for -1'),
        ({'spa_weight': -1.0}, r'mto\.spa_weight=-1\.0 must not be negative\.'),
        ({'e_weight': -1.0}, r'mto\.e_weight=-1\.0 must not be negative\.'),
        ({'r_weight': -1.0}, r'mto\.r_weight=-1\.0 must not be negative\.'),
        ({'tau': 0.0}, r'mto\.tau=0\.0 must be above 0\.'),
        ({'tau': 0.2}, r"mto\.tau=0\.2 has no effect unless mto\.affinity_scale='cosine'"),
        ({'epsilon': 0.0}, r'mto\.epsilon=0\.0 must be above 0\.'),
    ],
)
def test_what_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(Refused, match=sentence):
        mto(tiny_mae(), **options)


def test_a_recipe_without_mask_tokens_is_refused():
    with pytest.raises(Refused, match=r'mto shapes mask tokens among image tokens, and mae has none\.'):
        mto(replace(tiny_mae(), decoders={}, pictures={}))


def test_it_is_applied_once():
    with pytest.raises(Refused, match=r'mto is already part of mae\+mto'):
        mto(mto(tiny_mae()))
