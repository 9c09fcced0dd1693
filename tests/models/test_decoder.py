"""MAE's decoder: tokens back in their places, mask tokens where the mask is, positions on all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import random_parameters

from mim_jax.models.decoder import Decoder
from mim_jax.tokens import Tokens, plan_from_scores, sincos_positions

KEY = jax.random.key(0)


@pytest.fixture(scope='module')
def case():
    plan = plan_from_scores(jax.random.uniform(KEY, (3, 8)), 3)
    latent = Tokens(jax.random.normal(KEY, (3, 1, 12)), jax.random.normal(jax.random.key(1), (3, 3, 12)))
    module = Decoder(width=16, depth=1, heads=2, output=48, grid=(2, 4))
    return module, random_parameters(module, latent, plan), latent, plan


def test_embedding_is_unshuffled_and_filled_with_the_mask_token(case):
    module, params, latent, plan = case
    levels = module.apply({'params': params}, latent, plan)
    embedded = np.asarray(latent.patches @ params['embed']['kernel'] + params['embed']['bias'])
    expected = np.tile(params['mask_token'], (3, 8, 1))
    for image, keep in enumerate(np.asarray(plan.keep)):
        expected[image, keep] = embedded[image]
    np.testing.assert_allclose(levels.embedding.patches, expected, atol=1e-6)
    assert levels.prediction.shape == (3, 8, 48)
    assert len(levels.blocks) == 1


def test_positions_are_added_to_every_patch_and_not_to_cls(case):
    module, params, latent, plan = case
    silent = jax.tree.map(lambda p: p, params)
    for layer in (silent['block_00']['attn']['out'], silent['block_00']['mlp']['fc2']):
        layer.update(jax.tree.map(jnp.zeros_like, layer))
    levels = module.apply({'params': silent}, latent, plan)
    added = levels.last.patches - levels.embedding.patches
    np.testing.assert_allclose(added, np.tile(sincos_positions(2, 4, 16), (3, 1, 1)), atol=1e-6)
    prefix = latent.prefix @ params['embed']['kernel'] + params['embed']['bias']
    np.testing.assert_allclose(levels.last.prefix, prefix, atol=1e-6)


def test_prediction_does_not_depend_on_the_order_of_the_visible_tokens(case):
    module, params, latent, plan = case
    shuffle = jnp.array([2, 0, 1])
    place = jnp.argsort(shuffle)
    moved = plan.replace(
        keep=plan.keep[:, shuffle],
        restore=jnp.where(plan.restore < 3, place[jnp.minimum(plan.restore, 2)], plan.restore),
    )
    other = latent.replace(patches=latent.patches[:, shuffle])
    ours, theirs = (module.apply({'params': params}, *pair).prediction for pair in ((latent, plan), (other, moved)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
