"""Frozen teachers from files: what is refused, each time with the thing and the remedy named."""

import zipfile

import numpy as np
import pytest
import tower_cases as cases

from mim_jax.errors import Refused
from mim_jax.weights.files import WeightsError, read_weights
from mim_jax.weights.tower_layouts import FAMILIES
from mim_jax.weights.towers import from_state_dict, open_teacher


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """{name of a case: its folder}."""
    return cases.write_all(tmp_path_factory.mktemp('teachers'))


def refuse(words, call, *args, error=WeightsError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    for word in words:
        assert word in str(caught.value), (word, str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize('kind', ['clip', 'dino', 'dinov2'])
def test_a_missing_file_names_what_to_put_where(kind, tmp_path):
    family = FAMILIES[kind]
    words = (*family.repositories, 'model.safetensors', family.opens, 'Set mr_mae.teacher_path', 'kind random')
    refuse((f'A {kind} teacher needs a file', *words), open_teacher, kind, '', 224, 16, key='mr_mae.teacher_path')
    gone = tmp_path / 'gone.safetensors'
    (tmp_path / 'near.safetensors').touch()
    words = (f'There is no file {gone}', 'near.safetensors', *words)
    refuse(words, open_teacher, kind, gone, 224, 16, key='mr_mae.teacher_path')
    (tmp_path / 'empty').mkdir()
    words = ('without a file model.safetensors', family.repositories[0])
    refuse(words, open_teacher, kind, tmp_path / 'empty', 224, 16)
    (tmp_path / 'empty' / 'model.safetensors').mkdir()
    refuse(words, open_teacher, kind, tmp_path / 'empty', 224, 16)


def test_files_that_are_not_safetensors(folders, tmp_path):
    path = tmp_path / 'pytorch_model.bin'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('model/data.pkl', b'')
    refuse((str(path), 'PyTorch file', 'save_pretrained'), open_teacher, 'clip', path, 64, 16)
    whole = (folders['clip'] / 'model.safetensors').read_bytes()
    for size in (0, 5, 100, len(whole) - 4):
        path = tmp_path / f'{size}.safetensors'
        path.write_bytes(whole[:size])
        refuse((str(path), 'truncated or damaged', 'fetch it again'), open_teacher, 'clip', path, 64, 16)


def test_every_wrong_array_is_listed_at_once(folders, tmp_path):
    changes = {
        'vision_model.encoder.layers.1.mlp.fc1.weight': None,
        'vision_model.encoder.layers.2.self_attn.k_proj.bias': np.zeros(64, np.float32),
        'vision_model.encoder.layers.0.layer_norm1.weight': np.zeros(128, np.int32),
        'vision_model.encoder.layers.0.adapter.weight': np.zeros((4, 4), np.float32),
    }
    folder = cases.write_changed(folders['clip'], tmp_path / 'wrong', **changes)
    said = refuse((str(folder), 'width 128, depth 3'), open_teacher, 'clip', folder, 64, 16)
    assert said.splitlines()[1:] == [
        '  vision_model.encoder.layers.1.mlp.fc1.weight: missing',
        '  vision_model.encoder.layers.0.adapter.weight: unknown',
        '  vision_model.encoder.layers.0.layer_norm1.weight: stored as int32, wanted floats',
        '  vision_model.encoder.layers.2.self_attn.k_proj.bias: shape (64,), wanted (128,)',
    ]


@pytest.mark.parametrize(
    ('name', 'changes', 'words'),
    [
        ('dinov2', {'embeddings.register_tokens': np.zeros((1, 4, 128))}, ('register_tokens', 'without registers')),
        ('dinov2', {'encoder.layer.0.mlp.weights_in.weight': np.zeros((8, 128))}, ('SwiGLU', 'dinov2-base')),
        (
            'dino',
            {'embeddings.position_embeddings': None},
            ('none of the layouts', 'CLIPVisionModelWithProjection, ViTModel'),
        ),
        ('dino', {'embeddings.position_embeddings': np.zeros((1, 16, 128))}, ('(1, 16, 128)', 'square grid')),
        ('dino', {'embeddings.position_embeddings': np.zeros(())}, ('positions of shape ()', 'square grid')),
        (
            'dino',
            {'embeddings.patch_embeddings.projection.weight': np.zeros((128, 1, 16, 16))},
            ('(128, 1, 16, 16)', 'RGB'),
        ),
        ('dino', {'encoder.layer.100.layernorm_before.weight': np.zeros(128)}, ('block 100', 'up to 100 blocks')),
        ('dino', {'vit.layernorm.bias': np.zeros(128)}, ('layernorm.bias twice, also as vit.layernorm.bias',)),
        ('clip', {'post_layernorm.bias': np.zeros(128)}, ('post_layernorm.bias twice, also as vision_model.post',)),
    ],
)
def test_towers_that_are_not_here(name, changes, words, folders, tmp_path):
    folder = cases.write_changed(folders[name], tmp_path / 'other', **changes)
    refuse((str(folder), *words), open_teacher, name, folder, 64, 16)


def test_a_state_dict_is_held_to_the_same(folders):
    arrays = read_weights(folders['dino']).arrays
    arrays.pop('layernorm.bias')
    refuse(('The state dict', 'layernorm.bias: missing'), from_state_dict, arrays)
    ends = {name: array for name, array in arrays.items() if '.layer.' not in name}
    refuse(('The state dict', 'no layers'), from_state_dict, ends)
    refuse(('none of the layouts', 'It has a, b'), from_state_dict, {'a': np.zeros(1), 'b': np.zeros(1)})


def test_another_kind_than_asked_for(folders):
    words = ('holds a dino tower', 'set mr_mae.path to a clip file')
    refuse(words, open_teacher, 'clip', folders['dino'], 64, 16, key='mr_mae.path')
    refuse(("'eva'", 'clip, dino, dinov2, random'), open_teacher, 'eva', '', 64, 16, error=Refused)


HEADS, EPSILON, ACTIVATION, MEAN, STD = (
    'a whole number above 0',
    'a number above 0',
    'one of gelu, quick_gelu',
    'three numbers',
    'three numbers above 0',
)


@pytest.mark.parametrize(
    ('name', 'key', 'value', 'wanted'),
    [
        *(('config', 'num_attention_heads', value, HEADS) for value in ('"1"', '1.0', '-1', '0', 'true', 'null')),
        *(('config', 'layer_norm_eps', value, EPSILON) for value in ('-1', '0', '"1e-6"', 'NaN', '1e-400', '1' * 400)),
        *(('config', 'hidden_act', value, ACTIVATION) for value in ('["gelu"]', '{}', '"relu"', 'null')),
        *(('config', 'vision_config', value, 'an object') for value in ('null', '[]', '"clip"')),
        *(('preprocessor_config', 'image_mean', value, MEAN) for value in ('[0.5, 0.5]', 'null', '0.5', '[0, 0, NaN]')),
        *(('preprocessor_config', 'image_std', value, STD) for value in ('[0, 0, 0]', '[1, 1, -1]', '["1", 1, 1]')),
        *(('preprocessor_config', 'do_normalize', value, 'true or false') for value in ('null', '0', '"false"')),
    ],
)
def test_a_value_beside_the_weights_is_checked(name, key, value, wanted, folders, tmp_path):
    """One sentence with the file, the key, the value and what it must be."""
    folder = cases.write_changed(folders['dino'], tmp_path / 'one')
    (folder / f'{name}.json').write_text(f'{{"{key}": {value}}}')
    said = refuse((f'must be {wanted}.',), open_teacher, 'dino', folder, 64, 16)
    assert said.startswith(f'{folder / name}.json: {key} is {"0.0" if value == "1e-400" else value}, and')


@pytest.mark.parametrize('name', ['config.json', 'preprocessor_config.json'])
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'{', ('not JSON', 'fetch it again')),
        (b'{"hidden_act": "\xff"}', ('not JSON', 'utf-8')),
        (b'[' * 100_000, ('not JSON',)),
        (b'null', ('holds null', 'an object')),
        (b'[1, 2]', ('holds [1, 2]', 'an object')),
    ],
)
def test_a_file_beside_the_weights_holds_an_object(name, content, words, folders, tmp_path):
    folder = cases.write_changed(folders['dino'], tmp_path / 'one')
    (folder / name).write_bytes(content)
    refuse((str(folder / name), *words), open_teacher, 'dino', folder, 64, 16)


def test_configs_that_do_not_fit(folders, tmp_path):
    folder = cases.write_changed(folders['dino'], tmp_path / 'one')
    (folder / 'config.json').write_text('{"num_attention_heads": 3}')
    words = (f'{folder / "config.json"}: num_attention_heads is 3', 'does not divide a width of 128')
    refuse(words, open_teacher, 'dino', folder, 64, 16)
    arrays = read_weights(folders['dino']).arrays
    words = ('The config: num_attention_heads is 1.0', HEADS)
    refuse(words, from_state_dict, arrays, {'vision_config': {'num_attention_heads': 1.0}})


def test_values_that_are_not_finite(folders, tmp_path):
    name = 'encoder.layer.1.layernorm_before.bias'
    folder = cases.write_changed(folders['dino'], tmp_path / 'nan', **{name: np.full(128, np.nan, np.float32)})
    teacher = open_teacher('dino', folder, 64, 16)
    refuse((str(folder), 'NaN', name), teacher.load)


def test_features_that_a_tower_lacks(folders):
    teacher = open_teacher('dino', folders['dino'], 64, 16)
    assert (teacher.width_of('pre_ln'), teacher.width_of('ln_post')) == (128, 128)
    refuse(
        ('dino teacher', 'ln_post or pre_ln', 'CLIPVisionModelWithProjection'), teacher.width_of, 'proj', error=Refused
    )
    refuse(("'last'", 'pre_ln, ln_post, proj'), teacher.width_of, 'last', error=Refused)
    bare = {name: a for name, a in read_weights(folders['clip']).arrays.items() if 'visual_projection' not in name}
    assert from_state_dict(bare)[0].projected == 0
