"""What all programs share: the command line, and errors as one sentence with an exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from mim_jax.config import check_config, load_config, shared_settings
from mim_jax.errors import UserError
from mim_jax.methods import METHODS
from mim_jax.parallel.agreement import agree
from mim_jax.parallel.lifeline import GRACE
from mim_jax.parallel.startup import abandon_hosts, is_joined, join_hosts, leave_hosts, prefix_host, read_number
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


def join_and_parse(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """`parse_arguments` of a program that touches devices: its hosts, where there are several, are joined afterwards.

    Raises ConfigError, HostLost or HostsDiffer.
    """
    hosts = parser.add_argument_group('several hosts', 'found by themselves on TPU pods, under SLURM and Open MPI')
    hosts.add_argument('--coordinator', default='', metavar='HOST:PORT', help='of host 0 (MIM_JAX_COORDINATOR)')
    hosts.add_argument('--hosts', type=int, default=0, help='how many (MIM_JAX_HOSTS); 1: this one alone')
    hosts.add_argument('--host', type=int, default=-1, help='which one this is, from 0 (MIM_JAX_HOST)')
    options, overrides = parse_arguments(arguments, parser)
    join_hosts(
        options.coordinator,
        options.hosts,
        options.host,
        timeout=read_number(os.environ, 'MIM_JAX_JOIN_TIMEOUT', 120),
        heartbeat=read_number(os.environ, 'MIM_JAX_HEARTBEAT', 20),
        facts=describe_code,
    )
    return options, overrides


def agree_on_run(config: Any, workdir: Path | None, dataset: str = '') -> None:
    """Raise HostsDiffer unless all hosts have the same settings, work directory and dataset (its fingerprint)."""
    agree({**shared_settings(config), '--workdir': str(workdir), 'the dataset (fingerprint)': dataset})


def read_config(spec: str, overrides: Sequence[str]) -> tuple[Any, Any]:
    """(config, the file's own config), checked as far as it can be without devices or data."""
    config, reference = load_config(spec, overrides, METHODS)
    check_config(config, METHODS)
    return config, reference


def run_program(main: Callable[[Sequence[str]], int]) -> None:
    """Exit with main's status; a UserError becomes its sentence on standard error and its own status.

    One of several hosts that fails does not wait for the others: it tells them, and they end too.
    """
    logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax and Grain narrate
    stop_early()  # SIGTERM is a scheduler's Ctrl-C; the loop has its own handlers
    try:
        with explain_shortages():
            status = main(sys.argv[1:])
        leave_hosts()
    except UserError as error:
        print(f'{prefix_host()}error: {error}', file=sys.stderr, flush=True)
        status = error.exit_status
        if is_joined():
            abandon_hosts(status, str(error))
    except KeyboardInterrupt:
        print('Stopped; the last checkpoint stands. Run the same command to go on.', file=sys.stderr, flush=True)
        status = INTERRUPTED
        if is_joined():
            abandon_hosts(status, 'it was interrupted.')
    except Exception as error:
        if not is_joined():
            raise
        time.sleep(GRACE)  # where the cause is that another host is gone, the lifeline says so, and ends this process
        print(f'{prefix_host()}error: crashed', file=sys.stderr)
        traceback.print_exc()
        sentence = str(error).partition('\n')[0].rstrip('.')
        abandon_hosts(1, f'it crashed: {type(error).__name__}: {sentence}.')
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
        'versions': read_versions(),
        'devices': {'kind': devices[0].device_kind, 'platform': devices[0].platform, 'count': len(devices)},
        'hosts': jax.process_count(),
        'cpus': os.cpu_count(),
        'commit': find_commit(),
    }


def describe_code() -> dict[str, str | None]:
    """What must be equal on all hosts before they speak with each other: versions, and the code of this package."""
    package = Path(__file__).parent
    code = hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        code.update(f'{path.relative_to(package)}\0'.encode() + path.read_bytes())
    return {**read_versions(), "mim_jax's code (sha256)": code.hexdigest()[:16], 'git commit': find_commit()}


def read_versions() -> dict[str, str]:
    """{package: version} of all that could change a number."""
    return {'python': platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}


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
