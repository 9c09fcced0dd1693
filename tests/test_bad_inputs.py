"""Whatever a user gets wrong: one message that names the thing and the remedy, a non-zero status, and nothing lost."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from program_runs import (
    SMOKE,
    arguments,
    call,
    fail,
    half_written,
    read_losses,
    read_summary,
    saved_steps,
    share_compilations,
)

from mim_jax.training.loop import Session


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    share_compilations(tmp_path_factory)


def make_images(root: Path, count: int = 20, side: int = 24) -> list[Path]:
    """Noise as JPEG files in root/train/{a,b}."""
    draw, files = np.random.default_rng(0), []
    for number in range(count):
        folder = root / 'train' / 'ab'[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f'{number:02d}.jpg')
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(files[-1])
    return files


def folder_settings(root: Path, **more: object) -> dict[str, object]:
    """Two steps over a folder of images."""
    return {'data.source': 'folder', 'data.dir': root, 'optim.warmup_epochs': 0.0, 'steps': 2, **more}


# -- the command line and the config: refused before the workdir exists ------------------------------------------------
@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'optim.base_lrr': 1}, ('optim.base_lrr', 'no such key', 'Did you mean optim.base_lr?')),
        ({'batch_size': '1e3'}, ('batch_size=1e3', 'expected an integer')),
        ({'data.flip': 'maybe'}, ('data.flip=maybe', 'true or false')),
        ({'papers': 'mfff'}, ("no method 'mfff'", 'There are:')),
        ({'encoder.patch_size': 5}, ('image_size=16 is not a multiple of encoder.patch_size=5', '15 or 20')),
        ({'encoder.heads': 3}, ('encoder.width=16', 'encoder.heads=3')),
        ({'optim.schedule': 'cosin'}, ('optim.schedule', 'Did you mean cosine?')),
        ({'data.std': '0.3,0.0,0.3'}, ('data.std', 'above 0')),
        ({'data.source': 'folder'}, ('data.source', 'data.dir')),
        ({'steps': 0, 'epochs': 2.0, 'optim.warmup_epochs': 3.0}, ('warmup_epochs=3.0', 'epochs=2.0', 'shorten')),
    ],
)
def test_bad_settings(settings, words, capsys, tmp_path):
    fail(capsys, arguments(tmp_path / 'run', settings), *words)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        ('configs/mea.py', ("no config file 'configs/mea.py'",)),
        ('configs/mae.py:smok', ("no variant 'smok'", 'Did you mean smoke?')),
        ('configs/mae.py:smoke,demo', ("'smoke' and 'demo'", 'exclude')),
    ],
)
def test_bad_config_file(config, words, capsys, tmp_path):
    root = Path(__file__).parents[1]
    words = [word.replace('configs/', f'{root}/configs/') for word in words]
    fail(capsys, arguments(tmp_path / 'run', config=f'{root}/{config}'), *words)
    assert not (tmp_path / 'run').exists()


def test_a_base_that_does_not_exist(capsys, tmp_path):
    line = ['--config', SMOKE, '--workdir', str(tmp_path / 'run'), '--config.base=mea']
    fail(capsys, line, "no method 'mea'", 'Did you mean mae?')


def test_a_word_that_is_no_option(capsys, tmp_path):
    fail(capsys, [*arguments(tmp_path / 'run'), 'epochs=3'], "'epochs=3' is not an override", '--config.key=value')


# -- what only devices and data can tell: summary.json says failed, and the mended command may use the same folder -----
@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        ({'batch_size': 20}, ('batch_size=20', '8 devices', '16 or 24')),
        ({'accumulate': 4}, ('batch_size=16', 'accumulate=4', 'batch_size=32')),
        ({'mesh.fsdp': 3}, ('mesh.fsdp=3', '8 devices', '1, 2, 4, 8')),
        ({'batch_size': 2048}, ('batch_size=2048', '1437 images', '1432 or less')),
        ({'optim.warmup_epochs': 2.0}, ('warmup_epochs=2.0', '180 steps', 'only 48')),
        ({'mae.mask_ratio': 1.5}, ('mask_ratio of 1.5', 'change mask_ratio')),
        ({'mae.mask_ratio': 0.999}, ('mask_ratio of 0.999', '0 of 16 patches')),
        ({'mae.mask_ratio': 0.0}, ('mask_ratio of 0.0', '16 of 16 patches')),
        ({'data.split': 'trian'}, ("no split 'trian'", 'test, train')),
        ({'data.split': 'train[5:5]'}, ('train[5:5]', 'is empty', 'larger slice')),
        ({'pictures.every_epochs': 1.0, 'data.eval_split': 'validation'}, ("no split 'validation'", 'test, train')),
        ({'data.source': 'npz', 'data.dir': '/nowhere/a.npz'}, ("no file '/nowhere/a.npz'", 'data.dir')),
        ({'data.source': 'folder', 'data.dir': '/nowhere'}, ("no folder '/nowhere'", 'data.dir')),
    ],
)
def test_what_does_not_fit(settings, words, capsys, tmp_path):
    message = fail(capsys, arguments(tmp_path, settings), *words)
    summary = read_summary(tmp_path)
    assert summary['status'] == 'failed'
    assert message.removeprefix('error: ').strip() in summary['error']


def test_a_tfds_dataset_that_is_not_prepared(capsys, tmp_path):
    settings = {'data.source': 'tfds', 'data.name': 'cifar10', 'data.dir': tmp_path / 'empty'}
    fail(capsys, arguments(tmp_path / 'run', settings), "'cifar10' is not prepared", 'data.dir', 'download_and_prepare')
    settings['data.name'] = 'cifar1O'
    fail(capsys, arguments(tmp_path / 'run', settings), "data.name='cifar1O'", "Did you mean 'cifar10'?")


def test_an_empty_folder(capsys, tmp_path):
    (tmp_path / 'images' / 'train').mkdir(parents=True)
    settings = folder_settings(tmp_path / 'images')
    fail(
        capsys,
        arguments(tmp_path / 'run', settings),
        'No images',
        str(tmp_path / 'images'),
        'put images',
    )


def test_wandb_that_is_not_installed(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    fail(
        capsys,
        arguments(tmp_path, {'log.wandb': 'project'}),
        "log.wandb='project'",
        'pip install wandb',
        "log.wandb=''",
    )
    assert read_summary(tmp_path)['status'] == 'failed'


def test_a_mistake_can_be_mended_in_the_same_workdir(capsys, tmp_path):
    fail(capsys, arguments(tmp_path, {'data.split': 'trian'}), 'trian')
    ended = call(capsys, arguments(tmp_path, {'steps': 2, 'optim.warmup_epochs': 0.0}))
    assert (ended.status, ended.err) == (0, '')
    assert (read_summary(tmp_path)['status'], read_summary(tmp_path)['steps']) == ('finished', 2)


# -- images ------------------------------------------------------------------------------------------------------------
def test_images_of_every_kind_train(tmp_path, capsys):
    """Greyscale, palette with transparency, RGBA, CMYK, 16 bits, turned by EXIF, and a single pixel."""
    files = make_images(tmp_path / 'images')
    noise = Image.open(files[0])
    turned = noise.getexif()
    turned[0x0112] = 6
    noise.convert('L').save(files[1])
    noise.convert('P').save(files[2].with_suffix('.png'), transparency=0)
    noise.convert('RGBA').save(files[3].with_suffix('.png'))
    noise.convert('CMYK').save(files[4])
    noise.save(files[5], exif=turned)
    Image.fromarray(np.full((9, 7), 40000, np.uint16)).save(files[6].with_suffix('.png'))
    Image.new('RGB', (1, 1), 'red').save(files[7])
    ended = call(capsys, arguments(tmp_path / 'run', folder_settings(tmp_path / 'images')))
    assert (ended.status, ended.err) == (0, '')
    summary = read_summary(tmp_path / 'run')
    assert (summary['steps'], summary['bad_images']) == (2, {})
    assert np.isfinite(summary['metrics']['loss/total'])


@pytest.mark.parametrize('kind', ['truncated', 'text'])
def test_a_bad_image_stops_the_run_or_is_skipped(kind, capsys, tmp_path, caplog):
    bad = make_images(tmp_path / 'images')[3]
    bad.write_bytes(bad.read_bytes()[:-100] if kind == 'truncated' else b'not an image at all')
    settings = folder_settings(tmp_path / 'images')
    reason = 'truncated' if kind == 'truncated' else 'no known image format in its 19 bytes'
    fail(capsys, arguments(tmp_path / 'run', settings), f'{bad} (index ', reason, 'data.on_bad_image=skip')
    assert read_summary(tmp_path / 'run')['status'] == 'failed'
    ended = call(capsys, arguments(tmp_path / 'run', settings | {'data.on_bad_image': 'skip'}))
    assert ended.status == 0
    assert f'skipped an image that cannot be decoded: {bad}' in caplog.text
    summary = read_summary(tmp_path / 'run')
    assert summary['status'] == 'finished'
    assert summary['bad_images'] == {str(bad): 1} or summary['bad_images'] == {str(bad): 2}


# -- numbers -----------------------------------------------------------------------------------------------------------
def test_a_loss_that_is_not_finite(capsys, tmp_path):
    line = arguments(tmp_path, {'optim.base_lr': 1e20, 'checkpoint.every_steps': 1})
    message = fail(capsys, line, 'loss/pixels became nan', 'lower optim.base_lr', 'new --workdir', status=3)
    (file,) = tmp_path.glob('nonfinite_step_*.json')
    report = json.loads(file.read_text())
    assert str(file) in message
    assert (report['term'], report['values']['loss/pixels']) == ('loss/pixels', 'nan')
    assert len(report['index']) == 16
    assert len(set(report['index'])) == 16
    assert all(0 <= index < 1437 for index in report['index'])
    assert max(saved_steps(tmp_path)) < report['step']
    assert half_written(tmp_path) == []
    summary = read_summary(tmp_path)
    assert (summary['status'], summary['steps']) == ('failed', max(read_losses(tmp_path)))
    assert np.isfinite(summary['metrics']['loss/total'])


def test_device_memory_that_runs_out(capsys, tmp_path, monkeypatch):
    """No machine runs out of memory on demand: the loop raises what XLA raises."""

    def run(*_):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.\nmore')

    monkeypatch.setattr(Session, 'run', run)
    fail(capsys, arguments(tmp_path), 'Out of device memory', 'allocating 1 byte', 'raise accumulate')
    assert 'raise accumulate' in read_summary(tmp_path)['error']


def test_any_other_fault_stays_a_crash(tmp_path, monkeypatch, capsys):
    def run(*_):
        raise ZeroDivisionError('a bug')

    monkeypatch.setattr(Session, 'run', run)
    with pytest.raises(ZeroDivisionError):
        call(capsys, arguments(tmp_path))
    assert read_summary(tmp_path)['error'] == 'ZeroDivisionError: a bug'
