"""Reconstruction pictures: true targets give the image back, hidden means hidden, the caption tells the statistics."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mim_jax.evals import reconstruct
from mim_jax.tokens.patches import normalise_patches, patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 4


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, 12)[None, :, None, None] * np.linspace(0.2, 1, 16)[None, None, :, None]
    return np.clip(ramp * rng.uniform(0.3, 1, (3, 1, 1, 3)) + 0.05 * rng.normal(size=(3, 12, 16, 3)), 0, 1)


@pytest.fixture
def masked():
    return np.random.default_rng(1).permuted(np.tile(np.arange(12) < 9, (3, 1)), axis=1)


def make_targets(images, norm_pix):
    """The targets as the objectives make them, by mim_jax.tokens."""
    patches = patchify(jnp.asarray((images - np.array(MEAN)) / np.array(STD)), PATCH)
    if norm_pix == 'channel':
        values = np.asarray(patches, np.float64).reshape(*patches.shape[:2], -1, 3)
        normal = (values - values.mean(2, keepdims=True)) / np.sqrt(values.var(2, keepdims=True) + 1e-5)
        return normal.reshape(patches.shape)
    return np.asarray(normalise_patches(patches) if norm_pix == 'patch' else patches)


@pytest.mark.parametrize('norm_pix', ['patch', 'channel', 'none'])
def test_true_targets_reproduce_the_image(images, masked, norm_pix):
    targets = make_targets(images, norm_pix)
    visible, pasted, predicted = reconstruct.reconstruct_images(images, targets, masked, PATCH, norm_pix, MEAN, STD)
    assert np.abs(predicted - images).max() < 1e-5  # also tells the unbiased variance from the biased one
    assert np.abs(pasted - images).max() < 1e-5
    assert np.abs(visible - images).max() > 0.3


def test_statistics_come_from_the_images_that_were_predicted(images, masked):
    """PixMIM predicts filtered images: their patches, not the input's, un-normalise the prediction."""
    other = np.clip(images**2 + 0.1, 0, 1)
    target = (other - np.array(MEAN)) / np.array(STD)
    found = reconstruct.reconstruct_images(
        images, make_targets(other, 'patch'), masked, PATCH, 'patch', MEAN, STD, target
    )
    assert np.abs(found[2] - other).max() < 1e-5


def test_patches_land_where_they_belong(images, masked):
    predictions = np.zeros((3, 12, 48))
    predictions[0, 6] = 1e9  # row 1, column 2 of the 3 x 4 grid; clipped to white
    masked[0] = np.arange(12) == 6
    visible, pasted, predicted = reconstruct.reconstruct_images(images, predictions, masked, PATCH, 'none', MEAN, STD)
    inside = np.zeros((12, 16), bool)
    inside[4:8, 8:12] = True
    assert (pasted[0][inside] == 1.0).all()
    assert (visible[0][inside] == reconstruct.GREY).all()
    np.testing.assert_array_equal(pasted[0][~inside], images[0][~inside])
    np.testing.assert_allclose(predicted[1], np.broadcast_to(MEAN, (12, 16, 3)))  # a prediction of 0 is the mean colour


def test_wrong_shapes_are_refused(images, masked):
    with pytest.raises(ValueError, match='do not fit'):
        reconstruct.reconstruct_images(images, np.zeros((3, 9, 48)), masked, PATCH, 'patch', MEAN, STD)


def test_caption_admits_the_true_statistics():
    assert (
        'true mean and deviation of each hidden patch of what is predicted, which the model never sees'
        in reconstruct.CAPTIONS['patch']
    )
    assert 'data set only' in reconstruct.CAPTIONS['none']


@pytest.mark.parametrize('norm_pix', ['patch', 'channel', 'none'])
def test_the_grid_is_drawn_with_its_caption(images, masked, tmp_path, monkeypatch, norm_pix):
    captions = []
    original = reconstruct.Figure.supxlabel
    monkeypatch.setattr(
        reconstruct.Figure,
        'supxlabel',
        lambda self, text, **style: captions.append(text) or original(self, text, **style),
    )
    path = tmp_path / 'grid.png'
    targets = make_targets(images, norm_pix)
    reconstruct.reconstruction_grid(images, targets, masked, PATCH, norm_pix, MEAN, STD, path, title='step 0')
    assert reconstruct.CAPTIONS[norm_pix] in captions[0].replace('\n', ' ')
    with Image.open(path) as picture:
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert('L')))) > 100
