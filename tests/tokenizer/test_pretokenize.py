"""WordSplitter: words join to the text, equal those of GPT-2 and GPT-4, and do not depend on how the text is cut."""

from itertools import pairwise

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.pretokenize import DIGIT, LETTER, OTHER, WHITE, WordSplitter, character_kinds

few = settings(max_examples=100, deadline=None)
# letters, digits, other characters, contractions and several kinds of white space
texts_of_all_kinds = st.text("aÉ9²٣\u017fV .'!sRelLtdmv\n\r\t\u00a0\u3000\x1c\x85日👧\u0301", max_size=30)


@few
@given(texts_of_all_kinds)
def test_words_of_gpt2_equal_those_of_tokenizers(text):
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
        ("\u2764\ufe0fs", ["\u2764", "\ufe0f", "s"]),  # a mark after a symbol does not begin a word with letters
    ],
)
def test_words_of_the_words_pattern_by_hand(text, words):
    assert WordSplitter("words").words(text) == words


every_pattern = pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "words", r"\w+|\W", r"\w*|\W"])


@every_pattern
@settings(max_examples=150, deadline=None)
@given(st.lists(texts_of_all_kinds, min_size=1, max_size=4))
@example(["a ", "b"])
@example(["  ", "", "\u3000\u3000a", "a\u3000"])
@example(["'s's 'll'", "ve", "'", "'r"])
@example(["12345 ٣٣٣٣1", "(word ((word (\t(a", ".\n\n \n x", "'\u017fa'Va 'LL"])
def test_word_starts_equal_those_of_the_expression(pattern, texts):
    splitter = WordSplitter(pattern)
    data, starts = splitter.word_starts(Block(texts))
    bounds = [*starts.tolist(), len(data)]
    expected = [word.encode() for text in texts for word in splitter.words(text)]
    found = [data[a:b].tobytes() for a, b in pairwise(bounds)]
    assert [word for word in found if word != b"\xff"] == expected
    assert found.count(b"\xff") == len(texts) - 1
    assert data.tobytes() == b"\xff".join(text.encode() for text in texts)


def test_character_kinds_equal_those_of_regex():
    points = np.array([point for point in range(0x110000) if not 0xD800 <= point < 0xE000])
    text = "".join(map(chr, points.tolist()))
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    kinds = character_kinds(data)[(data & 0xC0) != 0x80]
    for kind, pattern in ((WHITE, r"\s"), (LETTER, r"\p{L}"), (DIGIT, r"\p{N}"), (OTHER, r"[^\s\p{L}\p{N}]")):
        assert "".join(regex.findall(pattern, text)) == "".join(map(chr, points[kinds == kind].tolist()))


# --- safe cuts


@every_pattern
@settings(max_examples=150, deadline=None)
@given(texts_of_all_kinds, texts_of_all_kinds)
@example("x'", "re")
@example("a ", " b")
@example("a. \n ", "\n b")
@example("12", "345")
@example("don", "'t")
def test_a_safe_cut_changes_no_words_for_any_continuation(pattern, text, more):
    splitter = WordSplitter(pattern)
    cut = splitter.safe_cut(text)
    assert 0 <= cut <= len(text)
    assert splitter.words(text[:cut]) + splitter.words(text[cut:] + more) == splitter.words(text + more)


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "words"])
def test_a_text_without_spaces_can_be_cut(pattern):
    text = "我喜欢语言模型。日本語、한국어「Русский」" * 20
    assert len(text) - 40 < WordSplitter(pattern).safe_cut(text) < len(text)
    assert WordSplitter(pattern).safe_cut("x" * 100) == 0


@pytest.mark.parametrize("pattern", ["(a|b)", "[", "gpt5"])
def test_an_invalid_or_incomplete_pattern_is_refused(pattern):
    if pattern == "gpt5":  # a valid regular expression that does not match all of the text
        with pytest.raises(DataError, match="does not match all of the text"):
            WordSplitter(pattern).words("some text")
    else:
        with pytest.raises(ConfigError, match="pattern: "):
            WordSplitter(pattern)
