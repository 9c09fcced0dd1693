"""Joining the other hosts of a run before a device is touched, and leaving them: in order, or at once when this host fails.

A host is one process of a run: a TPU VM, a task of SLURM or Open MPI, or a process on this machine (launch/local_pod.py).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

import jax

from mim_jax.errors import ConfigError
from mim_jax.parallel.lifeline import AGAIN, LOST, Lifeline, end_process
from mim_jax.parallel.roll_call import Call, call_roll, is_loopback, parse_address

COORDINATOR, HOSTS, HOST = 'MIM_JAX_COORDINATOR', 'MIM_JAX_HOSTS', 'MIM_JAX_HOST'
CLUSTERS = {'gketpu': 'a TPU pod on GKE', 'gcetpu': 'a TPU pod', 'slurm': 'SLURM', 'ompi': 'Open MPI'}  # JAX's names
# How launchers number their tasks: (how many, which one).
RANKS = {
    'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
    'MPI': ('PMI_SIZE', 'PMI_RANK'),
    'SLURM': ('SLURM_NTASKS', 'SLURM_PROCID'),
}
FINAL = (2, 3)  # exit statuses that another try would only repeat
_lifeline: Lifeline | None = None


class Place(NamedTuple):
    """Where this process stands: host 0's HOST:PORT, how many hosts, which one, who said so, its devices (None: all)."""

    coordinator: str
    hosts: int
    host: int
    how: str
    devices: list[int] | None = None


def join_hosts(
    coordinator: str = '',
    hosts: int = 0,
    host: int = -1,
    timeout: float = 120,
    heartbeat: float = 20,
    facts: Callable[[], Mapping[str, Any]] = dict,
) -> None:
    """Become one host of several, where this process is one; otherwise do nothing. Before any device is touched.

    The arguments, or MIM_JAX_COORDINATOR, MIM_JAX_HOSTS and MIM_JAX_HOST, or what JAX detects: a TPU pod, SLURM, Open MPI.
    timeout: seconds to wait for the others; heartbeat: seconds after which a silent host is lost; facts: called where
    there are several hosts, for what must be equal before they speak JAX's protocol, such as versions.
    Raises ConfigError, HostLost or HostsDiffer.
    """
    global _lifeline
    place = find_place(coordinator, hosts, host, os.environ) or find_cluster(timeout)
    if place is None or place.hosts == 1:
        return
    mine = Call(place.host, place.hosts, socket.gethostname(), dict(facts()))
    lines, names = call_roll(place.coordinator, mine, timeout)
    jax.config.update('jax_enable_preemption_service', False)  # its SIGTERM handler would displace ours
    jax.distributed.initialize(
        place.coordinator,
        place.hosts,
        place.host,
        local_device_ids=place.devices,
        cluster_detection_method='deactivate',
        initialization_timeout=max(60, round(timeout)),
        heartbeat_timeout_seconds=round(heartbeat),
        coordinator_bind_address=place.coordinator if is_loopback(place.coordinator) else None,
    )
    _lifeline = Lifeline(place.host, lines, names, heartbeat)
    if place.host == 0:
        shown = ', '.join(names[:8]) + (' ...' if len(names) > 8 else '')
        print(f'{place.hosts} hosts have joined through {place.coordinator} ({place.how}): {shown}.', flush=True)


def leave_hosts() -> None:
    """The orderly end: wait for the other hosts to come here too, then close the connection. One host: nothing."""
    global _lifeline
    if _lifeline is not None:
        _lifeline.say_goodbye()
        jax.distributed.shutdown()
        _lifeline = None


def abandon_hosts(status: int, why: str = 'it failed') -> NoReturn:
    """End this process at once with `status`; the others say `why` and end too, with 2 or 3 as this host, else with 75."""
    if _lifeline is not None:
        theirs = status if status in FINAL else LOST
        advice = '' if status in FINAL else f' {AGAIN}'
        _lifeline.abandon(status, theirs, f'{describe_host(_lifeline.host)} has stopped: {why}{advice}')
    end_process(status)


def is_joined() -> bool:
    """Whether this process is one host of several."""
    return _lifeline is not None


def describe_host(host: int) -> str:
    """'host 1 (name)'."""
    return f'host {host}' if _lifeline is None else _lifeline.describe(host)


def prefix_host() -> str:
    """'host 1: ', to begin a message with; '' where there is one host."""
    return '' if _lifeline is None else f'host {_lifeline.host}: '


def find_place(coordinator: str, hosts: int, host: int, environment: Mapping[str, str]) -> Place | None:
    """What arguments and variables say; None where they say nothing. Raises ConfigError where they contradict each other.

    Where only the coordinator is named, the numbers may be those of MPI or SLURM.
    """
    coordinator = coordinator or environment.get(COORDINATOR, '')
    hosts, how = hosts or read_number(environment, HOSTS, 0), 'as told'
    host = host if host >= 0 else read_number(environment, HOST, -1)
    for launcher, (count, rank) in RANKS.items():
        if coordinator and not hosts and host < 0 and {count, rank} <= environment.keys():
            hosts, host, how = int(environment[count]), int(environment[rank]), f'numbers by {launcher}'
    if not coordinator and not hosts and host < 0:
        return None
    if hosts == 1 and host in (-1, 0):
        return Place(coordinator, 1, 0, how)
    missing = [
        name for name, given in (('--coordinator', coordinator), ('--hosts', hosts), ('--host', host >= 0)) if not given
    ]
    if missing:
        raise ConfigError(
            f'{" and ".join(missing)} missing: a run of several hosts needs --coordinator HOST:PORT, --hosts N and --host I '
            f'on each (or {COORDINATOR}, {HOSTS}, {HOST}).'
        )
    parse_address(coordinator)
    if not 0 <= host < hosts:
        raise ConfigError(f'--host {host} is not one of {hosts}: number the hosts from 0 to {hosts - 1}.')
    return Place(coordinator, hosts, host, how)


def read_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A variable as a number. Raises ConfigError."""
    text = environment.get(name, '')
    if text and not text.isdigit():
        raise ConfigError(f'{name}={text} is not a number.')
    return int(text) if text else default


def find_cluster(timeout: float) -> Place | None:
    """Where JAX's own detection sees this process; None where it sees no cluster. Raises ConfigError."""
    from jax._src.clusters import ClusterEnv  # jax.distributed.initialize alone would not say that it found nothing

    for cluster in ClusterEnv._cluster_types:
        if cluster.name not in CLUSTERS:
            continue
        how, port = CLUSTERS[cluster.name], os.environ.get('JAX_COORDINATOR_PORT')
        try:
            if not cluster.is_env_present():
                continue
            hosts, host = cluster.get_process_count(), cluster.get_process_id()
            if hosts == 1:
                return None
            coordinator = cluster.get_coordinator_address(timeout_secs=round(timeout), override_coordinator_port=port)
            local = cluster.get_local_process_id()
        except (RuntimeError, OSError, LookupError, ValueError) as error:
            raise ConfigError(
                f'This seems to be a host of {how}, but its place there cannot be read ({type(error).__name__}: {error}): '
                'give --coordinator, --hosts and --host; --hosts 1 runs on this host alone.'
            ) from error
        return Place(coordinator, hosts, host, how, None if local is None or is_alone(os.environ) else [local])
    for launcher, (count, _) in list(RANKS.items())[:2]:
        if os.environ.get(count, '1') != '1':
            raise ConfigError(
                f'{launcher} has started {os.environ[count]} processes, but does not say where host 0 is: give all of them '
                '--coordinator HOST:PORT.'
            )
    return None


def is_alone(environment: Mapping[str, str]) -> bool:
    """Whether the launcher started one process on each machine: it has all devices, where several have one each."""
    return (
        environment.get('OMPI_COMM_WORLD_LOCAL_SIZE') == '1'
        or re.fullmatch(r'1(\(x\d+\))?', environment.get('SLURM_STEP_TASKS_PER_NODE', '')) is not None
    )
