"""Subword regularization: other tokens of the same text, the same for every number of processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.data.datamodule import TextDataModule
from tinylm.data.subwords import resampled
from tinylm.errors import ConfigError
from tinylm.tokenizer import BPETokenizer

TEXT = "the quick brown fox jumps over the lazy dog, é and 日本. " * 40
BPE = BPETokenizer.train_from_texts([TEXT], vocab_size=330, special_tokens=["<|endoftext|>"])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
@example("日本", 1, 1, 0.9)  # begins and ends within a character
@example("the<|endoftext|>fox", 0, 0, 0.5)
def test_other_ids_stand_for_the_same_bytes(text, front, back, alpha):
    ids = BPE.encode_array(text, allow_special=True)
    ids = ids[front : max(len(ids) - back, 0)]
    drawn = resampled(BPE, ids, alpha, np.random.default_rng(0))
    assert b"".join(BPE.token_bytes[token] for token in drawn) == b"".join(BPE.token_bytes[token] for token in ids)
    assert (drawn == BPE.end_of_text).sum() == (ids == BPE.end_of_text).sum()


def module(alpha: float | None, world_size: int = 1, rank: int = 0, step: int = 0, **options) -> TextDataModule:
    """A data module before a step of its training."""
    data = TextDataModule(
        corpus=[TEXT], tokenizer=BPE, max_seq_len=16, batch_size=4, subword_alpha=alpha, split=(1.0,), seed=5, **options
    )
    fields: dict = dict(max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit"), val_check_interval=1.0)
    fields |= dict(world_size=world_size, global_rank=rank, limit_train_batches=1.0, accumulate_grad_batches=1)
    data.trainer = SimpleNamespace(global_step=step, **fields)
    data.setup("fit")
    return data


def rows(data: TextDataModule, count: int) -> torch.Tensor:
    """The inputs of the first micro-batches."""
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]
    for batch in batches:
        assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    return torch.cat([batch.inputs for batch in batches])


def test_the_draws_depend_on_seed_step_and_row_alone():
    """Resumed at a step, with two processes, and in micro-batches: the rows are those of one process."""
    plain, drawn = rows(module(None), 6), rows(module(0.3), 6)
    assert drawn.shape == plain.shape
    assert not torch.equal(drawn, plain)
    for row, other in zip(plain, drawn, strict=True):
        assert BPE.decode(row).startswith(BPE.decode(other).rstrip("\ufffd"))  # the same text, up to the context
    assert torch.equal(rows(module(0.3, step=4), 2), drawn[16:])
    shares = [rows(module(0.3, world_size=2, rank=rank), 6).reshape(6, 2, -1) for rank in range(2)]
    assert torch.equal(torch.cat(shares, dim=1).reshape(24, -1), drawn)
    assert torch.equal(rows(module(0.3, micro_batch_size=1), 24), drawn)
    assert torch.equal(rows(module(0.0), 6), plain)


def test_the_draws_of_an_epoch_differ_from_those_of_another():
    data = module(0.5)
    steps = data.content.order.steps_per_epoch
    again = data.content.training(1, 1, 0)
    epochs = [{BPE.decode(row)[:12]: row for row in rows(module(0.5, step=epoch * steps), steps)} for epoch in (0, 1)]
    assert len(again[0].inputs) == 4
    both = epochs[0].keys() & epochs[1].keys()
    assert any(not torch.equal(epochs[0][text], epochs[1][text]) for text in both)


def test_rows_may_be_short_at_first():
    data = module(0.3, context_schedule={2: 8})
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(3), strict=False)]
    assert [tuple(batch.inputs.shape) for batch in batches] == [(8, 8), (8, 8), (4, 16)]


@pytest.mark.parametrize(
    ("tokenizer", "alpha", "problem"),
    [
        ("char", 0.1, "kind char segments a text in one way only"),
        ("byte", 0.1, "kind byte segments"),
        (BPE, 1.5, "alpha must be from 0 to 1"),
        (BPE, -0.1, "alpha must be from 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tokenizer, alpha, problem):
    data = TextDataModule(corpus=[TEXT], tokenizer=tokenizer, max_seq_len=16, batch_size=4, subword_alpha=alpha)
    data.trainer = module(0.1).trainer
    with pytest.raises(ConfigError, match=f"data.subword_alpha: .*{problem}"):
        data.setup("fit")
