"""Devices of a TPU that is not there, as its compiler describes them, or of this machine."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax
from packaging.requirements import Requirement

from mim_jax.errors import ConfigError, UserError

# What must be said beside a name; one device per chip but of TPU7x, which has two. An example of each.
GENERATIONS: dict[str, tuple[dict[str, str], str]] = {
    'v4': ({'chip_config_name': 'megacore'}, 'v4:2x2x4'),
    'v5e': ({}, 'v5e:16x16'),
    'v5p': ({}, 'v5p:4x4x4'),
    'v6e': ({}, 'v6e:8x8'),
    'tpu7x': ({}, 'tpu7x:2x2x4'),
}

COMPILER_ALONE = {  # read by libtpu as it is loaded
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # no device is opened, so several programs may compile at once
    'TPU_SKIP_MDS_QUERY': '1',  # there is no metadata server to ask; without answers it complains, unless it is told:
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-1',  # whatever the topology is
    'TPU_STDERR_LOG_LEVEL': '3',
}


class NoCompiler(UserError):
    """libtpu, which holds the compiler for TPUs, is not installed."""


def describe_devices(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of `slices` TPU slices of a topology such as v5e:16x16; '': this machine's own.

    Must be called before any device is touched: a topology leaves JAX with this machine's CPU alone, as libtpu would else
    look for TPUs. Raises ConfigError for a topology there is none of, NoCompiler without libtpu.
    """
    if not topology:
        if slices != 1:
            raise ConfigError(f'--slices={slices} needs a --topology, such as {GENERATIONS["v5e"][1]}.')
        return jax.devices()
    generation = check_topology(topology, slices)
    check_compiler()
    jax.config.update('jax_platforms', 'cpu')
    os.environ.update(COMPILER_ALONE)
    from jax.experimental import topologies

    more = GENERATIONS[generation][0] | ({'num_slices': slices} if slices > 1 else {})
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=topology, **more).devices
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0]
        raise ConfigError(
            f'libtpu describes no --topology {topology} ({said}); a shape such as {GENERATIONS[generation][1]} it does.'
        ) from error


def check_topology(topology: str, slices: int) -> str:
    """The generation of a topology. Raises ConfigError unless it reads as one of a known generation."""
    match = re.fullmatch(r'([^:]+):\d+(x\d+){1,2}', topology)
    examples = ', '.join(example for _, example in GENERATIONS.values())
    if match is None:
        raise ConfigError(
            f"--topology '{topology}' cannot be read: give a generation and the chips along each side (not v4-32, the name of "
            f'an accelerator, which is v4:2x2x4), such as {examples}.'
        )
    if match[1] not in GENERATIONS:
        raise ConfigError(f"--topology '{topology}': there is no TPU '{match[1]}' here; there are {examples}.")
    if slices < 1:
        raise ConfigError(f'--slices={slices} must be at least 1.')
    return match[1]


def check_compiler() -> None:
    """Raise NoCompiler unless libtpu can be imported; the message has the command for the release that jax asks for."""
    if importlib.util.find_spec('libtpu') is None:
        raise NoCompiler(
            'Compiling for a TPU needs libtpu, which is not installed. Run: pip install '
            f"'{find_pin()}' (or -r requirements-compile.txt). Without --topology this machine's own devices are taken."
        )


def find_pin() -> str:
    """'libtpu==0.0.42.*': what the installed jax asks for, by its own metadata."""
    for text in metadata.requires('jax') or ():
        requirement = Requirement(text)
        if requirement.name == 'libtpu':
            return f'libtpu{requirement.specifier}'
    return f'jax[tpu]=={jax.__version__}'


def find_version() -> str:
    """The release of libtpu, whose compiler it is."""
    return metadata.version('libtpu')
