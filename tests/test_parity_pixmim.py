"""PixMIM against mmselfsup's own model (golden of golden/make_pixmim_golden.py), and its filter written out in NumPy."""

import numpy as np
import pixmim_cases as cases
import pytest
from base_ours import check_first_step, check_pass, run_ours, train_ours
from parity_rules import GOLDEN, largest_difference, photographs, under

from mim_jax.interop.pixmim import PIXMIM
from mim_jax.objectives.low_pass import low_pass, low_pass_disc
from mim_jax.tokens import normalise_patches, patchify
from mim_jax.weights.layout import to_ours, to_theirs


@pytest.fixture(scope='module')
def stored():
    with np.load(GOLDEN / 'pixmim.npz') as arrays:
        return dict(arrays)


@pytest.mark.parametrize('name', cases.CASES)
def test_agrees_with_the_released_code(name, stored):
    case, golden = cases.CASES[name], under(stored, f'{name}/')
    recipe = cases.make_recipe(case)

    def targets(forward):
        filtered = recipe.pictures['pixels'].target(forward)
        return {'filtered': filtered, 'target': normalise_patches(patchify(filtered, case.patch_size))}

    seen, loss, gradients = run_ours(recipe, cases.make_images(case), cases.make_weights(case), targets)
    np.testing.assert_array_equal(seen.pop('masked'), golden['masked'])
    check_pass((seen, loss, gradients), golden, name, key_biases=True)


def test_steps_agree_with_the_released_optimizer(stored):
    case, golden = cases.CASES['side_64'], under(stored, 'side_64/')
    found = train_ours(
        cases.make_recipe(case), cases.make_images(case), cases.make_weights(case), cases.ADAMW['lr'], cases.STEPS
    )
    np.testing.assert_allclose(found['loss'], golden['losses'], rtol=1e-5)
    check_first_step(found['moved'], under(golden, 'moved/'), under(golden, 'gradients/'), 0.5, 0.5)


def transcribe_filter(pixels: np.ndarray, radius: float) -> np.ndarray:
    """f[H,W,C] -> f64[H,W,C] by the sums of the definition: spectrum shifted to the middle, disc, not shifted back."""
    height, width = pixels.shape[:2]
    y, x = np.arange(height), np.arange(width)
    down = np.exp(-2j * np.pi * np.outer(y, y) / height)  # row: frequency
    across = np.exp(-2j * np.pi * np.outer(x, x) / width)
    filtered = np.empty(pixels.shape)
    for channel in range(pixels.shape[2]):
        spectrum = down @ pixels[:, :, channel].astype(np.float64) @ across.T
        spectrum = np.roll(spectrum, (height // 2, width // 2), (0, 1))
        for i in range(height):
            for j in range(width):
                if (i - (height - 1) / 2) ** 2 + (j - (width - 1) / 2) ** 2 > radius**2:
                    spectrum[i, j] = 0.0
        filtered[:, :, channel] = np.abs(down.conj() @ spectrum @ across.conj().T) / (height * width)
    return filtered


@pytest.mark.parametrize(('height', 'width', 'radius'), [(112, 112, 20.0), (32, 32, 40 * 32 / 224), (33, 30, 6.0)])
def test_filter_follows_its_definition(height, width, radius):
    pixels = photographs(112, 3)[:, :height, :width].astype(np.float32) / 255.0
    ours = np.asarray(low_pass(pixels, radius))
    for image, filtered in zip(pixels, ours, strict=True):
        np.testing.assert_allclose(filtered, transcribe_filter(image, radius), rtol=0, atol=5e-6)


def test_disc_has_the_published_size_and_no_mirror_symmetry():
    disc = low_pass_disc(224, 224, 40.0)
    assert disc.sum() == 5024
    mirrored = np.roll(disc[::-1, ::-1], 1, (0, 1))  # frequency 0 is at 112
    assert (disc & ~mirrored).sum() == 113  # of 226 bins in either disc alone
    np.testing.assert_array_equal(disc, disc[::-1, ::-1])


def test_magnitude_is_not_the_real_part():
    pixels = photographs(64, 1).astype(np.float32) / 255.0
    disc = np.fft.ifftshift(low_pass_disc(64, 64, 8.0))[..., None]
    filtered = np.fft.ifft2(np.fft.fft2(pixels, axes=(1, 2)) * disc, axes=(1, 2))
    ours = np.asarray(low_pass(pixels, 8.0))
    assert np.abs(ours - np.abs(filtered)).max() < 5e-6
    assert np.abs(ours - filtered.real).max() > 1e-3


def test_their_positions_are_ours_with_the_halves_exchanged(stored):
    recipe = cases.make_recipe(cases.CASES['side_224'])
    constants = {name: value(recipe) for name, value in PIXMIM.constants.items()}
    assert constants['backbone.pos_embed'].shape == (1, 197, cases.WIDTH)
    assert largest_difference(constants, under(stored, 'constants/'), relative=False)[0] < 1e-5


def test_weights_travel_both_ways():
    weights = cases.make_weights(cases.CASES['side_224'])
    state = to_theirs(weights, PIXMIM)
    assert state['backbone.patch_embed.projection.weight'].shape == (cases.WIDTH, 3, 16, 16)
    back = to_ours(state, PIXMIM, tuple(weights))
    for path, value in weights.items():
        np.testing.assert_array_equal(back[path], value, err_msg=path)
