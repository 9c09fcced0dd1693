"""Every cell of the support matrix: it trains, or it refuses with the sentence that the matrix prints."""

import functools
import itertools
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from parity_rules import photographs
from test_precision import OPTIONS
from tiny_runs import SIDE, init_plain, leaves, random_batch, start, tiny_config

from mim_jax import matrix
from mim_jax.errors import Refused
from mim_jax.methods import BASES, PAPERS
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.teachers import load_frozen
from mim_jax.training import optim, state, step

ROOT = Path(__file__).parents[1]
STEPS, BATCH = 50, 16
COLUMNS = ('mff', 'mto', 'lut', 'mr_mae')
DEEP = [papers for count in (2, 3, 4) for papers in itertools.combinations(COLUMNS, count)]  # on MAE
CELLS = [
    (base, papers)
    for base in BASES
    for papers in ((), *((paper,) for paper in COLUMNS), *(DEEP if base == 'mae' else [('mff', 'mto')]))
]
TRIAL = {'mr_mae': {'teachers': ('random',)}}  # options of papers that would need a file
ADDED = {'mto': 'mto', 'lut': 'lut', 'mr_mae': 'mimic'}  # objectives of papers
# A light decoder; mask tokens in the encoder, and a teacher; two decoders, and a teacher; an encoder with convolutions.
FAMILIES = ('mae', 'conmim', 'bootmae', 'mcmae')
explain_refusal = functools.cache(matrix.explain_refusal)
MADE = ('params/', 'batch_stats/', 'teachers/')  # the rest of a first state is zeros


def stack(base, papers):
    """The recipe, tiny: two blocks of width 32 on 4 x 4 patches of 4 pixels."""
    recipe = BASES[base](tiny_config({'width': 32}, steps=STEPS), **OPTIONS[base])
    for paper in papers:
        recipe = PAPERS[paper](recipe, **TRIAL.get(paper, {}))
    return recipe


@functools.cache
def first_values(base):
    """{path: array} for all cells of a base: made by name, a value is the same whatever papers there are."""
    papers = [paper for paper in COLUMNS if explain_refusal(base, (paper,)) is None]
    return leaves(init_plain(stack(base, papers)).replace(root_key=()))


def first_state(recipe):
    """The state at step 0; creation is compiled once for each base."""
    optimizer = optim.make_optimizer(recipe.config.optim, lambda step: 1e-3, recipe.decay)
    abstract = state.abstract_state(recipe, optimizer, make_mesh(devices=jax.devices()[:1]))
    values, bare = first_values(recipe.papers[0]), abstract.replace(root_key=())
    made = [
        values[path] if path.startswith(MADE) else np.zeros(leaf.shape, leaf.dtype)
        for path, leaf in state.flatten_with_paths(bare)
    ]
    return jax.tree.unflatten(jax.tree.structure(bare), made).replace(root_key=jax.random.key(0))


def photograph_batch(recipe):
    """Sixteen pieces of four photographs, with labels drawn at random where labels are read."""
    images, places = photographs(112, 4), (0, 48)
    pieces = np.concatenate([images[:, y : y + SIDE, x : x + SIDE] for y in places for x in places])
    return random_batch(recipe, count=BATCH) | dict.fromkeys(recipe.crops, pieces)


def list_falls(recipe, logs):
    """{what: (first step, mean of the last five)} of the total, and of every objective, its terms summed unweighted."""
    parts = {
        name: [key for key in logs[0] if key == f'loss/{name}' or key.startswith(f'loss/{name}/')]
        for name in ('total', *recipe.objectives)
    }
    sums = {name: np.array([sum(one[key] for key in keys) for one in logs]) for name, keys in parts.items()}
    return {name: (values[0], values[-5:].mean()) for name, values in sums.items()}


SLOW_TO_TRACE = ('bootmae', 'mcmae')


def mark(base, papers):
    """`make test` has each paper on each base, one pair and all four together; LUT not where it takes half a minute."""
    slow = len(papers) == 3 or (len(papers) == 2 and papers != ('mff', 'mto'))
    slow |= base in SLOW_TO_TRACE and (len(papers) == 2 or papers == ('lut',))
    return pytest.param(base, papers, id='+'.join((base, *papers)), marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(('base', 'papers'), [mark(*cell) for cell in CELLS])
def test_a_cell_trains_or_refuses(base, papers):
    """50 steps on one batch under changing masks, at the constant 1e-3 of :smoke: the total and every objective fall.

    That includes what could rise for a good reason and does not here: ConMIM's contrast and BootMAE's features, whose targets
    move, MTO's terms, of which distinctiveness starts at its lowest, and LUT's distance, whose target moves too.
    """
    sentence, plain = explain_refusal(base, papers), stack(base, ())
    rebuilds = any(objective.kind == 'reconstruct' for objective in plain.objectives.values())
    needed = {'mto': plain.mixed_places(), 'lut': rebuilds, 'mr_mae': rebuilds}
    assert plain.reconstructs == rebuilds
    assert (sentence is not None) == any(not needed.get(paper, True) for paper in papers)
    if sentence is not None:
        with pytest.raises(Refused) as refused:
            stack(base, papers)
        assert str(refused.value) == sentence
        return
    recipe = stack(base, papers)
    frozen = jax.device_put(load_frozen(recipe))
    run = start(recipe, first=first_state(recipe), frozen=frozen, schedule='constant')
    logs = run.train([photograph_batch(recipe)] * STEPS, frozen)[1]
    assert all(np.isfinite(value) for one in logs for value in one.values())
    falls = list_falls(recipe, logs)
    print('', recipe.name, {name: f'{before:.3f} -> {after:.3f}' for name, (before, after) in falls.items()})
    assert falls.keys() == {'total', *plain.objectives, *(ADDED[paper] for paper in papers if paper in ADDED)}
    for name, (before, after) in falls.items():
        assert after < 0.99 * before, name


def write_program(recipe):
    """The program that trains a step, as text."""
    rate, mesh = optim.learning_rate('constant', 1e-3, 0.0, 2, STEPS), make_mesh(devices=jax.devices()[:1])
    optimizer = optim.make_optimizer(recipe.config.optim, rate, recipe.decay)
    abstract = state.abstract_state(recipe, optimizer, mesh)
    frozen = jax.device_put(load_frozen(recipe))
    train = step.jit_train_step(step.make_train_step(recipe, optimizer, rate, 1), abstract, frozen, mesh)
    return train.lower(abstract, frozen, to_global(mesh, random_batch(recipe, count=BATCH))).as_text()


@pytest.mark.parametrize('base', [pytest.param(b, marks=[pytest.mark.slow] * (b in SLOW_TO_TRACE)) for b in FAMILIES])
def test_papers_commute(base):
    """Every order is the same program letter by letter, so no step of any run can differ; nor can the first (see above)."""
    papers = [paper for paper in COLUMNS if explain_refusal(base, (paper,)) is None]
    orders = [stack(base, papers[turn:] + papers[:turn]) for turn in range(len(papers))]
    assert len({recipe.name for recipe in orders}) == len(papers) >= 2
    assert len({write_program(recipe) for recipe in (*orders, stack(base, papers[::-1]))}) == 1
    if base == 'mae':  # the text shows what a program is
        assert write_program(orders[0]) != write_program(stack(base, papers[:1]))


def test_the_readme_has_what_the_program_prints():
    """Warnings of runpy, as of a module that is there twice, would be errors."""
    command = [sys.executable, '-W', 'error::RuntimeWarning', '-m', 'mim_jax.recipe']
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, '')
    begin, end = '<!-- python -m mim_jax.recipe -->\n', '<!-- end of python -m mim_jax.recipe -->'
    text = (ROOT / 'README.md').read_text()
    assert text.count(begin) == text.count(end) == 1
    assert text.partition(begin)[2].partition(end)[0] == ended.stdout
    rows = [line.strip('| ').split(' | ') for line in ended.stdout.splitlines() if line.startswith('| ')]
    assert rows[0] == ['base', *('+'.join(papers) or 'none' for papers in matrix.list_stacks())]
    assert [row[0] for row in rows[1:]] == list(BASES)
    assert all(row[1] == 'yes' for row in rows[1:])


def test_more_papers_come_in_pairs():
    assert matrix.list_stacks('abc') == [(), ('a',), ('b',), ('c',), ('a', 'b'), ('a', 'c'), ('b', 'c')]
