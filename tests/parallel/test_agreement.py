"""Agreement of hosts, over a key-value store of this process: values in order, whoever is missing named, errors shared."""

import threading
import time
from types import SimpleNamespace

import jax
import pytest

from mim_jax.errors import DataError, HostLost, HostsDiffer, UserError
from mim_jax.parallel import agreement
from mim_jax.parallel.agreement import agree, barrier, exchange, together


class Store:
    """What the coordination service's client can do, for all hosts of a test at once."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value):
        assert key not in self.values
        self.values[key] = value

    def key_value_delete(self, key):
        del self.values[key]

    def key_value_dir_get(self, folder):
        return [(key, value) for key, value in self.values.copy().items() if key.startswith(folder)]

    def blocking_key_value_get(self, key, milliseconds):
        end = time.monotonic() + milliseconds / 1000
        while key not in self.values:
            if time.monotonic() > end:
                raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: no such key')
            time.sleep(0.001)


@pytest.fixture
def on_hosts(monkeypatch):
    """on_hosts(act, hosts) -> act(host) of every host, a thread each, or the error it raised."""
    store, mine = Store(), threading.local()

    class Here:
        client, num_processes = store, 2
        process_id = property(lambda self: mine.host)

    class Turns:
        def __getitem__(self, name):
            return mine.turns.get(name, 0)

        def __setitem__(self, name, turn):
            mine.turns[name] = turn

    def run(act, hosts=2):
        here = Here()
        here.num_processes = hosts
        monkeypatch.setattr(agreement, 'global_state', here)
        monkeypatch.setattr(agreement, '_turns', Turns())
        results = [None] * hosts

        def one(host):
            mine.host, mine.turns = host, {}
            try:
                results[host] = act(host)
            except Exception as error:
                results[host] = error

        threads = [threading.Thread(target=one, args=(host,)) for host in range(hosts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        return SimpleNamespace(results=results, left=store.values)

    return run


def test_values_arrive_in_order_and_nothing_piles_up(on_hosts):
    def act(host):
        time.sleep(0.02 * (host == 0))
        return [exchange('step', {'host': host, 'turn': turn}) for turn in range(20)]

    done = on_hosts(act, 3)
    assert done.results == [[[{'host': h, 'turn': t} for h in range(3)] for t in range(20)]] * 3
    assert len(done.left) == 3  # the last turn's


def test_one_host_is_the_plain_case():
    assert exchange('alone', (1, 2)) == [[1, 2]]
    assert together('alone', lambda: 5) == 5
    agree({'seed': 1})
    barrier('alone')
    with pytest.raises(DataError, match='gone'):
        together('alone', lambda: (_ for _ in ()).throw(DataError('gone')))


def test_who_does_not_answer_is_named(on_hosts):
    def act(host):
        if host != 1:
            exchange('late', host, timeout=0.3)

    for error in on_hosts(act, 3).results[::2]:
        assert isinstance(error, HostLost)
        assert 'No answer (late) in 0 s from host 1.' in str(error)


def test_a_different_fact_ends_every_host(on_hosts):
    errors = on_hosts(lambda host: agree({'seed': host // 2, 'same': 1}), 3).results
    assert {type(error) for error in errors} == {HostsDiffer}
    assert {str(error).split('.')[0] for error in errors} == {'seed is 0 on host 0, but 1 on host 2'}


def test_an_error_of_one_host_ends_every_host(on_hosts):
    def act(host):
        def open_data():
            if host == 1:
                error = DataError('There is no folder /data; make it.')
                error.exit_status = 3
                raise error
            return host

        return together('the dataset', open_data)

    errors = on_hosts(act, 3).results
    assert isinstance(errors[1], DataError)
    for error in (errors[0], errors[2]):
        assert isinstance(error, UserError)
        assert str(error) == 'the dataset: host 1 has stopped: There is no folder /data; make it.'
        assert error.exit_status == 3
    assert on_hosts(lambda host: together('other', lambda: host)).results == [0, 1]


def test_a_broken_store_is_no_missing_host(on_hosts, monkeypatch):
    def fail(self, key, milliseconds):
        raise jax.errors.JaxRuntimeError('UNAVAILABLE: the coordinator is gone')

    monkeypatch.setattr(Store, 'blocking_key_value_get', fail)
    (error, _) = on_hosts(lambda host: exchange('x', 0) if host == 0 else None).results
    assert 'UNAVAILABLE' in str(error)
