"""The images of the robustness sets, from TFDS or from folders: where they are, how they are cut, what their labels mean.

In folders, DIR/<set> holds what the set's archive holds, such as DIR/imagenet_a/n01498041/*.jpg, DIR/imagenet_v2/0/*.jpeg,
DIR/imagenet_c/fog/3/n01440764/*.JPEG, DIR/objectnet/images/alarm_clock/*.png; ReaL is DIR/real.json. ImageNet's validation
images, which ReaL, center occlusion and half of ImageNet-O are made of, are always the evaluation's data.eval_split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mim_jax.data.augment import eval_resize, resized_shape
from mim_jax.data.sources import Source, open_source
from mim_jax.data.subsets import SubsetSource, read_labels, read_names, read_rows
from mim_jax.errors import ConfigError, DataError
from mim_jax.evals.robustness import (
    RELATED,
    SETS,
    cut_border,
    list_parts,
    map_folders,
    read_real_labels,
    related_images,
)

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SetCrop:
    """RGB image of any size -> u8[size,size,3] by a set's transform, bicubic; 'center_occluded' is cut as 'center' is.

    An image that has this size already is enlarged and cut like any other, which data.augment's crop does not do.
    """

    transform: str
    size: int

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        del rng
        if self.transform == 'center_cut_border':
            image = Image.fromarray(cut_border(np.asarray(image)))
        if self.transform != 'center_only':
            shape = resized_shape(*image.size, eval_resize(self.size))
            image = image.resize(shape, Image.Resampling.BICUBIC)
        width, height = image.size
        if min(width, height) < self.size:
            raise DataError(
                f'An image of {width} x {height} pixels cannot be cut to {self.size}: it is not enlarged here.'
            )
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))


@dataclass(frozen=True)
class Images:
    """source: of one part of a set; label: rows of a batch -> what robustness.score expects, one item per row."""

    source: Source
    label: Callable[[Rows], Sequence[Any]]


@dataclass(frozen=True)
class Place:
    """source: 'tfds' or 'folder'; dir: of TFDS ('' is data.dir), or of folders; whole: sets of another size than the
    published one are refused; data: the config's section."""

    source: str
    dir: str
    whole: bool
    data: ConfigDict


def open_sets(names: Sequence[str], place: Place) -> dict[str, list[Callable[[], list[Images]]]]:
    """{set: what opens each of its parts}. Everything is looked for at once: DataError for the first set that is not there."""
    if place.source not in ('tfds', 'folder'):
        raise ConfigError(f"robustness.source='{place.source}' must be tfds or folder.")
    unknown = [name for name in names if name not in SETS]
    if unknown or not names:
        raise ConfigError(f'robustness.sets: {unknown[0] if unknown else "none"} is no set; use {", ".join(SETS)}.')
    found = {}
    for name in names:
        parts = list_parts(SETS[name])
        for part in parts[1:]:
            find_part(name, part, place)
        first = open_part(name, parts[0], place)
        found[name] = [lambda first=first: first, *(partial(open_part, name, part, place) for part in parts[1:])]
    return found


def open_part(name: str, part: Mapping[str, Any], place: Place) -> list[Images]:
    """The images of one part; ImageNet-O's are in two sources, those out of the distribution first.

    Raises DataError where they are not as many as were published.
    """
    images = find_images(name, part, place)
    for kind, published in zip(images, (SETS[name].images, RELATED), strict=False):
        if place.whole and len(kind.source) != published:
            raise DataError(
                f'{name}: {kind.source.description} has {len(kind.source):,} images, and {published:,} were published '
                f'({SETS[name].home}). Complete it, or test what is there with robustness.whole=False.'
            )
    return images


def find_images(name: str, part: Mapping[str, Any], place: Place) -> list[Images]:
    """open_part's, however many there are."""
    spec = SETS[name]
    if spec.transform == 'center_occluded':
        return [Images(open_validation(name, place.data), given_label)]
    if spec.rule == 'valid':
        return [open_real(name, place)]
    source = find_part(name, part, place)
    if isinstance(source, Path):
        source = open_source(ConfigDict({'source': 'folder', 'dir': str(source), 'name': ''}), 'train')
        if spec.rule == 'ood':
            validation = open_validation(name, place.data)
            related = SubsetSource(
                validation, np.flatnonzero(related_images(read_labels(validation))), 'the related validation images'
            )
            return [
                Images(kind, lambda rows, outside=outside: np.full(len(rows['index']), outside))
                for kind, outside in ((source, True), (related, False))
            ]
        labels = map_folders(spec, source.classes)
        kept = np.flatnonzero(labels[source.labels] != -1)
        if len(kept) < len(source):
            source = SubsetSource(
                source, kept, f'{source.description}, of these {len(kept):,} with a class of ImageNet'
            )
        return [Images(source, lambda rows: labels[rows['label']])]
    return [Images(source, given_label)]


def given_label(rows: Rows) -> np.ndarray:
    """The source's own, ImageNet's class indices."""
    return rows['label']


def find_part(name: str, part: Mapping[str, Any], place: Place) -> Source | Path:
    """The opened TFDS split, or the folder of class folders. Raises DataError saying where the images are to be had."""
    spec = SETS[name]
    if place.source == 'tfds' and spec.tfds:
        where = {'source': 'tfds', 'name': spec.tfds.format(**part), 'dir': place.dir or tfds_folder(place.data)}
        try:
            return open_source(ConfigDict(where), spec.split)
        except DataError as error:
            raise DataError(f'{name}, of {spec.home}, is not there: {error}') from error
    if not place.dir:
        raise DataError(
            f'{name} is read from folders: set robustness.dir to the folder that holds {name}, of {spec.home}.'
        )
    folder = Path(place.dir).expanduser() / name / spec.folder.partition('<folder>')[0].format(**part)
    if not folder.is_dir():
        raise DataError(f"{name} is not there: there is no folder '{folder}'; the images are to be had at {spec.home}.")
    return folder


def tfds_folder(data: ConfigDict) -> str:
    """Where the evaluation's own dataset is, if that is of TFDS."""
    return data.dir if data.source == 'tfds' else ''


def open_validation(name: str, data: ConfigDict) -> Source:
    """ImageNet's validation images. Raises DataError when data.eval_split has other classes."""
    source = open_source(data, data.eval_split)
    if source.num_classes != 1000:
        raise DataError(
            f"{name} needs ImageNet's validation images as data.eval_split, but {source.description} has "
            f'{source.num_classes} classes.'
        )
    return source


def open_real(name: str, place: Place) -> Images:
    """The validation images with all of their valid labels, of TFDS or of real.json."""
    if place.source == 'tfds':
        source = find_part(name, {}, place)
        lists = read_rows(source, lambda row: [int(label) for label in source.read_feature(row, SETS[name].label)])
    else:
        file = Path(place.dir).expanduser() / 'real.json'
        if not file.is_file():
            raise DataError(
                f"{name} is not there: there is no file '{file}' (robustness.dir); it is to be had at {SETS[name].home}."
            )
        source = open_validation(name, place.data)
        lists = read_real_labels(file, read_names(source))
    return Images(source, lambda rows: [lists[index] for index in rows['index']])
