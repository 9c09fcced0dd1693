"""What a host asks travels with the step, and is answered on all hosts at the same one."""

import signal

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mim_jax.parallel.mesh import make_mesh
from mim_jax.training import requests
from mim_jax.training.interrupt import Interrupt
from mim_jax.training.requests import LOGS, Requests, asked_sharding
from mim_jax.training.step import jit_train_step


class Asked:
    """An Interrupt that was, or was not, sent a signal."""

    requested = None


@pytest.fixture
def pod(monkeypatch):
    """Several hosts as one of them sees it: [what the others say] when all are asked."""
    others = []
    monkeypatch.setattr(requests, 'are_several', lambda: True)
    monkeypatch.setattr(requests, 'exchange', lambda name, value: [value, *others])
    return others


def test_one_host_answers_at_once():
    with Interrupt() as interrupt:
        mine = Requests(make_mesh(), interrupt)
        assert mine.carry(True) == ()
        assert [mine.save(due) for due in (True, False)] == [True, False]
        assert (mine.stop, mine.agree()) == (False, False)
        signal.raise_signal(signal.SIGTERM)
        assert (mine.stop, mine.agree()) == (True, True)
        assert mine.take({'loss/total': 1.0}) == {'loss/total': 1.0}


@pytest.mark.parametrize('sizes', [(8, 1, 1), (2, 2, 2)])
def test_several_hosts_act_on_what_a_step_returns(pod, sizes):
    """Not on their own signal or clock; each device carries its host's requests, whatever the mesh."""
    mesh, interrupt = make_mesh(*sizes), Asked()
    mine = Requests(mesh, interrupt)
    add_up = jax.jit(lambda rows: rows.sum(axis=0), in_shardings=asked_sharding(mesh))

    def run_step(due: bool) -> dict[str, float]:
        (carried,) = mine.carry(due)
        assert carried.addressable_shards[0].data.shape == (1, 2)
        return dict(zip(LOGS, map(float, add_up(carried)), strict=True)) | {'lr': 1.0}

    assert mine.take(run_step(due=False)) == {'lr': 1.0}
    assert (mine.stop, mine.save(False), mine.save(True)) == (False, False, False)
    mine.take(run_step(due=True))
    assert (mine.stop, mine.save(False)) == (False, True)
    mine.saved()
    assert not mine.save(True)
    interrupt.requested = 'SIGTERM'
    assert not mine.stop
    mine.take(run_step(due=False))
    assert mine.stop


def test_only_the_first_hosts_clock_counts(pod, monkeypatch):
    monkeypatch.setattr(requests, 'is_first', lambda: False)
    (carried,) = Requests(make_mesh(), Asked()).carry(True)
    assert not carried.any()


def test_a_signal_to_another_host_between_steps(pod):
    mine = Requests(make_mesh(), Asked())
    assert not mine.agree()
    pod.append(True)
    assert mine.agree()
    pod.clear()
    assert (mine.stop, mine.agree()) == (True, True)  # nobody takes it back


def test_the_step_adds_up_what_it_is_given(pod):
    """And has no such argument, and no such logs, where there is one host."""
    mesh, interrupt = make_mesh(), Asked()
    interrupt.requested = 'SIGINT'
    whole = NamedSharding(mesh, PartitionSpec())
    state = {'x': jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)}

    def step(state: dict, frozen: dict, batch: jax.Array) -> tuple[dict, dict]:
        return state, {'loss/total': batch.sum()}

    batch, first = jnp.ones(8), jax.device_put({'x': jnp.zeros(())}, whole)
    _, logs = jit_train_step(step, state, {}, mesh)(first, {}, batch)
    assert set(logs) == {'loss/total'}
    first = jax.device_put({'x': jnp.zeros(())}, whole)
    several = jit_train_step(step, state, {}, mesh, requests=True)
    _, logs = several(first, {}, batch, *Requests(mesh, interrupt).carry(True))
    assert {key: float(value) for key, value in logs.items()} == {'loss/total': 8.0, LOGS[0]: 8.0, LOGS[1]: 8.0}
