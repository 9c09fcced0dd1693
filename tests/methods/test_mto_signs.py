"""Where MTO's terms push: single steps on free tokens and on tiny networks, and the ranking loss alone to its end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mto_ours import TokensOnly, make_base, make_forward, make_weights
from tiny_runs import QUICK, tiny_mae

from mim_jax.methods.mto import mto
from mim_jax.objectives.heterogeneity import heterogeneity

TERMS = ('sparsity', 'distinctiveness', 'descending', 'eq5')


def read_terms(plain, forwards):
    """f32[4] in the order of TERMS, and H f32[L+1] of the batch; forwards: recipe -> what its loss reads."""
    recipes = {name: mto(plain, rank_direction=name) for name in ('descending', 'eq5')}
    losses = {name: recipe.objectives['mto'].loss(forwards(recipe)) for name, recipe in recipes.items()}
    terms = [losses['eq5']['sparsity'], losses['eq5']['distinctiveness']]
    terms += [losses[name]['ranking'] for name in ('descending', 'eq5')]
    watched = recipes['eq5'].watches['mto'](forwards(recipes['eq5']))
    h = [value for name, value in watched.items() if '/heterogeneity_' in name]
    return jnp.stack(terms), jnp.stack(h)


def step_on_each(function, x, length):
    """{term: (terms, H) after a step of this length down the term's gradient}, and before any step as ''."""

    def terms_twice(x):
        terms, h = function(x)
        return terms, (terms, h)

    run = jax.jit(jax.jacrev(terms_twice, has_aux=True), compiler_options=QUICK)
    gradients, before = run(x)
    found = {'': before}
    for index, name in enumerate(TERMS):
        gradient = jax.tree.map(lambda g, i=index: g[i], gradients)
        size = length / optax.global_norm(gradient)
        assert jnp.isfinite(size)
        _, found[name] = run(jax.tree.map(lambda a, g, s=size: a - s * g, x, gradient))
    return {name: jax.device_get(pair) for name, pair in found.items()}


def check_signs(found):
    """{term: change of H} where a step lowers its own term, L_e raises H0, and L_r moves H^L and the fall from H0 to it."""
    terms, h = found['']
    for index, name in enumerate(TERMS):
        assert found[name][0][index] < terms[index], name
    changes = {name: pair[1] - h for name, pair in found.items() if name}
    assert changes['distinctiveness'][0] > 0
    for name, sign in (('descending', 1), ('eq5', -1)):
        assert sign * changes[name][-1] < 0, name
        assert sign * (changes[name][0] - changes[name][-1]) > 0, name
    return changes


def test_steps_on_free_tokens():
    """Five layers, mask tokens not alike: every gradient is there."""
    draw = np.random.default_rng(0).normal(size=(5, 2, 12, 6)).astype(np.float32)
    found = step_on_each(lambda x: read_terms(tiny_mae(), lambda _: TokensOnly(x, 4)), draw, 0.05)
    changes = check_signs(found)
    assert changes['descending'][0] > 0 > changes['eq5'][0]
    np.testing.assert_array_equal(changes['distinctiveness'][1:], 0.0)  # it is of layer 0 alone


@pytest.mark.parametrize('base', ['mae', 'simmim'])
def test_steps_on_a_network(base):
    """The parameters of a tiny network; longer mask tokens than at the start, or L_e would have no gradient."""
    plain = make_base(base)
    params, _, _ = make_weights(plain)
    role = {'mae': 'decoder/pixels', 'simmim': 'encoder'}[base]
    params[role]['mask_token'] = 6.0 * params[role]['mask_token']
    found = step_on_each(lambda p: read_terms(plain, lambda recipe: make_forward(recipe, p)), params, 0.02)
    for name, change in check_signs(found).items():
        print(base, name, np.round(change, 5))


@pytest.mark.parametrize('direction', ['descending', 'eq5'])
def test_the_ranking_loss_alone_ends_in_equal_steps(direction):
    """Free tokens of six layers: H goes from ln V to 0 as a staircase, or as printed from 0 to ln V."""
    layers, visible = 5, 6
    loss = mto(tiny_mae(), rank_direction=direction).objectives['mto'].loss
    optimizer = optax.adam(0.05)

    @jax.jit
    def descend(x):
        def one(carry, _):
            x, state = carry
            gradient = jax.grad(lambda x: loss(TokensOnly(x, visible))['ranking'])(x)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(x, updates), state), None

        (x, _), _ = jax.lax.scan(one, (x, optimizer.init(x)), None, 1500)
        free = TokensOnly(x, visible)
        return jnp.stack([heterogeneity(one, free.main.keep, free.main.masked) for one in free.layers])[:, 0]

    found = descend(np.random.default_rng(0).normal(size=(layers + 1, 1, 12, 8)).astype(np.float32))
    stairs = np.linspace(np.log(visible), 0.0, layers + 1)
    print(direction, np.round(found, 3))
    np.testing.assert_allclose(found, stairs if direction == 'descending' else stairs[::-1], atol=0.03)
