"""WordTokenizer: known words decode exactly; unknown ones become `<unk>` or are refused."""

import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import END_OF_TEXT, UNKNOWN_WORD, WordTokenizer
from tinylm.tokenizer.fast.pretokenize import WordSplitter

few = settings(max_examples=50, deadline=None)
sayings = st.text("ab é'.\n\u0301", min_size=1, max_size=40)
DEFAULT = ["<pad>", "<unk>", "<bos>", "<eos>"]


def test_ids_are_indices_into_the_vocabulary_by_hand():
    tokenizer = WordTokenizer(["the", " cat", ",", " ", "cat"])
    assert tokenizer.encode("the cat,  cat") == [0, 1, 2, 3, 1]
    assert tokenizer.encode("cat dog!") == [4, tokenizer.unknown, tokenizer.unknown]
    assert tokenizer.decode([0, 1, 2, 3, 1]) == "the cat,  cat"
    assert tokenizer.special_tokens == {"<pad>": 5, "<unk>": 6, "<bos>": 7, "<eos>": 8}


@few
@given(sayings)
def test_the_vocabulary_is_sorted_by_frequency_then_code_points(text):
    counts = Counter(WordSplitter("words").words(text))
    words = WordTokenizer.train_from_texts([text]).words
    assert sorted(words) == sorted(counts)
    assert all((-counts[a], a) < (-counts[b], b) for a, b in pairwise(words))


@few
@given(sayings, st.integers(1, 4), st.integers(5, 12))
def test_a_smaller_vocabulary_is_the_beginning_of_the_whole_one(text, min_frequency, vocab_size):
    whole, counts = WordTokenizer.train_from_texts([text]).words, Counter(WordSplitter("words").words(text))
    if min_frequency > max(counts.values()):
        with pytest.raises(ConfigError, match=rf"min_frequency must be from 1 to {max(counts.values())}, .* got"):
            WordTokenizer.train_from_texts([text], min_frequency=min_frequency)
        return
    tokenizer = WordTokenizer.train_from_texts([text], min_frequency=min_frequency, vocab_size=vocab_size)
    frequent = [word for word in whole if counts[word] >= min_frequency]
    assert tokenizer.words == frequent[: vocab_size - 4]
    assert tokenizer.vocab_size == min(vocab_size, len(frequent) + 4)


def test_sizes_that_leave_no_word_are_refused():
    with pytest.raises(ConfigError, match="vocab_size must be at least 5, the special tokens and a word, got 4"):
        WordTokenizer.train_from_texts(["a"], vocab_size=4)
    with pytest.raises(ConfigError, match="min_frequency must be from 1 to 2, the count"):
        WordTokenizer.train_from_texts(["a.a"], min_frequency=0)
    for texts in ([], [""]):
        with pytest.raises(DataError, match="the corpus is empty"):
            WordTokenizer.train_from_texts(texts)


@few
@given(sayings, sayings, st.integers(0, 40))
def test_exactly_the_unknown_words_become_unk_or_are_refused(seen, text, cut):
    words, known = WordSplitter("words").words(text), set(WordSplitter("words").words(seen))
    tokenizer = WordTokenizer.train_from_texts([seen])
    ids = tokenizer.encode(text)
    assert [i == tokenizer.unknown for i in ids] == [word not in known for word in words]
    assert tokenizer.decode(ids) == "".join(word if word in known else UNKNOWN_WORD for word in words)

    strict = WordTokenizer(tokenizer.words, [])
    place = next((number for number, word in enumerate(words) if word not in known), None)
    if place is None:
        assert strict.encode(text) == ids
        return
    position = sum(map(len, words[:place]))
    found = f"at position {position} is not in the vocabulary of {len(known)} words; .* special token <unk>"
    with pytest.raises(DataError, match=found) as raised:
        strict.encode(text)
    assert f"word {words[place]!a} " in str(raised.value)
    with pytest.raises(DataError, match=found):  # positions count from the start of the stream
        list(strict.encode_stream([text[:cut], text[cut:]]))


def test_error_positions_count_parsed_special_tokens():
    with pytest.raises(DataError, match=r"word 'z' at position 4 "):
        WordTokenizer(["a"], ["<x>"]).encode("a<x>z", allow_special=True)


@few
@given(st.lists(st.sampled_from(["<pad>", "<eos>", "pad", " a", "<", ">"])))
def test_special_tokens_are_plain_text_unless_requested(pieces):
    text = "".join(pieces)
    tokenizer = WordTokenizer(["pad", "<", ">", " a"])
    plain, split = WordTokenizer(["pad", "<", ">", " a"], [UNKNOWN_WORD]), WordSplitter("words").words
    ids, unknown = np.array(plain.encode(text), dtype=int), [word not in plain.words for word in split(text)]
    assert tokenizer.encode(text) == np.where(unknown, tokenizer.unknown, ids).tolist()

    parsed = tokenizer.encode(text, allow_special=True)
    assert [i for i in parsed if i in (4, 7)] == [tokenizer.special_tokens[p] for p in re.findall("<pad>|<eos>", text)]


def test_end_of_text_is_endoftext_or_else_eos():
    assert WordTokenizer(["a"]).end_of_text == 4
    assert WordTokenizer(["a"], [*DEFAULT, END_OF_TEXT]).end_of_text == 5
    assert WordTokenizer(["a"], [UNKNOWN_WORD]).end_of_text is None


def test_entries_must_be_single_distinct_words():
    with pytest.raises(ConfigError, match="words must be distinct"):
        WordTokenizer(["a", "b", "a"])
    for word, count in {"a b": 2, "": 0, "!!": 2, "  a": 2}.items():
        with pytest.raises(ConfigError, match=f"words: each entry must be one word, got '{word}', which is {count}"):
            WordTokenizer([word])
