"""A classifier that was trained: a fine-tuned or probed run's folder, and what it says of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from mim_jax.data.augment import Crop
from mim_jax.data.sources import Source, open_source
from mim_jax.errors import Refused, WorkdirError
from mim_jax.evals.accuracy import check_test, make_predict
from mim_jax.evals.features import collect_batches, read_split
from mim_jax.evals.ledger import Ledger, watch_batches
from mim_jax.methods import build
from mim_jax.parallel.hosts import place
from mim_jax.parallel.mesh import replicated
from mim_jax.recipe import Recipe
from mim_jax.teachers import digest_frozen, load_frozen
from mim_jax.training.checkpoint import read_arrays
from mim_jax.training.classes import count_saved_classes
from mim_jax.training.state import TrainState
from mim_jax.training.workdir import CHECKPOINTS

PARTS = ('params', 'batch_stats', 'teachers')
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What a classifier is tested for. config: the protocol's, whose section `data` says where images are and how they are
    read; mesh: devices; ledger: of what was found so far; report: gets lines to read; read_config: the checked config of
    another run's folder."""

    config: Any
    mesh: Mesh
    ledger: Ledger
    report: Callable[[str], None]
    read_config: Callable[[Path], Any]


@dataclass(frozen=True)
class Network:
    """recipe: with the run's own config; state: parameters, statistics and averages, on the host; step: of the checkpoint."""

    run: Path
    recipe: Recipe
    state: TrainState
    step: int
    task: Task

    @property
    def classes(self) -> int:
        """K, as many as its training set had."""
        return self.recipe.config.classes

    @property
    def crop(self) -> Crop:
        """The evaluation's, of the size it was trained with."""
        config = self.recipe.config
        return Crop('center', config.image_size, config.data.interpolation)

    @cached_property
    def placed(self) -> tuple[TrainState, Any]:
        """The state and the frozen encoders, on every device."""
        return place((self.state, load_frozen(self.recipe)), replicated(self.task.mesh))

    @cached_property
    def predict(self) -> Callable[[jax.Array], Mapping[str, jax.Array]]:
        """images u8[b,S,S,3] -> {name: logits f32[b,K]}; '' names the only one."""
        return self.compile()

    def compile(self, photometric: Callable | None = None) -> Callable[[jax.Array], Mapping[str, jax.Array]]:
        """`predict` of images that (pixels f32[b,S,S,3] in [0,1], keys) -> pixels has changed before."""
        run = jax.jit(make_predict(self.recipe, photometric), out_shardings=replicated(self.task.mesh))
        return lambda images: run(*self.placed, images)

    def open_test(self) -> Source:
        """The protocol's test images. Raises DataError where their classes are not the network's."""
        data = self.task.config.data
        test = open_source(data, data.eval_split)
        check_test(self.recipe, test)
        return test

    def batches(self, source: Source, crop: Callable | None = None, limit: int = 0) -> Iterator[Mapping[str, Any]]:
        """All images, or `limit` random ones that the seed decides, in stored order, padded to whole batches."""
        batches = read_split(source, crop or self.crop, self.task.mesh, self.task.config, limit or None)
        return watch_batches(batches, min(limit or len(source), len(source)), self.task.report)

    def logits(
        self,
        source: Source,
        head: str = '',
        crop: Callable | None = None,
        limit: int = 0,
        predict: Callable | None = None,
    ) -> tuple[np.ndarray, Rows]:
        """f32[n,K], {'label', 'index'} i32[n]: what the classifier `head` says of images, in stored order.

        Raises Refused for a head that the run has not, DataError where no image could be read.
        """
        predict = predict or self.predict

        def pick(images: jax.Array) -> jax.Array:
            output = predict(images)
            if head not in output:
                raise Refused(f'{self.run} has no classifier {head!r}, but {", ".join(map(repr, output))}; set head.')
            return output[head]

        logits, rows = collect_batches(pick, self.batches(source, crop, limit), self.task.mesh, source.description)
        return logits, {key: rows[key] for key in ('label', 'index')}

    def another(self, run: Path) -> Network:
        """The newest classifier of another run, for the same task."""
        return read_network(run, self.task.read_config(run), None, self.task)


def read_network(run: Path, config: Any, step: int | None, task: Task) -> Network:
    """The classifier of a run's folder, at `step` or the newest; `config` is the run's, checked.

    Raises WorkdirError for a run without one, or of which the frozen encoder has changed; CheckpointError, Refused.
    """
    saved, step, extra = read_arrays(str(run / CHECKPOINTS), step, PARTS)
    classes = count_saved_classes(saved)
    if not {'finetune', 'linear_probe'} & {*config.papers} or not classes:
        raise WorkdirError(
            f'{run} holds no classifier; --checkpoint must be a fine-tuned run here, the --workdir of configs/eval/'
            'finetune.py.'
        )
    recipe = build(config, 1_281_167, classes)
    for name, digest in digest_frozen(recipe).items():
        before = extra.get('frozen', {}).get(name, digest)
        if before != digest:
            raise WorkdirError(f'{run} was trained on a frozen {name} of checksum {before}; its file has {digest} now.')
    trees = traverse_util.unflatten_dict(saved, sep='/')
    teachers = {name: join_parts(recipe, held) for name, held in trees.get('teachers', {}).items()}
    key = jax.random.key(config.seed)
    state = TrainState(
        step=jnp.asarray(step), opt_state=(), teachers=teachers, root_key=key, **join_parts(recipe, trees)
    )
    return Network(run, recipe, state, step, task)


def join_parts(recipe: Recipe, tree: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{'params': {role: tree}, 'batch_stats': {role: tree}} of what is nested by every '/'."""
    return {part: join_roles(recipe, tree.get(part, {})) for part in ('params', 'batch_stats')}


def join_roles(recipe: Recipe, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested by every '/' -> {role: tree}, as the networks hold it: 'objectives/classify/head' is one key."""
    found = {}
    for role in recipe.roles():
        inner: Any = tree
        for part in role.split('/'):
            inner = inner.get(part, {}) if isinstance(inner, Mapping) else {}
        if inner:
            found[role] = inner
    return found
