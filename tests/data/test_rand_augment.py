"""RandAugment: operations against timm's (a golden) and by hand, what is drawn, and timm's string."""

import math
import pickle
from collections import Counter
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import PIL
import pytest
from augment_cases import FILL, golden_cases, golden_image
from parity_rules import GOLDEN, photographs
from PIL import Image

from mim_jax.data.augment import Crop
from mim_jax.data.rand_augment import OPERATIONS, RandAugment, Step, parse_rand_augment
from mim_jax.errors import ConfigError

USUAL = parse_rand_augment('rand-m9-mstd0.5-inc1')


class Script:
    """A generator that returns given numbers in turn."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


@pytest.mark.parametrize('operation', OPERATIONS)
def test_operation_agrees_with_timm(operation):
    image = golden_image()
    with np.load(GOLDEN / 'rand_augment.npz') as stored:
        same_pillow = str(stored['pillow']) == PIL.__version__
        for case in golden_cases([operation]):
            _, increasing, magnitude, negated = case
            ours = replace(USUAL, increasing=increasing)
            found = np.asarray(ours.apply(image, Step(operation, magnitude, negated)), np.int32)
            difference = np.abs(found - stored['/'.join(map(str, case))])
            assert difference.max() <= (0 if same_pillow else 2), case


def test_golden_holds_every_operation_and_no_other():
    with np.load(GOLDEN / 'rand_augment.npz') as stored:
        assert {name.partition('/')[0] for name in stored} == {*OPERATIONS, 'pillow'}
        assert len(stored.files) == 1 + len(golden_cases(OPERATIONS))


def apply(operation, magnitude, negated=False, increasing=True, levels=(0, 100, 127, 128, 200, 255)):
    """What becomes of a row of grey pixels of these levels."""
    row = np.repeat(np.array(levels, np.uint8)[None, :, None], 3, axis=2)
    changed = replace(USUAL, increasing=increasing).apply(Image.fromarray(row), Step(operation, magnitude, negated))
    return np.asarray(changed)[0, :, 0].tolist()


def test_hand_worked_levels():
    assert apply('invert', 5) == [255, 155, 128, 127, 55, 0]
    assert apply('posterize', 9) == [0, 0, 0, 128, 128, 128]  # 4 - int(3.6) = 1 bit
    assert apply('posterize', 0) == [0, 96, 112, 128, 192, 240]
    assert apply('posterize', 10) == [0] * 6  # no bit, where Pillow 13 and with it timm stop
    assert apply('posterize', 9, increasing=False) == [0, 96, 96, 128, 192, 224]
    assert apply('solarize', 9) == [0, 155, 128, 127, 55, 0]  # from 256 - 230 = 26 on
    assert apply('solarize', 0) == [0, 100, 127, 128, 200, 255]
    assert apply('solarize', 10) == [255, 155, 128, 127, 55, 0]
    assert apply('solarize', 5, increasing=False) == [0, 100, 127, 127, 55, 0]
    assert apply('solarize_add', 9) == [99, 199, 226, 128, 200, 255]
    assert apply('brightness', 10) == [0, 190, 241, 243, 255, 255]  # x 1.9
    assert apply('brightness', 10, negated=True) == [0, 10, 12, 12, 20, 25]  # x 0.1
    assert apply('brightness', 5, increasing=False) == [0, 100, 127, 128, 200, 255]  # 0.9 + 0.1
    assert apply('translate_x', 10, levels=range(20)) == [*range(9, 20), *[FILL[0]] * 9]  # .45 of the width
    assert apply('translate_x', 10, negated=True, levels=range(20)) == [*[FILL[0]] * 9, *range(11)]


def test_turns_and_moves_are_opposite_ways_and_fill_with_the_colour():
    white = Image.new('RGB', (40, 40), (255, 255, 255))
    for operation in ('rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y'):
        one, other = (np.asarray(USUAL.apply(white, Step(operation, 9.0, sign))) for sign in (False, True))
        assert {tuple(pixel) for pixel in one.reshape(-1, 3)} >= {FILL, (255, 255, 255)}
        assert not np.array_equal(one, other)
        np.testing.assert_array_equal(USUAL.apply(golden_image(), Step(operation, 0.0, False)), golden_image())


def test_draws_in_order():
    # Box-Muller: distance 1 - exp(-2) makes two standard deviations, angle 0 upwards, a half turn downwards.
    two = 1.0 - math.exp(-2.0)
    script = Script(0.0, 0.49, two, 0.5, 0.49, 0.999, 0.0, two, 0.0, 0.5)
    first, second = USUAL.draw(script)
    assert script.numbers == []
    assert (first.operation, first.negated) == ('auto_contrast', True)
    assert first.magnitude == pytest.approx(8.0)
    assert second == ('translate_y', 10.0, False)  # clipped only by rounding
    assert USUAL.draw(Script(*[0.5] * 10)) == []  # happens below one half
    assert len(replace(USUAL, operations=5, probability=1.0).draw(Script(*[0.5] * 25))) == 5


def test_applies_the_draws_one_after_the_other():
    image = golden_image()
    expected = USUAL.apply(USUAL.apply(image, Step('rotate', 9.0, False)), Step('invert', 9.0, False))
    script = Script(3.5 / 15, 0, 0, 0, 0.9, 2.5 / 15, 0, 0, 0, 0.9)
    np.testing.assert_array_equal(USUAL(image, script), expected)


def test_draws_follow_their_distributions():
    rng, count = np.random.default_rng(0), 20_000
    drawn = [USUAL.draw(rng) for _ in range(count)]
    lengths = Counter(map(len, drawn))
    for length, chance in enumerate((0.25, 0.5, 0.25)):
        assert abs(lengths[length] / count - chance) < 4 * math.sqrt(chance * (1 - chance) / count)
    steps = [step for draw in drawn for step in draw]
    names = Counter(step.operation for step in steps)
    assert set(names) == set(OPERATIONS)
    mean = len(steps) / len(OPERATIONS)
    assert max(abs(number - mean) for number in names.values()) < 4 * math.sqrt(mean)
    assert abs(sum(step.negated for step in steps) / len(steps) - 0.5) < 4 * math.sqrt(0.25 / len(steps))
    magnitudes = np.sort([step.magnitude for step in steps])
    assert magnitudes[-1] == 10.0
    below = np.searchsorted(magnitudes, grid := np.linspace(7.0, 9.9, 30)) / len(magnitudes)
    assert np.abs(below - [NormalDist(9, 0.5).cdf(x) for x in grid]).max() < 1.63 / math.sqrt(len(magnitudes))
    assert abs(np.mean(magnitudes == 10.0) - (1 - NormalDist().cdf(2))) < 0.004


def test_strings_of_the_field():
    assert RandAugment(9.0, 0.5, 2, 0.5, True, FILL) == USUAL
    assert parse_rand_augment('rand') == RandAugment(10.0, 0.0, increasing=False)
    full = parse_rand_augment('rand-n3-p0.25-inc0-m7-mstd1', (0.5, 0.0, 1.0), 'bilinear')
    assert full == RandAugment(7.0, 1.0, 3, 0.25, False, (128, 0, 255), Image.Resampling.BILINEAR)
    assert pickle.loads(pickle.dumps(full)) == full


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('augmix-m5', 'must begin with rand'),
        ('rand-m9-mmax15', "'mmax15' is no part of it.*m .magnitude, 0 to 10., mstd .*n .*p .*inc"),
        ('rand-m9.5', "'m9.5' is no part"),
        ('rand-inc', "'inc' is no part"),
        ('rand-tweights', "'tweights' is no part"),
        ('rand--m9', "'' is no part"),
        ('rand-m9-m8', 'two parts m'),
        ('rand-m11', 'm=11.0 must be from 0 to 10'),
        ('rand-mstd101', 'mstd=101.0'),
        ('rand-n0', 'n=0 must be at least 1'),
        ('rand-p1.5', 'p=1.5 must be from 0 to 1'),
    ],
)
def test_a_bad_string_is_one_plain_sentence(text, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_rand_augment(text)


@pytest.mark.parametrize('kind', ['rrc', 'rrc_once', 'src'])
def test_a_crop_augments_last(kind):
    photo = Image.fromarray(photographs(side=112)[1])
    always = replace(USUAL, probability=1.0)
    flipped = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        plain = Crop(kind, 24)(photo, rng)
        expected = always(Image.fromarray(np.ascontiguousarray(plain)), rng)
        found = Crop(kind, 24, rand_augment=always)(photo, np.random.default_rng(seed))
        np.testing.assert_array_equal(found, expected)
        flipped += plain.strides[1] < 0
    assert 2 < flipped < 18  # both branches were seen


def test_the_evaluation_crop_refuses_it():
    with pytest.raises(ConfigError, match='no effect'):
        Crop('center', 24, rand_augment=USUAL)
