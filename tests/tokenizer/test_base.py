"""Properties of all tokenizers: exact round trips, special tokens only on request, damaged files refused."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.tokenizer import (
    END_OF_TEXT,
    UNKNOWN,
    UNKNOWN_WORD,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordPieceTokenizer,
    WordTokenizer,
    load_tokenizer,
    tokenizer_class,
    write_tokenizer_json,
)
from tinylm.tokenizer.fast import blocks

KINDS = {"char": lambda text, **options: CharTokenizer.train_from_texts([text], **options)}
KINDS["byte"] = lambda text, **options: ByteTokenizer.train_from_texts([text], **options)
KINDS["bpe"] = lambda text, **options: BPETokenizer.train_from_texts([text], vocab_size=280, **options)
KINDS["wordpiece"] = lambda text, special_tokens=(): WordPieceTokenizer.train_from_texts(
    [text], special_tokens=special_tokens
)
KINDS["word"] = lambda text, special_tokens=(): WordTokenizer.train_from_texts([text], special_tokens=special_tokens)
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
kinds_of_pieces = pytest.mark.parametrize("make", [KINDS[kind] for kind in ("char", "byte", "bpe")])

# NUL, CRLF and lone CR, combining marks, ZWJ, astral, byte order mark, line separators, the name of a special token
ODD = "a\0b\r\nc\rd\n é e\u0301 👩\u200d👩\u200d👧 \U0001d518 \ufeff \u2028\x85\x1c 한 \U0010ffff" + END_OF_TEXT
text = st.text(min_size=1)  # any Unicode text without surrogates
few = settings(max_examples=50, deadline=None)


def chunked(whole: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole)]
    return [whole[a:b] for a, b in pairwise(bounds)]


# --- text -> ids -> text


@every_kind
@few
@given(text)
@example(ODD)
def test_decode_inverts_encode_on_any_text(make, text):
    tokenizer = make(text, special_tokens=[END_OF_TEXT])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, errors="strict") == text
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == text


@pytest.mark.parametrize("kind", ["byte", "bpe"])
@settings(max_examples=400, deadline=None)
@given(text)
@example(ODD)
def test_byte_and_bpe_tokenizers_encode_any_text(kind, trained_on_odd, text):
    tokenizer = trained_on_odd[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, errors="strict") == text
    assert b"".join(tokenizer.token_bytes[token] for token in ids) == text.encode()


@pytest.fixture(scope="module")
def trained_on_odd():
    return {"byte": ByteTokenizer(), "bpe": BPETokenizer.train_from_texts([ODD * 9], vocab_size=330)}


@every_kind
@few
@given(text, st.lists(st.integers(0, 1000), max_size=5))
@example(ODD, [3, 9, 9, 20])
def test_encode_encode_array_and_encode_stream_agree(make, text, cuts):
    tokenizer = make(text, special_tokens=[END_OF_TEXT])
    array = tokenizer.encode_array(text)
    assert array.dtype == np.int64
    assert tokenizer.encode(text) == array.tolist()
    assert np.concatenate(list(tokenizer.encode_stream(chunked(text, cuts)))).tolist() == array.tolist()


@every_kind
@few
@given(text)
@example(ODD)
def test_byte_lengths_of_the_ids_sum_to_the_utf8_bytes_of_the_text(make, text):
    tokenizer = make(text, special_tokens=[END_OF_TEXT])
    assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode("utf-8"))
    assert tokenizer.byte_lengths[tokenizer.end_of_text] == 0  # it adds no text


@every_kind
def test_the_empty_text_has_no_ids(make):
    tokenizer = make("a", special_tokens=[END_OF_TEXT])
    assert tokenizer.encode("") == tokenizer.encode("", allow_special=True) == []
    assert tokenizer.decode([]) == ""
    assert list(tokenizer.decode_stream([])) == []


# --- special tokens


@kinds_of_pieces  # word tokenizers: test_word.py
@few
@given(st.lists(st.sampled_from(["<|a|>", "<|a|><|b|>", "<|", "a|>", "<|b|", "é"])))
def test_special_tokens_are_plain_text_unless_requested(make, pieces):
    text = "".join(pieces)
    tokenizer = make("<|ab>é", special_tokens=["<|a|>", "<|a|><|b|>"])
    plain = make("<|ab>é")
    assert tokenizer.encode(text) == plain.encode(text)

    expected = []
    for piece in re.split(r"(<\|a\|><\|b\|>|<\|a\|>)", text):  # the longest name wins
        name = tokenizer.special_tokens.get(piece)
        expected += plain.encode(piece) if name is None else [name]
    assert tokenizer.encode(text, allow_special=True) == expected
    assert tokenizer.decode(expected) == text


@every_kind
def test_special_tokens_are_numbered_in_order_after_the_ordinary_tokens(make):
    tokenizer, plain = make("abc", special_tokens=["<x>", END_OF_TEXT]), make("abc")
    assert tokenizer.special_tokens == {"<x>": plain.vocab_size, END_OF_TEXT: plain.vocab_size + 1}
    assert tokenizer.vocab_size == plain.vocab_size + 2
    assert (tokenizer.end_of_text, plain.end_of_text) == (plain.vocab_size + 1, None)


@every_kind
@pytest.mark.parametrize("names", [["<x>", "<x>"], [""]])
def test_special_tokens_that_are_equal_or_empty_are_refused(make, names):
    with pytest.raises(ConfigError, match="special_tokens must be distinct and not empty"):
        make("abc", special_tokens=names)


# --- ids -> text


@few
@given(st.binary(max_size=20))
@example("a€😀".encode()[:-1])
@example(b"\xe2\x82A\xf0\x9f\x98\xff")
def test_streamed_pieces_join_to_the_decoded_text_for_any_bytes(data):
    pieces = list(ByteTokenizer().decode_stream(data))
    assert "".join(pieces) == ByteTokenizer().decode(data) == data.decode("utf-8", "replace")
    assert all(pieces)


@few
@given(st.text())
@example(ODD)
def test_decode_stream_yields_each_character_at_its_last_byte(text):
    assert list(ByteTokenizer().decode_stream(text.encode("utf-8"))) == list(text)


@every_kind
@pytest.mark.parametrize("token", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_refused(make, token):
    tokenizer = make("ab")
    message = f"token id {token} is outside the vocabulary of {tokenizer.vocab_size}"
    with pytest.raises(DataError, match=message):
        tokenizer.decode([0, token])
    with pytest.raises(DataError, match=message):
        list(tokenizer.decode_stream([0, token]))
    with pytest.raises(DataError, match="outside"):
        tokenizer.decode([tokenizer.vocab_size])
    tokenizer.decode([tokenizer.vocab_size - 1])


def test_strict_decoding_refuses_half_a_character():
    with pytest.raises(DataError, match=r"not UTF-8 \(unexpected end of data at byte 1\)"):
        ByteTokenizer().decode([97, 0xE2, 0x82], errors="strict")


# --- lone surrogates: halves of a UTF-16 pair, which UTF-8 cannot encode

SURROGATES = {
    "char encode": lambda bad: CharTokenizer("a").encode(bad),
    "char encode_stream": lambda bad: list(CharTokenizer("a").encode_stream(["a", bad])),
    "char encode with unk": lambda bad: CharTokenizer("a", [UNKNOWN]).encode(bad),
    "char train": lambda bad: CharTokenizer.train_from_texts(["a", bad]),
    "char vocabulary": lambda bad: CharTokenizer(bad),
    "char special token": lambda bad: CharTokenizer("a", [bad]),
    "byte encode": lambda bad: ByteTokenizer().encode(bad),
    "byte encode_array": lambda bad: ByteTokenizer().encode_array(bad, allow_special=True),
    "byte encode_stream": lambda bad: list(ByteTokenizer().encode_stream([bad])),
    "byte special token": lambda bad: ByteTokenizer([bad]),
    "bpe encode": lambda bad: BPETokenizer([]).encode(bad),
    "bpe encode_stream": lambda bad: list(BPETokenizer([]).encode_stream(["a", bad])),
    "bpe train": lambda bad: BPETokenizer.train_from_texts(["a", bad]),
    "word encode": lambda bad: WordTokenizer(["a"], []).encode(bad),
    "word encode_stream": lambda bad: list(WordTokenizer(["a"]).encode_stream(["a", bad])),
    "word encode with unk": lambda bad: WordTokenizer(["a"]).encode(bad),
    "word train": lambda bad: WordTokenizer.train_from_texts(["a", bad]),
    "word vocabulary": lambda bad: WordTokenizer([bad[1:]]),
    "word special token": lambda bad: WordTokenizer(["a"], [bad]),
}


@pytest.mark.parametrize("use", SURROGATES.values(), ids=SURROGATES)
def test_a_lone_surrogate_gives_a_one_line_error(use):
    with pytest.raises(DataError, match=r"(?i)U\+D83D") as raised:
        use("a\ud83d")
    assert "\n" not in str(raised.value)
    str(raised.value).encode("utf-8")  # can be printed


# --- saved tokenizers


@every_kind
@few
@given(text=text)
@example(text=ODD)
def test_a_saved_tokenizer_is_equal_when_loaded(make, text, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t.json"
    tokenizer = make(text, special_tokens=[END_OF_TEXT, 'é"\\'])
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert loaded == tokenizer and hash(loaded) == hash(tokenizer) and type(loaded) is type(tokenizer)
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.token_bytes == tokenizer.token_bytes


def test_tokenizers_with_different_ids_have_different_fingerprints():
    different = [
        CharTokenizer("ab"), CharTokenizer("ba"), CharTokenizer("abc"), CharTokenizer("ab", ["<x>", "<y>"]),
        CharTokenizer("ab", ["<y>", "<x>"]), ByteTokenizer(), ByteTokenizer(["<x>"]),
    ]  # fmt: skip
    assert len({tokenizer.sha256 for tokenizer in different}) == len(set(different)) == len(different)


@every_kind
def test_a_flipped_bit_in_a_saved_tokenizer_never_changes_it_silently(make, tmp_path):
    """Flips one bit of each byte in turn: the lowest, the fifth or the highest."""
    path = tmp_path / "t.json"
    tokenizer = make("ab 9é", special_tokens=[END_OF_TEXT])
    tokenizer.save(path)
    data, noticed = path.read_bytes(), 0
    for place in range(len(data)):
        flipped = data[place] ^ (0x01, 0x10, 0x80)[place % 3]
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        try:
            assert load_tokenizer(path) == tokenizer  # only white space of the JSON changed
        except DataError as error:
            assert "\n" not in str(error)
            noticed += 1
    assert noticed > 0.8 * len(data)


BROKEN = {
    "not JSON": ("{", "is not valid JSON"),
    "not UTF-8": (b"\xff", "is not valid JSON"),
    "a list": ("[]", "is not a tinylm tokenizer"),
    "another program's file": ('{"version": "1.0", "model": {}}', "is not a tinylm tokenizer"),
    "another format": ({"format": 99}, "has format 99, this version of tinylm reads format 1"),
    "an unknown kind": ({"kind": "chr"}, "no kind 'chr', did you mean 'char'"),
    "an unknown option": ({"colour": 1}, "is not a tinylm tokenizer"),
    "changed characters": ({"characters": "abd"}, "is damaged"),
    "repeated characters": ({"characters": "aa"}, "characters must be distinct"),
    "no characters": ({"characters": None}, "is not a tinylm tokenizer"),
    "a lone surrogate": ({"characters": "\ud800"}, "lone surrogate"),
    "special tokens that are numbers": ({"special_tokens": [1]}, "is not a tinylm tokenizer"),
}


@pytest.mark.parametrize(("content", "problem"), BROKEN.values(), ids=BROKEN)
def test_the_error_for_an_invalid_file_names_the_file_and_the_problem(content, problem, tmp_path):
    path = tmp_path / "t.json"
    if isinstance(content, dict):
        content = json.dumps(CharTokenizer("abc").to_dict() | content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"t\.json: .*{problem}"):
        load_tokenizer(path)


def test_a_missing_tokenizer_file_is_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.json: no such tokenizer file") as raised:
        load_tokenizer(tmp_path / "nowhere.json")
    assert raised.value.exit_code == 66


@every_kind
def test_training_on_files_equals_training_on_their_texts(make, tmp_path):
    texts = [ODD, "é" * (1 << 20) + "zß"]  # the second is longer than a chunk
    paths = [tmp_path / "1.txt", tmp_path / "2.txt"]
    for path, content in zip(paths, texts, strict=True):
        path.write_bytes(content.encode())
    kind = type(make("a"))
    assert kind.train([paths[0], str(paths[1])], special_tokens=["<x>"]) == kind.train_from_texts(
        texts, special_tokens=["<x>"]
    )


def test_training_names_a_file_that_is_missing_or_not_utf8(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match=r"bad\.txt: is not UTF-8 at byte 3"):
        CharTokenizer.train([tmp_path / "bad.txt"])
    with pytest.raises(MissingInputError, match=r"nowhere\.txt: no such file"):
        CharTokenizer.train([tmp_path / "nowhere.txt"])


def test_an_unknown_kind_is_refused_with_a_suggestion():
    assert tokenizer_class("byte") is ByteTokenizer
    with pytest.raises(ConfigError, match="no kind 'bytes', did you mean 'byte'"):
        tokenizer_class("bytes")
    with pytest.raises(ConfigError, match=r"no kind 'xyz', known are .*char"):
        tokenizer_class("xyz")


# --- encoding files


@every_kind
def test_encoding_a_file_equals_encoding_its_text(make, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 100)
    text = (ODD + " and so on. ") * 30
    tokenizer = make(text)
    (tmp_path / "t.txt").write_bytes(text.encode())
    ids = tokenizer.encode_file(tmp_path / "t.txt")
    assert ids.dtype == tokenizer.dtype == np.uint16
    assert ids.tolist() == tokenizer.encode(text)
    with pytest.raises(MissingInputError, match=r"no\.txt: no such file"):
        tokenizer.encode_file(tmp_path / "no.txt")


def test_the_position_of_an_unknown_character_in_a_file_counts_characters_not_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 10)
    (tmp_path / "t.txt").write_bytes(("é " * 50 + "x").encode())
    with pytest.raises(DataError, match="at position 100 "):
        CharTokenizer("é ").encode_file(tmp_path / "t.txt")


def test_the_byte_tokenizer_encodes_any_file(tmp_path):
    (tmp_path / "t.bin").write_bytes(bytes(range(256)) * 3)
    assert ByteTokenizer().encode_file(tmp_path / "t.bin").tolist() == list(range(256)) * 3


# --- offsets


@every_kind
@few
@given(text)
@example(ODD)
def test_offsets_give_the_characters_that_each_token_covers(make, text):
    tokenizer = make(text, special_tokens=[END_OF_TEXT, *([UNKNOWN_WORD] if "Word" in repr(make("a")) else [])])
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids.tolist() == tokenizer.encode(text)
    place = 0
    for token, (begin, end) in zip(ids.tolist(), offsets.tolist(), strict=True):
        piece = tokenizer.token_bytes[token]
        whole = text[begin:end].encode()
        assert piece in whole and (whole == piece or len(text[begin:end]) <= len(piece) + 2)
        assert len(text[:begin].encode()) <= place < place + len(piece) <= len(text[:end].encode())
        place += len(piece)
    assert place == len(text.encode())


def test_offsets_of_unknown_and_special_tokens_by_hand():
    char = CharTokenizer("ab", [UNKNOWN, END_OF_TEXT])
    ids, offsets = char.encode_with_offsets("aéb")
    assert (ids.tolist(), offsets.tolist()) == ([0, 2, 1], [[0, 1], [1, 2], [2, 3]])
    ids, offsets = char.encode_with_offsets(f"é{END_OF_TEXT}b", allow_special=True)
    assert (ids.tolist(), offsets.tolist()) == ([2, 3, 1], [[0, 1], [1, 14], [14, 15]])
    ids, offsets = WordTokenizer(["a"]).encode_with_offsets("a naïve a")
    assert (ids.tolist(), offsets.tolist()) == ([0, 2, 2], [[0, 1], [1, 7], [7, 9]])


def test_offsets_equal_those_of_tokenizers(tmp_path):
    tokenizer = BPETokenizer.train_from_texts(["naïve cafés, naïve cafés"], vocab_size=262)
    write_tokenizer_json(tokenizer, tmp_path / "t.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "t.json"))
    other.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    text = "a naïve  café: 日本, 👩 cafés"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert [tuple(pair) for pair in offsets.tolist()] == other.encode(text).offsets
    assert ids.tolist() == other.encode(text).ids


def test_marks_survive_saving_and_copying_and_change_the_fingerprint():
    plain = BPETokenizer([], special_tokens=["<s>", "</s>", "<|im_end|>"])
    assert plain.marks == (None, None, ())
    marked = plain.with_marks(256, 257, [257, 258])
    assert marked.marks == (256, 257, (257, 258)) and marked.end_of_text == 257
    assert Tokenizer.from_dict(marked.to_dict()) == marked != plain
    assert marked.with_special_tokens(["<pad>"]).marks == marked.marks
    assert BPETokenizer([], special_tokens=[END_OF_TEXT]).marks == (256, 256, (256,))


def test_default_marks_do_not_change_the_fingerprint():
    plain = BPETokenizer([], special_tokens=[END_OF_TEXT])
    assert plain.with_marks(256, 256, [256]).to_dict() == plain.to_dict()


def test_marks_outside_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="marks: 256 is outside the vocabulary of 256"):
        BPETokenizer([]).with_marks(None, 256, [256])
