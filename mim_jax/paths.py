"""Where files are: in a folder, or in a bucket, gs://name/run. Both have pathlib's methods; what differs is here.

A bucket has no folders, no renaming and no appending, but every object in it is replaced whole or not at all. Its paths are
etils', over gcsfs, as Orbax's are.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
from etils import epath

from mim_jax.errors import BucketError, WorkdirError
from mim_jax.parallel.hosts import is_first

PACKAGES = {'gcsfs': 'gcsfs', 'google.cloud.storage': 'google-cloud-storage'}  # Orbax asks the latter about a bucket
REFUSED = r'Forbidden|PERMISSION_DENIED'
MISSING = r'NOT_FOUND'


def is_bucket(path: Any) -> bool:
    """Whether a path, or its text, is an address in a bucket."""
    return str(path).startswith('gs://')


def open_path(path: str | os.PathLike) -> Path:
    """pathlib's path of a folder or file; etils' of an address in a bucket. Touches no file and no network.

    Raises WorkdirError for an address of another kind, such as s3://, and where the packages for buckets are missing.
    """
    text = str(path)
    if not re.match(r'[a-z][a-z0-9+.-]+:/', text):
        return Path(path)
    if not re.match(r'gs://[^/]', text):
        raise WorkdirError(f'{text} is neither a folder nor an address in a bucket, which is gs://bucket/folder.')
    missing = [package for module, package in PACKAGES.items() if not is_installed(module)]
    if missing:
        raise WorkdirError(f'{text} is in a bucket, for which packages are missing: pip install {" ".join(missing)}')
    # What TensorStore writes is not in gcsfs' listings of before, and neither is what other hosts write.
    fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False
    os.environ.setdefault('EPATH_USE_TF', 'false')  # with TensorFlow beside us, etils would go through that
    logging.getLogger('gcsfs').setLevel(logging.CRITICAL)  # prints tracebacks of what we say in a sentence
    return epath.Path(text)


def is_installed(module: str) -> bool:
    """Whether a module can be imported; its parents are imported for that."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def replace_file(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a whole file or leave the old one: a reader, or a run killed here, never sees half of it.

    A run has one writer: on every host but the first this does nothing.
    Raises OSError; for a bucket its kind BucketError, which says what to do.
    """
    if not is_first():
        return
    path = open_path(path)
    data = content.encode() if isinstance(content, str) else content
    if is_bucket(path):
        files, place = fsspec.core.url_to_fs(str(path))
        with explained(path):
            files.pipe_file(place, data)  # one request, or one upload that counts when it is complete
        return
    temporary = path.with_name(path.name + '.tmp')
    with temporary.open('wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A local name to write to; it takes the place of `path` when the block ends well, and goes otherwise."""
    if is_bucket(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (temporary := Path(folder) / path.name)
            with explained(path):
                epath.Path(temporary).copy(path, overwrite=True)
        return
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}')
    try:
        yield temporary
        temporary.chmod(0o644)  # safetensors leaves it to its owner alone
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def move_folder(source: epath.Path, target: epath.Path, mark: str) -> None:
    """Give a folder another name. mark: the file in it without which it does not count.

    In a bucket everything is copied, there, before the mark goes and then the rest: wherever it is broken off, the source
    is whole and counts, or the target is whole and the source does not count.
    """
    if not is_bucket(source):
        source.rename(target)
        return
    files, start = fsspec.core.url_to_fs(str(source))
    with explained(source):
        for name in files.find(start):
            files.cp_file(name, f'{target}{name.removeprefix(start)}')
        (source / mark).unlink(missing_ok=True)
        source.rmtree()


@contextlib.contextmanager
def explained(path: Any) -> Iterator[None]:
    """Around one request to a bucket: whatever it raises becomes a BucketError. Nothing is done about a folder."""
    try:
        yield
    except Exception as error:
        if not is_bucket(path):
            raise
        raise BucketError(f'{path} cannot be used: {explain(error)}.') from error


def is_about_bucket(error: Exception) -> bool:
    """Whether an error comes from the packages that talk to a bucket."""
    theirs = type(error).__module__.startswith(
        ('gcsfs.', 'aiohttp.', 'google.auth.', 'google.api_core.', 'google.cloud.')
    )
    return theirs or (isinstance(error, OSError) and str(error).startswith('Forbidden'))


def explain(error: Exception) -> str:
    """What an error of gcsfs or TensorStore means, and what to do."""
    text = next(iter(str(error).splitlines()), type(error).__name__)
    short = re.sub(r" \[\w+='.*", '', text).rstrip('.')  # without TensorStore's copies of the answer
    code = getattr(error, 'code', None)
    if code == 401 or "code='401'" in text or type(error).__module__.startswith('google.auth'):
        return (
            f'there are no valid credentials ({short}); run gcloud auth application-default login, or set '
            'GOOGLE_APPLICATION_CREDENTIALS to the file of a service account'
        )
    if code == 403 or re.match(REFUSED, text):
        return (
            f'the credentials found here do not suffice ({short}); they need the roles storage.objectAdmin and '
            'storage.legacyBucketReader there'
        )
    if code == 404 or isinstance(error, FileNotFoundError) or re.match(MISSING, text):
        return f'there is no such bucket ({short}); make it, or mend the name'
    return f'it cannot be reached now ({short}); check the network, and run the same command again'
