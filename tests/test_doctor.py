"""The doctor: all well where all is well; every fault is told with its remedy, counted, and does not end the visit."""

from collections import namedtuple
from collections.abc import Mapping
from types import MappingProxyType

import jax
import pytest
from program_runs import arguments, call, copy_run, share_compilations, snapshot

from mim_jax import doctor, train

CHECKS = ('versions', 'devices', 'config', 'dataset', 'batch and learning rate', 'one train step', 'workdir')


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


@pytest.fixture
def visit(capsys, tmp_path):
    """visit({setting: value}) -> (status, {check: what it said}, the faults); the workdir is `tmp_path / 'run'`."""

    def run(
        settings: Mapping = MappingProxyType({}), workdir=tmp_path / 'run'
    ) -> tuple[int, dict[str, str], list[str]]:
        ended = call(capsys, arguments(workdir, settings), doctor.main)
        assert ended.err == ''
        lines = [line for line in ended.out.splitlines() if line.startswith(('ok    ', 'FAULT '))]
        said = dict(line[6:].split(': ', 1) for line in lines)
        faults = [line[6:].split(': ')[0] for line in lines if line.startswith('FAULT')]
        count = len(faults)
        assert ended.out.splitlines()[-1] == (f'{count} fault{"s" * (count > 1)} found.' if faults else 'All well.')
        return ended.status, said, faults

    return run


def test_all_well_on_smoke(visit, tmp_path):
    status, said, faults = visit()
    assert (status, faults) == (0, [])
    assert tuple(said) == CHECKS
    assert 'jax 0.' in said['versions']
    assert '8 x cpu' in said['devices']
    assert '1437 images in train' in said['dataset']
    assert '2 images x 8 devices x 1 micro-batches = 16 per step' in said['batch and learning rate']
    assert 'peak lr 0.001' in said['batch and learning rate']
    assert 'compiled and ran' in said['one train step']
    assert 'writable' in said['workdir']
    assert snapshot(tmp_path / 'run') == {}


@pytest.mark.parametrize(
    ('settings', 'fault', 'words', 'left_out'),
    [
        ({'optim.base_lrr': 1}, 'config', ('optim.base_lrr', 'Did you mean'), CHECKS[3:6]),
        ({'data.split': 'trian'}, 'dataset', ("no split 'trian'", 'test, train'), CHECKS[5:6]),
        ({'batch_size': 20}, 'batch and learning rate', ('batch_size=20', '16 or 24'), CHECKS[5:6]),
        ({'mesh.fsdp': 3}, 'batch and learning rate', ('mesh.fsdp=3', '1, 2, 4, 8'), CHECKS[5:6]),
        ({'mae.mask_ratio': 0.999}, 'one train step', ('0 of 16 patches', 'change mask_ratio'), ()),
        ({'optim.base_lr': 1e20, 'optim.warmup_epochs': 0.0}, 'one train step', ('loss is nan', 'lower optim'), ()),
    ],
)
def test_a_fault_is_told_once_and_the_visit_goes_on(settings, fault, words, left_out, visit):
    status, said, faults = visit(settings)
    assert (status, faults) == (2, [fault])
    assert tuple(said) == tuple(name for name in CHECKS if name not in left_out)
    for word in words:
        assert word in said[fault]


def test_versions_that_are_missing_or_wrong(visit, monkeypatch):
    required = ['numpy<1', 'not-a-package>=2', 'jax', 'nor-this-one; extra == "gcs"']
    monkeypatch.setattr(doctor.metadata, 'requires', lambda _: required)
    status, said, faults = visit()
    assert (status, faults) == (2, ['versions'])
    assert 'numpy is ' in said['versions']
    assert 'not <1; not-a-package is not installed. Run: pip install -r' in said['versions']


def test_an_image_that_cannot_be_decoded(visit, tmp_path):
    folder = tmp_path / 'images' / 'train' / 'a'
    folder.mkdir(parents=True)
    for number in range(16):
        (folder / f'{number}.jpg').write_text('no image')
    settings = {'data.source': 'folder', 'data.dir': tmp_path / 'images', 'optim.warmup_epochs': 0.0}
    status, said, faults = visit(settings)
    assert status == 2
    assert faults[0] == 'dataset'
    assert '0.jpg (index 0): no known image format' in said['dataset']
    assert 'on_bad_image=skip' in said['dataset']


def test_workdirs_that_a_run_could_not_use(visit, tmp_path, capsys):
    assert call(capsys, arguments(tmp_path / 'run', {'steps': 2, 'optim.warmup_epochs': 0.0})).status == 0
    before = snapshot(tmp_path / 'run')
    status, said, faults = visit({'steps': 3, 'optim.warmup_epochs': 0.0})
    assert (status, faults) == (2, ['workdir'])
    assert 'other settings' in said['workdir']
    assert snapshot(tmp_path / 'run') == before
    (tmp_path / 'file').write_text('precious')
    status, said, faults = visit({'data.split': 'trian'}, tmp_path / 'file')
    assert (status, faults) == (2, ['dataset', 'workdir'])
    assert 'is a file; choose a folder' in said['workdir']


def test_a_disk_with_little_room(visit, monkeypatch):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(doctor.shutil, 'disk_usage', lambda _: usage(2**40, 2**40, 2**16))
    status, said, faults = visit()
    assert (status, faults) == (2, ['workdir'])
    assert '0.00 GiB free, but 11 checkpoints' in said['workdir']
    assert 'lower checkpoint.keep' in said['workdir']


def test_device_memory_that_runs_out(visit, monkeypatch):
    def fail(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.')

    monkeypatch.setattr(doctor, 'make_program', fail)
    status, said, faults = visit()
    assert (status, faults) == (2, ['one train step'])
    assert 'raise accumulate' in said['one train step']


def test_a_bug_is_not_taken_for_a_fault(visit, monkeypatch):
    monkeypatch.setattr(doctor, 'make_program', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        visit()


def test_train_and_doctor_agree_that_a_run_may_go_on(visit, tmp_path, capsys):
    settings = {'steps': 2, 'optim.warmup_epochs': 0.0}
    assert call(capsys, arguments(tmp_path / 'run', settings), train.main).status == 0
    other = copy_run(tmp_path / 'run', tmp_path / 'other')
    status, _, faults = visit(settings | {'log.every_steps': 2}, other)
    assert (status, faults) == (0, [])


@pytest.mark.parametrize(
    ('kernel', 'tunables', 'well'),
    [
        ('always [madvise] never', '', False),
        ('always [madvise] never', 'glibc.malloc.check=0:glibc.malloc.hugetlb=1', True),
        ('[always] madvise never', '', True),
        (None, '', True),
    ],
)
def test_huge_pages_are_advised_where_the_kernel_waits_to_be_asked(tmp_path, monkeypatch, kernel, tunables, well):
    monkeypatch.setenv('GLIBC_TUNABLES', tunables)
    setting = tmp_path / 'enabled'
    if kernel:
        setting.write_text(kernel)
    assert doctor.has_huge_pages(setting) is well
