"""SentencePiece's replacement tables and normalizer against the library, and against `tokenizers`."""

import base64
import itertools
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from tests.tokenizer.scripts import texts
from tinylm.errors import ConfigError
from tinylm.tokenizer.formats.protobuf import read_message
from tinylm.tokenizer.normalizers.base import Normalizer
from tinylm.tokenizer.normalizers.charsmap import Charsmap, Precompiled
from tinylm.tokenizer.normalizers.charsmap_rules import compile_charsmap, named_charsmap, named_rules
from tinylm.tokenizer.normalizers.double_array import LEAF
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer

POINTS = "|".join(chr(point) for point in range(1, 0x110000) if not 0xD800 <= point < 0xE000)  # no rule contains |
EDGES = ["", " ", "  ", "\x01", "\x01 ", "▁", " ▁ ", "a▁", "\u3000", " \u00a8", "a \x01 b", "\x01\x01", "a\u0300\u0301"]


def library(rule: str, prefix: bool = False, remove: bool = False, escape: bool = False):
    """The library's normalizer with a named set of rules."""
    options = {"add_dummy_prefix": prefix, "remove_extra_whitespaces": remove, "escape_whitespaces": escape}
    return sentencepiece.SentencePieceNormalizer(rule_name=rule, **options)


def table_of(rule: str) -> bytes:
    fields = read_message(library(rule).serialized_normalizer_spec(), "spec")
    return next(bytes(field.value) for field in fields if field.number == 2)


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    return {rule: table_of(rule) for rule in ("nmt_nfkc", "nmt_nfkc_cf", "nfkc")}


@pytest.fixture(scope="module")
def strings(tables) -> list[str]:
    """Texts in many scripts, and keys of the tables, whole or truncated, next to characters that may join them."""
    draw, rules = random.Random(0), [*dict(library("nmt_nfkc").Decompile())]
    near = ["e", "\u0301", "\u1161", "\u11a8", "\0", "\r\n", "👨\u200d👩"]
    mixed = ["".join(draw.choice([draw.choice(rules), draw.choice(rules)[:2], draw.choice(near)]) for _ in range(6))]
    mixed += ["".join(draw.choices(rules, k=3)) + draw.choice(near) + draw.choice(rules)[:1] for _ in range(1000)]
    return [*texts(300, seed=1), *mixed, *EDGES]


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "nfkc"])
def test_normalizing_with_a_table_equals_sentencepiece(rule, tables, strings):
    table, other = Charsmap(tables[rule]), library(rule)
    assert table.normalize(POINTS) == other.Normalize(POINTS)
    for text in strings:
        assert table.normalize(text) == other.Normalize(text)


def test_normalizing_by_graphemes_equals_tokenizers(tables, strings):
    ours, theirs = (
        Precompiled(base64.b64encode(tables["nmt_nfkc"]).decode()),
        normalizers.Precompiled(tables["nmt_nfkc"]),
    )
    single = [key for key in dict(library("nmt_nfkc").Decompile()) if len(key) == 1]
    signs = ["\xa0\u094d\u092f", "\xbd\u1b44\u0301\u0958", "\u0915\u094d\u092f\xa0\u0301\u094d\u092f"]  # rule GB9c
    for text in [*strings[::3], *single[::5], *signs]:
        normal = ours.normalize(text)
        assert normal == theirs.normalize_str(text)
        begins, ends = ours.offsets(text)
        assert len(begins) == len(ends) == len(normal) and (begins < ends).all()
        for cut in filter(lambda cut: ours.may_cut(text, cut), range(1, min(len(text), 40))):
            assert ours.normalize(text[:cut]) + ours.normalize(text[cut:], continues=True) == normal


@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
@pytest.mark.parametrize(("prefix", "remove", "escape"), [*itertools.product([False, True], repeat=3)][2:])
def test_spaces_are_treated_as_in_sentencepiece(rule, prefix, remove, escape, tables, strings):
    other = library(rule, prefix, remove, escape)
    charsmap = base64.b64encode(tables[rule]).decode() if rule in tables else ""
    ours = Normalizer.from_dict(SentencePieceNormalizer(charsmap, prefix, remove, escape).to_dict())
    for text in strings[:200] + strings[-len(EDGES) :]:
        normal, places = other.Normalize(text, with_offsets=True)
        assert ours.normalize(text) == normal
        begins, ends = ours.offsets(text)
        assert begins[prefix:].tolist() == places[prefix:-1] and len(ends) == len(normal)
        for cut in filter(lambda cut: ours.may_cut(text, cut), range(1, min(len(text), 30))):
            assert ours.normalize(text[:cut]) + ours.normalize(text[cut:], continues=True) == normal


def test_offsets_cover_the_replaced_characters():
    ours = SentencePieceNormalizer(base64.b64encode(compile_charsmap({"ﬁ": "fi", "e\u0301": "é", "\x01": ""})).decode())
    begins, ends = ours.offsets(" aﬁ\x01 e\u0301  ")  # -> ▁afi▁é: characters 1, 2, 2, 4, 5 and 6
    assert ours.normalize(" aﬁ\x01 e\u0301  ") == "▁afi▁é"
    assert begins[1:].tolist() == [1, 2, 2, 4, 5] and ends[1:].tolist() == [2, 3, 3, 5, 7]


def test_symbols_are_found_before_the_rules_and_kept():
    ours = SentencePieceNormalizer(
        base64.b64encode(compile_charsmap({"a": "b", "<x": "y"})).decode(), symbols=["<xa>", "a<"]
    )
    assert ours.normalize("a <xa> a<xa> <xa") == "▁b▁<xa>▁a<xb>▁yb"


# --- writing tables


@pytest.mark.parametrize("rule", ["nmt_nfkc_cf"])  # the rules with the most steps
def test_rules_from_unicode_data_equal_those_of_sentencepiece(rule, strings):
    """Rules with characters newer than Python's version of Unicode are left out."""
    ours, theirs = named_rules(rule), dict(library(rule).Decompile())
    for key in ours.keys() | theirs.keys():
        if ours.get(key) != theirs.get(key):
            assert any(unicodedata.category(each) == "Cn" for each in key + theirs[key]) and key not in ours
    table = Charsmap(compile_charsmap(ours))
    some = random.Random(2).sample([*ours], 500)
    assert [table.normalize(key) for key in some] == [ours[key] for key in some]
    other = library(rule)
    assert [table.normalize(text) for text in strings[:300]] == [other.Normalize(text) for text in strings[:300]]


NOTHING = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "escape_whitespaces": False}
KEYS = st.text("ab\u00e9\u4e2d\U0001f642\u0301", min_size=1, max_size=4)


@given(st.dictionaries(KEYS, st.text("xé\u4e2d ", max_size=3), min_size=1, max_size=12), st.lists(KEYS, max_size=6))
@example({"a": "", "ab": "x", "abab": "b"}, ["aba", "abab", "b"])
@settings(max_examples=60, deadline=None)
def test_sentencepiece_reads_a_table_that_we_compile(rules, parts):
    rules = {key: text for key, text in rules.items() if key != text} | {"zz": "z"}  # the library refuses k -> k
    text, data = "".join(parts), compile_charsmap(rules)
    spec = b"\x12" + _varint(len(data)) + data + b"\x18\x00\x20\x00\x28\x00"  # fields 2 to 5 of normalizer_spec
    theirs = sentencepiece.SentencePieceNormalizer(normalizer_spec=spec).Normalize(text)
    compiled = sentencepiece.SentencePieceNormalizer(norm_map=[*rules.items()], **NOTHING).Normalize(text)
    assert Charsmap(data).normalize(text) == theirs == compiled


def _varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14])


# --- damaged tables


def test_a_damaged_table_is_refused_or_read_within_its_bounds(tables):
    draw, table = random.Random(1), tables["nmt_nfkc"]
    for _ in range(20):
        data = bytearray(table[: draw.choice([len(table), draw.randrange(len(table))])])
        for _ in range(draw.choice([0, 1, 3])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            Charsmap(bytes(data)).normalize("a\u0301 ① ｶﾞ \u1112\u1161\u11ab" * 3)
        except ConfigError as error:
            assert "\n" not in str(error)


def double_array(base_of, labels) -> bytes:
    """A table whose unit i has one of these labels and the base `base_of(i)`."""
    units = [(labels[i % 256] | (i ^ base_of(i)) << 10) & 0xFFFFFFFF for i in range(1024)]
    return (4096).to_bytes(4, "little") + np.array(units, dtype="<u4").tobytes() + b"x\0"


def half_a_character() -> bytes:
    """The table of é, changed so that a key ends at the first byte of é."""
    data = compile_charsmap({"é": "e"})
    units = np.frombuffer(data[4:-2], dtype="<u4")
    return data[:4] + np.where(units & (LEAF | 0xFF) == 0xC3, units | 0x100, units).astype("<u4").tobytes() + data[-2:]


BROKEN = {
    "no bytes": (b"", "a trie of 0 bytes in 0"),
    "no units": (b"\xff\xff\0\0abc", "a trie of 65535 bytes in 7"),
    "a cycle": (double_array(lambda i: 256, range(256)), "its strings have no end|not UTF-8"),
    "a cycle of letters": (double_array(lambda i: 256, [*range(128)] + [LEAF] * 128), "its strings have no end"),
    "half a character": (half_a_character(), "it replaces what is not UTF-8"),
    "no replacement": (compile_charsmap({"a": "b"})[:-2], "a replacement is missing"),
    "a replacement that is not UTF-8": (compile_charsmap({"a": "b"})[:-2] + b"\xff\0", "a replacement is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused(name):
    data, problem = BROKEN[name]
    with pytest.raises(ConfigError, match=f"precompiled_charsmap: is damaged, .*({problem})"):
        Charsmap(data)


def test_invalid_arguments_are_refused(tables):
    with pytest.raises(ConfigError, match="two spaces"):
        SentencePieceNormalizer(symbols=["a  b"])
    with pytest.raises(ConfigError, match=r"precompiled_charsmap: is damaged \("):
        Precompiled("no base64!")
    with pytest.raises(ConfigError, match="no rules 'nfkd', did you mean 'nfkc'"):
        named_charsmap("nfkd")
    with pytest.raises(ConfigError, match="needs at least one rule"):
        compile_charsmap({"": "a"})
    assert named_charsmap("identity") == ""
