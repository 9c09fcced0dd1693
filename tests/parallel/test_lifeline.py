"""The lifeline: a closed line without a goodbye ends this process with a sentence, and host 0 passes on what it hears."""

import json
import socket
import threading
import time

import pytest

from mim_jax.parallel import lifeline
from mim_jax.parallel.lifeline import Lifeline, Line, keep_alive

NAMES = ['vm-0', 'vm-1', 'vm-2']


@pytest.fixture
def ends(monkeypatch):
    """The exit statuses asked for, in place of ends; and no host is given time for words."""
    statuses, done = [], threading.Event()

    def end(status):
        statuses.append(status)
        done.set()

    statuses.append(done)
    monkeypatch.setattr(lifeline, 'end_process', end)
    monkeypatch.setattr(lifeline, 'WORDS', 0.0)
    monkeypatch.setattr(lifeline, 'GRACE', 0.5)
    return statuses


@pytest.fixture
def open_lines():
    """open_lines(host, others) -> (its Lifeline, {other: the other end})."""
    sockets = []

    def run(host, others):
        pairs = {other: socket.socketpair() for other in others}
        sockets.extend(end for pair in pairs.values() for end in pair)
        lines = [Line(mine, other) for other, (mine, _) in pairs.items()]
        line = Lifeline(host, lines, NAMES, heartbeat=20)
        return line, {other: theirs for other, (_, theirs) in pairs.items()}

    yield run
    for one in sockets:
        one.close()


@pytest.fixture(autouse=True)
def no_tcp(monkeypatch):
    monkeypatch.setattr(lifeline, 'keep_alive', lambda *_: None)  # a socketpair is not TCP


def wait_end(ends):
    assert ends[0].wait(5)
    return ends[1:]


def read(connection):
    connection.settimeout(5)
    return [json.loads(line) for line in connection.recv(4096).splitlines()]


def test_a_worker_is_gone(ends, open_lines, capfd):
    _, others = open_lines(0, [1, 2])
    others[1].close()
    (message,) = read(others[2])
    assert (message['host'], message['status'], message['pause']) == (1, 75, 0)
    others[2].close()
    assert wait_end(ends) == [75]
    assert 'host 0: error: host 1 (vm-1) is gone, so this host stops too.' in capfd.readouterr().err
    assert 'host 1 (vm-1) is gone' in message['why']


def test_host_0_is_gone(ends, open_lines, capfd):
    _, others = open_lines(2, [0])
    others[0].close()
    assert wait_end(ends) == [75]
    assert 'host 2: error: host 0 (vm-0) is gone' in capfd.readouterr().err


def test_host_0_does_not_wait_for_a_host_that_hangs(ends, open_lines):
    _, others = open_lines(0, [1, 2])
    others[1].close()
    start = time.monotonic()
    assert wait_end(ends) == [75]
    assert 0.4 < time.monotonic() - start < 3


def test_goodbye_is_no_loss(ends, open_lines):
    line, others = open_lines(0, [1])
    line.say_goodbye()
    assert read(others[1]) == [{'bye': True}]
    others[1].sendall(b'{"bye": true}\n')
    others[1].close()
    line._thread.join(5)
    assert not line._thread.is_alive()
    assert ends[1:] == []


def test_an_error_elsewhere_is_passed_on_with_its_status(ends, open_lines, capfd):
    _, others = open_lines(0, [1, 2])
    others[1].sendall(b'{"host": 1, "status": 2, "why": "no data", "pa')
    others[1].sendall(b'use": 0}\n')  # in pieces, as TCP may deliver it
    assert read(others[2]) == [{'host': 1, 'status': 2, 'why': 'no data', 'pause': 0}]
    assert wait_end(ends) == [2]
    assert 'host 0: error: no data' in capfd.readouterr().err


def test_who_fails_itself_tells_the_others_and_waits_for_no_answer(ends, open_lines, capfd):
    line, others = open_lines(1, [0])
    line.abandon(1, 75, 'it crashed')
    assert wait_end(ends) == [1]
    assert read(others[0]) == [{'host': 1, 'status': 75, 'why': 'it crashed', 'pause': 0}]
    others[0].close()  # the answer comes when this host is about to end anyway
    line._thread.join(5)
    assert ends[1:] == [1]
    assert capfd.readouterr().err == ''


def test_nonsense_on_the_line_is_a_loss(ends, open_lines):
    _, others = open_lines(1, [0])
    others[0].sendall(b'HTTP/1.1 400\n')
    assert wait_end(ends) == [75]


def test_the_kernel_is_asked_within_the_heartbeat():
    with socket.socket() as connection:
        keep_alive(connection, 20)
        tcp = [
            connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, f'TCP_{name}'))
            for name in ('KEEPIDLE', 'KEEPINTVL', 'KEEPCNT', 'USER_TIMEOUT')
        ]
    assert tcp == [5, 5, 2, 15000]
