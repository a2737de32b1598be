"""Merging with a heap, in many words at once, and with dropout, against the textbook and exact probabilities."""

from collections import Counter

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import textbook
from tinylm.tokenizer.fast.merging import MergeTable, merge_some, merge_word

many = settings(max_examples=120, deadline=None)
tables = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=10)
words = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=6)


def merged_pairs(pairs: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Keeps the pairs whose parts exist: pair -> token; letters are 0 to 3."""
    merges: dict[tuple[int, int], int] = {}
    for left, right in dict.fromkeys(pairs):
        if left < 4 + len(merges) and right < 4 + len(merges):
            merges[left, right] = 4 + len(merges)
    return merges


@many
@given(tables, words)
@example([(0, 0), (4, 0), (4, 4)], [[0] * 9, [0, 0, 1, 0, 0, 0]])
@example([], [[1], [2, 3]])
def test_both_implementations_equal_the_textbook(pairs, words):
    merges = merged_pairs(pairs)
    ranked = {pair: (rank, token) for rank, (pair, token) in enumerate(merges.items())}
    expected = [textbook.merge_word(word, merges) for word in words]
    assert [merge_word(list(word), ranked) for word in words] == expected

    ids, sizes = np.array([token for word in words for token in word], dtype=np.int32), np.array([*map(len, words)])
    found = [[] for _ in words]
    for done, tokens, counts in MergeTable(ranked).merge_words(ids, sizes):
        for index, end, count in zip(done, np.cumsum(counts), counts, strict=True):
            found[index] = tokens[end - count : end].tolist()
    assert found == expected


def test_a_pair_may_become_an_existing_token():
    ranked = {(0, 1): (0, 4), (4, 2): (1, 5), (1, 2): (2, 6), (0, 6): (3, 5)}  # ab, ab+c, bc, a+bc
    assert merge_word([0, 6], dict(ranked)) == [5]
    [*_, (_, tokens, _)] = MergeTable(ranked).merge_words(np.array([0, 6], dtype=np.int32), np.array([2]))
    assert tokens.tolist() == [5]


@many
@given(tables, words)
def test_dropout_0_keeps_every_merge_and_dropout_1_none(pairs, words):
    ranked = {pair: (rank, token) for rank, (pair, token) in enumerate(merged_pairs(pairs).items())}
    random = np.random.default_rng(0)
    for word in words:
        assert merge_some(word, ranked, 0.0, random) == merge_word(list(word), ranked)
        assert merge_some(word, ranked, 1.0, random) == word


def test_segmentations_with_dropout_have_their_exact_probabilities():
    """abc with the merges ab, bc and ab c: bc is merged only if ab is left out."""
    ranked, p = {(0, 1): (0, 4), (1, 2): (1, 5), (4, 2): (2, 6)}, 0.3
    expected = {(6,): (1 - p) ** 2, (4, 2): (1 - p) * p, (0, 5): p * (1 - p), (0, 1, 2): p**2}
    random, draws = np.random.default_rng(0), 20_000
    found = Counter(tuple(merge_some([0, 1, 2], ranked, p, random)) for _ in range(draws))
    assert found.keys() == expected.keys()
    for ids, probability in expected.items():
        error = (probability * (1 - probability) / draws) ** 0.5
        assert abs(found[ids] / draws - probability) < 4 * error
