"""MergeLearner against the textbook, which recounts all pairs for each merge."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import textbook
from tinylm.tokenizer.fast import learning
from tinylm.tokenizer.fast.learning import MergeLearner

LETTERS = [b"a", b"b", b"c", b"d"]
words = st.dictionaries(
    st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple), st.integers(1, 50), min_size=1, max_size=12
)


def learn(counts: dict[tuple[int, ...], int], num_tokens: int) -> tuple[list[tuple[int, int]], list[bytes]]:
    token_bytes = LETTERS[:]
    ids = np.array([token for word in counts for token in word])
    sizes = np.array([len(word) for word in counts])
    learner = MergeLearner(ids, sizes, np.array([*counts.values()]), token_bytes)
    return list(learner.learn(num_tokens)), token_bytes


def test_the_textbook_on_the_example_in_its_docstring():
    token_bytes = [b"a", b"b", b"c"]
    counts = {(0, 0, 1): 2, (0, 1, 2): 1}
    assert textbook.learn_merges(counts, 2, token_bytes) == [(0, 1), (0, 3)]
    assert token_bytes == [b"a", b"b", b"c", b"ab", b"aab"]
    assert textbook.merge_word([0, 0, 1, 0, 1, 2], {(0, 1): 3, (0, 3): 4}) == [4, 3, 2]


@pytest.mark.parametrize("few", [0, 3, 1000], ids=["arrays", "both", "lists"])
@settings(max_examples=60, deadline=None)
@given(counts=words, num_merges=st.integers(0, 25), slice_size=st.sampled_from([5, 1 << 22]))
@example(counts={(0, 0, 0, 0, 0): 3, (0, 0, 1, 0, 0): 2, (0, 1, 0, 1, 0, 1): 4}, num_merges=20, slice_size=5)
def test_merges_equal_those_of_the_textbook(few, counts, num_merges, slice_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "FEW", few)
        patch.setattr(learning, "SLICE", slice_size)
        known = LETTERS[:]
        expected = textbook.learn_merges(counts, num_merges, known)
        merges, token_bytes = learn(counts, len(known))
    # the textbook stops after a number of merges, some of which may yield existing tokens
    assert merges == expected[: len(merges)]
    assert token_bytes == known


@pytest.mark.parametrize("few", [0, 1000])
def test_counts_beyond_32_bits_are_compared_correctly(few, monkeypatch):
    monkeypatch.setattr(learning, "FEW", few)
    counts = {(0, 1): 1 << 40, (1, 2): (1 << 40) + 1, (2, 3): (1 << 33) - 1, (3, 3, 3): 1 << 32}
    assert learn(counts, 8)[0] == textbook.learn_merges(counts, 4, LETTERS[:])


@pytest.mark.parametrize("few", [0, 1000])
def test_a_pair_that_overlaps_with_itself_is_merged_from_the_left(few, monkeypatch):
    monkeypatch.setattr(learning, "FEW", few)
    # aaaaaaa 5 times, baaa once: aa occurs 6 x 5 + 2 times. Then aa|aa|aa|a and b|aa|a: aa aa 10 times, aa a 6 times.
    # Then aaaa|aa|a and b|aa|a: aa a is still 6.
    counts = {(0,) * 7: 5, (1, 0, 0, 0): 1}
    assert learn(counts, 7)[0] == [(0, 0), (4, 4), (4, 0)]
