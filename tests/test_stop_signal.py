"""Signals: the first asks, the second ends, and all processes agree on the step."""

import os
import signal

import pytest
from stop_signal import StopSignal


@pytest.fixture
def handlers():
    """Puts the handlers of the test process back."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_one_asks_at_the_next_step(handlers, number):
    with StopSignal() as stop:
        assert not stop.asked()
        os.kill(os.getpid(), number)
        assert stop.asked()
        assert stop.asked()
        assert stop.received == number


def test_the_second_one_does_what_it_does_everywhere(handlers):
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_everything_is_as_before(handlers):
    with StopSignal():
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
