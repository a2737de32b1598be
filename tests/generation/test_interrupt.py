"""Ctrl-C during generation is recorded at once and raised at the next token."""

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
    """Raises SIGINT in its finalizer, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def handler() -> object:
    return signal.getsignal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_finalizer_is_raised_at_the_next_check():
    Interrupted()  # the premise: no exception is raised
    with pytest.raises(KeyboardInterrupt), interruptible():
        Interrupted()
        at_check = True
        check_interrupt()
        at_check = False
    assert at_check
    check_interrupt()  # raised only once
    assert handler() is signal.default_int_handler


def test_a_second_interrupt_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        waiting = True
        signal.raise_signal(signal.SIGINT)
        waiting = False
    assert waiting and handler() is signal.default_int_handler


def test_an_unchecked_interrupt_is_raised_at_the_end():
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


def test_another_thread_sets_no_handler_and_is_not_interrupted():
    done = []

    def work() -> None:
        with interruptible():
            check_interrupt()
        done.append(handler() is not signal.default_int_handler)  # still the main thread's

    with pytest.raises(KeyboardInterrupt), interruptible():
        thread = threading.Thread(target=work)
        other = threading.Thread(target=check_interrupt)
        thread.start()
        thread.join()
        signal.raise_signal(signal.SIGINT)
        other.start()
        other.join()
    assert done == [True]


@pytest.mark.parametrize("way", ["stream", "batch", "beams", "draft", "lookup"])
def test_generation_stops_at_the_next_token(way, monkeypatch):
    """Ctrl-C comes while the third token is read."""
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
    assert steps[0] <= 4  # the pass that verifies a draft is completed


def test_interruptible_without_an_interrupt_does_nothing():
    with interruptible():
        check_interrupt()
    assert handler() is signal.default_int_handler
