"""Datasets with smaller images: each resized and encoded once, in ArrayRecord shards that TFDS reads as any of its own."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image

from mim_jax.data.augment import resized_shape
from mim_jax.data.images import BadImage, decode
from mim_jax.data.sources import Source
from mim_jax.errors import DataError
from mim_jax.paths import replace_file, replacing

VERSION, SETTINGS = '1.0.0', 'prepare.json'
_NAME = r'[a-z][a-z0-9_]*'
_COMPRESSION = 'group_size:1'  # one record is read at a time; JPEG does not shrink further


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """How images become smaller.

    short_side: in pixels, of larger images, by Pillow's antialiased bicubic filter and torchvision's rounding of the longer
    side; smaller images keep their bytes. quality: of JPEG, 1 to 100, with halved chroma.
    """

    short_side: int = 256
    quality: int = 92

    def __post_init__(self):
        if self.short_side < 1 or not 1 <= self.quality <= 100:
            raise DataError(
                f'The short side is {self.short_side} and the quality {self.quality}: use >= 1 and 1 to 100.'
            )

    def __call__(self, data: bytes | np.ndarray, name: str, index: int) -> tuple[bytes, float | None]:
        """(encoded image, PSNR in dB of its pixels against the resized ones; None where the bytes are as they were).

        An array that is small enough is stored as PNG. Raises BadImage.
        """
        image = decode(data, name, index)
        if min(image.size) <= self.short_side:
            return data if isinstance(data, bytes) else _encode(image, 'PNG'), None
        small = image.resize(resized_shape(*image.size, self.short_side), Image.Resampling.BICUBIC)
        encoded = _encode(small, 'JPEG', quality=self.quality, subsampling='4:2:0')
        stored = np.asarray(Image.open(io.BytesIO(encoded)), np.float32)
        error = float(np.square(stored - np.asarray(small, np.float32)).mean())
        return encoded, 10 * math.log10(255**2 / error) if error else math.inf


@dataclasses.dataclass
class Written:
    """What became of one split: images in each shard, bytes, names of bad images, PSNRs of those that were resized."""

    lengths: list[int] = dataclasses.field(default_factory=list)
    size: int = 0
    bad: list[str] = dataclasses.field(default_factory=list)
    psnrs: list[float] = dataclasses.field(default_factory=list)
    found: int = 0  # shards that were there already


def begin_dataset(root: Path, name: str, settings: dict[str, Any]) -> Path:
    """The folder of dataset `name` in `root`, its settings written down.

    Raises DataError where the name is none that TFDS takes, or the folder is another's, or of other settings.
    """
    if not re.fullmatch(_NAME, name):
        raise DataError(f"'{name}' cannot name a dataset: use small letters, digits and _, a letter first.")
    folder = root / name / VERSION
    file = folder / SETTINGS
    if not file.exists() and folder.exists() and any(folder.iterdir()):
        raise DataError(f'{folder} holds something else; choose another --out or --name.')
    folder.mkdir(parents=True, exist_ok=True)
    if file.exists():
        other = json.loads(file.read_text())
        differing = sorted(key for key in settings.keys() | other.keys() if settings.get(key) != other.get(key))
        if differing:
            told = '; '.join(f'{key} was {other.get(key)}, is {settings.get(key)}' for key in differing)
            raise DataError(f'{folder} was begun with other settings ({told}); choose another --name, or delete it.')
    replace_file(file, json.dumps(settings, indent=1) + '\n')
    return folder


def write_split(
    source: Source,
    folder: Path,
    split: str,
    shrink: Shrinking,
    per_shard: int,
    threads: int,
    skip_bad: bool,
    report: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write the examples of `source`, in their order, `per_shard` to a file; whole files that are there stay.

    report: called with the number of examples done after every shard. Raises BadImage unless `skip_bad`.
    """
    written, name = Written(), folder.parent.name
    starts = range(0, len(source), per_shard)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for number, start in enumerate(starts):
            stop = min(start + per_shard, len(source))
            path = folder / f'{name}-{split}.array_record-{number:05d}-of-{len(starts):05d}'
            if path.exists():
                written.found += 1
            else:
                examples = _shrink_all(source, range(start, stop), shrink, skip_bad, pool, written)
                try:
                    _write_shard(path, examples)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)  # else the rest of the file would be made first
                    raise
            written.lengths.append(_count_records(path))
            written.size += path.stat().st_size
            report(stop)
    return written


def end_dataset(folder: Path, splits: dict[str, Written], source: Source, description: str) -> None:
    """Write what TFDS wants to know of a dataset; until then it finds none."""
    import tensorflow_datasets as tfds  # slow to import

    features: dict[str, Any] = {'file_name': tfds.features.Text(), 'image': tfds.features.Image(shape=(None, None, 3))}
    if source.num_classes:
        names = getattr(source, 'classes', None)
        label = tfds.features.ClassLabel(names=names) if names else tfds.features.ClassLabel(source.num_classes)
        features['label'] = label
    tfds.features.FeaturesDict(features).save_config(folder)
    items = [{'featureKey': key} for key in ('image', 'label')]
    info = {
        'description': description,
        'fileFormat': 'array_record',
        'name': folder.parent.name,
        'version': VERSION,
        'splits': [
            {
                'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
                'name': split,
                'numBytes': str(written.size),
                'shardLengths': [str(length) for length in written.lengths],
            }
            for split, written in splits.items()
        ],
        **({'supervisedKeys': {'tuple': {'items': items}}} if source.num_classes else {}),
    }
    replace_file(folder / 'dataset_info.json', json.dumps(info, indent=1) + '\n')


def _shrink_all(
    source: Source,
    indices: range,
    shrink: Shrinking,
    skip_bad: bool,
    pool: concurrent.futures.Executor,
    written: Written,
) -> Iterator[bytes]:
    """Records in order."""

    def one(index: int) -> tuple[bytes, float | None] | BadImage:
        try:
            example = source[index]
            image, psnr = shrink(example.image, example.name, index)
        except BadImage as error:
            return error
        files = getattr(source, 'files', None)
        name = files[index] if files else example.name.partition('] ')[2] or example.name
        return _make_record(image, example.label if source.num_classes else None, name), psnr

    for found in pool.map(one, indices):
        if isinstance(found, BadImage):
            if not skip_bad:
                raise found
            written.bad.append(found.name)
            continue
        record, psnr = found
        if psnr is not None:
            written.psnrs.append(psnr)
        yield record


def _make_record(image: bytes, label: int | None, name: str) -> bytes:
    """A serialised tf.train.Example, as TFDS stores its records."""
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    def of_bytes(value: bytes) -> Any:
        return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[value]))

    feature = {'image': of_bytes(image), 'file_name': of_bytes(name.encode('utf-8', 'surrogateescape'))}
    if label is not None:
        feature['label'] = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[label]))
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
    return example.SerializeToString(deterministic=True)


def _write_shard(path: Path, records: Iterator[bytes]) -> None:
    """All records or no file."""
    with replacing(path) as part:
        writer = array_record_module.ArrayRecordWriter(str(part), _COMPRESSION)
        try:
            for record in records:
                writer.write(record)
        finally:
            writer.close()


def _count_records(path: Path) -> int:
    """Raises DataError where it is no such file."""
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        count = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError) as error:
        raise DataError(f'{path} cannot be read ({error}); delete it and run the same command again.') from error
    return count


def _encode(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
