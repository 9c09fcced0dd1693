"""Corruptions made here: repeatable, in order of severity, and equal to closed forms where one exists."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from mim_jax.errors import DataError
from mim_jax.evals.corruptions import CORRUPTIONS, corrupt, describe_source, draw_plasma


@pytest.fixture(scope='module')
def images():
    """u8[6,32,32,3]: crops of smooth colour with some texture, so that blur and JPEG have something to do."""
    y, x = np.mgrid[:32, :32] / 31
    rng = np.random.default_rng(0)
    waves = [np.stack([np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 12, (3, 3))], -1) for _ in range(6)]
    return (127 + 100 * np.stack(waves) + rng.normal(0, 8, (6, 32, 32, 3))).clip(0, 255).astype(np.uint8)


def distance(a, b):
    return float(np.abs(a.astype(int) - b).mean())


def test_there_are_eleven_and_the_label_says_so():
    assert len(CORRUPTIONS) == 11
    assert all(len(parameters) == 5 for _, parameters in CORRUPTIONS.values())
    label = describe_source()
    assert label.startswith(f'generated here with numpy {np.__version__}, scipy ')
    assert label.endswith('11 of 15 corruptions, not the published CIFAR-10-C')


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_repeatable_per_image_and_stronger_with_severity(name, images):
    weak, strong = corrupt(images, name, 1), corrupt(images, name, 5)
    assert (strong.shape, strong.dtype) == (images.shape, np.uint8)
    np.testing.assert_array_equal(corrupt(images[2:4], name, 5, first=2), strong[2:4])
    assert distance(strong, images) > distance(weak, images)
    assert distance(strong, images) > 1


@pytest.mark.parametrize('name', ['gaussian_noise', 'shot_noise', 'impulse_noise', 'glass_blur', 'fog'])
def test_draws_depend_on_seed_and_on_the_image_number(name, images):
    same = np.stack([images[0]] * 2)
    first, second = corrupt(same, name, 5)
    assert (first != second).any()
    assert (corrupt(same[:1], name, 5, seed=1)[0] != first).any()


def test_gaussian_noise_has_its_deviation():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    noise = corrupt(grey, 'gaussian_noise', 3).astype(float) - 127.5  # truncation takes half a step
    assert noise.std() / 255 == pytest.approx(0.08, rel=0.02)
    assert abs(noise.mean()) < 0.3


def test_shot_noise_has_the_variance_of_its_photons():
    grey = np.full((20, 32, 32, 3), 128, np.uint8)
    shot = corrupt(grey, 'shot_noise', 3) / 255
    assert shot.var() == pytest.approx(128 / 255 / 100, rel=0.05)


def test_impulse_noise_strikes_its_share_half_of_it_white():
    grey = np.full((20, 32, 32, 3), 100, np.uint8)
    struck = corrupt(grey, 'impulse_noise', 5)
    assert set(np.unique(struck)) == {0, 100, 255}
    assert np.mean(struck != 100) == pytest.approx(0.07, rel=0.05)
    assert np.mean(struck == 255) == pytest.approx(0.035, rel=0.1)


def test_defocus_spreads_a_point_over_its_disk():
    point = np.zeros((1, 32, 32, 3), np.uint8)
    point[0, 16, 16] = 255
    sharp, cross, square = (corrupt(point, 'defocus_blur', severity)[0, ..., 0] for severity in (1, 4, 5))
    # Severity 1: one pixel blurred by taps exp(-1/(2 0.4^2)) = 0.0439 of the centre's, in both directions.
    assert sharp[16, 15:18].tolist() == [int(255 * 0.0439369 / 1.0878739**2), int(255 / 1.0878739**2), 9]
    assert (cross > 40).sum() == 5  # radius 1: a cross of five
    assert (square > 20).sum() == 9  # radius 1.5: three by three
    assert cross.sum() == pytest.approx(255, abs=13)


def test_glass_copies_from_the_upper_left_only():
    ramp = np.zeros((1, 32, 32, 3), np.uint8)
    ramp[0] = (4 * np.arange(32)[:, None, None] + 3 * np.arange(32)[None, :, None]).astype(np.uint8)
    moved = ramp[0].astype(int) - corrupt(ramp, 'glass_blur', 1)[0]  # its blur of 0.05 pixels changes nothing
    assert not moved[:2].any()
    assert not moved[:, :2].any()
    assert set(np.unique(moved[2:, 2:])) == {0, 3, 4, 7}


def test_zoom_moves_the_picture_outwards():
    y, x = np.mgrid[:32, :32] - 15.5
    cone = np.repeat((10 * np.hypot(y, x)).astype(np.uint8)[None, ..., None], 3, -1)
    zoomed, ring = corrupt(cone, 'zoom_blur', 5)[0, ..., 0], ([16, 16, 4, 27], [4, 27, 16, 16])
    # Enlarged by f a pixel at distance r shows r/f; factors 1 to 1.25 in steps of 0.01, and the image once more.
    expected = (1 + sum(1 / (1 + k / 100) for k in range(26))) / 27
    assert zoomed[ring].mean() / cone[0, ..., 0][ring].mean() == pytest.approx(expected, abs=0.01)
    assert (corrupt(np.full_like(cone, 77), 'zoom_blur', 5) == 77).mean() > 0.9  # truncation may show 76


def test_plasma_fills_zero_to_one_and_is_coarser_with_more_decay():
    def roughness(decay):
        maps = np.stack([draw_plasma(decay, np.random.default_rng(seed)) for seed in range(20)])
        assert (maps.min(), maps.max(), maps.shape) == (0, 1, (20, 32, 32))
        return np.abs(np.diff(maps, axis=1)).mean()

    assert roughness(1.75) > 1.3 * roughness(3)


def test_fog_keeps_the_brightest_value_and_black_images():
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1] = 200
    black, bright = corrupt(images, 'fog', 5)
    assert not black.any()
    assert (bright.max(), bright.min()) == (200, int(200 / 255 * (200 / 255) / (200 / 255 + 1.5) * 255))


def test_brightness_is_a_step_in_hsv(images):
    bright = corrupt(images[:1], 'brightness', 5)[0]
    for y, x in ((0, 0), (7, 19), (31, 31)):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[0, y, x] / 255)
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))) * 255
        assert abs(bright[y, x] - expected).max() <= 1
    assert corrupt(np.zeros_like(images[:1]), 'brightness', 1).max() == int(0.05 * 255)


def test_contrast_shrinks_towards_the_mean_of_a_channel(images):
    pale = corrupt(images, 'contrast', 5).astype(float) + 0.5
    np.testing.assert_allclose(pale.std(axis=(1, 2)), 0.15 * images.std(axis=(1, 2)), rtol=0.03)
    np.testing.assert_allclose(pale.mean(axis=(1, 2)), images.mean(axis=(1, 2)), atol=0.1)


def test_pixelate_shows_as_many_columns_as_it_kept():
    ramp = np.repeat((8 * np.arange(32, dtype=np.uint8))[None, None, :, None], 32, 1).repeat(3, -1)
    for severity, size in enumerate((30, 28, 27, 24, 20), start=1):
        row = corrupt(ramp, 'pixelate', severity)[0, 0, :, 0]
        small = np.asarray(Image.fromarray(ramp[0]).resize((size, size), Image.Resampling.BOX))[0, :, 0]
        assert set(row) <= set(small)
        assert len(set(small)) == size


def test_what_cannot_be_corrupted_is_named(images):
    with pytest.raises(DataError, match="'snow' is unknown here; use one of gaussian_noise"):
        corrupt(images, 'snow', 1)
    with pytest.raises(DataError, match='Severity 6 of fog'):
        corrupt(images, 'fog', 6)
    with pytest.raises(DataError, match='float64'):
        corrupt(images / 255, 'fog', 1)
    with pytest.raises(DataError, match=r'u8\[n,32,32,3\]'):
        corrupt(images[:, :28], 'fog', 1)
