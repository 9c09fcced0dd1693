"""Recipes are data: extending, swapping and refusing, without a network being run."""

import pytest
from tiny_runs import tiny_config, tiny_mae

from mim_jax.errors import Refused, UserError
from mim_jax.methods.mae import mae, visible_count
from mim_jax.models.neck import Last
from mim_jax.models.vit import ViT
from mim_jax.recipe import EMA, DecoderPart, Objective, View, scale_weight


class Other(Last):
    """Another reader."""


@pytest.fixture(scope='module')
def recipe():
    return tiny_mae()


def test_mae_is_what_the_paper_says(recipe):
    assert recipe.name == 'mae'
    assert recipe.grid == (4, 4)
    assert recipe.patches == 16
    assert recipe.masking.visible == 4
    assert recipe.crops == ('main',)
    assert recipe.mixed_places() == ('pixels',)
    assert recipe.objectives['pixels'].kind == 'reconstruct'
    assert recipe.teachers == {}


def test_extend_adds_and_leaves_the_original_alone(recipe):
    view, objective, teacher = View('second', block=1), Objective(lambda forward: {}), EMA(lambda step: 0.1)
    more = recipe.extend('new', views={'new': view}, objectives={'new': objective}, teachers={'new': teacher})
    assert more.name == 'mae+new'
    assert list(more.views) == ['main', 'new']
    assert more.objectives['new'] is objective
    assert more.teachers['new'] is teacher
    assert more.crops == ('main', 'second')
    assert recipe.name == 'mae'
    assert list(recipe.views) == ['main']
    assert 'new' not in recipe.objectives


def test_views_of_the_same_crop_share_its_pixels(recipe):
    assert recipe.extend('new', views={'new': View('main', block=1)}).crops == ('main',)


def test_a_paper_twice_is_refused(recipe):
    once = recipe.extend('new')
    with pytest.raises(Refused, match=r'new is already part of mae\+new; name each paper once\.'):
        once.extend('new')
    with pytest.raises(Refused, match='mae is already part of mae'):
        recipe.extend('mae')


@pytest.mark.parametrize(
    ('table', 'entry'),
    [
        ('objectives', {'pixels': Objective(lambda forward: {}), 'z': Objective(lambda forward: {})}),
        ('views', {'main': View('main')}),
        ('neck', {'last': Last()}),
        ('decoders', {'pixels': DecoderPart(Last())}),
    ],
)
def test_a_collision_is_refused_and_named(recipe, table, entry):
    clash = next(iter(entry))
    with pytest.raises(Refused, match=f'new would overwrite {clash} in the {table} of mae'):
        recipe.extend('new', **{table: entry})


def test_two_papers_collide_in_teachers_and_watches(recipe):
    first = recipe.extend('a', teachers={'t': EMA(lambda step: 0.1)}, watches={'w': lambda forward: 0.0})
    with pytest.raises(Refused, match=r'b would overwrite t in the teachers of mae\+a'):
        first.extend('b', teachers={'t': EMA(lambda step: 0.1)})
    with pytest.raises(Refused, match=r'b would overwrite w in the watches of mae\+a'):
        first.extend('b', watches={'w': lambda forward: 0.0})


def test_swap_replaces_and_refuses_what_it_does_not_expect(recipe):
    swapped = recipe.swap('neck', last=(Last, Other()))
    assert type(swapped.neck['last']) is Other
    assert type(recipe.neck['last']) is Last
    with pytest.raises(Refused, match='Last takes the place of Other as neck/last, but mae has Last there'):
        recipe.swap('neck', last=(Other, Last()))
    with pytest.raises(Refused, match='Other takes the place of Last as neck/first, but mae has nothing there'):
        recipe.swap('neck', first=(Last, Other()))


def test_two_papers_cannot_both_take_the_neck(recipe):
    class Third(Last.__base__):
        """Not a Last."""

    taken = recipe.swap('neck', last=(Last, Third()))
    with pytest.raises(Refused, match='Other takes the place of Last as neck/last, but mae has Third there'):
        taken.swap('neck', last=(Last, Other()))


def test_mixed_places_asks_the_structure(recipe):
    inside = recipe.swap('decoders')  # nothing swapped
    assert inside.mixed_places() == ('pixels',)
    without = recipe.extend('d', decoders={'features': DecoderPart(Last(), mask_tokens=False)})
    assert without.mixed_places() == ('pixels',)
    encoder = ViT(4, 16, 2, 2, mask_tokens=True)
    assert type(recipe)(**{**vars(recipe), 'encoder': encoder}).mixed_places() == ('encoder',)


def test_modules_are_found_by_role(recipe):
    head = Last()
    more = recipe.extend('new', objectives={'new': Objective(lambda forward: {}, heads={'head': head})})
    assert more.module('encoder') is recipe.encoder
    assert more.module('neck/last') is recipe.neck['last']
    assert more.module('decoder/pixels') is recipe.decoders['pixels'].module
    assert more.module('objectives/new/head') is head
    with pytest.raises(KeyError, match="no module 'optimizer/adam'"):
        more.module('optimizer/adam')


def test_weights_are_numbers_schedules_or_one_for_every_term():
    def weigh(weight, term='', step=3):
        return Objective(lambda forward: {}, weight).weight_of(term, step)

    assert weigh(0.5) == 0.5
    assert weigh(lambda step: step / 2) == 1.5
    assert weigh({'a': 2.0, 'b': lambda step: step}, 'a') == 2.0
    assert weigh({'a': 2.0, 'b': lambda step: step}, 'b') == 3


def test_scaling_keeps_the_form_of_a_weight():
    assert scale_weight(2.0, 0.5) == 1.0
    assert scale_weight(lambda step: step, 0.5)(3) == 1.5
    both = scale_weight({'a': 2.0, 'b': lambda step: step}, 0.5)
    assert both['a'] == 1.0
    assert both['b'](3) == 1.5
    assert scale_weight(scale_weight(lambda step: step, 0.5), 4.0)(3) == 6.0


@pytest.mark.parametrize(('patches', 'ratio', 'visible'), [(196, 0.75, 49), (16, 0.75, 4), (64, 0.9, 6), (4, 0.5, 2)])
def test_visible_count_rounds_down_as_mae_does(patches, ratio, visible):
    assert visible_count(patches, ratio) == visible


@pytest.mark.parametrize('ratio', [0.0, 0.99, 1.0, 1.5, -0.5])
def test_a_mask_of_nothing_or_everything_is_refused(ratio):
    with pytest.raises(Refused, match=f'a mask_ratio of {ratio} leaves .* of 16 patches visible'):
        mae(tiny_config(), mask_ratio=ratio, decoder_width=16, decoder_heads=2)


@pytest.mark.parametrize(
    ('width', 'depth', 'heads'), [(18, 1, 2), (16, 1, 3), (16, 1, 0), (16, 1, -4), (0, 1, 2), (16, 0, 2)]
)
def test_a_decoder_that_cannot_be_built_is_refused(width, depth, heads):
    with pytest.raises(
        Refused, match=rf'decoder_width={width}, decoder_depth={depth}, decoder_heads={heads}: each must be'
    ):
        mae(tiny_config(), decoder_width=width, decoder_depth=depth, decoder_heads=heads)


def test_refused_is_an_error_of_the_user():
    assert issubclass(Refused, UserError)
