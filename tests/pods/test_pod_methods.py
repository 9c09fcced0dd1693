"""Every base and paper over two and four processes trains what one process with as many devices trains.

BatchNorm, momentum teachers, frozen teachers, several views, drop-path: all of it spans hosts. Steps of the smoke configs with
data 4 x fsdp 2; each test prints how far the runs are apart.
"""

from pathlib import Path

import pytest
from pod_runs import compare_runs, run_pod, statuses
from program_runs import ROOT, share_compilations

NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
STEPS, DEVICES = 6, 8
SETTINGS = {
    'steps': STEPS,
    'mesh.fsdp': 2,
    'checkpoint.every_steps': STEPS,
    'log.every_steps': 1,
    'log.tensorboard': False,
}
OFF = {'probe.every_epochs': 0, 'pictures.every_epochs': 0, 'data.threads': 1, 'optim.warmup_epochs': 0.01}
LOSS, PARAMETERS = 2e-5, 2e-5  # relative; absolute. Sums over devices are made in another order
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture(scope='module')
def table():
    """Lines that are printed at the end."""
    lines = [
        '| config | processes x devices | loss, relative | parameters | those without a gradient | arrays bitwise equal |',
        '|---|---|---|---|---|---|',
    ]
    yield lines
    print('\n' + '\n'.join(lines))


def train(folder: Path, name: str, hosts: int) -> Path:
    workdir = folder / f'run_{hosts}'
    flags = [f'--config.{key}={value}' for key, value in (SETTINGS | OFF).items()]
    line = ['--config', f'{ROOT / "configs" / name}.py:smoke', '--workdir', str(workdir), *flags]
    ended = run_pod(folder / f'pod_{hosts}', line, hosts, devices=DEVICES // hosts)
    assert statuses(ended) == [0] * hosts, ended
    return workdir


@pytest.mark.parametrize('name', NAMES)
def test_two_and_four_processes_train_what_one_trains(name, table, tmp_path):
    reference = train(tmp_path, name, 1)
    for hosts in (2, 4):
        apart = compare_runs(train(tmp_path, name, hosts), reference, STEPS)
        table.append(
            f'| {name} | {hosts} x {DEVICES // hosts} | {apart["loss"]:.1e} | {apart["parameters"]:.1e} '
            f'| {apart["no_gradient"]:.1e} | {apart["bitwise"]} of {apart["arrays"]} |'
        )
        print(table[-1])
        assert apart['loss'] < LOSS, apart
        assert apart['parameters'] < PARAMETERS, apart
