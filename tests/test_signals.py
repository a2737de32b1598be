"""Signals that raise."""

import signal
import time

import pytest

from tinylm.errors import Interrupted, Preempted
from tinylm.signals import raised

KINDS = {signal.SIGINT: Interrupted, signal.SIGTERM: Preempted}


@pytest.mark.parametrize("number", KINDS)
def test_a_signal_while_an_object_is_destroyed_is_not_lost(number):
    """Python drops exceptions there, and without a second one the loop would go on."""

    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(number)

    before = signal.getsignal(number)
    with pytest.raises(KINDS[number]), raised():
        Destroyed()
        time.sleep(20)
    assert signal.getsignal(number) == before


def test_a_signal_while_a_generator_is_closed_is_not_lost():
    def blocks():
        try:
            yield 1
        finally:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted), raised():
        block = blocks()
        next(block)
        del block  # as when a stream is read no further
        time.sleep(20)
