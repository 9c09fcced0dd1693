"""The compiler for TPUs itself: what it says fits and does not, and that the programs' collectives are those of the golden."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / 'tests' / 'golden' / 'collectives.json').read_text())
HERE = importlib.util.find_spec('libtpu') is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not HERE, reason='libtpu is not installed: pip install -r requirements-compile.txt'),
]
sys.path.append(str(ROOT / 'tests' / 'golden'))

from make_collectives_golden import count_collectives  # noqa: E402


@pytest.fixture
def compiled(tmp_path):
    """compiled(*arguments) -> (exit status, what it printed, what --out says)."""

    def run(*arguments):
        out = tmp_path / 'found.json'
        command = [sys.executable, '-m', 'mim_jax.compile', '--out', str(out), *arguments]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3600)
        return ended.returncode, ended.stdout + ended.stderr, json.loads(out.read_text())

    return run


def test_a_small_run_on_sharded_parameters(compiled):
    small = ('--config', 'configs/mae.py:smoke', '--topology', 'v5e:2x2', '--config.mesh.fsdp=4')
    status, said, found = compiled(*small, '--config.encoder.scan=true')
    (fit,) = found['tried']
    assert (status, fit['devices']['kind'], fit['devices']['count']) == (0, 'TPU v5 lite', 4)
    assert fit['memory']['peak'] < fit['memory']['capacity'] == 15.75 * 2**30
    kinds = {row['kind']: row for row in fit['collectives']}
    assert {'all-gather', 'reduce-scatter'} <= set(kinds)
    # Every large array once forwards and once backwards, and every gradient of one once, whatever the loops.
    large = sum(row['size'] for row in fit['collectives'] if row['kind'] == 'reduce-scatter')
    assert 0.8 * large < fit['memory']['parameters'] * 4
    assert all(row['exact'] for row in fit['collectives'])
    assert 'bounds, not predictions' in said


def test_too_large_a_run_is_told_by_how_much_and_what_might_help(compiled):
    status, said, found = compiled(
        '--config', 'configs/mae.py:vit_l16,synthetic', '--topology', 'v4:2x2x4', '--config.encoder.scan=true'
    )
    (fit,) = found['tried']
    assert (status, fit['fits']) == (2, False)
    assert fit['needed'] > fit['memory']['capacity'] == 30.75 * 2**30
    assert '--config.encoder.remat=full' in said


@pytest.mark.parametrize('cell', GOLDEN)
def test_collectives_are_those_of_the_golden(cell, compiled):
    """The same numbers from the same release of the compiler; with another, run the benchmark again and look."""
    sys.path.append(str(ROOT / 'benchmarks'))
    from compile_table import describe_arguments

    changes = [f'--config.{key}={value}' for key, value in GOLDEN[cell]['changes'].items()]
    _, _, found = compiled(*describe_arguments(cell), *changes)
    if found['libtpu'] != GOLDEN[cell]['libtpu']:
        pytest.skip(f'the golden is of libtpu {GOLDEN[cell]["libtpu"]}, this is {found["libtpu"]}')
    assert count_collectives(found['tried'][0]) == GOLDEN[cell]['counts']
