"""The tokens of a step: epochs are permutations, and evaluation covers every token once."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.data.batches import DocumentWindows, TrainingWindows, gather
from tinylm.data.evaluation_rows import document_begins, document_rows, gather_rows, window_rows
from tinylm.errors import DataError
from tinylm.model.loss import IGNORE

few = settings(max_examples=60, deadline=None)


@st.composite
def windows(draw) -> TrainingWindows:
    context = draw(st.integers(1, 12))
    num_tokens = context + draw(st.integers(1, 100))
    return TrainingWindows(num_tokens, context, draw(st.integers(1, 9)), draw(st.integers(0, 2**32)))


def samples(windows: TrainingWindows, first: int, count: int) -> np.ndarray:
    """The starts of `count` samples of the endless sequence, from sample `first` on."""
    size = windows.batch_size
    steps = range(first // size, -(-(first + count) // size))
    starts = np.concatenate([windows.starts(step) for step in steps])
    return starts[first % size :][:count]


@few
@given(windows(), st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_starts_are_a_pure_function_of_seed_and_step(windows, steps):
    again = TrainingWindows(windows.num_tokens, windows.context, windows.batch_size, windows.seed)
    forwards = {step: windows.starts(step).tolist() for step in steps}
    backwards = {step: again.starts(step).tolist() for step in reversed(steps)}
    assert forwards == backwards


@few
@given(windows(), st.integers(0, 5))
@example(TrainingWindows(767, 256, 32), 0)  # a third of this text was once left out
@example(TrainingWindows(257, 256, 4), 3)
def test_every_token_but_the_first_is_a_target_in_every_epoch(windows, epoch):
    starts = samples(windows, epoch * windows.num_windows, windows.num_windows)
    targets = starts[:, None] + 1 + np.arange(windows.context)
    seen = np.bincount(targets.ravel(), minlength=windows.num_tokens)
    assert len(seen) == windows.num_tokens  # no target beyond the text
    assert (seen[0], seen[1:].min()) == (0, 1)
    assert seen.max() <= (2 if windows.num_tokens > 2 * windows.context else 3)
    assert len({*starts}) == len(starts)


@few
@given(windows(), st.integers(0, 5))
def test_an_epoch_is_a_grid_of_windows_that_overlap_only_at_the_ends_of_the_text(windows, epoch):
    starts = np.sort(samples(windows, epoch * windows.num_windows, windows.num_windows))
    assert (np.diff(starts)[1:-1] == windows.context).all()
    repeated = windows.num_windows * windows.context - (windows.num_tokens - 1)
    assert 0 <= repeated < 1.5 * windows.context
    assert windows.steps_per_epoch == max(1, windows.num_windows // windows.batch_size)


@few
@given(st.integers(2, 12), st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32))
def test_the_steps_of_a_run_reach_every_target_whatever_its_batch_size(context, more, batch_size, seed):
    """`steps_per_epoch` rounds down, but the samples of all epochs are one sequence: none is left out."""
    windows = TrainingWindows(context + more, context, batch_size, seed)
    steps = -(-windows.num_windows // batch_size)
    starts = np.concatenate([windows.starts(step) for step in range(steps)])
    assert {start + 1 + i for start in starts for i in range(context)} == set(range(1, context + more))


@few
@given(windows(), st.integers(0, 40), st.integers(1, 9))
def test_the_sequence_of_samples_does_not_depend_on_the_batch_size(windows, first, batch_size):
    other = TrainingWindows(windows.num_tokens, windows.context, batch_size, windows.seed)
    assert samples(windows, first, 30).tolist() == samples(other, first, 30).tolist()


def test_epochs_and_seeds_differ_in_order_and_offset():
    def epoch(seed: int, number: int) -> tuple[int, tuple[int, ...]]:
        windows = TrainingWindows(1000, 8, 4, seed)
        starts = samples(windows, number * windows.num_windows, windows.num_windows)
        return int(np.sort(starts)[1]), tuple(starts)

    epochs = [epoch(seed, number) for seed in range(3) for number in range(100)]
    assert len({order for _, order in epochs}) == 300
    for seed in range(3):  # 126 windows repeat 9 of 999 targets, 2 to 7 at the start; 100 draws miss one of six: 7e-8
        assert {offset for offset, _ in epochs[seed * 100 : seed * 100 + 100]} == set(range(1, 7))


def test_windows_and_steps_by_hand():
    windows = TrainingWindows(num_tokens=100, context=8, batch_size=4)
    assert (windows.num_windows, windows.steps_per_epoch) == (13, 3)  # 99 targets and half a window: 103 / 8
    smallest = TrainingWindows(num_tokens=129, context=128, batch_size=2)
    assert (smallest.num_windows, smallest.steps_per_epoch) == (1, 1)
    assert smallest.starts(7).tolist() == [0, 0]
    two = TrainingWindows(num_tokens=130, context=128, batch_size=2)
    assert sorted(two.starts(3)) == [0, 1]
    by_seed = {tuple(sorted(TrainingWindows(10, 4, 3, seed).starts(0))) for seed in range(50)}
    # 9 targets: 3 windows repeat 3 of them, at the start, the end or both
    assert by_seed == {(0, 4, 5), (0, 3, 5), (0, 2, 5), (0, 1, 5)}


def test_a_training_text_shorter_than_a_window_is_refused_with_counts():
    with pytest.raises(DataError, match=r"^train has 90 tokens, max_seq_len 128 needs at least 129; .* at most 89$"):
        TrainingWindows(90, 128, 4)
    with pytest.raises(DataError, match=r"^train has 128 tokens, max_seq_len 128 needs at least 129"):
        TrainingWindows(128, 128, 4)


@few
@given(windows(), st.sampled_from([np.uint16, np.uint32]))
def test_targets_are_the_inputs_shifted_by_one(windows, dtype):
    tokens = np.arange(windows.num_tokens, dtype=dtype) + 60_000  # each token is its position plus 60,000, above int16
    starts = windows.starts(0)
    inputs, targets, num_targets, *_ = gather(tokens, starts, windows.context, num_targets=17)
    assert inputs.tolist() == [list(range(60_000 + s, 60_000 + s + windows.context)) for s in starts]
    assert (targets == inputs + 1).all()
    assert (str(inputs.dtype), str(targets.dtype), num_targets) == ("torch.int64", "torch.int64", 17)


@few
@given(st.integers(2, 200), st.integers(1, 20), st.integers(1, 7))
def test_in_evaluation_every_token_but_the_first_is_a_target_once(num_tokens, context, batch_size):
    tokens = np.arange(num_tokens, dtype=np.uint16)
    rows = window_rows(num_tokens, context)
    seen = []
    for first in range(0, len(rows.begins), batch_size):
        inputs, targets, num_targets, log_prob, *_ = gather_rows(tokens, rows, slice(first, first + batch_size))
        counts = targets != IGNORE
        assert (
            inputs.shape
            == targets.shape
            == (len(rows.begins[first : first + batch_size]), min(context, num_tokens - 1))
        )
        assert num_targets == counts.sum()
        assert (inputs[counts] + 1 == targets[counts]).all()
        assert inputs.min() >= 0 and inputs.max() < num_tokens  # padding included
        assert log_prob is None
        seen += targets[counts].tolist()
    assert seen == list(range(1, num_tokens))


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_text_without_targets_has_no_rows(num_tokens):
    assert len(window_rows(num_tokens, 4).begins) == 0


# --- documents

END = 0  # the separator, and the only token 0


@st.composite
def documents(draw) -> list[list[int]]:
    return [[*draw(st.lists(st.integers(1, 9), max_size=12)), END] for _ in range(draw(st.integers(1, 8)))]


@few
@given(documents(), st.integers(1, 15), st.integers(1, 4))
def test_evaluation_reads_each_document_from_the_separator_before_it(documents, context, batch_size):
    """Against a plain loop over documents."""
    tokens = np.array(list(chain.from_iterable(documents)), dtype=np.uint16)
    log_probs = -np.arange(1.0, len(documents) + 1)
    rows = document_rows(document_begins(tokens, END), len(tokens), context, log_probs)
    expected = []
    for document, log_prob in zip(documents, log_probs, strict=True):
        text = [END, *document]
        for first in range(0, len(document), context):
            piece = text[first : first + context + 1]
            expected.append((piece[:-1], piece[1:], log_prob if first == 0 else 0))
    assert len(rows.begins) == len(expected)
    for first in range(0, len(expected), batch_size):
        part = expected[first : first + batch_size]
        inputs, targets, num_targets, log_prob, *_ = gather_rows(tokens, rows, slice(first, first + batch_size))
        counts = targets != IGNORE
        assert [row[keep].tolist() for row, keep in zip(inputs, counts, strict=True)] == [piece for piece, _, _ in part]
        assert [row[keep].tolist() for row, keep in zip(targets, counts, strict=True)] == [
            piece for _, piece, _ in part
        ]
        assert num_targets == counts.sum()
        assert log_prob == pytest.approx(sum(nats for _, _, nats in part))
        assert inputs.shape[1] == max(len(piece) for piece, _, _ in expected)  # the same for all batches


@few
@given(documents(), st.integers(1, 10), st.integers(1, 5), st.integers(0, 2**32), st.integers(0, 3))
def test_an_epoch_reads_every_token_of_every_document_aligned(documents, context, batch_size, seed, epoch):
    tokens = np.array(list(chain.from_iterable(documents)))
    if len(tokens) <= context:
        return
    rows = document_rows(document_begins(tokens, END), len(tokens), context)
    windows = DocumentWindows(len(tokens), context, batch_size, seed, begins=rows.begins)
    starts = samples(windows, epoch * windows.num_windows, windows.num_windows)
    latest = len(tokens) - 1 - context  # the last windows begin earlier, to have all targets
    ends = np.cumsum([0, *map(len, documents)]) - 1  # of the documents; -1 before the first
    aligned = [first for i, end in enumerate(ends[:-1]) for first in range(end, ends[i + 1], context)]
    assert sorted(starts) == sorted(min(first, latest) for first in aligned)
    batch = gather(tokens, starts, context, num_targets=1)
    for start, inputs, targets in zip(starts, batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        assert inputs == ([END] if start == -1 else []) + tokens[max(start, 0) : start + context].tolist()
        assert targets == tokens[start + 1 : start + 1 + context].tolist()
    read = {start + 1 + i for start in starts for i in range(context)}
    assert read == set(range(len(tokens)))  # every token is a target


def test_the_order_of_documents_differs_between_epochs_and_seeds():
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        windows = DocumentWindows(100, 3, 4, seed, begins=np.arange(-1, 90, 10))
        return tuple(samples(windows, epoch * 10, 10))

    assert len({order(seed, epoch) for seed in range(3) for epoch in range(3)}) == 9
