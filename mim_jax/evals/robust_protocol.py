"""The robustness sets of ImageNet, as a protocol of a trained classifier."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import Refused
from mim_jax.evals.metrics import mean_corruption_error
from mim_jax.evals.network import Network
from mim_jax.evals.robust_images import Images, Place, SetCrop, open_sets
from mim_jax.evals.robustness import HOLE, SETS, list_parts, occlude_center, score
from mim_jax.paths import replace_file

PARTS = 'parts.json'


def robustness(
    network: Network,
    *,
    sets: tuple = ('imagenet_a', 'imagenet_r', 'imagenet_sketch', 'imagenet_v2'),
    dir: str = '',
    source: str = 'tfds',
    hole: int = HOLE,
    head: str = '',
) -> tuple[dict[str, float], dict[str, Any]]:
    """'<set>/<metric>' in percent, as evals/robustness defines them, and '<set>/images'; beside them what is special to a set.

    sets: names of robustness.SETS; source, dir: tfds or folder, and where, see robust_images; hole: side in pixels of the
    square of center_occlusion; head: see evals/classifiers. Every set is looked for before an image is read: DataError.
    Raises Refused for a classifier that does not have the 1000 classes of ImageNet.
    """
    if network.classes != 1000:
        raise Refused(
            f'The robustness sets test classifiers of the 1000 classes of ImageNet; {network.run} has {network.classes}.'
        )
    side, task = network.recipe.config.image_size, network.task
    if 'center_occlusion' in sets:
        occlude_center(np.ones((1, side, side, 1), np.float32), hole)
    found: dict[str, float] = {}
    for name, parts in open_sets(sets, Place(source, dir, task.config.data)).items():
        reader = Reader(network, name, hole, head)
        if len(parts) > 1:
            origin = {'run': str(network.run), 'step': network.step, 'source': source, 'dir': dir, 'head': head}
            values = measure_corruptions(reader, parts, task.workdir / PARTS, origin)
        else:
            values = reader(parts[0]())
        whole = SETS[name].images * len(parts)
        if whole and SETS[name].rule != 'ood' and values['images'] != whole:
            task.report(f'{name} has {values["images"]:,} images here, and {whole:,} in whole.')
        task.report('  '.join(f'{name}/{metric} {value:.2f}' for metric, value in values.items()))
        found |= {f'{name}/{metric}': value for metric, value in values.items()}
    return found, {name: SETS[name].note for name in sets if SETS[name].note}


@dataclass(frozen=True)
class Reader:
    """One set by one classifier: the sources of a part -> its metrics, and 'images'."""

    network: Network
    name: str
    hole: int
    head: str

    def __call__(self, images: Sequence[Images]) -> dict[str, float]:
        spec, network = SETS[self.name], self.network
        crop = SetCrop(spec.transform, network.recipe.config.image_size)
        logits, labels = [], []
        for kind in images:
            found, rows = network.logits(kind.source, self.head, crop, predict=self.predict)
            logits.append(found)
            labels += [*kind.label(rows)]
        values = score(spec, np.concatenate(logits), labels if spec.rule == 'valid' else np.array(labels))
        return {**values, 'images': len(labels)}

    @cached_property
    def predict(self) -> Callable:
        """Network.predict; with the centre put to the mean colour, which is 0 after normalisation, where the set says so."""
        if SETS[self.name].transform != 'center_occluded':
            return self.network.predict
        mean = np.asarray(self.network.recipe.mean, np.float32)

        def occlude(pixels: jax.Array, keys: jax.Array) -> jax.Array:
            del keys
            return jnp.where(
                occlude_center(np.ones((1, *pixels.shape[1:3], 1), np.float32), self.hole) > 0, pixels, mean
            )

        return self.network.compile(occlude)


def measure_corruptions(
    reader: Reader, parts: Sequence[Callable[[], list[Images]]], done: Path, origin: Mapping[str, Any]
) -> dict[str, float]:
    """mCE over the 75 parts of ImageNet-C. Their errors are kept in the file `done`, from which an interrupted test goes on.

    origin: what the file must be of; it goes when all parts are done.
    """
    saved = json.loads(done.read_text()) if done.exists() else {}
    errors: dict[str, list[float]] = saved['errors'] if saved.get('origin') == origin else {}
    for number, (part, open_images) in enumerate(zip(list_parts(SETS[reader.name]), parts, strict=True), 1):
        title = f'{part["corruption"]} {part["severity"]}'
        if title not in errors:
            values = reader(open_images())
            errors[title] = [100.0 - values['top1'], values['images']]
            replace_file(done, json.dumps({'origin': origin, 'errors': errors}))
            reader.network.task.report(
                f'{reader.name} {title}: {errors[title][0]:.2f} % errors ({number} of {len(parts)})'
            )
    by_corruption: dict[str, dict[int, float]] = {}
    for title, (error, _) in errors.items():
        corruption, severity = title.split()
        by_corruption.setdefault(corruption, {})[int(severity)] = error
    done.unlink()
    return {**mean_corruption_error(by_corruption), 'images': sum(count for _, count in errors.values())}
