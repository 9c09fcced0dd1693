"""Joining the other hosts of a run, and leaving them: in order, or at once when this host fails."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import jax


def join_hosts(
    coordinator: str = '', hosts: int = 0, host: int = -1, timeout: float = 120, heartbeat: float = 20
) -> None:
    """Become one host of several, where this process is one; otherwise do nothing. Before any device is touched.

    The arguments (all three or none), or MIM_JAX_COORDINATOR, MIM_JAX_HOSTS and MIM_JAX_HOST, or what JAX detects: a TPU
    pod, SLURM, Open MPI. timeout: seconds to wait for the others; heartbeat: seconds after which a silent host is lost.
    Raises HostLost or ConfigError.
    """
    coordinator = coordinator or os.environ.get('MIM_JAX_COORDINATOR', '')
    hosts = hosts or int(os.environ.get('MIM_JAX_HOSTS', '0'))
    host = host if host >= 0 else int(os.environ.get('MIM_JAX_HOST', '-1'))
    if not coordinator:
        return
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM from us
    jax.distributed.initialize(
        coordinator, hosts, host, initialization_timeout=int(timeout), heartbeat_timeout_seconds=int(heartbeat)
    )


def leave_hosts() -> None:
    """The orderly end: wait for the other hosts to come here too, then close the connection. One host: nothing."""
    jax.distributed.shutdown()


def abandon_hosts(status: int) -> NoReturn:
    """End this process at once; the others notice it, and end with 75 (run again), instead of waiting for this host."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
