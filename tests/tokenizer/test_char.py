"""CharTokenizer: ids are ranks of code points; unknown characters are refused with their position."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import END_OF_TEXT, UNKNOWN, CharTokenizer

few = settings(max_examples=50, deadline=None)


def test_ids_are_ranks_by_hand():
    tokenizer = CharTokenizer.train_from_texts(["hel", "lo"], special_tokens=[END_OF_TEXT])  # e h l o
    assert tokenizer.encode("hello") == [1, 0, 2, 2, 3]
    assert tokenizer.characters == "ehlo"
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (5, 4)


@few
@given(st.text(min_size=1))
def test_an_id_is_the_rank_of_the_code_point(text):
    ordered = sorted(set(text))
    assert CharTokenizer.train_from_texts([text]).encode(text) == [ordered.index(character) for character in text]


def test_ids_follow_the_order_of_the_vocabulary():
    assert CharTokenizer("zé\0a").encode("a\0éz") == [3, 2, 1, 0]


@few
@given(st.text("abc", min_size=1, max_size=4), st.text("abc😀"), st.integers(0, 8))
def test_exactly_the_unknown_characters_are_refused(seen, text, cut):
    tokenizer = CharTokenizer.train_from_texts([seen])
    place = next((i for i, character in enumerate(text) if character not in seen), None)
    if place is None:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    found = (
        rf"\(U\+{ord(text[place]):04X}\) at position {place} is not in the vocabulary of {len(set(seen))} characters"
    )
    with pytest.raises(DataError, match=found) as raised:
        tokenizer.encode(text)
    assert ascii(text[place]) in str(raised.value)
    with pytest.raises(DataError, match=found):  # positions count from the start of the stream
        list(tokenizer.encode_stream([text[:cut], text[cut:]]))


def test_the_error_for_an_unknown_character_gives_code_point_position_and_remedy():
    with pytest.raises(DataError, match=r"character 'z' \(U\+007A\) at position 2 .*; .* bpe or byte"):
        CharTokenizer("ab").encode("abz")
    with pytest.raises(DataError, match=r"character '\\U0001f600' \(U\+1F600\) at position 1 "):
        CharTokenizer("ab").encode("a😀")


def test_error_positions_count_parsed_special_tokens():
    text = f"ab{END_OF_TEXT}z"
    with pytest.raises(DataError, match=f"'z' .* at position {text.index('z')} "):
        CharTokenizer("ab", [END_OF_TEXT]).encode(text, allow_special=True)


@few
@given(st.text("abc", min_size=1, max_size=4), st.text("abcé😀"))
def test_unknown_characters_become_the_unknown_token_if_there_is_one(seen, text):
    tokenizer = CharTokenizer.train_from_texts([seen], special_tokens=[UNKNOWN])
    ids = tokenizer.encode(text)
    assert [i == tokenizer.unknown for i in ids] == [character not in seen for character in text]
    assert tokenizer.decode(ids) == "".join(c if c in seen else UNKNOWN for c in text)


def test_every_unicode_character_outside_the_vocabulary_is_unknown():
    every = "".join(chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000)
    ids = CharTokenizer("zé😀", [UNKNOWN]).encode_array(every)
    assert {every[place]: ids[place] for place in (ids != 3).nonzero()[0]} == {"z": 0, "é": 1, "😀": 2}


def test_an_empty_or_repeating_vocabulary_is_refused():
    with pytest.raises(DataError, match="corpus is empty"):
        CharTokenizer.train_from_texts(["", ""])
    with pytest.raises(ConfigError, match="characters must be distinct"):
        CharTokenizer("aba")
