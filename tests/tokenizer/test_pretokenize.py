"""WordSplitter: words that join to the text, cut as GPT-2 and GPT-4 cut, and the same however the text arrives."""

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.pretokenize import WordSplitter

few = settings(max_examples=100, deadline=None)
# what patterns tell apart: letters, digits, other signs, contractions, white space of several kinds
signs = st.text("aÉ9² .'!sRelLtdmv\n\r\t\u00a0\u3000\x1c\x85日👧\u0301", max_size=30)


@few
@given(signs)
def test_gpt2s_words_are_those_of_tokenizers(text):
    other = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True).pre_tokenize_str(text)
    assert WordSplitter("gpt2").words(text) == [text[begin:end] for _, (begin, end) in other]


@pytest.mark.parametrize(
    ("text", "gpt2", "gpt4"),
    [
        ("It's", ["It", "'s"], ["It", "'s"]),
        ("IT'S", ["IT", "'", "S"], ["IT", "'S"]),
        ("12345", ["12345"], ["123", "45"]),
        ("a  b", ["a", " ", " b"], ["a", " ", " b"]),
        ("x.\n\ny", ["x", ".", "\n", "\n", "y"], ["x", ".\n\n", "y"]),
        ("(word", ["(", "word"], ["(word"]),
        ("a \n b", ["a", " \n", " b"], ["a", " \n", " b"]),
    ],
)
def test_words_by_hand(text, gpt2, gpt4):
    assert WordSplitter("gpt2").words(text) == gpt2
    assert WordSplitter("gpt4").words(text) == gpt4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a  cat, (the 2nd)", ["a", " ", " cat", ",", " (", "the", " 2nd", ")"]),
        ("don't 'tis dogs' l\u2019eau x''y", ["don't", " '", "tis", " dogs", "'", " l\u2019eau", " x", "'", "'", "y"]),
        ("nai\u0308ve \u0939\u093f\u0928\u094d\u0926\u0940", ["nai\u0308ve", " \u0939\u093f\u0928\u094d\u0926\u0940"]),
        ("...\n\n\tx \n", [".", ".", ".", "\n\n", "\t", "x", " \n"]),
        ("\u2764\ufe0fs", ["\u2764", "\ufe0f", "s"]),  # a mark that belongs to a sign does not begin a word
    ],
)
def test_words_of_words_by_hand(text, words):
    assert WordSplitter("words").words(text) == words


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "words", r"\w+|\W"])
@few
@given(signs, st.lists(st.integers(0, 30), max_size=5))
@example("x're", [2, 3])
@example("a  b", [2])
@example("a. \n b", [3])
def test_words_do_not_depend_on_how_the_text_arrives(pattern, text, cuts):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    splitter = WordSplitter(pattern)
    lists = list(splitter.words_of_stream(text[a:b] for a, b in pairwise(bounds)))
    assert [word for words in lists for word in words] == splitter.words(text)
    assert "".join(splitter.words(text)) == text


def test_of_a_long_stream_only_the_last_word_is_kept_back():
    given_out = WordSplitter("gpt2").words_of_stream(iter(["one two", " three fo", "ur five"]))
    assert list(given_out) == [["one"], [" two", " three"], [" four"], [" five"]]


@pytest.mark.parametrize("pattern", ["(a|b)", "[", "gpt5"])
def test_a_pattern_that_is_none_or_has_groups_is_refused(pattern):
    if pattern == "gpt5":  # a regular expression like any other, but it leaves text out
        with pytest.raises(DataError, match="does not match all of the text"):
            WordSplitter(pattern).words("some text")
    else:
        with pytest.raises(ConfigError, match="pattern: "):
            WordSplitter(pattern)
