"""Ctrl-C during generation: recorded at any moment, raised at the next token."""

import signal
import threading

import pytest
import torch

from tests.strategies import random_model
from tinylm.console import check_interrupt, interruptible
from tinylm.generation import Generator, SpeculativeGenerator, beam_search
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig
from tinylm.tokenizer import CharTokenizer

LETTERS = CharTokenizer("abcdefghij")


class Interrupted:
    """Raises SIGINT in its finalizer, where Python discards exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def handler() -> object:
    return signal.getsignal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_lost_interrupt_is_raised_at_the_next_check():
    Interrupted()  # the premise: Python discards the exception
    with pytest.raises(KeyboardInterrupt), interruptible():
        Interrupted()
        raised = True
        check_interrupt()
        raised = False
    assert raised
    check_interrupt()  # it is raised once
    assert handler() is signal.default_int_handler


def test_a_second_interrupt_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        waiting = True
        signal.raise_signal(signal.SIGINT)
        waiting = False
    assert waiting and handler() is signal.default_int_handler


def test_an_interrupt_without_a_check_is_raised_at_the_end():
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_another_handler_is_kept():
    calls = []
    before = signal.signal(signal.SIGINT, lambda *_: calls.append(1))
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            check_interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == [1]


def test_other_threads_set_no_handler_and_are_not_stopped():
    done = []

    def work() -> None:
        with interruptible():
            check_interrupt()
        done.append(handler() is not signal.default_int_handler)  # the main thread's, still

    with pytest.raises(KeyboardInterrupt), interruptible():
        thread = threading.Thread(target=work)
        signal_noted = threading.Thread(target=check_interrupt)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGINT)
        signal_noted.start()
        signal_noted.join()
    assert done == [True]


@pytest.mark.parametrize("way", ["stream", "batch", "beams", "draft", "lookup"])
def test_generation_stops_within_a_token(way, monkeypatch):
    """Ctrl-C arrives while the third token is read, and the fourth is never read."""
    model = random_model(ModelConfig(vocab_size=10, d_model=8, num_layers=1, num_heads=1, max_seq_len=32))
    draft = random_model(ModelConfig(vocab_size=10, d_model=4, num_layers=1, num_heads=1, max_seq_len=32))
    plain = Generator(model, LETTERS)
    speculative = SpeculativeGenerator(model, LETTERS, draft if way == "draft" else None, num_draft=1)
    steps, read, read_many = [0], Decoder.step, Decoder.steps

    def count() -> None:
        steps[0] += 1
        if steps[0] == 3:
            Interrupted()

    monkeypatch.setattr(Decoder, "step", lambda self, ids, cache: (count(), read(self, ids, cache))[1])
    monkeypatch.setattr(Decoder, "steps", lambda self, *arguments: (count(), read_many(self, *arguments))[1])
    ways = {
        "stream": lambda: plain.generate("abc", max_new_tokens=9),
        "batch": lambda: plain.complete(["abc", "b"], num_samples=2, max_new_tokens=9),
        "beams": lambda: beam_search(plain, "abc", num_beams=2, max_new_tokens=9),
    }
    with pytest.raises(KeyboardInterrupt), interruptible(), torch.no_grad():
        ways.get(way, lambda: speculative.generate("abcabc", max_new_tokens=9))()
    assert steps[0] <= 4  # with a draft model, the verification step too


def test_without_an_interrupt_nothing_changes():
    with interruptible():
        check_interrupt()
    assert handler() is signal.default_int_handler
