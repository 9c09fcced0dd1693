"""Datasets as random-access sequences of examples: TFDS, folders, .npz files, embedded digits, synthetic images."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np
from PIL import Image

from mim_jax.data.images import BadImage
from mim_jax.errors import DataError

_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
_SPLIT_NAMES = ('train', 'training', 'val', 'valid', 'validation', 'test')
_SYNTHETIC_SIZES = {'train': 65536, 'validation': 8192, 'test': 8192}


class Example(NamedTuple):
    """One image, encoded or as u8[H,W], u8[H,W,1] or u8[H,W,3]; its class, -1 without; a name for messages."""

    image: bytes | np.ndarray
    label: int
    name: str


class Source(Protocol):
    """Random access to examples: thread-safe, picklable, the same example for the same index, always."""

    num_classes: int  # 0: no labels
    description: str
    fingerprint: str  # 16 hex digits of what decides index -> example; neither data.dir nor caching changes it

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def open_source(data: ml_collections.ConfigDict, split: str) -> Source:
    """Opens `split` of the dataset that the section `data` names; cache.cache_source keeps it in memory.

    Splits may be sliced: 'train[:90%]', 'train[100:200]'. TFDS slices its stored, shuffled order; the other sources
    slice one fixed shuffled order, so that every slice of a folder sorted by class holds all classes.

    Raises:
      DataError: nothing there, not prepared, unreadable, an unknown split or an empty slice; says what to do.
    """
    place = Path(data.dir).expanduser()
    openers = {
        'tfds': lambda: _open_tfds(data.name, data.dir, split),
        'folder': lambda: _open_folder(place, split),
        'npz': lambda: _open_npz(place, split),
        'digits': lambda: _open_digits(split),
        'synthetic': lambda: SyntheticSource(_slice_rows(split, _SYNTHETIC_SIZES, 'the synthetic source'), split),
    }
    if data.source not in openers:
        raise DataError(f"data.source='{data.source}' is unknown; use one of {', '.join(openers)}.")
    if data.source in ('folder', 'npz') and not data.dir:
        raise DataError(f"data.source='{data.source}' needs data.dir: the folder of images, or the .npz file.")
    source = openers[data.source]()
    if len(source) == 0:
        raise DataError(f"Split '{split}' of {source.description} is empty; choose a larger slice.")
    return source


def _slice_rows(split: str, sizes: dict[str, int], place: str) -> np.ndarray:
    """Row numbers of 'name' in stored order, or of 'name[a:b]' in a fixed shuffled order. Bounds as tfds has them."""
    match = re.fullmatch(r'([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?', split)
    if match is None:
        raise DataError(f"Split '{split}' cannot be read; write it as 'train', 'train[:90%]' or 'train[100:200]'.")
    name, *bounds = match.groups()
    if name not in sizes:
        raise DataError(f"There is no split '{name}' in {place}; it has {', '.join(sorted(sizes))}.")
    n = sizes[name]
    if '[' not in split:
        return np.arange(n)
    start, stop = (b and (round(n * int(b[:-1]) / 100) if b.endswith('%') else int(b)) for b in bounds)
    return np.argsort(np.random.Philox(key=0).random_raw(n), kind='stable')[start:stop]


def _digest(*parts: str | int | None | np.ndarray) -> str:
    """16 hex digits. Runs store them: what is hashed for an unchanged dataset must never change."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            part = part.astype('<i8') if part.ndim == 1 else part  # rows or labels of any type, or u8 pixels
            state.update(f'{part.dtype.str}{part.shape}\0'.encode())
            state.update(part.ravel())
        else:
            state.update(f'{part}\0'.encode('utf-8', 'surrogateescape'))
    return state.hexdigest()


class ArraySource:
    """Images that are in memory already: u8[N,H,W], u8[N,H,W,1] or u8[N,H,W,3], and labels [N] or None; `rows` of them."""

    def __init__(self, images, labels: np.ndarray | None, num_classes: int, rows: np.ndarray, name: str, digest: str):
        self.num_classes, self.description, self.fingerprint = num_classes, f'{name}: {len(rows):,} images', digest
        self._images, self._rows, self._name = images[rows], rows, name
        self.labels = np.full(len(rows), -1) if labels is None else labels[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return Example(self._images[index], int(self.labels[index]), f'{self._name}[{self._rows[index]}]')


class SyntheticSource:
    """Noise that depends on the row alone, 64 x 64, label row % 10: tells an input-bound run from a compute-bound."""

    num_classes = 10

    def __init__(self, rows: np.ndarray, split: str):
        self.description = f'synthetic {split}: {len(rows):,} images'
        self.fingerprint = _digest('synthetic', split.split('[')[0], rows)
        self._rows, self._stream = rows, 0 if split.startswith('train') else 1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        row = int(self._rows[index])
        raw = np.random.Philox(key=self._stream, counter=row << 192).random_raw(64 * 64 * 3 // 8)
        return Example(raw.astype('<u8').view(np.uint8).reshape(64, 64, 3), row % 10, f'synthetic[{row}]')


class FolderSource:
    """Image files of the split `name`, given relative to `root`; labels [N] number `classes`, folders, -1 without."""

    def __init__(self, root: Path, name: str, files: list[str], labels: np.ndarray, classes: list[str]):
        known = f'in {len(classes)} classes' if classes else 'without labels'
        self.num_classes, self.description = len(classes), f'{root}: {len(files):,} images {known}'
        self.fingerprint = _digest('folder', name, '\0'.join(files), labels)
        self.root, self.files, self.labels, self.classes = root, files, labels, classes

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        path = self.root / self.files[index]
        try:
            return Example(path.read_bytes(), int(self.labels[index]), str(path))
        except OSError as error:
            raise BadImage(str(path), index, error.strerror or str(error)) from error


class TfdsSource:
    """A TFDS split stored as ArrayRecord; images stay encoded."""

    def __init__(self, records, num_classes: int, name: str, digest: str):
        self.num_classes, self.description, self.fingerprint = num_classes, f'{name}: {len(records):,} images', digest
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        label = int(record['label']) if self.num_classes else -1
        key = record.get('file_name', record.get('id', b''))
        name = key.decode('utf-8', 'replace') if isinstance(key, bytes) else str(key)
        return Example(record['image'], label, f'{self._name}[{index}] {name}'.rstrip())

    def read_feature(self, index: int, feature: str) -> Any:
        """What else the record of an image says, such as the list of its valid labels."""
        return self._records[index][feature]


def _open_tfds(name: str, directory: str, split: str) -> TfdsSource:
    import tensorflow_datasets as tfds  # slow to import, and never needed by the other sources

    try:
        builder = tfds.builder(name, data_dir=directory or None, file_format='array_record')
    except (ValueError, AssertionError) as error:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), 1)
        hint = f" Did you mean '{near[0]}'?" if near and near[0] != name else ''
        place = directory or tfds.core.constants.DATA_DIR
        raise DataError(
            f"TFDS knows no dataset data.name='{name}', and there is none in {place} (data.dir).{hint}"
        ) from error
    if not builder.info.splits:
        folder = f', data_dir={directory!r}' if directory else ''
        raise DataError(
            f"Dataset '{name}' is not prepared: nothing in {builder.data_path}. Set data.dir to where it is, "
            f'or prepare it once: python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}{folder}, file_format='array_record').download_and_prepare()\""
        )
    features = dict(builder.info.features.items())
    if not isinstance(features.get('image'), tfds.features.Image):
        raise DataError(f"Dataset '{name}' has no image feature called 'image', only {', '.join(features)}.")
    try:
        records = builder.as_data_source(split=split, decoders={'image': tfds.decode.SkipDecoding()})
    except ValueError as error:
        splits = ', '.join(builder.info.splits)
        raise DataError(f"There is no split '{split}' in dataset '{name}'; it has {splits}, also in slices.") from error
    except NotImplementedError as error:
        raise DataError(
            f"Dataset '{name}' in {builder.data_path} is not stored as ArrayRecord. Set data.dir to another folder and "
            "prepare it there with file_format='array_record'."
        ) from error
    label = features.get('label')
    classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
    digest = _digest('tfds', builder.info.full_name, split, len(records))  # full_name: with config and version
    return TfdsSource(records, classes, f'{name}/{split}', digest)


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """The subfolders and the image files in `folder`, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        seen = [(e.name, e.is_dir()) for e in entries if not e.name.startswith('.')]
    folders, files = ([name for name, is_folder in seen if is_folder == wanted] for wanted in (True, False))
    return sorted(folders), sorted(file for file in files if file.lower().endswith(_EXTENSIONS))


def _open_folder(root: Path, split: str) -> FolderSource:
    """root/<split>/<class>/*.jpg; root/<split>/*.jpg, no labels; or root/<class>/*.jpg, whose only split is 'train'.

    Labels mean the same in every split: they number the classes of all splits together, sorted.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder '{root}'; set data.dir to the folder that holds the images.")
    layout = 'put images into <data.dir>/<split>/<class>/ or <data.dir>/<class>/ (without labels: one folder "all")'
    name, content = split.split('[')[0], {folder: _list_folder(root / folder) for folder in _list_folder(root)[0]}
    usual = [f for f in content if f.lower() in _SPLIT_NAMES]
    if name not in content and not usual and any(files for _, files in content.values()):
        splits, base, classes = ['train'], root, list(content)
        found = [(f'{c}/{file}', k) for k, c in enumerate(classes) for file in content[c][1]]
    else:
        labelled = [f for f in content if any(_list_folder(root / f / c)[1] for c in content[f][0])]
        bare = [f for f, (_, files) in content.items() if files and f not in labelled]
        doubtful = [f for f in bare if f not in (name, *usual)]
        if doubtful and not labelled:
            raise DataError(
                f"Folder '{doubtful[0]}' in {root} could be a class or a split beside '{(usual or [name])[0]}'; "
                'put images into <data.dir>/<split>/<class>/ (without labels: <split>/all/).'
            )
        splits, base = sorted(labelled + bare), root / name
        classes = sorted({c for f in labelled for c in content[f][0]}) if name in labelled else []
        present = [(k, c) for k, c in enumerate(classes) if c in content[name][0]]
        found = [(f'{c}/{file}', k) for k, c in present for file in _list_folder(base / c)[1]]
        found = found or [(file, -1) for file in content.get(name, ([], []))[1]]
    if not splits:
        raise DataError(f"No images ({', '.join(_EXTENSIONS)}) in folders of '{root}'; {layout}.")
    if name not in splits:
        raise DataError(f"There is no split '{name}' in {root}; it has {', '.join(splits)}, also in slices.")
    rows = _slice_rows(split, {name: len(found)}, str(root))
    labels = np.array([found[r][1] for r in rows], np.int32)
    return FolderSource(base, name, [found[r][0] for r in rows], labels, classes)


def _open_npz(path: Path, split: str) -> ArraySource:
    """`images` and optional `labels` (split 'train'), or `<split>_images` and optional `<split>_labels`."""
    if not path.is_file():
        raise DataError(f"There is no file '{path}'; set data.dir to the .npz file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files if key.endswith(('images', 'labels'))}
    except (ValueError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise DataError(f"'{path}' is not a readable .npz file of plain arrays: {error}.") from error
    prefixes = {'train': ''} if 'images' in arrays else {k[:-7]: k[:-6] for k in arrays if k.endswith('_images')}
    if not prefixes:
        raise DataError(f"'{path}' holds no images; name its arrays images and labels, or train_images and so on.")
    sizes = {name: len(arrays[f'{prefix}images']) for name, prefix in prefixes.items()}
    rows = _slice_rows(split, sizes, str(path))
    name = split.split('[')[0]
    prefix = prefixes[name]
    images, labels = arrays[f'{prefix}images'], arrays.get(f'{prefix}labels')
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
        raise DataError(
            f"'{prefix}images' in {path} is {images.dtype} of {images.shape}; "
            'it must be uint8 of NxHxW, NxHxWx1 or NxHxWx3.'
        )
    if labels is not None and (
        labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu' or labels.min(initial=0) < 0
    ):
        raise DataError(
            f"'{prefix}labels' in {path} is {labels.dtype} of {labels.shape}; it must hold {len(images)} integers >= 0."
        )
    known = [arrays[f'{p}labels'] for p in prefixes.values() if f'{p}labels' in arrays]
    classes = 0 if labels is None else int(max(a.max(initial=0) for a in known)) + 1
    return ArraySource(images, labels, classes, rows, f'{path.name}:{name}', _digest('npz', name, rows, images, labels))


def _open_digits(split: str) -> ArraySource:
    """1,797 scans of handwritten digits (UCI optical digits, as in scikit-learn), enlarged from 8 to 32 pixels."""
    with np.load(Path(__file__).with_name('digits.npz')) as file:
        images, labels, test = file['images'], file['labels'], file['test']
    name = split.split('[')[0]
    sizes = {'train': int((~test).sum()), 'test': int(test.sum())}
    rows = np.flatnonzero(test if name == 'test' else ~test)[_slice_rows(split, sizes, 'the embedded digits')]
    levels = np.round(images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(x).resize((32, 32), Image.Resampling.BICUBIC).convert('RGB')) for x in levels]
    return ArraySource(np.stack(large), labels, 10, rows, f'digits:{name}', _digest('digits', name, rows))
