"""Training of the unigram model against the textbook, which processes one word at a time."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.bench import pieces as bench
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError
from tinylm.tokenizer import textbook_unigram as textbook
from tinylm.tokenizer.fast import unigram_learning
from tinylm.tokenizer.fast.lattice import LONGEST
from tinylm.tokenizer.fast.unigram_learning import STEP, Corpus, UnigramLearner, digamma, learn_unigram

LONG = "abcdefghijklmnopqrst" * 2 + "ab" * 100  # 240 characters
WORDS = st.dictionaries(st.text("ab é", min_size=1, max_size=9), st.integers(1, 50), min_size=1, max_size=8)


def arrays(counts: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    words = [word.encode() for word in counts]
    sizes = np.array([len(word) for word in words], dtype=np.int32)
    return np.frombuffer(b"".join(words), dtype=np.uint8), sizes, np.array([*counts.values()], dtype=np.int64)


def learner_of(counts: Mapping[str, int], seeds: int = 1000) -> UnigramLearner:
    return UnigramLearner(Corpus(*arrays(counts), coverage=1.0), textbook.LONGEST, seeds)


def maximal(counts: Mapping[str, int]) -> dict[str, int]:
    """All characters, and the maximal substrings that occur at least twice, with counts, found by their definition."""
    found, before, after = Counter[str](), {}, {}
    for number, (word, count) in enumerate(counts.items()):
        for piece, begin, end in textbook.pieces_in(word):
            found[piece] += count
            before.setdefault(piece, set()).add(word[begin - 1] if begin else f"begin of {number}")
            after.setdefault(piece, set()).add(word[end] if end < len(word) else f"end of {number}")
    return {
        piece: count
        for piece, count in found.items()
        if len(piece) == 1
        # the beginning of a word counts as a different character at each occurrence, and so does its end
        or (count > 1 and all(len(some) > 1 or " of " in min(some) for some in (before[piece], after[piece])))
    }


@settings(max_examples=100, deadline=None)
@given(WORDS)
@example({"banana": 1})
@example({"a" * 16 + "b": 1, "b" + "a" * 16: 2, "a" * 20: 1})
def test_seeds_are_the_maximal_substrings(counts):
    learner = learner_of(counts)
    expected = maximal(counts)
    names, _ = learner.pieces()
    assert sorted(names) == sorted(expected)
    total = sum(expected.values())
    by_name = dict(zip(*learner.pieces(), strict=True))
    for piece, count in expected.items():
        assert by_name[piece] == pytest.approx(math.log(count / total), abs=0.51 / STEP)


def test_the_seeds_with_the_highest_count_times_length_are_kept():
    counts = {"abcde": 2, "xy": 6, "uv": 4}
    assert {*learner_of(counts, 2).pieces()[0]} == {*"abcdexyuv", "xy", "abcde"}  # 12, 10; uv has 8


def exact_pieces(learner: UnigramLearner) -> tuple[list[str], dict[str, float]]:
    """Names in the order of the learner's numbers, and the scores before rounding."""
    scores = learner.scores
    learner.scores = -np.arange(len(scores)) / STEP  # `pieces` sorts by score
    names, _ = learner.pieces()
    learner.scores = scores
    return names, dict(zip(names, scores.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 2))
@example({LONG: 3, "ab": 1_000_000_000, "ba" * 30: 2}, 2)
def test_expected_counts_and_losses_equal_those_of_the_textbook(counts, steps):
    learner = learner_of(counts)
    for _ in range(steps):
        learner.estimate()
    names, scores = exact_pieces(learner)
    expected, log_prob = textbook.expected_counts(counts, scores)
    found, total = learner._words.expected(learner.scores, learner._corpus.counts)
    assert total == pytest.approx(log_prob, rel=1e-12)
    np.testing.assert_allclose(found, [expected[name] for name in names], rtol=1e-9, atol=1e-12)
    learner.expected = found
    losses = dict(zip(names, learner.losses().tolist(), strict=True))
    for piece, loss in textbook.losses(expected, scores).items():
        assert losses.pop(piece) == pytest.approx(loss, rel=1e-9, abs=1e-9)
    assert [*losses.values()] == [math.inf] * len({*"".join(counts)})


def test_a_step_gives_each_piece_the_digamma_of_its_expected_count_and_drops_rare_ones():
    counts = {"katokato": 1, "tokatoka": 1, "kato": 3, "ka": 9, "to": 9}
    learner = learner_of(counts)
    expected, _ = textbook.expected_counts(counts, exact_pieces(learner)[1])
    learner.estimate()
    kept = {piece: max(count, 0.5) for piece, count in expected.items() if count >= 0.5 or len(piece) == 1}
    total = torch.digamma(torch.tensor(math.fsum(kept.values()), dtype=torch.float64))
    wanted = {p: float(torch.digamma(torch.tensor(count, dtype=torch.float64)) - total) for p, count in kept.items()}
    assert exact_pieces(learner)[1] == pytest.approx(wanted, abs=1e-9)
    assert len(kept) < len(expected)


def test_digamma_equals_that_of_torch():
    values = np.geomspace(0.5, 1e12, 200)
    np.testing.assert_allclose(digamma(values), torch.digamma(torch.from_numpy(values)).numpy(), rtol=1e-9, atol=1e-9)


def test_training_keeps_the_syllables_that_spell_every_word_in_any_order_of_words():
    counts = {"kato": 40, "toka": 40, "kaka": 40, "toto": 40, "katoka": 20, "tokato": 20}
    left = []
    pieces, scores = learn_unigram(*arrays(counts), 6, progress=left.append)
    assert {*pieces} == {*"kato", "ka", "to"}
    assert left == sorted(left, reverse=True) and left[-1] >= 6
    assert scores == sorted(scores, reverse=True)
    assert all(score * STEP == round(score * STEP) for score in scores)
    assert math.fsum(map(math.exp, scores)) == pytest.approx(1, abs=6 / STEP)
    assert learn_unigram(*arrays(dict(reversed(counts.items()))), 6) == (pieces, scores)


def test_edge_cases_of_the_corpus():
    assert learn_unigram(*arrays({}), 10) == ([], [])
    assert learn_unigram(*arrays({"a": 3}), 10) == (["a"], [0.0])
    assert learn_unigram(*arrays({"ab": 3, "b": 1}), 10, coverage=0.0) == ([], [])  # all characters are rare
    assert {*learn_unigram(*arrays({"hello": 5}), 100)[0]} == {*"helo", "hello"}  # the text has no other pieces
    pieces, scores = learn_unigram(*arrays({"ab" * 5000: 1, "a" * 10_001: 1}), 8)
    assert len(pieces) == 8 and max(map(len, pieces)) == 16 and np.isfinite(scores).all()
    with pytest.raises(ConfigError, match=r"vocab_size must be at least 3, 3 characters, got 2"):
        learn_unigram(*arrays({"abc": 1}), 2)


@pytest.mark.parametrize("character", ["a", "é", "\u4e2d", "😀"])  # of one to four bytes
def test_only_the_beginning_of_a_long_word_is_read(character, monkeypatch):
    counts = {character + "b" * 7: 5, "b" + character * 1000: 2}
    whole = learn_unigram(*arrays(counts), 8)
    monkeypatch.setattr(unigram_learning, "LONG", 50)
    shortened = {character + "b" * 7: 5, "b" + character * (49 // len(character.encode())): 2}
    assert learn_unigram(*arrays(counts), 8) == learn_unigram(*arrays(shortened), 8) != whole


def test_characters_beyond_the_coverage_get_no_piece_and_end_words():
    counts = {"kato": 500, "ka\u4e2dto": 4, "\u4e2d": 1}
    pieces, _ = learn_unigram(*arrays(counts), 100, coverage=0.99)
    assert {*"".join(pieces)} == {*"kato"} and {"kato", "ka", "to"} >= {p for p in pieces if len(p) > 1}
    assert "\u4e2d" in learn_unigram(*arrays(counts), 100, coverage=1.0)[0]


def test_segmentations_of_the_longest_words_neither_underflow_nor_overflow():
    """A word with 2^255 segmentations, and one whose segmentation has a probability of exp(-256 x 25)."""
    rare = "".join(chr(0x4E00 + i) for i in range(LONGEST))
    corpus = Corpus(*arrays({"a" * LONGEST: 1, rare: 1, "e": 10**11}), coverage=1.0)
    learner = UnigramLearner(corpus)
    found, log_prob = learner._words.expected(learner.scores, corpus.counts)
    assert np.isfinite(found).all() and np.isfinite(log_prob)
    names, _ = exact_pieces(learner)
    characters = sum(len(name) * count for name, count in zip(names, found.tolist(), strict=True))
    assert characters == pytest.approx(10**11 + 2 * LONGEST, rel=1e-14)
    of_rare = [count for name, count in zip(names, found.tolist(), strict=True) if name in rare]
    assert of_rare == pytest.approx([1.0] * LONGEST, rel=1e-9)


def test_the_loss_of_a_corpus_is_not_worse_than_with_sentencepiece(tmp_path: Path):
    """At most 0.2% more nats per byte, by the best segmentation and by all. The textbook checks the computation."""
    text = tmp_path / "stories.txt"
    text.write_text("\n".join(stories(seed=0, count=400)))
    arguments = bench.count_words(text)
    words, counts = bench.Words(*arguments), {}
    ends = np.cumsum(arguments[1])
    for end, size, count in zip(ends.tolist(), arguments[1].tolist(), arguments[2].tolist(), strict=True):
        counts[arguments[0][end - size : end].tobytes().decode()] = count
    ours, theirs = (side(text, bench.META + 300, tmp_path) for side in bench.SIDES.values())
    assert len(ours) == len(theirs) == 300
    best, every = words.losses(ours)
    scores = dict.fromkeys({*"".join(counts)}, min(ours.values()) + bench.UNKNOWN) | ours
    total = sum(len(word.encode()) * count for word, count in counts.items())
    assert every * total == pytest.approx(-textbook.expected_counts(counts, scores)[1])
    spelled = [(count, textbook.encode_word(word, scores)) for word, count in counts.items()]
    assert best * total == pytest.approx(-sum(count * sum(map(scores.__getitem__, found)) for count, found in spelled))
    assert best <= 1.002 * words.losses(theirs)[0] and every <= 1.002 * words.losses(theirs)[1]
