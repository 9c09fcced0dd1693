"""The table of robustness sets: class lists against known facts, labels from folder names, and each scoring rule."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import DataError
from mim_jax.evals.robustness import (
    CLASSES,
    SETS,
    cut_border,
    list_parts,
    map_folders,
    occlude_center,
    read_classes,
    read_real_labels,
    related_images,
    score,
)

SHARED_INDEX = Path(__file__).parents[2] / '../shared/data/imagenet_class_index.json'


def point_at(*classes):
    """Logits f[n,1000] whose argmax is the given class of every image; the second best is 999."""
    logits = np.zeros((len(classes), 1000), np.float32)
    logits[:, 999] = 1
    logits[np.arange(len(classes)), classes] = 2
    return logits


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('imagenet', 1000),
        ('imagenet_a', 200),
        ('imagenet_r', 200),
        ('imagenet_o', 200),
        ('objectnet', 113),
        ('siscore', 61),
    ],
)
def test_class_lists_have_their_counts_and_say_where_they_come_from(name, count):
    file = json.loads((CLASSES / f'{name}.json').read_text())
    assert len(file['classes']) == count
    assert file['source'].startswith('https://github.com/')
    assert file['licence']


@pytest.mark.parametrize('name', ['imagenet_a', 'imagenet_r', 'imagenet_o'])
def test_index_lists_are_distinct_and_sorted(name):
    classes = read_classes(name)
    assert classes == sorted(set(classes))
    assert set(classes) <= set(range(1000))


def test_lists_contain_classes_known_by_name():
    synsets = read_classes('imagenet')
    assert synsets == sorted(set(synsets))
    assert (synsets[0], synsets[207], synsets[999]) == ('n01440764', 'n02099601', 'n15075141')
    objectnet = read_classes('objectnet')
    assert objectnet['alarm_clock'] == [409, 530]  # analog clock, digital clock
    assert objectnet['bicycle'] == [444, 671]  # tandem, mountain bike
    assert len({label for labels in objectnet.values() for label in labels}) == 125
    assert (read_classes('siscore')['zebra'], len(set(read_classes('siscore').values()))) == (340, 61)
    golden_retriever, tench, hen = 207, 0, 8
    assert [golden_retriever in read_classes(f'imagenet_{s}') for s in 'aro'] == [True, True, False]
    assert [hen in read_classes(f'imagenet_{s}') for s in 'aro'] == [False, True, False]
    assert not any(tench in read_classes(f'imagenet_{s}') for s in 'aro')


@pytest.mark.skipif(not SHARED_INDEX.exists(), reason='needs ../shared/data/imagenet_class_index.json')
def test_synsets_agree_with_the_shared_class_index():
    index = json.loads(SHARED_INDEX.read_text())
    assert [index[str(label)][0] for label in range(1000)] == read_classes('imagenet')


def test_synsets_are_in_the_order_of_tfds():
    datasets = pytest.importorskip('tensorflow_datasets')
    labels = Path(datasets.__file__).parent / 'datasets/imagenet2012/labels.txt'
    assert labels.read_text().split() == read_classes('imagenet')


def test_a_missing_list_names_the_file_and_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr('mim_jax.evals.robustness.CLASSES', tmp_path)
    read_classes.cache_clear()
    with pytest.raises(
        DataError, match=r"imagenet_r\.json' is missing; take it from https://github.com/hendrycks/imagenet-r"
    ):
        score(SETS['imagenet_r'], point_at(1), np.array([1]))
    read_classes.cache_clear()


def test_folder_names_become_labels():
    assert map_folders(SETS['imagenet_a'], ['n01498041', 'n01531178']).tolist() == [6, 11]
    assert map_folders(SETS['imagenet_v2'], ['0', '1', '10', '100', '2']).tolist() == [0, 1, 10, 100, 2]
    assert map_folders(SETS['siscore_size'], ['ambulance', 'zucchini']).tolist() == [407, 939]
    assert map_folders(SETS['objectnet'], ['air_freshener', 'alarm_clock', 'wok']).tolist() == [-1, 0, 112]


def test_a_strange_folder_is_named():
    with pytest.raises(
        DataError, match="Folder 'train' is not a class of this set; its folders are called like 'n01440764'"
    ):
        map_folders(SETS['imagenet_sketch'], ['n01440764', 'train'])
    with pytest.raises(DataError, match="Folder 'n01440764'"):
        map_folders(SETS['imagenet_v2'], ['n01440764'])
    with pytest.raises(DataError, match='None of the 113 ObjectNet folders'):
        map_folders(SETS['objectnet'], ['images'])


def test_imagenet_c_has_75_parts_and_the_others_one():
    parts = list_parts(SETS['imagenet_c'])
    names = {SETS['imagenet_c'].tfds.format(**part) for part in parts}
    assert len(names) == 75
    assert 'imagenet2012_corrupted/jpeg_compression_5' in names
    assert parts[0] == {'corruption': 'gaussian_noise', 'severity': 1}
    assert list_parts(SETS['imagenet_v2']) == [{}]


def test_every_tfds_name_and_split_exists():
    tfds = pytest.importorskip('tensorflow_datasets')
    for spec in SETS.values():
        if spec.tfds:
            dataset, _, variant = spec.tfds.format(corruption='fog', severity=3).partition('/')
            builder = tfds.builder_cls(dataset)
            assert not variant or variant in builder.builder_configs


def test_plain_sets_score_top1_and_top5():
    values = score(SETS['imagenet_v2'], point_at(3, 4, 5, 6), np.array([3, 4, 999, 700]))
    assert values == {'top1': 50.0, 'top5': 75.0}


def test_restricted_sets_ignore_the_other_columns():
    logits = point_at(0, 0)  # class 0 is in neither set
    logits[:, 6] = 1.5  # 6 is in ImageNet-A and in ImageNet-R
    logits[1, 13] = 1.7
    assert score(SETS['imagenet_a'], logits, np.array([6, 6])) == {'top1': 50.0}
    assert score(SETS['imagenet_a'], logits, np.array([6, 13])) == {'top1': 100.0}
    with pytest.raises(DataError, match='Label 0 is not one of the 200 classes'):
        score(SETS['imagenet_a'], logits, np.array([0, 6]))


def test_real_counts_any_valid_label_and_skips_empty_lists():
    assert score(SETS['imagenet_real'], point_at(1, 2, 3), [[7, 1], [], [5]]) == {'top1': 50.0}
    with pytest.raises(DataError, match='No image of this set has a label'):
        score(SETS['imagenet_real'], point_at(1), [[]])


def test_real_labels_follow_the_number_in_the_file_name(tmp_path):
    path = tmp_path / 'real.json'
    path.write_text(json.dumps([[k % 1000] for k in range(50_000)]))
    names = ['n01440764/ILSVRC2012_val_00000293.JPEG', 'ILSVRC2012_val_00050000.JPEG']
    assert read_real_labels(path, names) == [[292], [999]]
    with pytest.raises(DataError, match=r"'cat\.jpg' is not named like"):
        read_real_labels(path, ['cat.jpg'])
    path.write_text('[[1]]')
    with pytest.raises(DataError, match='holds 1 lists'):
        read_real_labels(path, names)


def test_objectnet_scores_both_rules_and_leaves_unmapped_classes_out():
    labels = map_folders(SETS['objectnet'], ['alarm_clock', 'banana', 'banana', 'air_freshener'])
    logits = point_at(530, 954, 0, 954)  # digital clock, banana, tench, banana
    logits[2, 954] = 1.5  # the best of the 125 columns that ObjectNet maps to
    assert score(SETS['objectnet'], logits, labels) == pytest.approx({'top1': 200 / 3, 'top1_restricted': 100.0})
    with pytest.raises(DataError, match='No image of this set has a class'):
        score(SETS['objectnet'], logits[:1], np.array([-1]))


def test_imagenet_o_finds_images_with_low_confidence_over_its_columns():
    columns = read_classes('imagenet_o')
    logits = np.zeros((4, 1000), np.float32)
    logits[[0, 1], columns[0]] = 5  # confident: in the distribution
    logits[:, 0] = [0, 0, 50, 60]  # no column of ImageNet-O: must not count as confidence
    assert 0 not in columns
    outside = np.array([False, False, True, True])
    assert score(SETS['imagenet_o'], logits, outside) == {'aupr': 100.0, 'auroc': 100.0}
    assert score(SETS['imagenet_o'], logits, ~outside)['auroc'] == 0.0
    with pytest.raises(DataError, match='flag bool'):
        score(SETS['imagenet_o'], logits, outside.astype(int))


def test_related_images_are_fifty_per_class():
    labels = np.repeat(np.arange(1000), 50)
    assert related_images(labels).sum() == 10_000


def test_scores_need_the_head_of_imagenet():
    with pytest.raises(DataError, match='this head has 10'):
        score(SETS['imagenet_v2'], np.zeros((1, 10)), np.array([1]))


def test_cut_border_takes_one_pixel_off_every_side():
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(cut_border(image), image[1:3, 1:4])


@pytest.mark.parametrize('xp', [np, jnp])
def test_occlusion_zeroes_a_central_quarter(xp):
    images = occlude_center(xp.ones((2, 224, 224, 3), 'float32'))
    assert images.dtype == np.float32
    assert float(images.sum()) == 2 * 3 * (224**2 - 112**2)
    assert float(abs(images[:, 56:168, 56:168]).max()) == 0
    with pytest.raises(DataError, match='no place in the centre'):
        occlude_center(images, hole=111)


def test_every_set_is_complete():
    assert len(SETS) == 12
    for name, spec in SETS.items():
        assert spec.rule in ('top1', 'restricted', 'valid', 'sets', 'ood'), name
        assert spec.transform in ('center', 'center_only', 'center_cut_border', 'center_occluded'), name
        assert spec.home.startswith('https://'), name
        assert not spec.classes or read_classes(spec.classes), name
