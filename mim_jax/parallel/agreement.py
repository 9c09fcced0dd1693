"""What hosts tell each other outside of the devices: values, facts that must be equal, errors. One host is the plain case.

All of it goes through the coordination service's key-value store, so it works before any device is touched. Every host
must make the same calls in the same order.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src.distributed import global_state  # no public function reaches the key-value store

from mim_jax.errors import HostLost, HostsDiffer, UserError
from mim_jax.parallel.facts import REMEDY, find_difference
from mim_jax.parallel.lifeline import AGAIN
from mim_jax.parallel.startup import describe_host

WAIT = 600.0  # seconds; a host that is dead is noticed long before by the lifeline
PAUSE = 0.2  # seconds in which a signal to this process waits for its handler
Result = TypeVar('Result')
_turns: Counter[str] = Counter()


def exchange(name: str, value: Any, timeout: float = WAIT) -> list[Any]:
    """Every host's value, by host number; anything that JSON can hold. Touches no device.

    Raises HostLost naming the hosts that did not answer in time.
    """
    mine, hosts = global_state.process_id, global_state.num_processes
    text = json.dumps(value)
    if hosts == 1:
        return [json.loads(text)]
    client, turn, end = global_state.client, _turns[name], time.monotonic() + timeout
    _turns[name] += 1
    folder = f'mim_jax/{name}/{turn}/'
    client.key_value_set(f'{folder}{mine}', text)
    while len(told := dict(client.key_value_dir_get(folder))) < hosts:
        missing = [host for host in range(hosts) if f'{folder}{host}' not in told]
        if time.monotonic() > end:
            listed = ', '.join(describe_host(host) for host in missing)
            raise HostLost(f'No answer ({name}) in {timeout:.0f} s from {listed}. {AGAIN}')
        wait_for_key(client, f'{folder}{missing[0]}')
    if turn:  # everyone is in this turn, so everyone has read the one before
        client.key_value_delete(f'mim_jax/{name}/{turn - 1}/{mine}')
    return [json.loads(told[f'{folder}{host}']) for host in range(hosts)]


def wait_for_key(client: Any, key: str) -> None:
    """Return when the key is there, or after a short pause."""
    try:
        client.blocking_key_value_get(key, round(1000 * PAUSE))
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
            raise


def agree(facts: Mapping[str, Any]) -> None:
    """Raise HostsDiffer, on every host, unless all hosts hold equal facts: which fact, which hosts, all their values."""
    every = exchange('facts', dict(facts))
    difference = find_difference(every, [describe_host(host) for host in range(len(every))])
    if difference:
        raise HostsDiffer(f'{difference}. {REMEDY}')


def barrier(name: str, timeout: float = WAIT) -> None:
    """Return when every host has come here. Raises HostLost as `exchange`."""
    exchange(f'barrier {name}', None, timeout)


def together(name: str, act: Callable[[], Result]) -> Result:
    """This host's act(), once it succeeded on every host; a UserError of one is raised on all, naming the host at fault."""
    result, failure = None, None
    try:
        result = act()
    except UserError as error:
        failure = error
    outcomes = exchange(f'together {name}', failure and [str(failure), failure.exit_status])
    if failure is not None:
        raise failure
    failed = {host: outcome for host, outcome in enumerate(outcomes) if outcome is not None}
    if failed:
        host, (sentence, status) = next(iter(failed.items()))
        others = f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''
        error = UserError(f'{name}: {describe_host(host)}{others} has stopped: {sentence}')
        error.exit_status = status
        raise error
    return result
