"""Batches of pairs: neither padding nor packing changes losses, and every pair occurs once per epoch."""

from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import model_configs, random_model
from tinylm.data import IGNORE, Batch
from tinylm.data.pair_batches import (
    PairEvaluationBatches,
    PairRows,
    PairTrainingBatches,
    RowOrder,
    pack_rows,
    pad_rows,
    split_examples,
)
from tinylm.data.template import Example
from tinylm.model import ModelConfig

few = settings(max_examples=40, deadline=None)


def example(length: int, seed: int = 0, vocab_size: int = 20) -> Example:
    """A pair of `length` inputs. The first token does not count, the last one does, others may."""
    random = np.random.default_rng([seed, length])
    counts = random.random(length + 1) < 0.5
    counts[[0, -1]] = False, True
    return Example(random.integers(0, vocab_size, length + 1), counts)


def examples(lengths: list[int], vocab_size: int = 20) -> list[Example]:
    return [example(length, seed, vocab_size) for seed, length in enumerate(lengths)]


# --- by hand


def test_a_padded_batch_by_hand():
    pairs = [Example(np.array([9, 1, 2, 9]), np.array([False, False, True, True]))]
    pairs.append(Example(np.array([9, 3]), np.array([False, True])))
    batch = pad_rows(pairs, pad=9).batch([0, 1])
    assert batch.inputs.tolist() == [[9, 1, 2], [9, 9, 9]]
    assert batch.targets.tolist() == [[IGNORE, 2, 9], [3, IGNORE, IGNORE]]
    assert batch.documents is not None and batch.documents.tolist() == [[0, 0, 0], [0, 1, 1]]
    assert batch.num_targets == 3 and batch.log_prob is None
    assert {str(each.dtype) for each in (batch.inputs, batch.targets, batch.documents)} == {"torch.int64"}


def test_a_packed_row_by_hand():
    pairs = [Example(np.array([9, 1, 2, 9]), np.array([False, False, True, True]))]
    pairs.append(Example(np.array([9, 3]), np.array([False, True])))
    batch = pack_rows(pairs, context=5, pad=0).batch([0])
    assert batch.inputs.tolist() == [[9, 1, 2, 9, 0]]
    assert batch.targets.tolist() == [[IGNORE, 2, 9, 3, IGNORE]]  # the next pair's first token is not a target
    assert batch.documents is not None and batch.documents.tolist() == [[0, 0, 0, 1, 2]]
    assert batch.num_targets == 3


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(9, 20))
def test_packing_keeps_every_pair_once_and_fits_the_context(lengths, context):
    rows = pack_rows(examples(lengths), context, pad=0)
    assert Counter(number for row in rows.rows for number in row) == Counter(range(len(lengths)))
    used = [sum(lengths[number] for number in row) for row in rows.rows]
    assert max(used) <= context
    assert sum(2 * each <= context for each in used) <= 1  # two half-empty rows would have been joined


# --- losses of a model


def losses(model, batch: Batch) -> torch.Tensor:
    """The loss of each target in nats, (B, T); 0 where none counts."""
    documents = batch.documents if model.config.document_mask else None
    logits = model(batch.inputs, documents=documents)
    return F.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORE, reduction="none")


def alone(model, pairs: list[Example]) -> list[torch.Tensor]:
    """The losses of each pair's targets in nats, when the model reads the pair by itself."""
    found = []
    for ids, counts in pairs:
        logits = model(torch.from_numpy(ids[None, :-1]))[0]
        nats = F.cross_entropy(logits, torch.from_numpy(ids[1:]), reduction="none")
        found.append(nats[torch.from_numpy(counts[1:])])
    return found


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True))


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-12) -> None:
    """Compares relative to the largest value if that is above 1."""
    for a, b in zip(found, expected, strict=True):
        largest = float(b.detach().abs().max()) if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * max(1.0, largest))


@few
@given(model_configs(max_seq_len=st.just(12)), st.lists(st.integers(1, 10), min_size=1, max_size=4), st.integers(0, 2))
def test_padding_changes_neither_losses_nor_gradients(config, lengths, more):
    model, pairs = random_model(config), examples(lengths, config.vocab_size)
    rows = PairRows(pairs, pad_rows(pairs, 0).rows, pad=config.vocab_size - 1, width=max(lengths) + more)
    batch = rows.batch(range(len(pairs)))
    together, apart = losses(model, batch), alone(model, pairs)
    counted = [row[targets != IGNORE] for row, targets in zip(together, batch.targets, strict=True)]
    assert_same(counted, apart)
    share, sum_of_shares = together.sum() / batch.num_targets, torch.cat(apart).mean()
    assert_same(gradients(model, share), gradients(model, sum_of_shares))


relative = st.sampled_from(["rotary", "none"])


@few
@given(
    model_configs(max_seq_len=st.just(12), positional_encoding=relative, document_mask=st.just(True)),
    st.lists(st.integers(1, 10), min_size=2, max_size=6),
)
def test_packing_changes_neither_losses_nor_gradients_where_positions_are_relative(config, lengths):
    model, pairs = random_model(config), examples(lengths, config.vocab_size)
    rows = pack_rows(pairs, config.max_seq_len, pad=0)
    batch = rows.batch(range(len(rows)))
    together, apart = losses(model, batch), alone(model, pairs)
    in_rows = [torch.cat([apart[number] for number in row]) for row in rows.rows]
    counted = [row[targets != IGNORE] for row, targets in zip(together, batch.targets, strict=True)]
    assert_same(counted, in_rows, 1e-11)  # rotary angles at other positions round differently
    assert_same(gradients(model, together.sum()), gradients(model, torch.cat(apart).sum()), 1e-10)


def test_without_a_document_mask_packing_changes_losses():
    """So the test above would detect a missing mask."""
    shape = dict(vocab_size=20, d_model=8, num_layers=1, num_heads=2, max_seq_len=12)
    pairs = examples([5, 6])
    batch = pack_rows(pairs, 12, pad=0).batch([0])
    model = random_model(ModelConfig(**shape, document_mask=False))
    found, expected = losses(model, batch)[batch.targets != IGNORE], torch.cat(alone(model, pairs[::-1]))
    assert float((found - expected).detach().abs().max()) > 0.01


# --- order


@few
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 3))
def test_every_epoch_has_every_row_once_for_any_batch_size(num_rows, batch_size, seed, epoch):
    def samples(batch_size: int) -> list[int]:
        order = RowOrder(num_rows, batch_size, seed)
        steps = range(-(-(epoch + 1) * num_rows // batch_size))
        return np.concatenate([order.rows(step) for step in steps]).tolist()[: (epoch + 1) * num_rows]

    assert sorted(samples(batch_size)[epoch * num_rows :]) == list(range(num_rows))
    assert samples(batch_size) == samples(1)


def test_epochs_and_seeds_differ_in_order():
    orders = {tuple(RowOrder(20, 20, seed).rows(epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("step", [0, 7])  # a resumed run begins at any step
@pytest.mark.parametrize("packed", [False, True])
def test_ranks_and_micro_steps_together_are_the_global_batch_in_order(world_size, accumulate, step, packed):
    pairs = examples([1 + number % 9 for number in range(50)])
    rows = pack_rows(pairs, 12, 0) if packed else pad_rows(pairs, 0)
    order = RowOrder(len(rows), batch_size=8, seed=3)
    shares = [
        PairTrainingBatches(rows, order, accumulate, world_size, rank)[step * accumulate + micro_step]
        for rank in range(world_size)
        for micro_step in range(accumulate)
    ]
    whole = rows.batch(order.rows(step))
    assert [row for share in shares for row in trimmed(share)] == trimmed(whole)
    assert {share.num_targets for share in shares} == {int((whole.targets != IGNORE).sum())}  # of the whole step
    assert {len(share.inputs) for share in shares} == {8 // world_size // accumulate}


def trimmed(batch: Batch) -> list[tuple]:
    """The rows of a batch without padding."""
    assert batch.documents is not None
    found = []
    for inputs, targets, documents in zip(batch.inputs, batch.targets, batch.documents, strict=True):
        length = int((targets != IGNORE).nonzero().max()) + 1
        found.append(tuple(tuple(each[:length].tolist()) for each in (inputs, targets, documents)))
    return found


@few
@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_ranks_together_evaluate_every_pair_once_and_in_order(lengths, batch_size, world_size):
    rows = pad_rows(examples(lengths), 0)
    ranks = [PairEvaluationBatches(rows, batch_size, world_size, rank) for rank in range(world_size)]
    assert len({len(data) for data in ranks}) == 1  # equally many batches, some without targets
    batches = [data[i] for i in range(len(ranks[0])) for data in ranks]
    found = [row for batch in batches if batch.num_targets for row in trimmed(batch)]
    assert found == trimmed(rows.batch(range(len(rows))))
    assert sum(batch.num_targets for batch in batches) == sum(int((batch.targets != IGNORE).sum()) for batch in batches)


# --- parts


@few
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=40),
    st.sampled_from([(0.9, 0.1), (0.6, 0.2, 0.2)]),
    st.integers(0, 2**32),
)
def test_parts_have_every_pair_once_and_share_no_prompt(numbers, split, seed):
    """Prompts and responses of one token each."""
    pairs = [Example(np.array([9, p, r]), np.array([False, False, True])) for p, r in numbers]
    parts = [[tuple(each.ids[1:]) for each in part] for part in split_examples(pairs, split, seed)]
    assert Counter(pair for part in parts for pair in part) == Counter(numbers)
    prompts = [{prompt for prompt, _ in part} for part in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    again = split_examples(pairs, split, seed)
    assert [[tuple(each.ids[1:]) for each in part] for part in again] == parts


def test_parts_have_the_requested_sizes_and_depend_on_the_seed():
    pairs = [Example(np.array([9, number, 1]), np.array([False, False, True])) for number in range(100)]
    drawn = []
    for seed in range(5):
        train, val, test = (
            [int(each.ids[1]) for each in part] for part in split_examples(pairs, (0.8, 0.1, 0.1), seed)
        )
        assert (len(train), len(val), len(test)) == (80, 10, 10)
        assert train == sorted(train)  # in the order of the file
        drawn.append(tuple(val))
    assert len(set(drawn)) == 5
