"""Robustness sets from folders and TFDS, by a network of random weights whose numbers are worked out by hand."""

import numpy as np
import pytest
from classifier_cases import by_hand, make_network, png, prefer, store, validation, write_images
from PIL import Image
from tiny_runs import SIDE

from mim_jax.errors import ConfigError, DataError, Refused
from mim_jax.evals.ledger import read_parts
from mim_jax.evals.metrics import ALEXNET_ERRORS
from mim_jax.evals.network import Network
from mim_jax.evals.robust_images import SetCrop
from mim_jax.evals.robust_protocol import robustness
from mim_jax.evals.robustness import SETS, read_classes
from mim_jax.training.journal import JOURNAL

SYNSETS = read_classes('imagenet')
HOLE = SIDE // 2


def score_a(logits, labels, paths):
    columns = np.array(read_classes('imagenet_a'))
    return {'top1': columns[logits[:, columns].argmax(1)] == labels}


def score_v2(logits, labels, paths):
    ranks = (-logits).argsort(1)
    return {f'top{k}': (ranks[:, :k] == labels[:, None]).any(1) for k in (1, 5)}


def score_objects(logits, labels, paths):
    mapping = read_classes('objectnet')
    return {'top1': [row.argmax() in mapping[path.parent.name] for row, path in zip(logits, paths, strict=True)]}


A = [read_classes('imagenet_a')[k] for k in (0, 1, 150)]
FOLDERS = {  # folders: class of the image, transform, by hand, classes that the network prefers
    'imagenet_a': ('', {SYNSETS[k]: k for k in A}, 'center', score_a, [0, *A]),
    'imagenet_v2': ('', {str(k): k for k in (0, 1, 10, 100, 2, 20)}, 'center', score_v2, [0, 10, 2, 3, 4, 5, 6, 7]),
    'objectnet': ('images', {'alarm_clock': 530, 'banana': 954}, 'center_cut_border', score_objects, [409, 954]),
}


@pytest.mark.parametrize('devices', [1, 8])
@pytest.mark.parametrize('name', FOLDERS)
def test_a_set_in_folders(tmp_path, name, devices):
    inner, folders, transform, hits, preferred = FOLDERS[name]
    root = tmp_path / name / inner
    files = sorted(f'{folder}/{k}.png' for folder in folders for k in range(6))
    write_images(root, files)
    if name == 'objectnet':
        write_images(root, ['air_freshener/0.png'])  # ImageNet has no such class
    network, _ = make_network(tmp_path, 1000, {}, devices)
    prefer(network, preferred)
    options = {'sets': (name,), 'source': 'folder', 'dir': str(tmp_path)}
    words = rf'{name}: .* has {len(files)} images, and {SETS[name].images:,} were published .*robustness\.whole=False'
    with pytest.raises(DataError, match=words):
        robustness(network, **options)
    found, notes = robustness(network, **options, whole=False)

    one = prefer(make_network(tmp_path, 1000, {})[0], preferred)
    paths = [root / file for file in files]
    labels = np.array([folders[path.parent.name] for path in paths])
    expected = {key: 100 * np.mean(right) for key, right in hits(by_hand(one, paths, transform), labels, paths).items()}
    assert {key: found[f'{name}/{key}'] for key in expected} == pytest.approx(expected)
    assert 0 < expected['top1'] < 100
    assert found[f'{name}/images'] == len(files)
    assert notes == ({name: SETS[name].note} if SETS[name].note else {})


def test_imagenet_c_is_the_mean_over_75_parts_and_goes_on_where_it_was(tmp_path):
    for number, corruption in enumerate(ALEXNET_ERRORS):
        for severity in range(1, 6):
            names = [f'{SYNSETS[number]}/a.png', f'{SYNSETS[number + 1]}/b.png']
            write_images(tmp_path / 'imagenet_c' / corruption / str(severity), names, severity, (20, 20))
    network, lines = make_network(tmp_path, 1000, {})
    prefer(network, [0, 1, 2, 3])
    options = {'sets': ('imagenet_c',), 'source': 'folder', 'dir': str(tmp_path), 'whole': False}
    found, notes = robustness(network, **options)
    errors = {}
    for number, corruption in enumerate(ALEXNET_ERRORS):
        paths = sorted((tmp_path / 'imagenet_c' / corruption).rglob('*.png'))
        right = np.array([number, number + 1] * 5)
        errors[corruption] = 100 * np.mean(by_hand(network, paths, 'center_only').argmax(1) != right)
    assert len(set(errors.values())) > 1
    assert found['imagenet_c/mce'] == pytest.approx(np.mean([errors[c] / ALEXNET_ERRORS[c] for c in errors]))
    assert found['imagenet_c/ce/fog'] == pytest.approx(errors['fog'] / ALEXNET_ERRORS['fog'])
    assert found['imagenet_c/images'] == 150
    assert any(line.endswith('(75 of 75)') for line in lines)
    assert 'TFDS' in notes['imagenet_c']
    parts = read_parts(tmp_path / JOURNAL, network.task.ledger.seal)
    assert len(parts) == 75
    assert 100 - parts['imagenet_c fog 3']['top1'] == pytest.approx(
        100
        * np.mean(
            by_hand(network, sorted((tmp_path / 'imagenet_c/fog/3').rglob('*.png')), 'center_only').argmax(1) != [6, 7]
        )
    )

    # Interrupted before its last image, which is then read, while what was counted before is not counted again.
    network.task.ledger.end({})
    network, lines = make_network(tmp_path, 1000, {})
    prefer(network, [0, 1, 2, 3])
    last = sorted((tmp_path / 'imagenet_c/jpeg_compression/5').rglob('*.png'))[-1]
    whole = last.read_bytes()
    last.write_bytes(b'damaged')
    with pytest.raises(DataError, match='cannot decode'):
        robustness(network, **options)
    network.task.ledger.close()
    last.write_bytes(whole)
    network, lines = make_network(tmp_path, 1000, {})
    prefer(network, [0, 1, 2, 3])
    assert robustness(network, **options) == (found, notes)
    assert sum('% errors' in line for line in lines) == 1


def test_sets_made_of_validation_images(tmp_path):
    columns = read_classes('imagenet_o')
    outside = [f'{SYNSETS[0]}/{k}.png' for k in range(4)]
    write_images(tmp_path / 'imagenet_o', outside)
    labels = [columns[0], 0, columns[7], 999] * 5
    data, images = validation(tmp_path, labels)
    network = prefer(make_network(tmp_path, 1000, data)[0], labels)
    options = {'source': 'folder', 'dir': str(tmp_path), 'hole': HOLE, 'whole': False}
    found, _ = robustness(network, sets=('imagenet_o', 'center_occlusion'), **options)

    crop = SetCrop('center', SIDE)
    cut = np.stack([crop(Image.fromarray(one), None) for one in images])
    related = np.asarray(network.predict(cut[::2])[''])[:, columns].astype(np.float64)
    strange = by_hand(network, [tmp_path / 'imagenet_o' / name for name in outside])[:, columns].astype(np.float64)
    inside, out = ((np.exp(x) / np.exp(x).sum(1, keepdims=True)).max(1) for x in (related, strange))
    assert found['imagenet_o/auroc'] == pytest.approx(100 * np.mean(out[:, None] < inside))
    assert found['imagenet_o/images'] == 14

    # The hole is the mean colour; the mean of an 8-bit image is near it, so a network sees nearly the same.
    mean = np.float32(network.recipe.mean)
    changed = network.compile(lambda pixels, keys: pixels.at[:, 4:12, 4:12].set(mean))
    expected = np.asarray(changed(cut)[''])
    assert 0 < found['center_occlusion/top1'] < 100
    assert found['center_occlusion/top1'] == pytest.approx(100 * np.mean(expected.argmax(1) == labels))
    assert not np.allclose(expected, np.asarray(network.predict(cut)['']), atol=1e-3)
    with pytest.raises(DataError, match='A hole of 7 pixels'):
        robustness(network, sets=('center_occlusion',), **{**options, 'hole': 7})


def test_sets_of_tfds_and_their_lists_of_labels(tmp_path):
    tfds = pytest.importorskip('tensorflow_datasets')
    draw = np.random.default_rng(5)
    pixels = draw.integers(0, 256, (4, 20, 24, 3), np.uint8)
    image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=1000)
    features = {'image': image, 'original_label': label, 'real_label': tfds.features.Sequence(label)}
    network, _ = make_network(tmp_path, 1000, {'source': 'tfds', 'dir': str(tmp_path)}, predictions=True)
    crop = SetCrop('center', SIDE)
    logits = np.asarray(network.predict(np.stack([crop(Image.fromarray(one), None) for one in pixels]))[''])
    best = logits.argmax(1)
    lists = [[int(best[0]), 3], [], [int(best[2] + 1) % 1000], [7, int(best[3])]]
    rows = [
        {'image': png(one), 'original_label': 0, 'real_label': real} for one, real in zip(pixels, lists, strict=True)
    ]
    store('imagenet2012_real', 'validation', features, rows, tmp_path)
    columns = read_classes('imagenet_a')
    own = np.array(columns)[logits[:, columns].argmax(1)]
    rows = [{'image': png(one), 'label': int(right)} for one, right in zip(pixels, own, strict=True)]
    rows[0]['label'] = next(column for column in columns if column != own[0])
    store('imagenet_a', 'test', {'image': image, 'label': label}, rows, tmp_path)
    with pytest.raises(DataError, match=r'imagenet_real: .* has 4 images, and 50,000 were published'):
        robustness(network, sets=('imagenet_real',))
    found, _ = robustness(network, sets=('imagenet_real', 'imagenet_a'), whole=False)
    assert found['imagenet_real/top1'] == pytest.approx(200 / 3)  # of three that have a label
    assert found['imagenet_a/top1'] == 75.0
    with np.load(tmp_path / 'predictions' / 'imagenet_real.npz') as saved:
        stored = [int(np.abs(logits - row).max(1).argmin()) for row in saved['logits']]  # TFDS shuffles
        np.testing.assert_allclose(saved['logits'], logits[stored], atol=1e-5)
        assert saved['label'].tolist() == [[*lists[row], -1, -1][:2] for row in stored]
        assert (sorted(stored), saved['index'].tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3])


def test_every_set_is_looked_for_before_an_image_is_read(tmp_path, monkeypatch):
    write_images(tmp_path / 'imagenet_v2', ['0/a.png', '1/b.png'])
    network, lines = make_network(tmp_path, 1000, validation(tmp_path, [0, 999])[0])
    monkeypatch.setattr(Network, 'logits', lambda *args, **kwargs: pytest.fail('an image was read'))

    def refused(name, **options):
        with pytest.raises(DataError) as caught:
            robustness(
                network,
                sets=('imagenet_v2', name),
                **{'source': 'folder', 'dir': str(tmp_path), 'whole': False, **options},
            )
        assert SETS[name].home in str(caught.value)
        assert name in str(caught.value)
        return str(caught.value)

    for name in (
        'imagenet_a',
        'imagenet_r',
        'imagenet_sketch',
        'imagenet_c',
        'imagenet_o',
        'siscore_size',
        'objectnet',
    ):
        assert 'there is no folder' in refused(name)
    assert 'real.json' in refused('imagenet_real')
    (tmp_path / 'imagenet_c' / 'gaussian_noise' / '1' / SYNSETS[0]).mkdir(parents=True)
    assert 'gaussian_noise/2' in refused('imagenet_c')
    with pytest.raises(DataError, match=r"imagenet_v2, of https.* is not there: .*'imagenet_v2/matched-frequency'"):
        robustness(network, sets=('imagenet_v2',), dir=str(tmp_path), whole=False)
    with pytest.raises(DataError, match=r'imagenet_o is read from folders: set robustness\.dir'):
        robustness(network, sets=('imagenet_o',))
    assert not lines


def test_what_makes_no_sense_is_refused(tmp_path):
    network, _ = make_network(tmp_path, 1000, validation(tmp_path, [0, 5])[0])
    with pytest.raises(ConfigError, match='imagenet_x is no set; use imagenet_c, imagenet_a'):
        robustness(network, sets=('imagenet_x',))
    with pytest.raises(ConfigError, match="source='zip' must be tfds or folder"):
        robustness(network, source='zip')
    with pytest.raises(DataError, match=r'validation images as data\.eval_split, but .* has 6 classes'):
        robustness(network, sets=('center_occlusion',), hole=HOLE, whole=False)
    with pytest.raises(Refused, match=r'1000 classes of ImageNet; .* has 10'):
        robustness(make_network(tmp_path, 10, {})[0])
    with pytest.raises(DataError, match='cannot be cut to 16'):
        SetCrop('center_only', SIDE)(Image.new('RGB', (15, 20)), None)
