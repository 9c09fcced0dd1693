"""Files that PyTorch wrote, read here: wrapped, truncated, with code in them. `make test-parity` installs PyTorch."""

import argparse
import importlib.util
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / 'interop'))

from interop_cases import assert_same, draw_arrays, find_format, make_recipe

from mim_jax.interop.transfer import export_arrays
from mim_jax.weights.files import WeightsError, read_weights

MISSING = importlib.util.find_spec('torch') is None
pytestmark = [pytest.mark.parity, pytest.mark.skipif(MISSING, reason='needs torch: run `make test-parity`')]

if not MISSING:
    import torch


def test_a_training_program_s_file(tmp_path):
    """Wrapped, from data-parallel training, half of it in 16 bits, beside an optimizer and a command line."""
    recipe = make_recipe('mae')
    state, _ = export_arrays(draw_arrays(recipe), find_format(recipe, 'mae'), recipe)
    tensors = {f'module.{name}': torch.from_numpy(np.ascontiguousarray(array)) for name, array in state.items()}
    tensors['module.norm.weight'] = tensors['module.norm.weight'].bfloat16()
    file = {'model': tensors, 'optimizer': {'state': {}}, 'epoch': 3, 'args': argparse.Namespace(lr=1e-3)}
    torch.save(file, tmp_path / 'checkpoint.pth')
    torch.save(file, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    for name in ('checkpoint.pth', 'old.pth'):
        weights = read_weights(tmp_path / name)
        assert weights.notes == (
            "unwrapped 'model', left aside: args, epoch, optimizer",
            "dropped 'module.' before every name",
            '1 arrays converted from bfloat16 to float32',
        )
        assert weights.half
        rounded = np.asarray(torch.from_numpy(state['norm.weight']).bfloat16().float())
        assert_same(weights.arrays, state | {'norm.weight': rounded})


class Bomb:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_file_is_refused_and_never_runs(zipped, tmp_path):
    content = {'model': {'w': torch.zeros(2)}, 'extra': Bomb(tmp_path / 'executed')}
    torch.save(content, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    (tmp_path / 'w.bin').write_bytes(pickle.dumps(content['extra']))
    for name in ('w.pth', 'w.bin'):
        with pytest.raises(WeightsError, match=r'holds more than tensors.*Nothing of it was executed') as caught:
            read_weights(tmp_path / name)
        assert '\n' not in str(caught.value)
        assert name == 'w.bin' or 'mkdir' in str(caught.value)
        assert not (tmp_path / 'executed').exists()
    torch.load(tmp_path / 'w.pth', weights_only=False)
    assert (tmp_path / 'executed').exists()  # it would have been


@pytest.mark.parametrize('keep', [0.3, 0.9, 0.999])
@pytest.mark.parametrize('zipped', [True, False])
def test_truncated_files_of_pytorch(zipped, keep, tmp_path):
    torch.save({'w': torch.zeros(500)}, tmp_path / 'w.pth', _use_new_zipfile_serialization=zipped)
    data = (tmp_path / 'w.pth').read_bytes()
    (tmp_path / 'w.pth').write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(WeightsError, match='is truncated or damaged'):
        read_weights(tmp_path / 'w.pth')


def test_what_holds_no_state(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match='has no arrays by name'):
        read_weights(tmp_path / 'w.pth')
