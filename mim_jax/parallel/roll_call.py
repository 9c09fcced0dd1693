"""Who has come: before JAX's own start, which aborts without saying who is missing, every host calls host 0.

Host 0 listens on the coordinator's port, which JAX's service takes over when all have come; like that service this is meant
for the private network of a pod. The connections stay open: they are the run's lifeline.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import selectors
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mim_jax.errors import ConfigError, HostLost, HostsDiffer
from mim_jax.parallel.facts import REMEDY, find_difference
from mim_jax.parallel.lifeline import AGAIN, Line

RETRY = 0.3  # seconds between two attempts
LINGER = 3.0  # seconds in which hosts that call late still hear of a contradiction
PORT_WAIT = 10.0  # seconds in which a run that is ending may give up the port


class Call(NamedTuple):
    """What a host says of itself: which one of how many, its name, and facts that must be equal everywhere."""

    host: int
    hosts: int
    name: str
    facts: Mapping[str, Any]


def call_roll(coordinator: str, mine: Call, timeout: float) -> tuple[list[Line], list[str]]:
    """(lines, every host's name) once all have come: on host 0 its lines to the others, elsewhere the one to host 0.

    Raises HostLost naming those that have not come after `timeout` seconds, HostsDiffer or ConfigError when the calls
    contradict each other; then all hosts that have come do.
    """
    lines, calls = (gather_calls if mine.host == 0 else call_first_host)(coordinator, mine, timeout)
    return lines, [call.name for call in calls]


def gather_calls(coordinator: str, mine: Call, timeout: float) -> tuple[list[Line], list[Call]]:
    """Host 0's part: listen until all are here. Of a contradiction it tells those, too, that call a little later."""
    end = time.monotonic() + timeout
    calls, lines, trouble = {0: mine}, [], None
    with listen(coordinator, end) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while trouble or len(lines) < mine.hosts - 1:
            ready = selector.select(end - time.monotonic())
            if not ready:
                trouble = trouble or HostLost(describe_missing(calls, mine.hosts, coordinator, timeout))
                break
            for key, _ in ready:
                if key.data is None:
                    line = Line(listener.accept()[0], host=-1)
                    selector.register(line.socket, selectors.EVENT_READ, line)
                elif (messages := key.data.receive()) is None:  # a host that was stopped, or a stranger
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    if key.data in lines:
                        lines.remove(key.data)
                        calls.pop(key.data.host, None)
                elif messages and set(messages[0]) == set(Call._fields):
                    call = Call(**messages[0])
                    key.data.host = call.host
                    lines.append(key.data)
                    contradiction = find_contradiction(call, calls)
                    if contradiction and not trouble:
                        trouble, end = ConfigError(contradiction), min(end, time.monotonic() + LINGER)
                    calls.setdefault(call.host, call)
    in_order = [calls[host] for host in sorted(calls)]
    difference = find_difference([call.facts for call in in_order], [describe(call) for call in in_order])
    if difference and not trouble:
        trouble = HostsDiffer(f'{difference}. {REMEDY}')
    if trouble:
        for line in lines:
            line.send({'refused': str(trouble), 'kind': type(trouble).__name__})
        raise trouble
    for line in lines:
        line.send({'calls': [call._asdict() for call in in_order]})
    return lines, in_order


def call_first_host(coordinator: str, mine: Call, timeout: float) -> tuple[list[Line], list[Call]]:
    """Another host's part: call host 0 until it answers, then wait until it says that all are here."""
    end, reason = time.monotonic() + timeout, 'no answer'
    address = parse_address(coordinator)
    while time.monotonic() < end:
        try:
            connection = socket.create_connection(address, timeout=max(1, end - time.monotonic()))
        except OSError as error:  # an unknown name, too: a pod's names come up late
            reason = error.strerror or str(error)
            time.sleep(RETRY)
            continue
        answer = None
        if connection.getsockname() != connection.getpeername():  # else the system has connected it with itself
            connection.settimeout(timeout + PORT_WAIT)  # host 0 may have begun to wait later
            line = Line(connection, host=0)
            line.send(mine._asdict())
            answer = wait_answer(line)
        if answer is None:
            reason = 'it closed the connection'
            connection.close()
            time.sleep(RETRY)
        elif 'refused' in answer:
            raise {'HostLost': HostLost, 'HostsDiffer': HostsDiffer}.get(answer['kind'], ConfigError)(answer['refused'])
        else:
            connection.settimeout(None)
            return [line], [Call(**call) for call in answer['calls']]
    raise HostLost(
        f'Host 0 could not be reached at {coordinator} in {timeout:.0f} s ({reason}): check that address, that host 0 has '
        f'been started and that no firewall is between. {AGAIN}'
    )


def wait_answer(line: Line) -> dict[str, Any] | None:
    """Host 0's first message; None when it closes the connection without one."""
    while (messages := line.receive()) is not None:
        if messages:
            return messages[0]
    return None


def find_contradiction(call: Call, calls: Mapping[int, Call]) -> str:
    """How a call contradicts those before it; '' when it does not."""
    if call.hosts != calls[0].hosts:
        return (
            f'Host {call.host} ({call.name}) was started as one of {call.hosts} hosts, {describe(calls[0])} as one of '
            f'{calls[0].hosts}: give all of them the same --hosts.'
        )
    if call.host in calls:
        return (
            f'Two processes were started as host {call.host} (on {calls[call.host].name} and on {call.name}): give each '
            f'its own --host, from 0 to {call.hosts - 1}.'
        )
    return ''


def describe(call: Call) -> str:
    """'host 1 (name)'."""
    return f'host {call.host} ({call.name})'


def describe_missing(calls: Mapping[int, Call], hosts: int, coordinator: str, timeout: float) -> str:
    """The sentence about those who have not come; of very many only the first."""
    missing = [str(host) for host in range(hosts) if host not in calls]
    listed = ', '.join(missing[:20]) + (f' and {len(missing) - 20} more' if len(missing) > 20 else '')
    here = ', '.join(f'{host} ({calls[host].name})' for host in sorted(calls)[:20])
    return (
        f'{len(missing)} of {hosts} hosts did not come in {timeout:.0f} s: {listed}. Here: {here}. Check that the command runs '
        f'on every host, and that each can reach {coordinator}. {AGAIN}'
    )


@contextlib.contextmanager
def listen(coordinator: str, end: float) -> Iterator[socket.socket]:
    """A socket that listens on the coordinator's port of this machine, closed afterwards."""
    port = parse_address(coordinator)[1]
    end = min(end, time.monotonic() + PORT_WAIT)
    while True:
        try:
            if is_loopback(coordinator):
                listener = socket.create_server(parse_address(coordinator))
            elif socket.has_dualstack_ipv6():
                listener = socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                listener = socket.create_server(('', port))
            break
        except OSError as error:
            if error.errno == errno.EADDRINUSE and time.monotonic() < end:
                time.sleep(RETRY)
                continue
            raise ConfigError(
                f'Host 0 ({socket.gethostname()}) cannot listen on {coordinator} ({error.strerror}): end what uses that port, '
                'or choose another one in --coordinator.'
            ) from error
    with listener:
        yield listener


def parse_address(coordinator: str) -> tuple[str, int]:
    """'HOST:PORT' or '[IPV6]:PORT' -> (host, port). Raises ConfigError."""
    name, _, port = coordinator.rpartition(':')
    if not name or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"The coordinator '{coordinator}' is not HOST:PORT, such as 10.0.0.1:8476.")
    return name.removeprefix('[').removesuffix(']'), int(port)


def is_loopback(coordinator: str) -> bool:
    """Whether the address is of this machine alone, so that nothing need listen to the network."""
    name, _ = parse_address(coordinator)
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == 'localhost'
