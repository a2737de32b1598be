"""A TokenArray of any cuts reads as the whole array does, and so do the batches made of it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylm.data import token_array
from tinylm.data.batches import TrainingBatches, TrainingWindows, gather
from tinylm.data.evaluation_rows import document_begins, document_rows, gather_rows, window_rows
from tinylm.data.token_array import TokenArray, first_position, positions_of, read_windows


@st.composite
def cut_arrays(draw):
    """An array of ids, and the same ids in pieces of various types, some of them empty."""
    whole = np.array(draw(st.lists(st.integers(0, 9), min_size=2, max_size=60)), np.uint16)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    types = st.sampled_from([np.uint16, np.int32, np.uint32])
    return whole, TokenArray([piece.astype(draw(types)) for piece in np.split(whole, cuts)])


@given(cut_arrays(), st.data())
def test_windows_across_pieces_are_those_of_the_whole(arrays, data):
    whole, cut = arrays
    context = data.draw(st.integers(1, len(whole) - 1))
    starts = np.array(data.draw(st.lists(st.integers(-1, len(whole) - context - 1), min_size=1, max_size=8)))
    expected = torch.from_numpy(whole[starts[:, None] + np.arange(context + 1)].astype(np.int64))
    for tokens in (whole, cut):
        batch = gather(tokens, starts, context, 7)
        assert torch.equal(batch.inputs, expected[:, :-1]) and torch.equal(batch.targets, expected[:, 1:])
        assert batch.inputs.dtype == torch.int64 and batch.num_targets == 7


@given(cut_arrays(), st.integers(1, 9), st.integers(0, 9))
def test_evaluation_rows_across_pieces_are_those_of_the_whole(arrays, context, separator):
    whole, cut = arrays
    ended = [np.append(whole, separator), TokenArray([*cut.pieces, np.array([separator])])]
    begins = document_begins(ended[0], separator)
    assert document_begins(ended[1], separator).tolist() == begins.tolist()
    for rows in (document_rows(begins, len(ended[0]), context), window_rows(len(ended[0]), context)):
        one, other = (gather_rows(tokens, rows, slice(0, 5)) for tokens in ended)
        assert torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)


@given(cut_arrays(), st.integers(0, 9), st.integers(0, 60), st.integers(1, 9))
def test_positions_across_pieces_and_chunks_are_those_of_the_whole(arrays, token, start, chunk):
    whole, cut = arrays
    expected = [i for i, found in enumerate(whole) if found == token]
    later = [i for i in expected if i >= start]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_array, "CHUNK", chunk)
        for tokens in (whole, cut):
            assert positions_of(tokens, token).tolist() == expected
            assert first_position(tokens, token, start) == (later[0] if later else None)


@given(cut_arrays(), st.integers(0, 60), st.integers(0, 60))
def test_slices_are_those_of_the_whole(arrays, start, stop):
    whole, cut = arrays
    assert cut[start:stop].tolist() == whole[start:stop].tolist()
    assert np.asarray(cut).tolist() == whole.tolist() and len(cut) == len(whole)


@pytest.mark.parametrize("start", [-2, 3])
def test_a_window_beyond_the_tokens_is_an_error(start):
    for tokens in (np.arange(6), TokenArray([np.arange(4), np.arange(2)])):
        with pytest.raises(IndexError):
            read_windows(tokens, np.array([start]), 4)


def test_two_ranks_read_the_same_windows_from_shards_as_from_one_array():
    whole = np.arange(1000, dtype=np.uint16)
    cut = TokenArray(np.split(whole, [100, 101, 350, 777]))
    windows = TrainingWindows(1000, 30, 8, seed=3)
    for rank in (0, 1):
        one, other = (TrainingBatches(tokens, windows, 2, 2, rank) for tokens in (whole, cut))
        for step in range(20):
            assert torch.equal(one[step].inputs, other[step].inputs)
            assert torch.equal(one[step].targets, other[step].targets)
