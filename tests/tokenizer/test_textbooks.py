"""The textbook WordPiece and unigram model against hand calculations, enumeration and `tokenizers`."""

import math
from collections import Counter
from random import Random

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.tokenizer import textbook_unigram as unigram
from tinylm.tokenizer import textbook_wordpiece as wordpiece

WORDS = st.text("abc", min_size=1, max_size=7)

# --- WordPiece


def test_wordpiece_merges_the_pair_of_the_highest_score():
    """Scores by hand: gs 5 / (20 x 5) = 1/20, each pair with ##u at most 1/36; then hu and pu 1/36, pu 17 times."""
    counts = {"hug": 10, "pug": 5, "pun": 12, "bun": 4, "hugs": 5}
    characters = ["##g", "##n", "##s", "##u", "b", "h", "p"]
    assert wordpiece.learn_pieces(counts, 9) == [*characters, "##gs", "pu"]
    # Then hu and ##u: h 15, ##u 19 -> 15/(15 x 19); b ##u 4/(4 x 19); ##u ##gs 5/(19 x 5), ##u ##g 10/(19 x 15),
    # pu ##g 5/(17 x 15), pu ##n 12/(17 x 16): three are 1/19, and hu is the most frequent.
    assert wordpiece.learn_pieces(counts, 10)[-1] == "hu"
    assert len(wordpiece.learn_pieces(counts, 1000)) < 30  # every word is one piece


@given(
    st.sets(st.text("abc", min_size=1, max_size=3), min_size=1), st.sets(st.text("abc", min_size=1, max_size=3)), WORDS
)
def test_wordpiece_encodes_as_tokenizers_does(begins, insides, word):
    vocabulary = [wordpiece.UNKNOWN, *sorted(begins), *(wordpiece.MARK + piece for piece in sorted(insides))]
    model = tokenizers.models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token=wordpiece.UNKNOWN)
    assert wordpiece.encode_word(word, vocabulary) == [token.value for token in model.tokenize(word)]


# --- unigram

PIECES = st.dictionaries(st.text("abc", min_size=2, max_size=4), st.integers(1, 9), max_size=6)


def scores_of(longer: dict[str, int]) -> dict[str, float]:
    return unigram.normalized({"a": 3, "b": 2, "c": 1} | longer)


def segmentations(word: str, scores: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Every segmentation, and its probability."""
    if not word:
        return {(): 1.0}
    return {
        (word[:end], *rest): math.exp(scores[word[:end]]) * chance
        for end in range(1, len(word) + 1)
        if word[:end] in scores
        for rest, chance in segmentations(word[end:], scores).items()
    }


@given(PIECES, WORDS)
def test_unigram_agrees_with_all_segmentations(longer, word):
    scores = scores_of(longer)
    every = segmentations(word, scores)
    total = math.fsum(every.values())
    assert unigram.forward(word, scores)[-1] == pytest.approx(math.log(total), abs=1e-12)
    assert unigram.backward(word, scores)[0] == pytest.approx(math.log(total), abs=1e-12)
    assert every[tuple(unigram.encode_word(word, scores))] == pytest.approx(max(every.values()))
    expected, log_prob = unigram.expected_counts({word: 3}, scores)
    assert log_prob == pytest.approx(3 * math.log(total))
    for piece in scores:
        mean = math.fsum(chance * pieces.count(piece) for pieces, chance in every.items()) / total
        assert expected[piece] == pytest.approx(3 * mean, abs=1e-12)


@given(PIECES, WORDS)
def test_unigram_segmentations_are_as_likely_as_those_of_tokenizers(longer, word):
    scores = scores_of(longer)
    model = tokenizers.models.Unigram([("<unk>", -100.0), *scores.items()], unk_id=0)
    theirs = [token.value for token in model.tokenize(word)]  # ties may be broken differently
    assert "".join(theirs) == word
    ours = unigram.encode_word(word, scores)
    assert sum(map(scores.__getitem__, ours)) == pytest.approx(sum(map(scores.__getitem__, theirs)), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_samples_have_the_probabilities_of_segmentations(alpha):
    scores = scores_of({"ab": 4, "bc": 2, "abc": 3, "ca": 1})
    every = {pieces: chance**alpha for pieces, chance in segmentations("abcab", scores).items()}
    total, random = math.fsum(every.values()), Random(0)
    drawn = Counter(tuple(unigram.sample_word("abcab", scores, random, alpha)) for _ in range(4000))
    for pieces, chance in every.items():
        p = chance / total
        assert abs(drawn[pieces] / 4000 - p) < 5 * math.sqrt(p * (1 - p) / 4000) + 1e-9, pieces


@settings(max_examples=30)
@given(st.dictionaries(WORDS, st.integers(1, 9), min_size=1, max_size=6))
def test_expectation_maximization_never_lowers_the_likelihood(counts):
    scores = unigram.seed_pieces(counts, 20)
    before = -math.inf
    for _ in range(4):
        expected, log_prob = unigram.expected_counts(counts, scores)
        assert log_prob >= before - 1e-9
        before, scores = log_prob, unigram.normalized({piece: found for piece, found in expected.items() if found > 0})


def test_training_keeps_the_syllables_that_spell_every_word():
    """The two syllables of all words are kept, and new words of these syllables are spelled by them."""
    counts = {"kato": 40, "toka": 40, "kaka": 40, "toto": 40, "katoka": 20, "tokato": 20}
    scores = unigram.train(counts, num_pieces=6)
    assert {piece for piece in scores if len(piece) > 1} == {"ka", "to"}
    assert unigram.encode_word("tokatoka", scores) == ["to", "ka", "to", "ka"]
    with pytest.raises(KeyError, match="cannot be spelled"):
        unigram.encode_word("kax", scores)
