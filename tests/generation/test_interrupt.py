"""Ctrl-C during a text: noted wherever it comes, heard at the next token."""

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
    """Ctrl-C comes while it is finalized, where Python loses exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def handler() -> object:
    return signal.getsignal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_python_loses_is_heard_at_the_next_check():
    Interrupted()  # the premise: no exception comes out
    with pytest.raises(KeyboardInterrupt), interruptible():
        Interrupted()
        heard = True
        check_interrupt()
        heard = False
    assert heard
    check_interrupt()  # it counts once
    assert handler() is signal.default_int_handler


def test_the_second_is_not_waited_for():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        waiting = True
        signal.raise_signal(signal.SIGINT)
        waiting = False
    assert waiting and handler() is signal.default_int_handler


def test_one_that_no_check_came_upon_is_heard_at_the_end():
    reached = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
        reached = True
    assert reached


def test_another_handler_stays():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            check_interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [1]


def test_another_thread_sets_no_handler_and_is_not_stopped():
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
def test_a_text_stops_within_a_token(way, monkeypatch):
    """Ctrl-C comes while the third token is read: no fourth one is."""
    model = random_model(ModelConfig(vocab_size=10, d_model=8, num_layers=1, num_heads=1, max_seq_len=32))
    draft = random_model(ModelConfig(vocab_size=10, d_model=4, num_layers=1, num_heads=1, max_seq_len=32))
    plain = Generator(model, LETTERS)
    spoken = SpeculativeGenerator(model, LETTERS, draft if way == "draft" else None, num_draft=1)
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
        ways.get(way, lambda: spoken.generate("abcabc", max_new_tokens=9))()
    assert steps[0] <= 4  # of a draft, what it was compared by is read


def test_without_ctrl_c_nothing_changes():
    with interruptible():
        check_interrupt()
    assert handler() is signal.default_int_handler
