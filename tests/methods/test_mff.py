"""MFF as Recipe -> Recipe: which blocks are fused, what of a base changes and what does not, which settings are refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_precision import OPTIONS
from tiny_runs import QUICK, leaves, random_batch, tiny_config

from mim_jax.config import bind_method, load_config
from mim_jax.config.tree import CHOICES
from mim_jax.errors import Refused
from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.methods import BASES, PAPERS
from mim_jax.methods.mff import choose_layers, mff, spread_layers
from mim_jax.models.fusion import Fusion
from mim_jax.models.levels import Levels
from mim_jax.models.stages import AddStages
from mim_jax.networks import Networks
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.tokens import Tokens
from mim_jax.training.loggers import parameter_table
from mim_jax.training.optim import decay_mask, make_optimizer

ROOT = Path(__file__).parents[2]
METHODS = {**BASES, **PAPERS}
KEY = jax.random.key(3)


def make_base(base, depth=4, **optim):
    return BASES[base](tiny_config({'depth': depth}, optim), **OPTIONS[base])


def load_recipe(spec, *overrides):
    """The recipe of a config file on MAE, without a dataset."""
    config, _ = load_config(f'{ROOT}/{spec}', overrides, METHODS)
    return bind_method(config, 'mff', mff)(bind_method(config, 'mae', BASES['mae'])(config))


def abstract_parts(recipe):
    """(params, batch_stats, teachers) as shapes."""
    return jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))


def forward_of(recipe, params, batch_stats, teachers, mode='train', count=2):
    batch = {name: jnp.asarray(values) for name, values in random_batch(recipe, count=count).items()}
    around = Surroundings(batch, jnp.arange(count), KEY, jnp.zeros((), jnp.int32), teachers, {})
    return Forward(recipe, Networks(recipe, params, batch_stats, KEY, mode), around)


def random_parts(recipe):
    """Arbitrary parameters; nothing is compiled. Running variances are positive."""
    draw = np.random.default_rng(0)
    return jax.tree.map(lambda a: np.abs(draw.normal(size=a.shape)).astype(a.dtype), abstract_parts(recipe))


# -- one layer -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', BASES)
def test_one_layer_is_the_base_exactly(base):
    """The same program: initial values, features, loss, logs and gradients are equal to the bit."""

    def programs(recipe):
        parts = abstract_parts(recipe)

        def loss(params, batch_stats, teachers):
            forward = forward_of(recipe, params, batch_stats, teachers)
            total, logs = evaluate(forward)
            return total, (logs, forward.latent())

        step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*parts)
        return (
            jax.jit(lambda key: create_parameters(recipe, key)).lower(KEY).as_text(),
            step.as_text(),
            leaves_of(parts),
        )

    plain = make_base(base, depth=2)
    assert programs(mff(plain, layers=(-1,))) == programs(plain)
    assert mff(plain, layers=(-1,)).charts == plain.charts


def leaves_of(parts):
    return [{path: leaf.shape for path, leaf in flatten_with_paths(part)} for part in parts]


def test_one_layer_is_the_base_to_the_bit():
    """The same with numbers."""
    plain = make_base('mae', depth=1)
    params, batch_stats, teachers = random_parts(plain)

    def run(recipe):
        def loss(params):
            forward = forward_of(recipe, params, batch_stats, teachers)
            return evaluate(forward)[0], forward.latent().joined()

        return leaves(dict(enumerate(jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(params))))

    ours, theirs = run(mff(plain, layers=(0,))), run(plain)
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=path)


# -- which layers ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('depth', 'layers'),
    [
        (12, (0, 2, 4, 6, 8, 11)),
        (24, (0, 4, 8, 12, 16, 23)),
        (11, (0, 1, 3, 5, 7, 10)),
        (32, (0, 5, 10, 16, 21, 31)),
        (4, (0, 1, 2, 3)),
        (2, (0, 1)),
        (1, (0,)),
    ],
)
def test_layers_are_spread_over_any_depth(depth, layers):
    assert spread_layers(depth) == layers
    assert mff(make_base('mae', depth)).neck['last'].layers == layers


@pytest.mark.parametrize(
    ('layers', 'chosen'), [((), (0, 1, 2, 3)), (('all',), (0, 1, 2, 3)), ((-4, 2, -1), (0, 2, 3)), ((3,), (3,))]
)
def test_layers_may_count_from_the_end(layers, chosen):
    assert choose_layers(layers, 4) == chosen


ROWS = {  # of the paper: figure 1, tables 3a, 3b and 8, 3c, A.8
    '': ((0, 2, 4, 6, 8, 11), 'linear', 'pool', False),
    'pilot': (tuple(range(12)), 'none', 'pool', False),
    'shallow': ((0, 11), 'linear', 'pool', False),
    'deep': ((10, 11), 'linear', 'pool', False),
    'last': ((11,), 'linear', 'pool', False),
    'four': ((0, 4, 8, 11), 'linear', 'pool', False),
    'every': (tuple(range(12)), 'linear', 'pool', False),
    'plain': ((0, 2, 4, 6, 8, 11), 'none', 'pool', False),
    'nonlinear': ((0, 2, 4, 6, 8, 11), 'nonlinear', 'pool', False),
    'attention': ((0, 2, 4, 6, 8, 11), 'linear', 'attention', False),
    'detach': ((0, 2, 4, 6, 8, 11), 'linear', 'pool', True),
}
ADDED = {  # arrays that the neck owns at ViT-B
    '': 5 * (768**2 + 768) + 6,
    'pilot': 12,
    'last': 0,
    'nonlinear': 10 * (768**2 + 768) + 6,
    'attention': 5 * (768**2 + 768) + 12 * 768**2 + 13 * 768,
}


@pytest.mark.parametrize('variant', ROWS)
def test_rows_of_the_papers_tables(variant):
    recipe = load_recipe(f'configs/mff.py:{variant}')
    reader = recipe.neck['last']
    assert (reader.layers, reader.projection, reader.fusion, reader.detach) == ROWS[variant]
    assert recipe.name == 'mae+mff'
    if variant in ADDED:
        params, _, _ = abstract_parts(recipe)  # at full size
        assert sum(leaf.size for leaf in jax.tree.leaves(params.get('neck/last'))) == ADDED[variant]


def test_layers_on_the_command_line():
    for text, layers in (('0,-1', (0, 11)), ('all', tuple(range(12))), ('-1', (11,))):
        assert load_recipe('configs/mff.py', f'--config.mff.layers={text}').neck['last'].layers == layers


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'layers': (0, 4)},
            r'mff\.layers=\(0, 4\) must rise .* end with the last block, which is 3 or -1 .*depth=4\.',
        ),
        ({'layers': (-5, 3)}, r'mff\.layers=\(-5, 3\)'),
        ({'layers': (2, 0, 3)}, r'mff\.layers=\(2, 0, 3\) must rise'),
        ({'layers': (0, 0, 3)}, r'mff\.layers=\(0, 0, 3\) must rise without repetition'),
        ({'layers': (0, -4, 3)}, r'mff\.layers=\(0, -4, 3\) must rise without repetition'),
        ({'layers': (0, 2)}, r'mff\.layers=\(0, 2\) must rise .* which is 3 or -1'),
        ({'layers': ('first', 3)}, r"mff\.layers=\('first', 3\) must be blocks by number"),
        ({'layers': ('all', 3)}, r"mff\.layers=\('all', 3\) must be blocks by number"),
        ({'layers': (0.0, 3)}, r'mff\.layers=\(0\.0, 3\) must be blocks by number'),
        ({'layers': (False, 3)}, r'mff\.layers=\(False, 3\) must be blocks by number'),
        ({'projection': 'mlp'}, r"mff\.projection='mlp' must be one of none, linear, nonlinear"),
        ({'fusion': 'attention', 'decay_logits': False}, r'mff\.decay_logits=False has no effect'),
        ({'fusion': 'mean'}, r"mff\.fusion='mean' must be one of pool, attention"),
    ],
)
def test_refusals_name_the_key(options, message):
    with pytest.raises(Refused, match=message):
        mff(make_base('mae'), **options)


def test_it_is_applied_once():
    with pytest.raises(Refused, match='mff is already part of mae\\+mff; name each paper once'):
        mff(mff(make_base('mae')))


# -- what changes in a base, what stays ------------------------------------------------------------------------------------
@pytest.mark.parametrize('base', BASES)
def test_every_base_reads_the_fusion_and_logs_it(base):
    plain, recipe = make_base(base), mff(make_base(base), layers=(0, 2, -1))
    (params, batch_stats, teachers), before = abstract_parts(recipe), abstract_parts(plain)
    added = {f'projection_{place:02d}/{name}' for place in range(2) for name in ('kernel', 'bias')} | {'logits'}
    assert params.keys() - before[0].keys() == {'neck/last'}
    assert dict(flatten_with_paths(params['neck/last'])).keys() == added
    teacher = teachers.get(base, {}).get('params', {})
    # ConMIM's teacher projects its own fusion; BootMAE's is one block.
    assert ('neck/last' in teacher) == (base == 'conmim')
    assert {role: tree for role, tree in teacher.items() if role != 'neck/last'} == before[2].get(base, {}).get(
        'params', {}
    )
    if base == 'conmim':
        assert dict(flatten_with_paths(teacher['neck/last'])).keys() == added

    def logs(*parts):
        return evaluate(forward_of(recipe, *parts))[1]

    seen = jax.eval_shape(logs, params, batch_stats, teachers).keys()
    watched = {f'watch/neck/last/{kind}_{layer:02d}' for kind in ('weight', 'share') for layer in (0, 2, 3)}
    assert {key for key in seen if 'neck' in key} == watched
    assert {chart.prefix for chart in recipe.charts.values()} >= {'watch/neck/last/weight_', 'watch/neck/last/share_'}


@pytest.mark.parametrize('base', ['mae', 'mcmae'])
def test_decoders_read_fusion_and_stages_under_the_final_norm(base):
    """All tokens are fused, CLS among them; MCMAE's stages are added as before."""
    plain, recipe = make_base(base), mff(make_base(base), layers=(0, -1), projection='none')
    params, batch_stats, teachers = random_parts(recipe)

    def read(params):
        forward, before = (forward_of(r, params, batch_stats, teachers, 'evaluate') for r in (recipe, plain))
        stages = (
            AddStages(jnp.float32).apply({'params': params['neck/stages']}, forward.levels())
            if base == 'mcmae'
            else None
        )
        blocks = [block.joined() for block in forward.levels().blocks]
        return forward.latent(), before.latent(), blocks, stages

    fused, single, blocks, stages = jax.jit(read, compiler_options=QUICK)(params)
    logits = params['neck/last']['logits'].astype(np.float64)
    first, last = np.exp(logits) / np.exp(logits).sum()
    summed = first * np.asarray(blocks[0], np.float64) + last * blocks[-1]
    summed += 0.0 if stages is None else stages.joined()
    centred = summed - summed.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    expected = normed * params['encoder']['norm']['scale'] + params['encoder']['norm']['bias']
    np.testing.assert_allclose(fused.joined(), expected, atol=1e-5 * np.abs(expected).max())
    assert fused.prefix.shape[1] == (base == 'mae')
    if base == 'mae':
        assert np.abs(fused.prefix - single.prefix).min() > 0
    assert (recipe.neck.keys() - {'last'}, type(recipe.neck['last'])) == (plain.neck.keys() - {'last'}, Fusion)


def test_bootmaes_memories_read_single_blocks():
    recipe = mff(make_base('bootmae'))
    tokens = tuple(Tokens(jnp.full((1, 1, 2), i), jnp.full((1, 3, 2), i)) for i in range(4))
    levels = Levels(embedding=tokens[0], placed=tokens[0], blocks=tokens)
    read = {name: float(part.memory(levels).mean()) for name, part in recipe.decoders.items()}
    assert read == {'pixels': 0.0, 'features': 3.0}


# -- weight decay ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('exclude', CHOICES['optim.decay_exclude'])
@pytest.mark.parametrize('decay_logits', [True, False])
def test_logits_are_decayed_as_asked_under_every_rule(exclude, decay_logits):
    """In the optimizer itself: without a gradient only decay moves a parameter. The others follow the rule."""
    recipe = mff(make_base('mae', decay_exclude=exclude, weight_decay=0.5), decay_logits=decay_logits)
    shapes = abstract_parts(recipe)[0]
    shapes = {
        'neck/last': shapes['neck/last'],
        'encoder': {key: shapes['encoder'][key] for key in ('norm', 'cls_token')},
    }
    params = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
    optimizer = make_optimizer(recipe.config.optim, lambda step: 1.0, recipe.decay)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {path: float(leaf.ravel()[0]) for path, leaf in flatten_with_paths(updates)}
    assert moved.pop('neck/last/logits') == (-0.5 if decay_logits else 0.0)
    rule = dict(flatten_with_paths(decay_mask(params, exclude)))
    assert {path: value != 0 for path, value in moved.items()} == {path: rule[path] for path in moved}
    assert moved['neck/last/projection_00/kernel'] == -0.5
    assert moved['neck/last/projection_00/bias'] == 0.0

    table = parameter_table(params, decay_mask=decay_mask(params, exclude, recipe.decay))
    line = next(line for line in table.splitlines() if 'neck/last/logits' in line)
    assert line.rstrip().endswith('yes' if decay_logits else 'no')
