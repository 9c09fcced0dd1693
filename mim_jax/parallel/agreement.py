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
from jax._src import distributed  # the public API has no access to the key-value store

from mim_jax.errors import HostLost, HostsDiffer, UserError

WAIT = 600.0  # seconds; a host that is dead is noticed long before by its heartbeat
Result = TypeVar('Result')
_calls: Counter[str] = Counter()


def exchange(name: str, value: Any, timeout: float = WAIT) -> list[Any]:
    """Every host's value, by host number; anything that JSON can hold. Touches no device.

    Raises HostLost naming the hosts that did not answer in time.
    """
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    client, mine, hosts = distributed.global_state.client, jax.process_index(), jax.process_count()
    turn = _calls[name]
    _calls[name] += 1
    client.key_value_set(_key(name, turn, mine), json.dumps(value))
    values, end = {}, time.monotonic() + timeout
    while len(values) < hosts:
        for host in range(hosts):
            if host not in values and (text := _read(client, _key(name, turn, host))) is not None:
                values[host] = json.loads(text)
        if len(values) < hosts and time.monotonic() > end:
            missing = [host for host in range(hosts) if host not in values]
            raise HostLost(f'Hosts {missing} did not answer ({name}) in {timeout:.0f} s.')
    if turn:  # everyone has this turn's values, so everyone has read the one before
        client.key_value_delete(_key(name, turn - 1, mine))
    return [values[host] for host in range(hosts)]


def _key(name: str, turn: int, host: int) -> str:
    return f'mim_jax/{name}/{turn}/{host}'


def _read(client: Any, key: str) -> str | None:
    """The value, waited for so shortly that a signal is handled soon; None when it is not there yet."""
    try:
        return client.blocking_key_value_get(key, 200)
    except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
            raise
        return None


def agree(facts: Mapping[str, Any]) -> None:
    """Raise HostsDiffer, on every host, unless all hosts hold equal facts: which fact, which host, both values."""
    every = exchange('facts', dict(facts))
    for host, theirs in enumerate(every):
        for fact in sorted({*every[0], *theirs}):
            if theirs.get(fact) != every[0].get(fact):
                raise HostsDiffer(f'{fact} differs: {theirs.get(fact)} on host {host}, {every[0].get(fact)} on host 0.')


def barrier(name: str, timeout: float = WAIT) -> None:
    """Return when every host has come here. Raises HostLost as `exchange`."""
    exchange(f'barrier/{name}', None, timeout)


def together(name: str, act: Callable[[], Result]) -> Result:
    """This host's act(), once it succeeded on every host; a UserError of one is raised on all, naming the host at fault."""
    try:
        result, failure = act(), None
    except UserError as error:
        result, failure = None, error
    said = exchange(f'together/{name}', failure and [str(failure), failure.exit_status])
    if failure is not None:
        raise failure
    for host, told in enumerate(said):
        if told is not None:
            error = UserError(f'Host {host} stopped ({name}): {told[0]}')
            error.exit_status = told[1]
            raise error
    return result
