"""The robustness sets of ImageNet, as a protocol of a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import Refused
from mim_jax.evals.ledger import Counted
from mim_jax.evals.metrics import mean_corruption_error
from mim_jax.evals.network import Network
from mim_jax.evals.robust_images import Images, Place, SetCrop, open_sets
from mim_jax.evals.robustness import HOLE, SETS, list_parts, occlude_center, score


def robustness(
    network: Network,
    *,
    sets: tuple = ('imagenet_a', 'imagenet_r', 'imagenet_sketch', 'imagenet_v2'),
    dir: str = '',
    source: str = 'tfds',
    hole: int = HOLE,
    whole: bool = True,
    head: str = '',
) -> tuple[dict[str, float], dict[str, Any]]:
    """'<set>/<metric>' in percent, as evals/robustness defines them, and '<set>/images'; beside them what is special to a set.

    sets: names of robustness.SETS; source, dir: tfds or folder, and where, see robust_images; hole: side in pixels of the
    square of center_occlusion; whole: a set must have as many images as were published; head: see evals/classifiers.
    Every set is looked for before an image is read: DataError. Raises Refused for a classifier that does not have the
    1000 classes of ImageNet.
    """
    if network.classes != 1000:
        raise Refused(
            f'The robustness sets test classifiers of the 1000 classes of ImageNet; {network.run} has {network.classes}.'
        )
    side, task = network.recipe.config.image_size, network.task
    if 'center_occlusion' in sets:
        occlude_center(np.ones((1, side, side, 1), np.float32), hole)
    found: dict[str, float] = {}
    for name, parts in open_sets(sets, Place(source, dir, whole, task.config.data)).items():
        reader = Reader(network, name, hole, head)
        several = len(parts) > 1
        values = measure_corruptions(reader, parts) if several else task.ledger.measure(name, partial(reader, parts[0]))
        task.report('  '.join(f'{name}/{metric} {value:.2f}' for metric, value in values.items()))
        found |= {f'{name}/{metric}': value for metric, value in values.items()}
    return found, {name: SETS[name].note for name in sets if SETS[name].note}


@dataclass(frozen=True)
class Reader:
    """One set by one classifier: what opens a part -> its metrics, and 'images'; logits, labels and places of all."""

    network: Network
    name: str
    hole: int
    head: str

    def __call__(self, open_images: Callable[[], Sequence[Images]]) -> Counted:
        spec, network = SETS[self.name], self.network
        crop = SetCrop(spec.transform, network.recipe.config.image_size)
        outputs, labels, places = [], [], []
        for kind in open_images():
            found, rows = network.logits(kind.source, self.head, crop, predict=self.predict)
            outputs.append(found)
            labels += [*kind.label(rows)]
            places.append(rows['index'])
        logits, several = np.concatenate(outputs), spec.rule == 'valid'
        values = score(spec, logits, labels if several else np.array(labels))
        label = pad_lists(labels) if several else np.array(labels)
        return {**values, 'images': len(labels)}, {'logits': logits, 'label': label, 'index': np.concatenate(places)}

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


def pad_lists(lists: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of labels -> i64[n, the longest], filled up with -1."""
    padded = np.full((len(lists), max(map(len, lists))), -1)
    for row, labels in zip(padded, lists, strict=True):
        row[: len(labels)] = labels
    return padded


def measure_corruptions(reader: Reader, parts: Sequence[Callable[[], list[Images]]]) -> dict[str, float]:
    """mCE over the 75 parts of ImageNet-C, and 'images' of all."""
    task, by_corruption, images = reader.network.task, {}, 0

    def count(title: str, number: int, open_images: Callable[[], list[Images]]) -> Counted:
        values, arrays = reader(open_images)
        task.report(f'{title}: {100.0 - values["top1"]:.2f} % errors ({number} of {len(parts)})')
        return values, arrays

    for number, (part, open_images) in enumerate(zip(list_parts(SETS[reader.name]), parts, strict=True), 1):
        corruption, severity = part['corruption'], part['severity']
        title = f'{reader.name} {corruption} {severity}'
        values = task.ledger.measure(title, partial(count, title, number, open_images))
        by_corruption.setdefault(corruption, {})[severity] = 100.0 - values['top1']
        images += values['images']
    return {**mean_corruption_error(by_corruption), 'images': images}
