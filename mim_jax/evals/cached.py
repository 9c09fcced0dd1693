"""A linear probe on cached features: for small machines. It sees no augmented images, so it is not MAE's protocol."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax.config import peak_lr
from mim_jax.errors import ConfigError, UserError
from mim_jax.evals.ledger import Counted
from mim_jax.evals.subject import Subject
from mim_jax.models.batch_norm import BatchNorm
from mim_jax.objectives.classify import cross_entropy
from mim_jax.training.optim import learning_rate, make_optimizer


def cached_probe(
    subject: Subject, *, pool: str = 'cls', norm: str = 'encoder', layer: int = 0, rates: tuple = (1.0,)
) -> dict[str, float]:
    """BatchNorm and a linear layer, trained as the linear probe is, on features of centre crops that are made once.

    The optimizer, the schedule, the batch size and the epochs are the config's; where there are fewer images than that, all
    of them are the batch, by which optim.lr_scaling goes. rates: so many times optim.base_lr; the one that is best on a
    random tenth of the training images is kept, the first of equals, and trained again on all of them. Returns
    'cached_probe', percent of the test images, and 'cached_probe_rate'. Raises ConfigError for rates that are none, UserError
    where even the best ended in logits that are not finite.
    """
    if not rates or not all(type(rate) in (int, float) and 0 < rate < math.inf for rate in rates):
        raise ConfigError(f'cached_probe.rates={tuple(rates)} must be one number above 0 or more.')
    train, test = subject.open()
    config = subject.recipe.config
    bank, queries = (subject.features(source, layer, pool, norm) for source in (train, test))
    rate = choose_rate(subject, *bank, train.num_classes, rates) if len(rates) > 1 else float(rates[0])
    logits = train_head(config, *bank, queries[0], train.num_classes, rate)
    if not np.isfinite(logits).all():
        raise UserError(
            f'The cached probe diverged at {rate} times optim.base_lr: its logits are not finite. Add smaller '
            'cached_probe.rates.'
        )
    hits = logits.argmax(-1) == queries[1]
    return {'cached_probe': float(100.0 * np.mean(hits)), 'cached_probe_rate': rate}


def choose_rate(subject: Subject, x: np.ndarray, y: np.ndarray, classes: int, rates: tuple) -> float:
    """The best of `rates` on a tenth of the training features f32[n,D], i32[n]; the test images play no part.

    One that diverges is worse than any other.
    """
    config = subject.recipe.config
    order = np.random.default_rng(config.seed).permutation(len(x))
    held, fitted = order[: len(order) // 10], order[len(order) // 10 :]

    def score(rate: float) -> Counted:
        logits = train_head(config, x[fitted], y[fitted], x[held], classes, rate)
        found = 100.0 * float(np.mean(logits.argmax(-1) == y[held])) if np.isfinite(logits).all() else -1.0
        subject.report(f'rate {rate:g}: {f"{found:.2f} % of the held-out tenth" if found >= 0 else "diverged"}')
        return {'held_out': found}, {}

    scores = [subject.ledger.measure(f'rate {rate}', partial(score, float(rate)))['held_out'] for rate in rates]
    return float(rates[int(np.argmax(scores))])


def train_head(
    config: Any, x: np.ndarray, y: np.ndarray, test_x: np.ndarray, classes: int, multiplier: float
) -> np.ndarray:
    """Logits f32[m,K] of test_x f32[m,D] after training on x f32[n,D], y i32[n]; seeded by config.seed."""
    size = min(config.batch_size, len(x))
    config = config.copy_and_resolve_references()
    config.batch_size = size  # what the learning rate is scaled by
    per_epoch = len(x) // size
    epochs = max(1, round(config.epochs)) if not config.steps else -(-config.steps // per_epoch)
    optim = config.optim
    rate_at = learning_rate(
        optim.schedule, multiplier * peak_lr(config), optim.min_lr, optim.warmup_epochs * per_epoch, epochs * per_epoch
    )
    optimizer = make_optimizer(optim, rate_at)
    norm = BatchNorm(affine=False, epsilon=1e-6)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return x @ params['kernel'] + params['bias']

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return cross_entropy(apply(params, x), y, 0.0)

    @jax.jit
    def run_epoch(carry: tuple, key: jax.Array, x: jax.Array, y: jax.Array) -> tuple:
        order = jax.random.permutation(key, len(x))[: per_epoch * size].reshape(per_epoch, size)

        def step(carry: tuple, rows: jax.Array) -> tuple:
            params, state, stats = carry
            normed, moved = norm.apply({'batch_stats': stats}, x[rows], mutable=['batch_stats'])
            updates, state = optimizer.update(jax.grad(loss)(params, normed, y[rows]), state, params)
            return (optax.apply_updates(params, updates), state, moved['batch_stats']), None

        return jax.lax.scan(step, carry, order)[0]

    key = jax.random.key(config.seed)
    draw = 0.01 * jax.random.normal(jax.random.fold_in(key, 0), (x.shape[1], classes))
    params = {'kernel': draw, 'bias': jnp.zeros(classes)}
    stats = {'mean': jnp.zeros(x.shape[1]), 'var': jnp.ones(x.shape[1])}
    carry = params, optimizer.init(params), stats
    x, y = jnp.asarray(x), jnp.asarray(y)
    for epoch in range(epochs):
        carry = run_epoch(carry, jax.random.fold_in(key, epoch + 1), x, y)
    params, _, stats = carry
    predict = partial(norm.apply, {'batch_stats': stats})
    return np.asarray(jax.jit(lambda x: apply(params, predict(x)))(jnp.asarray(test_x)))
