"""Photometric operations against Pillow (live) and torchvision (a golden), and what the stacks draw.

Pillow works in 8 bits and truncates after a blend; hue and saturation have 8 bits too, so a hue is off by up to two steps
of 6 levels. Bounds are in levels of 255, on all four photographs: largest and mean.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from parity_rules import GOLDEN, largest_difference, photographs, under
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mim_jax import photometric as ours

PHOTOS = photographs(side=112, count=4)
BLENDS, HUES, BLURS = np.linspace(0.0, 2.0, 81), np.linspace(-0.5, 0.5, 101), np.linspace(0.0, 2.4, 97)
TURNS = (-0.5, -0.1, -0.037, 0.0, 0.037, 0.1, 0.5)
RADII = (0.0, 0.1, 0.3, 0.7, 1.1, 1.41, 1.42, 1.7, 2.0, 2.4)
STACKS = {
    ours.jitter_gray_blur_solarize: ours.draw_jitter_gray_blur_solarize,
    ours.jitter_then_one_of_three: ours.draw_jitter_then_one_of_three,
}
each_stack = pytest.mark.parametrize('stack', STACKS, ids=lambda stack: stack.__name__)


def turn_hue(image, shift):
    """torchvision's adjust_hue of a PIL image."""
    hue, saturation, value = image.convert('HSV').split()
    hue = Image.fromarray(np.asarray(hue) + np.int32(shift * 255).astype(np.uint8))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


# our function, Pillow's, factors, largest and mean difference in levels
OPERATIONS = {
    'brightness': (ours.adjust_brightness, lambda i, f: ImageEnhance.Brightness(i).enhance(f), BLENDS, 1.01, 0.6),
    'contrast': (ours.adjust_contrast, lambda i, f: ImageEnhance.Contrast(i).enhance(f), BLENDS, 1.5, 0.6),
    'saturation': (ours.adjust_saturation, lambda i, f: ImageEnhance.Color(i).enhance(f), BLENDS, 1.5, 0.6),
    'hue': (ours.adjust_hue, turn_hue, HUES, 12.7, 0.8),
    'gray': (lambda x, _: ours.to_grayscale(x), lambda i, _: i.convert('L').convert('RGB'), (1.0,), 0.51, 0.3),
    'solarize': (lambda x, _: ours.solarize(x), lambda i, _: ImageOps.solarize(i), (1.0,), 1e-3, 1e-3),
    'blur': (ours.gaussian_blur, lambda i, r: i.filter(ImageFilter.GaussianBlur(r)), BLURS, 2.9, 0.5),
}


def to_planes(images):
    """u8[...,H,W,3] -> f32[...,3,H,W] in [0,1]."""
    return np.moveaxis(np.asarray(images), -1, -3).astype(np.float32) / 255.0


@pytest.mark.parametrize('name', OPERATIONS)
def test_operation_agrees_with_pillow(name):
    operation, pillow, factors, largest, mean = OPERATIONS[name]
    operate, measured = jax.jit(jax.vmap(operation, in_axes=(0, None))), []
    for factor in factors:
        found = np.asarray(operate(to_planes(PHOTOS), jnp.float32(factor)))
        reference = to_planes([pillow(Image.fromarray(photo), float(factor)) for photo in PHOTOS])
        difference = 255.0 * np.abs(found - reference)
        assert difference.max() <= largest, factor
        assert difference.mean() <= mean, factor
        measured.append((difference.max(), difference.mean()))
    print('{}: {:.2f} levels, {:.2f} on average'.format(name, *np.max(measured, axis=0)))


def test_solarize_inverts_the_levels_pillow_inverts():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=-1)
    found = np.asarray(ours.solarize(to_planes(levels)))
    reference = to_planes(ImageOps.solarize(Image.fromarray(levels)))
    np.testing.assert_array_equal(np.rint(255.0 * found), np.rint(255.0 * reference))


def test_operations_agree_with_torchvision_on_float_tensors():
    """In f32 to rounding, but for torchvision's red weight of .2989: up to 1e-4 of red."""
    with np.load(GOLDEN / 'photometric.npz') as stored:
        tensors, images = under(stored, 'tensor/'), under(stored, 'pil/')
    tolerances = {'brightness': 1e-6, 'hue': 1e-5, 'solarize': 1e-6} | dict.fromkeys(
        ('contrast', 'saturation', 'gray'), 1.1e-4
    )
    for name, tolerance in tolerances.items():
        reference = {path: value for path, value in tensors.items() if path.startswith(f'{name}/')}
        found = {}
        for path in reference:
            _, factor, photo = path.split('/')
            found[path] = np.asarray(OPERATIONS[name][0](to_planes(PHOTOS[int(photo)]), jnp.float32(factor)))
        worst, where = largest_difference(found, reference, relative=False)
        assert worst <= tolerance, where
    turned = {f'hue/{turn}': to_planes([turn_hue(Image.fromarray(p), turn) for p in PHOTOS]) for turn in TURNS}
    assert largest_difference(turned, images, relative=False)[0] < 1e-6  # our stand-in above is right


def blur_as_pillow(image, radius, levels):
    """BoxBlur.c: u8[H,W,3] -> f64[H,W,3] in levels. levels: rounds after every pass, as Pillow has to."""
    variance = np.float32(radius) ** 2 / 3
    whole = int((np.sqrt(12 * variance + 1) - 1) // 2)
    half = whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = int(2**24 / (2 * half + 1))  # fixed point
    outer = (2**24 - (2 * whole + 1) * inner) // 2
    x = image.astype(np.float64)
    for axis in (1, 1, 1, 0, 0, 0):
        places, last = np.arange(x.shape[axis]), x.shape[axis] - 1
        seen = [x.take(np.clip(places + d, 0, last), axis=axis) for d in range(-whole - 1, whole + 2)]
        x = (inner * sum(seen[1:-1]) + outer * (seen[0] + seen[-1])) / 2**24
        x = np.floor(x + 0.5) if levels else x
    return x


def test_blur_is_pillows_without_its_rounding():
    photo = PHOTOS[0, :40, :56]
    for radius in RADII[1:]:
        with_rounding = blur_as_pillow(photo, radius, levels=True)
        np.testing.assert_array_equal(with_rounding, Image.fromarray(photo).filter(ImageFilter.GaussianBlur(radius)))
        found = np.asarray(ours.gaussian_blur(to_planes(photo), jnp.float32(radius)))
        without = np.moveaxis(blur_as_pillow(photo, radius, levels=False), -1, 0) / 255.0
        np.testing.assert_allclose(found, without, atol=2e-6)


def apply_with_pillow(photo, draws):
    """u8[H,W,3] and one image's draws -> u8[H,W,3]."""
    image, jitter = Image.fromarray(photo), draws.jitter
    steps = [
        lambda i: ImageEnhance.Brightness(i).enhance(float(jitter.brightness)),
        lambda i: ImageEnhance.Contrast(i).enhance(float(jitter.contrast)),
        lambda i: ImageEnhance.Color(i).enhance(float(jitter.saturation)),
    ]
    steps = [steps[i] for i in jitter.order]
    steps.insert(int(jitter.before_hue), lambda i: turn_hue(i, float(jitter.hue)))
    for step in steps if draws.jittered else ():
        image = step(image)
    image = image.convert('L').convert('RGB') if draws.gray else image
    image = image.filter(ImageFilter.GaussianBlur(float(draws.radius))) if draws.blurred else image
    return ImageOps.solarize(image) if draws.solarized else image


@each_stack
def test_stack_agrees_with_pillow_given_its_draws(stack):
    keys = jax.random.split(jax.random.key(1), 32)
    photos = np.concatenate([PHOTOS] * 8)
    found = np.asarray(jax.jit(stack)(photos.astype(np.float32) / 255.0, keys))
    draws = jax.tree.map(np.asarray, jax.jit(jax.vmap(STACKS[stack]))(keys))
    assert all(happened.any() for happened in (draws.jittered, draws.gray, draws.blurred, draws.solarized))
    for i, photo in enumerate(photos):
        one = jax.tree.map(lambda array, i=i: array[i], draws)
        difference = np.abs(255.0 * found[i] - np.asarray(apply_with_pillow(photo, one)))
        assert difference.max() <= 21.0, one  # measured over 400 keys: 20.0
        assert difference.mean() <= 2.4, one  # likewise: 2.2


@each_stack
def test_an_image_and_its_key_decide_alone(stack):
    photos, keys = (
        np.concatenate([PHOTOS, PHOTOS[::-1]]).astype(np.float32) / 255.0,
        jax.random.split(jax.random.key(0), 8),
    )
    augment, order = jax.jit(stack), np.random.default_rng(0).permutation(8)
    found = augment(photos, keys)
    np.testing.assert_array_equal(augment(photos[order], keys[order]), found[order])
    np.testing.assert_array_equal(augment(photos[5:6], keys[5:6]), found[5:6])
    assert np.abs(augment(photos, jnp.roll(keys, 1)) - found).max() > 0.1


@each_stack
def test_pixels_stay_in_range(stack):
    flat = np.stack([np.full((8, 8, 3), level, np.float32) for level in (0.0, 0.3, 1.0)])
    corners = np.indices((2, 2, 2)).reshape(3, 8).T.repeat(8, axis=0).reshape(1, 8, 8, 3).astype(np.float32)
    images = np.concatenate([flat, corners]).repeat(64, axis=0)
    found = jax.jit(stack)(images, jax.random.split(jax.random.key(0), len(images)))
    assert found.dtype == jnp.float32
    assert found.shape == images.shape
    assert float(found.min()) >= -1e-6  # NaN would fail as well
    assert float(found.max()) <= 1.0 + 1e-6


@each_stack
def test_a_sharded_batch_needs_no_communication(stack):
    rows = NamedSharding(jax.make_mesh((8,), ('data',)), PartitionSpec('data'))
    pixels = jax.device_put(np.zeros((16, 16, 16, 3), np.float32), rows)
    keys = jax.device_put(jax.random.split(jax.random.key(0), 16), rows)
    compiled = jax.jit(stack, out_shardings=rows).lower(pixels, keys).compile().as_text()
    assert not [word for word in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute') if word in compiled]


DRAWN = 20_000


def check_chance(happened, chance):
    """A frequency within four standard deviations of its chance."""
    assert abs(np.mean(happened) - chance) < 4.0 * (chance * (1.0 - chance) / DRAWN) ** 0.5


def check_uniform(values, low, high):
    """All within [low, high], and the distribution function within Kolmogorov's 1e-6 bound of the uniform one."""
    values = np.sort(np.asarray(values, np.float64))
    assert low - 1e-6 <= values[0]
    assert values[-1] <= high + 1e-6
    expected = (values - low) / (high - low)
    assert np.abs(expected - (np.arange(DRAWN) + 0.5) / DRAWN).max() < 2.7 / DRAWN**0.5


@each_stack
def test_draws_follow_the_released_codes(stack):
    draw = jax.jit(jax.vmap(STACKS[stack]))
    draws = jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), DRAWN)))
    check_chance(draws.jittered, 0.8)
    check_uniform(draws.radius, 0.1, 2.0)
    jitter = draws.jitter
    for values, low, high in (
        (jitter.brightness, 0.6, 1.4),
        (jitter.contrast, 0.6, 1.4),
        (jitter.saturation, 0.8, 1.2),
        (jitter.hue, -0.1, 0.1),
    ):
        check_uniform(values, low, high)
    orders, counts = np.unique(np.column_stack([jitter.order, jitter.before_hue]), axis=0, return_counts=True)
    assert len(orders) == 24
    assert (np.sort(orders[:, :3]) == np.arange(3)).all()
    assert (counts - DRAWN / 24).std() < 2.0 * (DRAWN / 24) ** 0.5
    independent = np.corrcoef(np.stack([*jitter[1:], draws.jittered, draws.gray, draws.radius]))
    assert np.abs(independent - np.eye(len(independent))).max() < 5.0 / DRAWN**0.5
    others = np.stack([draws.gray, draws.blurred, draws.solarized])
    if stack is ours.jitter_then_one_of_three:
        assert (others.sum(axis=0) == 1).all()
        for happened in others:
            check_chance(happened, 1 / 3)
    else:
        for happened, chance in zip(others, (0.2, 0.1, 0.2), strict=True):
            check_chance(happened, chance)
        check_chance(others[0] & others[2], 0.04)


def test_strong_jitter_never_draws_negative_factors():
    draw = jax.vmap(partial(ours.draw_jitter, brightness=1.5, contrast=0.0, saturation=0.5, hue=0.5))
    drawn = draw(jax.random.split(jax.random.key(0), DRAWN))
    check_uniform(drawn.brightness, 0.0, 2.5)
    assert (drawn.contrast == 1.0).all()
