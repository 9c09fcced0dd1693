"""What all programs share: the command line, and errors as one sentence with an exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mim_jax.config import check_config, load_config
from mim_jax.errors import UserError
from mim_jax.methods import METHODS
from mim_jax.paths import explain, is_about_bucket
from mim_jax.training.interrupt import stop_early

INTERRUPTED = 75  # EX_TEMPFAIL: run the same command again
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
PACKAGES = ('mim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'tensorflow-datasets', 'numpy')


def parse_arguments(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """The parser's own options, and the '--config.key=value' (or '--config.key value') overrides."""
    joined: list[str] = []
    pending = iter(arguments)
    for argument in pending:
        if argument.startswith('--config.') and '=' not in argument:
            argument = f'{argument}={next(pending, "")}'
        joined.append(argument)
    options, overrides = parser.parse_known_args(joined)
    return options, overrides


def read_config(spec: str, overrides: Sequence[str]) -> tuple[Any, Any]:
    """(config, the file's own config), checked as far as it can be without devices or data."""
    config, reference = load_config(spec, overrides, METHODS)
    check_config(config, METHODS)
    return config, reference


def run_program(main: Callable[[Sequence[str]], int]) -> None:
    """Exit with main's status; a UserError becomes its sentence on standard error and its own status."""
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax and Grain narrate
    stop_early()  # SIGTERM is a scheduler's Ctrl-C; the loop has its own handlers
    try:
        with explain_shortages():
            status = main(sys.argv[1:])
    except UserError as error:
        print(f'error: {error}', file=sys.stderr, flush=True)
        status = error.exit_status
    except KeyboardInterrupt:
        print('Stopped; the last checkpoint stands. Run the same command to go on.', file=sys.stderr, flush=True)
        status = INTERRUPTED
    sys.exit(status)


@contextlib.contextmanager
def explain_shortages() -> Iterator[None]:
    """Turn a full disk, exhausted device memory and a bucket's refusal, which the user can mend, into a UserError."""
    try:
        yield
    except Exception as error:
        reason = explain_shortage(error)
        if reason is None:
            raise
        raise UserError(reason) from error


def explain_shortage(error: Exception) -> str | None:
    """What is short and what to do; None for any other error."""
    if is_about_bucket(error):
        return f'A file of the bucket cannot be used: {explain(error)}.'
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return (
            f'{error.filename or "A file of the workdir"} could not be written ({error.strerror}); free disk space '
            'there and run the same command again.'
        )
    if isinstance(error, jax.errors.JaxRuntimeError) and 'RESOURCE_EXHAUSTED' in str(error):
        return (
            f'Out of device memory ({str(error).splitlines()[0]}); raise accumulate (batch and lr stay the same), set '
            'encoder.remat=full and encoder.scan=true, or mesh.fsdp.'
        )
    return None


def describe_machine() -> dict[str, Any]:
    """Versions of everything that could change a number, devices, and the commit of this code."""
    devices = jax.devices()
    return {
        'versions': {'python': platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        'devices': {'kind': devices[0].device_kind, 'platform': devices[0].platform, 'count': len(devices)},
        'hosts': jax.process_count(),
        'cpus': os.cpu_count(),
        'commit': find_commit(),
    }


def find_commit() -> str | None:
    """The git commit of the code, '+' appended when files differ from it; None where git cannot tell."""
    root = Path(__file__).parents[1]
    if not (root / '.git').exists() or shutil.which('git') is None:
        return None

    def git(*arguments: str) -> str | None:
        answer = subprocess.run(['git', '-C', str(root), *arguments], capture_output=True, text=True)
        return answer.stdout.strip() if answer.returncode == 0 else None

    commit = git('rev-parse', 'HEAD')
    return commit and commit + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
