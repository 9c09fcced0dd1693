"""The compile program on this machine's eight fake devices, and what it says where TPUs cannot be compiled for."""

import json

import jax
import numpy as np
import pytest
from program_runs import TINY, call, share_compilations

from mim_jax import compile as program
from mim_jax.command import read_config
from mim_jax.config import load_config
from mim_jax.errors import ConfigError, DataError
from mim_jax.methods import METHODS, build
from mim_jax.parallel.mesh import make_mesh
from mim_jax.planning import measure, topology
from mim_jax.planning.measure import measure_state, read_shortage
from mim_jax.planning.search import list_remedies
from mim_jax.teachers import describe_frozen, load_frozen
from mim_jax.training.assemble import make_program, plan_program
from mim_jax.weights.files import WeightsError
from mim_jax.weights.towers import sizes_as_published

TINY_MAE = [f'--config.{key}={value}' for key, value in TINY.items()]


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture
def compiled(capsys, tmp_path):
    """compiled(*arguments) -> (exit status, standard output, standard error, what --out says or None)."""

    def run(*arguments):
        out = tmp_path / 'found.json'
        line = ['--config', 'configs/mae.py:smoke', '--out', str(out), *TINY_MAE, *arguments]
        ended = call(capsys, line, program.main)
        return *ended, json.loads(out.read_text()) if out.exists() else None

    return run


def test_what_fits_is_told_in_words_and_numbers(compiled, tmp_path):
    status, said, _, found = compiled('--config.mesh.fsdp=4', '--hlo', str(tmp_path / 'program.txt'))
    assert (status, found['best']) == (0, {})
    (fit,) = found['tried']
    assert fit['devices'] == {'kind': 'cpu', 'count': 8, 'slices': 1}
    assert (fit['mesh']['data'], fit['mesh']['fsdp']) == (2, 4)
    assert '16 images a step, 1 x 2 a device' in said
    assert fit['memory']['peak'] > fit['memory']['parameters'] > 0
    assert 2 * fit['memory']['parameters'] < fit['memory']['optimizer'] < 2.1 * fit['memory']['parameters'] + 100
    kinds = {row['kind'] for row in fit['collectives']}
    assert {'all-gather', 'all-reduce'} <= kinds
    assert all(row['exact'] and row['crosses'] is False for row in fit['collectives'])
    # There are no loops, and the compiler counts element-wise work too, which is a good part of so small a network.
    assert 1 < fit['flops']['compiler'] / fit['flops']['device'] < 1.6
    assert 'bounds of the step time: none' in said
    assert 'ENTRY' in (tmp_path / 'program.txt').read_text()


@pytest.fixture
def pretend(monkeypatch):
    """pretend({changes, as typed: (fits, seconds) or an error}): measurements that are not made; others do not fit."""

    def install(outcomes):
        def measure_fit(config, images, classes, devices):
            changed = {'remat': config.encoder.remat, 'accumulate': config.accumulate, 'fsdp': config.mesh.fsdp}
            plain = {'remat': 'none', 'accumulate': 1, 'fsdp': 1}
            key = ' '.join(f'{name}={value}' for name, value in changed.items() if value != plain[name])
            outcome = outcomes.get(key, (False, 1.0))
            if isinstance(outcome, Exception):
                raise outcome
            fits, seconds = outcome
            parts = ('parameters', 'optimizer', 'teachers', 'frozen', 'batch', 'temporaries')
            memory = dict.fromkeys(parts, 2.0**20) | {'program': 1.0, 'peak': 2.0**30, 'capacity': 2.0**30}
            return measure.Fit(
                *('mae', fits, {'kind': 'TPU v5 lite', 'count': 8, 'slices': 1}, {'data': 8, 'fsdp': 1}),
                *({'images': 64, 'accumulate': 1}, memory, None, {'image': 1.0, 'device': 1.0, 'compiler': None}, []),
                *({'compute': seconds}, 0.0),
            )

        monkeypatch.setattr(program, 'measure_fit', measure_fit)

    return install


def test_what_does_not_fit_is_told_what_might(compiled, pretend):
    pretend({})
    status, said, _, found = compiled('--config.batch_size=64')
    assert (status, found['best'], len(found['tried'])) == (2, None, 1)
    assert 'DOES NOT FIT' in said
    offered = [line.strip() for line in said.splitlines() if line.startswith('  --config.')]
    assert offered[:3] == ['--config.encoder.remat=full', '--config.accumulate=2', '--config.mesh.fsdp=8']


def test_the_search_finds_the_first_or_the_fastest_that_fits(compiled, pretend):
    pretend({'accumulate=2': (True, 2.0), 'fsdp=8': (True, 1.0)})
    status, _, _, found = compiled('--config.batch_size=64', '--search=first')
    assert (status, found['best'], len(found['tried'])) == (0, {'accumulate': 2}, 3)
    status, said, _, found = compiled('--config.batch_size=64', '--search')
    assert (status, found['best'], len(found['tried'])) == (0, {'mesh.fsdp': 8}, 1 + program.TRIES)
    assert 'The fastest that fits, by the bounds: --config.mesh.fsdp=8' in said


def test_the_search_goes_on_after_a_change_that_the_recipe_does_not_take(compiled, pretend):
    pretend({'accumulate=2': ConfigError('a micro-batch is too small'), 'remat=full accumulate=2': (True, 1.0)})
    status, said, _, found = compiled('--config.batch_size=64', '--search=first')
    assert (status, found['best']) == (0, {'encoder.remat': 'full', 'accumulate': 2})
    assert '--config.accumulate=2: not possible. a micro-batch is too small' in said


def test_nothing_that_fits_is_status_2(compiled, pretend):
    pretend({})
    status, said, _, found = compiled('--config.batch_size=64', '--search')
    assert (status, found['best'], len(found['tried'])) == (2, None, 1 + program.TRIES)
    assert 'Nothing that was tried fits' in said


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--topology', 'v4-32'], ['v4-32', 'v4:2x2x4', 'v5e:16x16', 'v5p:4x4x4', 'v6e:8x8']),
        (['--topology', 'v9:4x4'], ["no TPU 'v9'", 'v5e:16x16']),
        (['--topology', 'v5e:4x4', '--slices', '0'], ['--slices=0', 'at least 1']),
        (['--slices', '2'], ['--slices=2 needs a --topology']),
        (['--config.batch_size=20'], ['batch_size=20', '16 or 24']),
        (['--config.mesh.fsdp=3'], ['mesh.fsdp=3']),
        (['--hlo', 'no/such/folder/program.txt'], ['no/such/folder', 'make it']),
        (['--config.data.split=trian'], ["no split 'trian'", '--images N --classes K']),
    ],
)
def test_mistakes_are_one_sentence(arguments, words, compiled):
    status, _, error, found = compiled(*arguments)
    assert (status, found) == (2, None)
    for word in words:
        assert word in error


def test_without_libtpu_the_command_that_installs_it(compiled, monkeypatch):
    monkeypatch.setattr(topology.importlib.util, 'find_spec', lambda name: None)
    status, _, error, _ = compiled('--topology', 'v5e:16x16')
    assert status == 2
    assert f"pip install '{topology.find_pin()}'" in error
    assert topology.find_pin().startswith('libtpu==')


def test_the_pin_of_the_requirements_is_that_of_the_installed_jax():
    if jax.__version__ != '0.10.2':
        pytest.skip(f'requirements-compile.txt is for jax 0.10.2, this is {jax.__version__}')
    assert topology.find_pin() in (program.Path(program.__file__).parents[1] / 'requirements-compile.txt').read_text()


@pytest.mark.parametrize(
    ('message', 'needed'),
    [
        (
            'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (69.38G) exceeds '
            'available HBM (30.75G).',
            69.38 * 2**30,
        ),
        ('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 62.60G of 30.75G hbm.', 62.6 * 2**30),
        ('RESOURCE_EXHAUSTED: another sentence', 0.0),
        ('INTERNAL: a fault of the compiler', None),
    ],
)
def test_how_much_was_asked_for(message, needed):
    assert read_shortage(message) == needed


def test_the_size_of_a_dataset_that_is_not_here_is_the_published_one_and_said_to_be(tmp_path):
    config, _ = read_config('configs/mae.py', [f'--config.data.dir={tmp_path}'])
    images, classes, description = program.find_size(config, 0, 0)
    assert (images, classes) == (1_281_167, 1000)
    assert 'not on this machine' in description
    assert program.find_size(config, 7, 3) == (7, 3, 'a dataset of 7 images and 3 classes, as given')
    config, _ = read_config('configs/mae.py', [f'--config.data.dir={tmp_path}', '--config.data.share=0.1'])
    with pytest.raises(DataError, match='--images N'):
        program.find_size(config, 0, 0)


def test_remedies_keep_the_batch_and_come_in_order():
    config, _ = read_config('configs/mae.py:vit_l16', [])
    memory = {'parameters': 1.3e9, 'optimizer': 2.6e9, 'teachers': 0.0, 'frozen': 0.0, 'peak': None, 'capacity': 33e9}
    fit = measure.Fit(
        'mae', False, {'count': 16}, {'data': 16, 'fsdp': 1}, {}, memory, 70e9, {}, [], {}, 0.0
    )  # 256 images a device
    remedies = list_remedies(config, fit)
    assert remedies[:3] == [{'encoder.remat': 'full'}, {'accumulate': 4}, {'mesh.fsdp': 16}]
    assert remedies[-1] == {'encoder.remat': 'full', 'accumulate': 256, 'mesh.fsdp': 16}
    assert len(remedies) == 7
    with config.unlocked():
        config.encoder.remat, config.batch_size, config.mesh.data = 'full', 16, 16
    assert list_remedies(config, fit) == []


@pytest.fixture(scope='module')
def mimicking():
    """MR-MAE on MAE with a small random teacher."""
    overrides = ['--config.base=mae', '--config.papers=mr_mae', '--config.mr_mae.teachers=random', *TINY_MAE]
    config, _ = load_config('configs/mae.py:smoke', overrides, METHODS)
    return build(config, 1000, 10)


def test_frozen_teachers_are_planned_with_the_shapes_that_they_are_loaded_with(mimicking):
    loaded, described = load_frozen(mimicking), describe_frozen(mimicking)
    assert jax.tree.structure(loaded) == jax.tree.structure(described)
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), loaded, described)
    assert all(jax.tree.leaves(same))
    mesh = make_mesh(fsdp=4)
    made, planned = make_program(mimicking, mesh), plan_program(mimicking, mesh)
    placed = jax.tree.map(lambda a, b: a.sharding == b.sharding, made.frozen, planned.frozen)
    assert all(jax.tree.leaves(placed))
    assert measure_state(made) == measure_state(planned)


def test_a_teacher_without_a_file_has_its_published_sizes_while_planning_alone():
    overrides = ['--config.papers=mr_mae', '--config.mr_mae.teachers=clip', *TINY_MAE]
    config, _ = load_config('configs/mae.py:smoke', overrides, METHODS)
    with pytest.raises(WeightsError, match='needs a file'):
        build(config, 1000, 10)
    with sizes_as_published():
        recipe = build(config, 1000, 10)
    frozen = describe_frozen(recipe)
    # openai/clip-vit-base-patch16: 86.19 M with its projection and positions of 197 places; 17 here.
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(frozen['mimic_clip']))
    assert count == 86_192_640 - 180 * 768
    with pytest.raises(WeightsError, match='needs a file'):
        load_frozen(recipe)
