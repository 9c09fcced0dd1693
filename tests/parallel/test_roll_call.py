"""The roll call, hosts as threads on loopback: all come, or all that came say who did not, or what contradicts."""

import socket
import threading
import time

import pytest

from mim_jax.errors import ConfigError, HostLost, HostsDiffer
from mim_jax.parallel.roll_call import Call, call_roll, describe_missing, is_loopback, parse_address

HOSTS = 3


@pytest.fixture
def address():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return f'127.0.0.1:{free.getsockname()[1]}'


def call_all(address, calls, timeout=5.0):
    """What each host gets, or the error it raises, in the order of `calls`."""
    results = [None] * len(calls)

    def run(place, call):
        try:
            results[place] = call_roll(address, call, timeout)
        except Exception as error:
            results[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * timeout)
    for result in results:
        if isinstance(result, tuple):
            for line in result[0]:
                line.socket.close()
    return results


def calls_of(*hosts, **changes):
    return [Call(host, **{'hosts': HOSTS, 'name': f'vm-{host}', 'facts': {'jax': '1'}} | changes) for host in hosts]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0)])
def test_all_come(address, order):
    results = dict(zip(order, call_all(address, calls_of(*order)), strict=True))
    assert all(names == ['vm-0', 'vm-1', 'vm-2'] for _, names in results.values())
    assert sorted(line.host for line in results[0][0]) == [1, 2]
    assert [line.host for line in results[1][0]] == [0]
    with socket.create_server(parse_address(address)):  # JAX's service can have the port
        pass


def test_who_has_not_come_is_named_on_every_host(address):
    for error in call_all(address, calls_of(0, 2), timeout=0.6):
        assert isinstance(error, HostLost)
        assert error.exit_status == 75
        assert '1 of 3 hosts did not come in 1 s: 1. Here: 0 (vm-0), 2 (vm-2).' in str(error)


def test_of_many_missing_hosts_the_first_are_named():
    sentence = describe_missing({0: calls_of(0)[0]}, 256, '10.0.0.1:1', 120)
    assert sentence.startswith('255 of 256 hosts did not come in 120 s: 1, 2, 3,')
    assert ', 20 and 235 more. Here: 0 (vm-0).' in sentence


def test_host_0_out_of_reach(address):
    (error,) = call_all(address, calls_of(1), timeout=0.5)
    assert isinstance(error, HostLost)
    assert address in str(error)
    assert 'Connection refused' in str(error)


@pytest.mark.parametrize(
    ('odd', 'kind', 'words'),
    [
        (calls_of(2, hosts=4), ConfigError, ('Host 2 (vm-2) was started as one of 4 hosts', 'as one of 3', '--hosts')),
        (
            calls_of(1, name='twin'),
            ConfigError,
            ('Two processes were started as host 1 (on ', 'vm-1', 'twin', 'from 0 to 2'),
        ),
        (
            calls_of(2, facts={'jax': '2'}),
            HostsDiffer,
            ('jax is "1" on host 0 (vm-0), but "2" on host 2 (vm-2)', 'Give every host the same'),
        ),
    ],
)
def test_contradictions_end_every_host(address, odd, kind, words, monkeypatch):
    monkeypatch.setattr('mim_jax.parallel.roll_call.LINGER', 1.0)
    errors = call_all(address, [*calls_of(0, 1), *odd])
    assert {str(error) for error in errors} == {str(errors[0])}
    for error in errors:
        assert type(error) is kind
        assert error.exit_status == 2
    for word in words:
        assert word in str(errors[0])


def test_strangers_and_hosts_that_come_twice(address):
    """A port scanner is ignored; a host that was stopped and started again while the others waited counts once."""
    caller = []
    first = threading.Thread(target=lambda: caller.append(call_roll(address, calls_of(0)[0], 10)))
    first.start()
    hello = b'{"host": 1, "hosts": 3, "name": "gone", "facts": {"jax": "1"}}\n'
    for message in (b'PRI * HTTP/2.0\r\n\r\n', b'[1]\n', b'{"host": 1}\n', b'', hello):
        while True:
            try:
                with socket.create_connection(parse_address(address)) as stranger:
                    stranger.sendall(message)
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
    results = call_all(address, calls_of(1, 2))
    first.join(10)
    assert [names for _, names in [*caller, *results]] == [['vm-0', 'vm-1', 'vm-2']] * 3
    for line in caller[0][0]:
        line.socket.close()


def test_a_port_in_use_is_told(address, monkeypatch):
    monkeypatch.setattr('mim_jax.parallel.roll_call.PORT_WAIT', 0.1)
    with socket.create_server(parse_address(address)):
        (error,) = call_all(address, calls_of(0))
    assert isinstance(error, ConfigError)
    assert address in str(error)
    assert 'choose another one in --coordinator' in str(error)


def test_addresses():
    assert parse_address('10.0.0.1:8476') == ('10.0.0.1', 8476)
    assert parse_address('[::1]:8476') == ('::1', 8476)
    assert [is_loopback(a) for a in ('127.0.0.1:1', '[::1]:1', 'localhost:1', '10.0.0.1:1', 'vm-0:1')] == [
        1,
        1,
        1,
        0,
        0,
    ]
    for wrong in ('10.0.0.1', ':8476', 'vm:port', 'vm:0', 'vm:70000'):
        with pytest.raises(ConfigError, match='HOST:PORT'):
            parse_address(wrong)
