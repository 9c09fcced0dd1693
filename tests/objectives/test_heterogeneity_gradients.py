"""Gradients of MTO's four functions against central differences of the float64 transcription."""

import jax
import jax.numpy as jnp
import mto_reference as reference
import numpy as np
from mto_cases import SPARSITY, draw
from tiny_runs import QUICK

from mim_jax.objectives.heterogeneity import SCALES, distinctiveness, heterogeneity, ranking, sparsity


def differences_of(function, x, step=1e-5):
    """Central differences of a function of one f64 array."""
    found = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        found[place] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return found


def compare_gradients(pairs, wide):
    """{name: largest difference of jax.grad in fp32 from differences in float64, over the largest value}."""
    grads = {name: jax.grad(ours) for name, (ours, _) in pairs.items()}
    run = jax.jit(lambda x: {name: grad(x) for name, grad in grads.items()}, compiler_options=QUICK)
    found, differences = run(jnp.asarray(wide, jnp.float32)), {}
    for name, (_, theirs) in pairs.items():
        wanted = differences_of(theirs, wide)
        assert np.abs(wanted).max() > 1e-4
        differences[name] = np.abs(np.asarray(found[name], np.float64) - wanted).max() / np.abs(wanted).max()
    return differences


def test_gradients_of_every_function_and_switch():
    """Tokens of one image, f[N,D]; H's tau as well as its scales, L_e through H, L_r through three layers of tokens."""
    tokens, keep, masked = draw(1, 7, 3, 4)
    wide, shown = tokens[0].astype(np.float64), keep[0]
    pairs = {}
    for scale in SCALES:
        for tau in (0.1, 0.7) if scale == 'cosine' else (0.1,):
            pairs[f'H {scale} {tau}'] = (
                lambda x, s=scale, t=tau: heterogeneity(x[None], keep, masked, s, t)[0],
                lambda x, s=scale, t=tau: reference.heterogeneity(x, shown, s, t),
            )
        for options in SPARSITY:
            pairs[f'L_spa {scale} {options}'] = (
                lambda x, s=scale, o=options: sparsity(x[None], keep, s, **o)[0],
                lambda x, s=scale, o=options: reference.sparsity(x, shown, s, **o),
            )
        pairs[f'L_e {scale}'] = (
            lambda x, s=scale: distinctiveness(heterogeneity(x[None], keep, masked, s)[0], 0.01),
            lambda x, s=scale: reference.distinctiveness(reference.heterogeneity(x, shown, s), 0.01),
        )
    found = compare_gradients(pairs, wide)

    rankings = {}
    for direction in ('descending', 'eq5'):
        rankings[f'L_r {direction}'] = (
            lambda layers, d=direction: ranking(
                jnp.stack([heterogeneity(x[None], keep, masked)[0] for x in layers]), d
            ),
            lambda layers, d=direction: reference.ranking([reference.heterogeneity(x, shown) for x in layers], d),
        )
    layers = np.stack([wide, 0.5 * wide[::-1], 1.5 * wide + 0.1]).astype(np.float32)
    found |= compare_gradients(rankings, layers.astype(np.float64))
    worst = max(found, key=found.get)
    print(f'{len(found)} gradients, largest difference {found[worst]:.1e} of {worst}')
    assert found[worst] < 2e-5


def test_epsilon_and_the_loss_of_a_level_have_the_gradients_of_the_formulas():
    levels = jnp.asarray([3.0, 1.0, 2.0, 0.5])
    np.testing.assert_allclose(jax.grad(distinctiveness)(2.0, 0.5), -1 / 2.5**2, rtol=1e-6)
    s = 1.0 / (1.0 + np.exp(-np.diff(np.asarray(levels, np.float64))))
    wanted = np.concatenate([[0.0], s]) - np.concatenate([s, [0.0]])  # an inner level has the difference of two steps
    np.testing.assert_allclose(jax.grad(ranking)(levels), wanted, rtol=1e-5)
    printed = 1.0 - s
    wanted = np.concatenate([printed, [0.0]]) - np.concatenate([[0.0], printed])
    np.testing.assert_allclose(jax.grad(lambda h: ranking(h, 'eq5'))(levels), wanted, rtol=1e-5)
