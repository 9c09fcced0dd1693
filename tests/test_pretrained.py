"""Frozen teachers from files: what is recognised and what becomes of it. No PyTorch."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tower_cases as cases
from parity_rules import draw_weights

from mim_jax.weights.files import read_weights, write_safetensors
from mim_jax.weights.layout import to_theirs
from mim_jax.weights.tower_layouts import CLIP_MEAN, CLIP_STD, DINO, DINOV2, FAMILIES
from mim_jax.weights.towers import from_state_dict, open_teacher

DINO_CASE, DINOV2_CASE = cases.CASES['dino'], cases.CASES['dinov2']
BESIDE = {  # arrays that stand beside a tower and have no place in it
    'clip': {
        'text_model.encoder.layers.0.mlp.fc1.weight': (8, 8),
        'text_projection.weight': (8, 8),
        'logit_scale': (),
        'vision_model.embeddings.position_ids': (1, 17),
    },
    'dino': {'pooler.dense.weight': (128, 128), 'classifier.bias': (10,)},
    'dinov2': {'embeddings.mask_token': (1, 128), 'classifier.weight': (10, 256)},
}


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{name of a case: its folder}."""
    return cases.write_all(tmp_path_factory.mktemp('teachers'))


def assert_same(params, expected):
    params, expected = cases.flatten(params), cases.flatten(expected)
    assert params.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(params[path], array)


# -- what is recognised ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('kind', ['clip', 'dino', 'dinov2'])
@pytest.mark.parametrize('prefixed', [False, True])
def test_names_with_and_without_a_prefix_and_others_beside(kind, prefixed, folders, tmp_path):
    family, arrays = FAMILIES[kind], read_weights(folders[kind]).arrays
    bare = {name.removeprefix(family.prefix): array for name, array in arrays.items()}
    prefix = family.prefix if prefixed else ''
    named = {name if name == 'visual_projection.weight' else f'{prefix}{name}': array for name, array in bare.items()}
    others = {name: np.zeros(shape, np.float32) for name, shape in BESIDE[kind].items()}
    write_safetensors(tmp_path / 'other name.safetensors', named | others, {})
    case = cases.CASES[kind]
    teacher = open_teacher(kind, tmp_path / 'other name.safetensors', case.side, case.patch_size)
    original = open_teacher(kind, folders[kind], case.side, case.patch_size)
    assert teacher.tower == original.tower
    assert_same(teacher.load(), original.load())


@pytest.mark.parametrize(('case', 'layouts'), [(DINO_CASE, DINO), (DINOV2_CASE, DINOV2)])
def test_both_generations_of_names(case, layouts):
    weights = draw_weights(cases.shapes_of(case))
    (tower, params), (other, same) = (from_state_dict(to_theirs(weights, layout)) for layout in layouts)
    assert tower == other
    assert_same(params, same)
    for path, array in cases.flatten(params).items():
        np.testing.assert_array_equal(array, weights[f'encoder/{path}'])


def test_sizes_come_from_the_arrays(folders):
    for name, case in cases.CASES.items():
        tower = cases.open_case(case, folders[name] / 'model.safetensors').tower
        assert (tower.width, tower.depth, tower.patch_size) == (case.width, case.depth, case.patch_size)
        assert (tower.heads, tower.grid) == (2, (case.side // case.patch_size,) * 2)
        assert tower.projected == (case.projected if case.kind == 'clip' else 0)
        assert (tower.pre_norm, tower.layer_scale) == (case.kind == 'clip', case.kind == 'dinov2')


def test_the_files_beside_are_followed(folders, tmp_path):
    folder = cases.write_changed(folders['dino'], tmp_path / 'one')
    plain = open_teacher('dino', folder, 64, 16)
    assert (plain.tower.heads, plain.tower.activation, plain.tower.epsilon) == (2, 'gelu', 1e-6)
    assert (plain.mean, plain.std) == (FAMILIES['dino'].mean, FAMILIES['dino'].std)
    config = {'num_attention_heads': 4, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-12}
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'preprocessor_config.json').write_text(json.dumps({'image_mean': [0.5] * 3, 'image_std': [0.25] * 3}))
    teacher = open_teacher('dino', folder, 64, 16)
    assert (teacher.tower.heads, teacher.tower.activation, teacher.tower.epsilon) == (4, 'quick_gelu', 1e-12)
    assert (teacher.mean, teacher.std) == ((0.5,) * 3, (0.25,) * 3)
    for normalise, statistics in ((True, (0.5, 0.25)), (False, (0, 1))):
        values = {'image_mean': [0.5] * 3, 'image_std': [0.25] * 3, 'do_normalize': normalise}
        (folder / 'preprocessor_config.json').write_text(json.dumps(values))
        teacher = open_teacher('dino', folder, 64, 16)
        assert (teacher.mean, teacher.std) == tuple((value,) * 3 for value in statistics)
    for name in ('config.json', 'preprocessor_config.json'):
        (folder / name).unlink()
    assert open_teacher('dino', folder, 64, 16).tower == plain.tower


def test_the_config_of_a_whole_clip_is_read_inside(folders):
    arrays = read_weights(folders['clip']).arrays
    tower, _ = from_state_dict(arrays, {'vision_config': {'num_attention_heads': 4}, 'hidden_act': 'relu'})
    assert (tower.heads, tower.activation, tower.epsilon) == (4, 'quick_gelu', 1e-5)


def test_the_grid_is_the_students(folders):
    """Patches of 16 for a student with patches of 14 and 8: as many patches, from images of another size."""
    for patch_size, side in ((14, 56), (8, 64)):
        teacher = open_teacher('clip', folders['clip'], side, patch_size)
        grid = (side // patch_size,) * 2
        assert (teacher.tower.grid, teacher.tower.patch_size) == (grid, 16)
        assert f'images of {16 * grid[0]} x {16 * grid[0]}' in teacher.summary
        assert teacher.load()['pos_embed'].shape == (1, 1 + grid[0] ** 2, 128)
    assert 'positions resized from 4 x 4 to 8 x 8 patches' in teacher.summary
    own = open_teacher('clip', folders['clip'], 64, 16).load()['pos_embed']
    np.testing.assert_array_equal(teacher.load()['pos_embed'][:, 0], own[:, 0])


def test_the_hash_is_of_the_file(folders):
    teacher = open_teacher('clip', folders['clip'], 64, 16)
    assert teacher.path == folders['clip'] / 'model.safetensors'
    assert teacher.sha256 == hashlib.sha256(teacher.path.read_bytes()).hexdigest()
    assert (teacher.mean, teacher.std) == (CLIP_MEAN, CLIP_STD)


@pytest.mark.parametrize('stored', [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_in_the_file(stored, folders, tmp_path):
    arrays = {name: array.astype(stored) for name, array in read_weights(folders['clip']).arrays.items()}
    write_safetensors(tmp_path / 'model.safetensors', arrays, {})
    params = cases.flatten(open_teacher('clip', tmp_path, 64, 16).load())
    assert {array.dtype for array in params.values()} == {np.dtype(np.float32)}
    expected = arrays['visual_projection.weight'].T.astype(np.float32)
    np.testing.assert_array_equal(params['projection/kernel'], expected)


def test_bfloat16_is_kept(folders):
    """Kernels, most of the memory, in bf16; what is added or multiplied element by element in fp32."""
    case = cases.CASES['clip']
    teacher = cases.open_case(case, folders['clip'], jnp.bfloat16)
    params = cases.flatten(teacher.load())
    kept = {path for path, array in params.items() if array.dtype == ml_dtypes.bfloat16}
    assert kept == {path for path in params if path.endswith('kernel')}
    assert all(params[path].dtype == np.float32 for path in params.keys() - kept)
    rounded = cases.run_tower(teacher, cases.make_images(case))
    exact = cases.run_tower(cases.open_case(case, folders['clip']), cases.make_images(case))
    for name in ('pre_ln', 'ln_post', 'proj'):
        ours, theirs = (np.asarray(a[name], np.float64).ravel() for a in (rounded, exact))
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.9999
    assert rounded['ln_post'].dtype == ml_dtypes.bfloat16
    assert rounded['attention'].dtype == np.float32
    assert np.abs(rounded['attention'] - exact['attention']).max() < 5e-3


# -- the random teacher ------------------------------------------------------------------------------------------------
def test_a_random_teacher_is_its_seed():
    first, again, other = (open_teacher('random', '', 16, 4, seed=seed) for seed in (3, 3, 4))
    assert_same(first.load(), again.load())
    assert np.abs(first.load()['cls_token'] - other.load()['cls_token']).max() > 0.0
    assert (first.tower.width, first.tower.depth, first.tower.patch_size, first.tower.grid) == (32, 2, 4, (4, 4))
    assert (first.sha256, first.path, first.mean) == ('', None, CLIP_MEAN)
    assert [first.width_of(feature) for feature in ('pre_ln', 'ln_post', 'proj')] == [32, 32, 16]
    half = cases.flatten(open_teacher('random', '', 16, 4, jnp.bfloat16).load())
    assert half['patch_embed/kernel'].dtype == ml_dtypes.bfloat16


def test_no_pytorch_is_asked_for(folders):
    """Nor scipy's splines, which would make the start of every program slower."""
    program = (
        'import sys\n'
        'from mim_jax.weights.towers import open_teacher\n'
        f'params = open_teacher("clip", {str(folders["clip"])!r}, 64, 16).load()\n'
        'assert params["projection"]["kernel"].shape == (128, 48)\n'
        'print(sorted({"torch", "transformers", "scipy.interpolate"} & sys.modules.keys()))\n'
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, '-c', program], cwd=root, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ('[]\n', 0), done.stderr
