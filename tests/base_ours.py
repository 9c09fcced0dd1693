"""Our side of a base's parity test: intermediates, loss, gradients, and what a few steps of AdamW make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from mae_ours import fill_tree, to_arrays
from parity_rules import largest_difference, sample_all, under
from tiny_runs import QUICK

from mim_jax.forward import Forward, Surroundings, create_parameters, evaluate
from mim_jax.networks import Networks
from mim_jax.parallel.hosts import to_global
from mim_jax.parallel.mesh import make_mesh
from mim_jax.parallel.rules import flatten_with_paths
from mim_jax.recipe import Recipe
from mim_jax.training.optim import learning_rate, make_optimizer
from mim_jax.training.state import TrainState, abstract_state, state_shardings
from mim_jax.training.step import jit_train_step, make_train_step

Arrays = dict[str, np.ndarray]
SETTLED = 1e-4  # of a parameter's largest gradient; below it Adam's first step hangs on rounding


def shapes_of(recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """{path: shape} of every parameter; nothing is compiled."""
    params, _, _ = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten_with_paths(params)}


def run_ours(
    recipe: Recipe, images: np.ndarray, weights: Arrays, more: Callable[[Forward], dict] = lambda forward: {}
) -> tuple[Arrays, float, Arrays]:
    """({place: what is seen there}, loss, {path: gradient}). Places: every block's patch tokens, latent, prediction, mask,
    and what `more` reads."""
    like = jax.eval_shape(lambda key: create_parameters(recipe, key), jax.random.key(0))[0]

    def loss(params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        key = jax.random.key(0)
        rows, step = jnp.arange(len(images)), jnp.zeros((), jnp.int32)
        around = Surroundings({'main': jnp.asarray(images)}, rows, key, step, {}, {})
        forward = Forward(recipe, Networks(recipe, params, {}, key, 'train'), around)
        total, _ = evaluate(forward)
        encoder, decoder = forward.levels().blocks, forward.decoded('pixels').blocks
        seen = {f'encoder/block_{i:02d}': block.patches for i, block in enumerate(encoder)}
        seen |= {f'decoder/pixels/block_{i:02d}': block.patches for i, block in enumerate(decoder)}
        seen |= {'latent': forward.latent().patches, 'prediction': forward.prediction('pixels')}
        return total, seen | {'masked': forward.plan().masked} | more(forward)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (value, seen), gradients = run(fill_tree(like, weights))
    return {name: np.asarray(a) for name, a in seen.items()}, float(value), to_arrays(gradients)


def train_ours(recipe: Recipe, images: np.ndarray, weights: Arrays, lr: float, steps: int) -> dict[str, Any]:
    """Steps on the same batch: every step's 'loss' and 'grad_norm', and after the first, 'moments' (Adam's) and 'moved'."""
    rate = learning_rate('constant', lr, 0.0, 0.0, steps)
    optimizer = make_optimizer(recipe.config.optim, rate, recipe.decay)
    mesh = make_mesh(devices=jax.devices()[:1])
    abstract = abstract_state(recipe, optimizer, mesh)
    params = fill_tree(abstract.params, weights)
    batch = to_global(mesh, {'main': images})
    step = jit_train_step(make_train_step(recipe, optimizer, rate), abstract, {}, mesh)
    step = step.lower(abstract, {}, batch).compile(compiler_options=QUICK)
    state = TrainState(jnp.zeros((), jnp.int32), params, {}, optimizer.init(params), {}, jax.random.key(0))
    state = jax.device_put(state, state_shardings(abstract))
    found: dict[str, Any] = {'loss': [], 'grad_norm': []}
    for index in range(steps):
        state, logs = step(state, {}, batch)
        found['loss'].append(float(logs['loss/total']))
        found['grad_norm'].append(float(logs['grad_norm']))
        if index == 0:
            found['moments'] = to_arrays(optax.tree_utils.tree_get(state.opt_state, 'mu'))
            found['moved'] = {path: value - weights[path] for path, value in to_arrays(state.params).items()}
    return found


def assert_close(ours: Arrays, stored: Arrays, tolerance: float, **how: Any) -> None:
    """No array differs from its stored sample by more; `how` as largest_difference has it."""
    difference, name = largest_difference(ours, stored, **how)
    print(f'{difference:.1e} {name}')
    assert difference <= tolerance, name


def check_pass(
    found: tuple[Arrays, float, Arrays],
    golden: Arrays,
    name: str,
    loss: str = 'loss',
    gradients: str = 'gradients/',
    key_biases: bool = False,
    seen: float = 1e-4,
) -> None:
    """What run_ours found, but for the mask, beside a golden's 'seen/', loss and gradients.

    key_biases: a key's bias changes no attention, so its gradient is 0 but for rounding; it is compared on the scale of the
    others. seen: what is seen may differ by, absolute.
    """
    ours, value, slopes = found
    stored = under(golden, gradients)
    floor = 1e-3 * max(gradient[1] for gradient in stored.values()) if key_biases else 0.0
    differences = {
        'seen': largest_difference(ours, under(golden, 'seen/'), relative=False),
        'loss': (abs(value / float(golden[loss]) - 1), ''),
        'gradients': largest_difference(slopes, stored, relative=True, floor=floor),
    }
    print(name, '  '.join(f'{kind} {difference:.1e} {place}' for kind, (difference, place) in differences.items()))
    for kind, tolerance in (('seen', seen), ('loss', 1e-5), ('gradients', 1e-3)):
        assert differences[kind][0] < tolerance, (kind, differences[kind])


def check_first_step(
    moved: Arrays, stored: Arrays, gradients: Arrays, least: float, biases: float | None = None
) -> None:
    """How AdamW's first step moved every parameter, beside the stored samples, within 1e-5; a step is 1e-3.

    Values whose gradient is below SETTLED of their parameter's largest hang on rounding and are left out, of attention's
    biases, where `biases` is given, all below 1e-2 of it: the middle third are keys'. More than the share `least` (of those
    biases: `biases`) of every parameter must be compared.
    """
    ours = sample_all(moved)
    assert ours.keys() == stored.keys()
    for path, gradient in gradients.items():
        packed = biases is not None and path.endswith('qkv/bias')
        settled = np.abs(gradient[2:]) > (1e-2 if packed else SETTLED) * gradient[1]
        assert settled.mean() > (biases if packed else least), path
        assert np.abs(ours[path] - stored[path])[2:][settled].max() < 1e-5, path
