"""The robustness sets of ImageNet classifiers: where each is stored, how an image is prepared and how logits are scored.

An evaluator runs the model over a set and calls `score` with logits f[n,1000] and the labels, both in stored order.
TFDS stores ImageNet class indices as labels; folders of images name classes in several ways, see `map_folders`.
Class lists: evals/classes, each file with its source and licence. ImageNet-C's mean: metrics.mean_corruption_error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mim_jax.errors import DataError
from mim_jax.evals.metrics import (
    ALEXNET_ERRORS,
    SEVERITIES,
    aupr,
    auroc,
    check_labels,
    check_logits,
    multilabel_correct,
    restrict_classes,
    set_correct,
    top_k_correct,
)

CLASSES = Path(__file__).with_name('classes')
HOLE = 112
RELATED = 10_000  # validation images of the 200 classes that ImageNet-O's are mistaken for


@dataclasses.dataclass(frozen=True)
class RobustnessSet:
    """One set, as data.

    transform 'center': shorter side to 256, bicubic, then the central 224; 'center_only': the central 224 of images stored
    at 224; 'center_cut_border': `cut_border` first; 'center_occluded': 'center', then `occlude_center` after normalisation.
    folders: what a folder's name says: 'synset' (n01440764), 'index' ('0' to '999'), or a name in a class file.
    rule: 'top1' | 'restricted' | 'valid' | 'sets' | 'ood', see `score`. `classes` names the class file that it needs.
    tfds and folder may hold {corruption} and {severity}, see `list_parts`. images: of one part, SI-Score's by TFDS's catalogue.
    """

    rule: str
    images: int
    home: str
    tfds: str = ''
    split: str = 'test'
    label: str = 'label'  # the TFDS feature
    folder: str = '<folder>/*'
    folders: str = 'synset'
    transform: str = 'center'
    classes: str = ''
    note: str = ''


def siscore(variant: str, images: int) -> RobustnessSet:
    note = 'the released list gives one ImageNet class per folder; plain accuracy over images, not mean over groups'
    home = 'https://github.com/google-research/si-score'
    return RobustnessSet('top1', images, home, f'siscore/{variant}', folders='siscore', classes='siscore', note=note)


SETS = {
    'imagenet_c': RobustnessSet(
        'top1',
        50_000,
        'https://zenodo.org/records/2235448',
        'imagenet2012_corrupted/{corruption}_{severity}',
        'validation',
        folder='{corruption}/{severity}/<folder>/*',
        transform='center_only',
        note='TFDS makes its images from the validation set with its own code: they are not the published JPEGs',
    ),
    'imagenet_a': RobustnessSet(
        'restricted',
        7_500,
        'https://github.com/hendrycks/natural-adv-examples',
        'imagenet_a',
        classes='imagenet_a',
    ),
    'imagenet_r': RobustnessSet(
        'restricted', 30_000, 'https://github.com/hendrycks/imagenet-r', 'imagenet_r', classes='imagenet_r'
    ),
    'imagenet_sketch': RobustnessSet(
        'top1', 50_889, 'https://github.com/HaohanWang/ImageNet-Sketch', 'imagenet_sketch'
    ),
    'imagenet_v2': RobustnessSet(
        'top1',
        10_000,
        'https://github.com/modestyachts/ImageNetV2',
        'imagenet_v2/matched-frequency',
        folders='index',
        note='matched frequency; sorted folder names are 0, 1, 10, 100: the name is the class, not its place',
    ),
    'imagenet_real': RobustnessSet(
        'valid',
        50_000,
        'https://github.com/google-research/reassessed-imagenet',
        'imagenet2012_real',
        'validation',
        'real_label',
        note='the validation images; 3,163 of them have no valid label and are left out',
    ),
    'imagenet_o': RobustnessSet(
        'ood',
        2_000,
        'https://github.com/hendrycks/natural-adv-examples',
        classes='imagenet_o',
        note='beside the 10,000 validation images of the 200 related classes, see related_images; the LUT paper prints '
        'values near 60, which fit AUROC and not AUPR',
    ),
    'objectnet': RobustnessSet(
        'sets',
        18_574,  # with one of the 113 classes, of 50,273; from memory, so robustness.whole may have to be False
        'https://objectnet.dev',
        folder='images/<folder>/*',
        folders='objectnet',
        transform='center_cut_border',
        classes='objectnet',
        note='its licence forbids training or tuning on it',
    ),
    'siscore_size': siscore('size', 92_884),
    'siscore_location': siscore('location', 541_548),
    'siscore_rotation': siscore('rotation', 39_540),
    'center_occlusion': RobustnessSet(
        'top1',
        50_000,
        'https://www.image-net.org',
        'imagenet2012',
        'validation',
        transform='center_occluded',
        note=f'the size of the hole, {HOLE} of 224, is inferred: the LUT paper says only that the center patch is zeroed',
    ),
}


@functools.cache
def read_classes(name: str) -> Any:
    """The 'classes' of evals/classes/<name>.json: synsets, class indices, or {folder: class indices}."""
    path = CLASSES / f'{name}.json'
    if not path.is_file():
        homes = {spec.classes: spec.home for spec in SETS.values()}
        raise DataError(
            f"The class list '{path}' is missing; take it from {homes.get(name, 'the mim_jax repository')} or install "
            'mim_jax again with its package data.'
        )
    return json.loads(path.read_text(encoding='utf-8'))['classes']


def list_parts(spec: RobustnessSet) -> list[dict[str, Any]]:
    """What the names in `spec.tfds` and `spec.folder` are formatted with, a dict per part; one empty dict for most sets.

    ImageNet-C has 75 parts; give `mean_corruption_error` 100 - top1 of every one.
    """
    if '{corruption}' not in spec.folder:
        return [{}]
    return [
        {'corruption': corruption, 'severity': severity} for corruption in ALEXNET_ERRORS for severity in SEVERITIES
    ]


def map_folders(spec: RobustnessSet, names: Sequence[str]) -> np.ndarray:
    """Names of class folders -> i64[len(names)], the label that `score` expects for each; -1: left out by the protocol.

    For ObjectNet a label numbers its 113 folders that ImageNet has, sorted, and the other 200 folders give -1. For the
    other sets it is the ImageNet class index. Raises DataError for a folder that the set does not have.
    """
    if spec.folders == 'objectnet':
        known = {name: label for label, name in enumerate(sorted(read_classes('objectnet')))}
        if not known.keys() & set(names):
            raise DataError(f'None of the 113 ObjectNet folders is there, but {sorted(names)[:3]}; see {spec.home}.')
        return np.array([known.get(name, -1) for name in names], np.int64)
    if spec.folders == 'siscore':
        known = read_classes('siscore')
    elif spec.folders == 'index':
        known = {str(label): label for label in range(1000)}
    else:
        known = {synset: label for label, synset in enumerate(read_classes('imagenet'))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"Folder '{unknown[0]}' is not a class of this set; its folders are called like "
            f"'{sorted(known)[0]}'. The set is described at {spec.home}."
        )
    return np.array([known[name] for name in names], np.int64)


def read_real_labels(path: str | Path, file_names: Sequence[str]) -> list[list[int]]:
    """The valid labels of ImageNet-ReaL's real.json for validation files named ILSVRC2012_val_00000001.JPEG and so on.

    The file lists images by that number, which is not the order of a folder sorted by class.
    """
    lists = json.loads(Path(path).read_text(encoding='utf-8'))
    if len(lists) != 50_000:
        raise DataError(f"'{path}' holds {len(lists)} lists of labels, not 50000; take real.json from its repository.")
    numbers = [re.search(r'ILSVRC2012_val_(\d{8})', name) for name in file_names]
    if None in numbers:
        strange = file_names[numbers.index(None)]
        raise DataError(f"'{strange}' is not named like ILSVRC2012_val_00000001.JPEG, so ReaL's label cannot be found.")
    return [lists[int(match[1]) - 1] for match in numbers]


def related_images(labels: np.ndarray) -> np.ndarray:
    """Labels i[n] of ImageNet's validation set -> bool[n]: the in-distribution half of ImageNet-O, 10,000 images."""
    return np.isin(labels, read_classes('imagenet_o'))


def cut_border(image: np.ndarray, pixels: int = 1) -> np.ndarray:
    """u8[H,W,3] -> u8[H-2,W-2,3]: without the red frame, one pixel wide, that marks every ObjectNet image."""
    return image[pixels:-pixels, pixels:-pixels]


def occlude_center(images: Any, hole: int = HOLE) -> Any:
    """Normalised images f[B,H,W,C], of NumPy or JAX -> the same with a central square of `hole` pixels set to 0.

    After normalisation 0 is the mean colour. Raises DataError when the square does not fit or has no centre.
    """
    height, width = images.shape[1:3]
    if not 0 < hole <= min(height, width) or (height - hole) % 2 or (width - hole) % 2:
        raise DataError(
            f'A hole of {hole} pixels has no place in the centre of {height} x {width}; use an even margin.'
        )
    kept = np.ones((height, width, 1), images.dtype)
    top, left = (height - hole) // 2, (width - hole) // 2
    kept[top : top + hole, left : left + hole] = 0
    return images * kept


def score(spec: RobustnessSet, logits: np.ndarray, labels: Any) -> dict[str, float]:
    """Logits f[n,1000] and labels in stored order -> metrics in percent.

    'top1': labels i[n]; top1 and top5 over all classes.
    'restricted': labels i[n]; top1 over the set's own 200 columns.
    'valid': labels n lists of classes; top1, correct if the argmax is in the list, images with an empty list left out.
    'sets': labels i[n] of `map_folders`, -1 left out; top1, correct if the argmax over all 1000 classes is in the set
      of the image's class (the ObjectNet paper), and top1_restricted, argmax over the 125 columns that occur in a set.
    'ood': labels bool[n], True for ImageNet-O and False for the related validation images; aupr and auroc of the score
      -max softmax over the set's 200 columns, out of distribution being positive.
    Raises DataError for labels that do not fit the rule.
    """
    logits = check_logits(logits, len(labels))
    if logits.shape[1] != 1000:
        raise DataError(f'The robustness sets need the 1000 classes of ImageNet-1k; this head has {logits.shape[1]}.')
    if spec.rule == 'ood':
        scores = -max_probability(restrict_classes(logits, read_classes(spec.classes)))
        return {'aupr': 100 * aupr(scores, np.asarray(labels)), 'auroc': 100 * auroc(scores, np.asarray(labels))}
    if spec.rule == 'valid':
        correct, counted = multilabel_correct(logits, labels)
        return {'top1': divide(correct, counted)}
    if spec.rule == 'sets':
        return score_sets(
            logits, np.asarray(labels), [classes for _, classes in sorted(read_classes(spec.classes).items())]
        )
    if spec.rule == 'restricted':
        return {'top1': score_restricted(logits, labels, read_classes(spec.classes))}
    return {f'top{k}': divide(top_k_correct(logits, labels, k), len(labels)) for k in (1, 5)}


def score_restricted(logits: np.ndarray, labels: np.ndarray, columns: Sequence[int]) -> float:
    """Top-1 in percent where only `columns` may be predicted; every label must be one of them."""
    labels = check_labels(labels, logits.shape[1])
    outside = np.setdiff1d(labels, columns)
    if len(outside):
        raise DataError(
            f'Label {outside[0]} is not one of the {len(columns)} classes of this set; labels must be ImageNet class '
            'indices, not places in a sorted list of folders.'
        )
    columns = np.sort(columns)
    return divide(top_k_correct(restrict_classes(logits, columns), np.searchsorted(columns, labels)), len(labels))


def score_sets(logits: np.ndarray, labels: np.ndarray, sets: Sequence[Collection[int]]) -> dict[str, float]:
    """Both rules of ObjectNet, in percent of the images whose label is not -1."""
    kept = labels != -1
    if not kept.any():
        raise DataError('No image of this set has a class that ImageNet has; check its folders.')
    logits, labels = logits[kept], labels[kept]
    return {
        'top1': divide(set_correct(logits, labels, sets), len(labels)),
        'top1_restricted': divide(set_correct(logits, labels, sets, restricted=True), len(labels)),
    }


def max_probability(logits: np.ndarray) -> np.ndarray:
    """Logits f[n,C] -> f64[n], the largest softmax probability."""
    logits = logits.astype(np.float64)
    return 1.0 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def divide(correct: int, counted: int) -> float:
    """Integers to percent: the one division of an accuracy."""
    if counted == 0:
        raise DataError('No image of this set has a label; check the dataset.')
    return 100.0 * correct / counted
