"""The augmentation of fine-tuning and linear probing against timm and torch, live: draws injected where they can be.

Photographs are real. Everything on 8-bit images is equal to the last bit.
"""

import importlib.util
import random
from dataclasses import replace
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_cases import FILL, ONE_DIRECTION, keeps_no_bit, timm_name
from parity_rules import photographs
from PIL import Image
from scipy import stats

from mim_jax import mixing
from mim_jax.data.augment import Crop, draw_box_once
from mim_jax.data.rand_augment import OPERATIONS, Step, parse_rand_augment
from mim_jax.objectives.classify import soft_cross_entropy

MISSING = [name for name in ('torch', 'torchvision', 'timm') if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(bool(MISSING), reason=f'needs {", ".join(MISSING)}: run `make test-parity`'),
]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEXT = 'rand-m9-mstd0.5-inc1'
USUAL = parse_rand_augment(TEXT, MEAN)
PHOTOS = [Image.fromarray(photo) for photo in photographs(side=112, count=4)]
MAGNITUDES = (0.0, 0.1, 1.0, 2.5, 3.0, 4.99, 5.0, 7.3, 8.37, 9.0, 9.61, 10.0)
TWO_SAMPLES = 1e-3  # smallest p-value

if not MISSING:
    import timm.data
    import torch
    from timm.data import auto_augment, random_erasing
    from timm.data.mixup import Mixup
    from timm.loss import SoftTargetCrossEntropy

    TIMM = {'img_mean': FILL, 'interpolation': Image.Resampling.BICUBIC}


def create_transform():
    """The training transform of MAE's fine-tuning (util/datasets.py build_transform, main_finetune.py's defaults)."""
    return timm.data.create_transform(
        input_size=224,
        is_training=True,
        color_jitter=None,
        auto_augment=TEXT,
        interpolation='bicubic',
        re_prob=0.25,
        re_mode='pixel',
        re_count=1,
        mean=MEAN,
        std=STD,
    ).transforms


@pytest.mark.parametrize('operation', OPERATIONS)
def test_every_operation_is_equal_to_the_last_bit(operation):
    for increasing in (True, False):
        ours = replace(USUAL, increasing=increasing)
        for magnitude in MAGNITUDES:
            for negated in (False, True):
                theirs = auto_augment.AugmentOp(timm_name(operation, increasing), 1.0, magnitude, TIMM)
                for photo in (*PHOTOS, PHOTOS[0].crop((0, 0, 90, 61))):
                    found = np.asarray(ours.apply(photo, Step(operation, magnitude, negated)))
                    if keeps_no_bit(operation, increasing, magnitude):
                        assert (found == 0).all()
                        continue
                    with mock.patch.object(auto_augment.random, 'random', return_value=0.9 if negated else 0.1):
                        np.testing.assert_array_equal(found, theirs(photo), f'{increasing} {magnitude} {negated}')


def test_order_and_settings_are_those_of_maes_transform():
    crop, flip, rand_augment, _, _, erasing = create_transform()
    assert isinstance(rand_augment, auto_augment.RandAugment)
    assert isinstance(erasing, random_erasing.RandomErasing)
    assert [op.name for op in rand_augment.ops] == [timm_name(name, True) for name in OPERATIONS]
    assert (rand_augment.num_layers, rand_augment.choice_weights) == (USUAL.operations, None)
    for op in rand_augment.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, 9, 0.5, None)
        assert op.kwargs == {'fillcolor': USUAL.fill, 'resample': USUAL.resample}
    assert (tuple(crop.scale), tuple(crop.ratio), flip.p) == ((0.08, 1.0), Crop('rrc', 224).ratio, 0.5)
    assert (erasing.min_area, erasing.max_area) == mixing.ERASED_AREA
    assert erasing.log_aspect_ratio == tuple(np.log(mixing.ERASED_ASPECT))
    assert (erasing.min_count, erasing.max_count, erasing.per_pixel) == (1, 1, True)


def test_whole_rand_augment_is_equal_to_the_last_bit():
    theirs = create_transform()[2]
    rng = np.random.default_rng(0)
    compared = 0
    for i in range(200):
        steps = USUAL.draw(rng)
        if any(keeps_no_bit(step.operation, True, step.magnitude) for step in steps):
            continue
        # Each of timm's operations asks whether it happens (0.1: yes), then, if it has a direction, for it.
        chosen = [theirs.ops[OPERATIONS.index(step.operation)] for step in steps]
        uniform, normal = [], [step.magnitude for step in steps]
        for step in steps:
            uniform += [0.1] if step.operation in ONE_DIRECTION else [0.1, 0.9 if step.negated else 0.1]
        with (
            mock.patch.object(auto_augment.np.random, 'choice', return_value=chosen),
            mock.patch.object(auto_augment.random, 'random', side_effect=uniform),
            mock.patch.object(auto_augment.random, 'gauss', side_effect=normal),
        ):
            expected = theirs(PHOTOS[i % 4])
        found = PHOTOS[i % 4]
        for step in steps:
            found = USUAL.apply(found, step)
        np.testing.assert_array_equal(found, expected)
        compared += 1
    assert compared > 180


def test_what_is_drawn_is_distributed_as_timms():
    seen = []

    class Recorded(auto_augment.AugmentOp):
        def __init__(self, name):
            super().__init__(name, 0.5, 9, TIMM | {'magnitude_std': 0.5})
            self.level_fn = lambda magnitude, _: (magnitude,)
            self.aug_fn = lambda image, magnitude, **_: seen[-1].append((name, magnitude)) or image

    theirs = auto_augment.RandAugment([Recorded(timm_name(name, True)) for name in OPERATIONS], 2)
    random.seed(0), np.random.seed(0)  # noqa: NPY002  timm draws from the global generators
    rng, ours = np.random.default_rng(0), []
    for _ in range(20_000):
        seen.append([])
        theirs(None)
        ours.append([(timm_name(step.operation, True), step.magnitude) for step in USUAL.draw(rng)])
    numbers = [np.bincount([len(steps) for steps in drawn], minlength=3) for drawn in (seen, ours)]
    assert stats.chi2_contingency(numbers).pvalue > TWO_SAMPLES
    names, magnitudes = ([[step[k] for steps in drawn for step in steps] for drawn in (seen, ours)] for k in (0, 1))
    counts = [[names_of.count(timm_name(name, True)) for name in OPERATIONS] for names_of in names]
    assert stats.chi2_contingency(counts).pvalue > TWO_SAMPLES
    assert stats.ks_2samp(*magnitudes).pvalue > TWO_SAMPLES
    clipped = [[values.count(10.0), len(values) - values.count(10.0)] for values in magnitudes]
    assert stats.chi2_contingency(clipped).pvalue > TWO_SAMPLES
    print('operations per image', numbers, 'clipped to 10', clipped)


def test_box_of_one_draw_follows_torchs_arithmetic():
    """MAE's rule with torch's own numbers and its f32 logarithm; ours is f64, so that a side may round the other way."""
    torch.manual_seed(0)
    width, height, differ = 500, 375, 0
    for _ in range(5000):
        area, aspect, row, column = torch.rand(4).tolist()
        target = width * height * (0.08 + 0.92 * area)
        low, high = torch.log(torch.tensor((3 / 4, 4 / 3)))
        ratio = torch.exp(low + aspect * (high - low)).item()
        w = min(round((target * ratio) ** 0.5), width)
        h = min(round((target / ratio) ** 0.5), height)
        draws = mock.Mock(random=mock.Mock(side_effect=(area, aspect, row, column)))
        box = draw_box_once(width, height, (0.08, 1.0), (3 / 4, 4 / 3), draws)
        assert max(abs(box.width - w), abs(box.height - h)) <= 1
        differ += (box.width, box.height) != (w, h)
    print('boxes that differ by a pixel', differ, 'of 5000')
    assert differ <= 5


class Recorder:
    """In place of an image: where it is written to."""

    box = None

    def __setitem__(self, place, value):
        _, rows, columns = place
        assert value.shape == (3, rows.stop - rows.start, columns.stop - columns.start)
        self.box = rows.start, rows.stop, columns.start, columns.stop


def our_erased_boxes(noise, height, width, probability):
    """f32[N,23] -> (top, bottom, left, right) i32[N] each."""

    def run(noise):
        with mock.patch.object(mixing.jax.random, 'uniform', return_value=noise):
            return mixing.draw_erased_box(jax.random.key(0), height, width, probability)

    return [np.asarray(edge) for edge in jax.jit(jax.vmap(run))(jnp.asarray(noise, jnp.float32))]


@pytest.mark.parametrize(('height', 'width'), [(224, 224), (32, 32), (24, 60)])
def test_random_erasing_with_the_same_draws(height, width):
    noise = np.random.default_rng(0).random((3000, 23)).astype(np.float32).astype(np.float64)
    erasing = random_erasing.RandomErasing(0.25, mode='pixel', device='cpu')
    found, differ = np.stack(our_erased_boxes(noise, height, width, 0.25), axis=1), 0
    for row, box in zip(noise, found, strict=True):
        areas_and_aspects = iter(row[:20].reshape(2, 10).T.ravel())
        places = iter(row[21:])
        image = Recorder()
        with (
            mock.patch.object(random_erasing.random, 'random', return_value=row[20]),
            mock.patch.object(
                random_erasing.random, 'uniform', lambda low, high, u=areas_and_aspects: low + (high - low) * next(u)
            ),
            mock.patch.object(
                random_erasing.random, 'randint', lambda low, high, u=places: low + int((high - low + 1) * next(u))
            ),
        ):
            erasing._erase(image, 3, height, width, torch.float32)
        if image.box is None:
            assert box[0] == box[1]
        else:
            differ += tuple(box.tolist()) != image.box
            assert np.abs(box - np.array(image.box)).max() <= 1
    print('boxes that differ by a pixel', differ, 'of 3000')
    assert differ <= 3


def test_random_erasing_is_distributed_as_timms():
    erasing, count = random_erasing.RandomErasing(1.0, mode='pixel', device='cpu'), 8000
    random.seed(0)
    theirs = []
    with mock.patch.object(random_erasing, '_get_pixels', lambda *arguments, **_: np.empty(arguments[2])):
        for _ in range(count):
            erasing._erase(image := Recorder(), 3, 96, 64, torch.float32)
            theirs.append(image.box)
    draw = jax.vmap(partial(mixing.draw_erased_box, height=96, width=64, probability=1.0))
    ours = np.stack(jax.jit(draw)(jax.random.split(jax.random.key(0), count)), axis=1)
    measures = []
    for top, bottom, left, right in (ours.T, np.array(theirs).T):
        h, w = bottom - top, right - left
        measures.append({'area': h * w, 'aspect': h / w, 'h': h, 'w': w, 'top': top, 'left': left, 'right': right})
    found = {name: stats.ks_2samp(measures[0][name], measures[1][name]).pvalue for name in measures[0]}
    print(found)
    assert min(found.values()) > TWO_SAMPLES


def test_erased_pixels_are_timms_once_normalised():
    """A whole batch: after normalisation the boxes are N(0, 1), as timm's, and the rest is untouched."""
    pixels = np.stack([np.asarray(photo.resize((64, 64))) for photo in PHOTOS] * 50).astype(np.float32) / 255.0
    ours = np.asarray(mixing.erase(pixels, jax.random.split(jax.random.key(0), 200), 1.0, MEAN, STD))
    ours, plain = (ours - MEAN) / np.array(STD), (pixels - MEAN) / np.array(STD)
    torch.manual_seed(0), random.seed(0)
    theirs = torch.from_numpy(plain.astype(np.float32)).permute(0, 3, 1, 2).clone()
    random_erasing.RandomErasing(1.0, mode='pixel', device='cpu')(theirs)
    theirs = theirs.permute(0, 2, 3, 1).numpy()
    noise = [found[np.abs(found - plain).max(axis=-1) > 1e-4].ravel() for found in (ours, theirs)]
    print([(values.size, values.mean(), values.std()) for values in noise])
    assert stats.ks_2samp(noise[0][::7], noise[1][::7]).pvalue > TWO_SAMPLES


@pytest.mark.parametrize('alphas', [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_mixup_and_cutmix_with_timms_draws(alphas):
    """NumPy's draws of timm, repeated and handed to ours: images, weights, targets and the loss."""
    classes, smoothing, side = 10, 0.1, 32
    images = np.stack([np.asarray(photo.resize((side, side))) for photo in PHOTOS] * 2).astype(np.float32) / 255.0
    images, labels = images[:6], np.array([3, 1, 4, 1, 5, 9])
    logits = np.random.default_rng(0).normal(size=(6, classes)).astype(np.float32)
    theirs = Mixup(*alphas, prob=1.0, switch_prob=0.5, mode='batch', label_smoothing=smoothing, num_classes=classes)
    worst, cuts = {'images': 0.0, 'targets': 0.0, 'loss': 0.0}, 0

    @jax.jit
    def ours(noise, beta):
        with (
            mock.patch.object(mixing.jax.random, 'uniform', return_value=noise),
            mock.patch.object(mixing.jax.random, 'beta', return_value=beta),
        ):
            mix = mixing.draw_mix(jax.random.key(0), side, *alphas, 0.5)
        targets = mixing.mix_labels(jnp.asarray(labels), mix, classes, smoothing)
        return mix, mixing.mix_images(images, mix), targets, soft_cross_entropy(logits, targets)

    for seed in range(300):
        np.random.seed(seed)  # noqa: NPY002  timm draws from the global generator
        mixed, targets = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).clone(), torch.from_numpy(labels))
        loss = SoftTargetCrossEntropy()(torch.from_numpy(logits), targets)
        again = np.random.RandomState(seed)
        again.rand()  # whether anything happens
        cut = again.rand() < 0.5 if all(alphas) else bool(alphas[1])
        beta = again.beta(*[alphas[1] if cut else alphas[0]] * 2)
        row, column = again.randint(0, side), again.randint(0, side)
        noise = np.float32([0.25 if cut else 0.75, (row + 0.5) / side, (column + 0.5) / side])
        mix, found, found_targets, found_loss = jax.tree.map(np.asarray, ours(noise, np.float32(beta)))
        assert mix.cut == cut
        cuts += cut
        for name, a, b in (
            ('images', found, mixed.permute(0, 2, 3, 1).numpy()),
            ('targets', found_targets, targets.numpy()),
            ('loss', found_loss, loss.numpy()),
        ):
            worst[name] = max(worst[name], float(np.abs(a - b).max()))
    print(alphas, 'CutMix', cuts, 'of 300; largest differences', worst)
    assert (cuts > 0) == (alphas[1] > 0)
    assert worst['images'] < 2e-7
    assert worst['targets'] < 2e-7
    assert worst['loss'] < 2e-6
