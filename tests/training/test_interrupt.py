"""Signals before and during a run: none is lost, a second one insists."""

import gc
import os
import signal

import pytest

from mim_jax.training.interrupt import SIGNALS, Interrupt, stop_early


@pytest.fixture(autouse=True)
def handlers():
    """Put pytest's own handlers back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop_early()
    yield
    with Interrupt():  # forgets what is remembered
        pass
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_before_the_run_ends_the_program(number):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_that_python_dropped_is_there_when_the_run_begins(number):
    """An exception in a callback of the garbage collector goes nowhere."""

    def during_collection(phase, info):
        if phase == 'start':
            os.kill(os.getpid(), number)

    gc.callbacks.append(during_collection)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(during_collection)
    with Interrupt() as interrupt:
        assert interrupt.requested == signal.Signals(number).name
    with Interrupt() as interrupt:
        assert interrupt.requested is None


def test_the_first_asks_and_the_second_insists(capfd):
    with Interrupt() as interrupt:
        assert interrupt.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested == 'SIGTERM'
        assert 'once more to stop without saving' in capfd.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
