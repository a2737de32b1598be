"""BPETokenizer against Hugging Face's tokenizers, OpenAI's tiktoken and the textbook version."""

import json
import random
import re
from collections import Counter
from itertools import chain, pairwise, product

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers

from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, learned, load_tokenizer, textbook
from tinylm.tokenizer.alphabet import BYTE_IDS, BYTES
from tinylm.tokenizer.fast import blocks, counting, merging, words
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.fast.merging import merge_word
from tinylm.tokenizer.fast.pretokenize import PATTERNS

few = settings(max_examples=50, deadline=None)
H, E, L, O, SPACE = (BYTES.index(sign) for sign in b"helo ")  # noqa: E741

MIXED = (
    "It's 2024, they'll say; we've   12345 reasons!\n\n\tdef f(x):\n        return x**2  # naïve — “quoted”\r\n"
    "我喜欢语言模型。日本語のテキスト 한국어 Русский язык العربية 👩\u200d👩\u200d👧 🇫🇷 e\u0301 \U0001d518  \u3000 end"
)


def hugging_face(text: str, vocab_size: int) -> tokenizers.Tokenizer:
    """Trains the equivalent tokenizer with Hugging Face's library."""
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    other.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    )
    return other


@pytest.fixture(scope="module")
def tale() -> str:
    return "".join(stories(seed=7, count=300)) + MIXED * 3


@pytest.fixture(scope="module")
def trained(tale) -> BPETokenizer:
    return BPETokenizer.train_from_texts([tale], vocab_size=900)


# --- encoding


def test_a_word_is_merged_in_the_order_of_learning_by_hand():
    tokenizer = BPETokenizer([(H, E), (L, O), (256, L)])  # he, lo, hel
    assert [tokenizer.token_bytes[token] for token in tokenizer.encode("hello")] == [b"hel", b"lo"]
    assert tokenizer.encode("hello hell") == [258, 257, SPACE, 258, L]
    assert tokenizer.vocab_size == 259


def test_a_merge_that_spells_an_existing_token_gives_that_token():
    tokenizer = BPETokenizer([(H, E), (256, L), (E, L), (H, 258)])  # he, hel, el, and hel again
    assert tokenizer.vocab_size == 256 + 3
    assert merge_word([H, 258], tokenizer._merged) == [257]


@few
@given(st.text())
def test_ids_equal_those_of_tokenizers_and_tiktoken_on_any_text(trained, oracles, text):
    by_tokenizers, by_tiktoken = oracles
    ids = trained.encode(text)
    assert ids == by_tokenizers.encode(text).ids
    assert ids == by_tiktoken.encode_ordinary(text)
    assert trained.decode(ids, errors="strict") == text


def test_ids_equal_those_of_tokenizers_and_tiktoken_on_prose_code_and_scripts(trained, oracles, tale):
    by_tokenizers, by_tiktoken = oracles
    assert trained.encode(tale) == by_tokenizers.encode(tale).ids == by_tiktoken.encode_ordinary(tale)


@pytest.fixture(scope="module")
def oracles(trained, tale):
    """The tokenizers of the two other libraries with equal merges."""
    ranks = {piece: token for token, piece in enumerate(trained.token_bytes)}
    by_tiktoken = tiktoken.Encoding("t", pat_str=PATTERNS["gpt2"], mergeable_ranks=ranks, special_tokens={})
    return hugging_face(tale, 900), by_tiktoken


def test_the_gpt4_pattern_equals_tiktokens(tale):
    tokenizer = BPETokenizer.train_from_texts([tale], vocab_size=700, pattern="gpt4")
    ranks = {piece: token for token, piece in enumerate(tokenizer.token_bytes)}
    other = tiktoken.Encoding("t", pat_str=PATTERNS["gpt4"], mergeable_ranks=ranks, special_tokens={})
    assert tokenizer.encode(tale) == other.encode_ordinary(tale)


# --- short texts, long texts, blocks and streams: the same ids


@few
@given(text=st.text(), cuts=st.lists(st.integers(0, 50), max_size=4), pattern=st.sampled_from(["gpt2", "gpt4"]))
@example(text="hello  hellö\n\n 'tis 1234 " * 3, cuts=[9], pattern="gpt2")
def test_a_block_has_the_ids_of_its_texts_with_separators_between(trained, text, cuts, pattern):
    merges = trained.merges[:300]
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    texts = [text[a:b] for a, b in pairwise(bounds)]
    for special in ([], [END_OF_TEXT]):
        tokenizer = BPETokenizer(merges, pattern, special)
        end = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
        expected = [tokenizer._encode_short(part) for part in texts]
        joined = list(chain.from_iterable([*ids, *end] for ids in expected))
        for _ in range(2):  # new words, then known ones
            found = tokenizer.encode_block(Block(texts)).tolist()
            assert found == (joined[:-1] if end else joined)


def test_the_textbook_has_the_same_ids(trained, tale):
    merged = {pair: token for pair, (_, token) in trained._merged.items()}
    words = [list(word.encode().translate(BYTE_IDS)) for word in trained._splitter.words(tale[-3000:])]
    expected = list(chain.from_iterable(textbook.merge_word(word, merged) for word in words))
    assert trained.encode(tale[-3000:]) == expected
    assert trained.encode_block(Block([tale[-3000:]])).tolist() == expected


def test_long_words_and_words_of_each_length_have_the_same_ids_in_blocks(trained):
    letters = "".join(random.Random(1).choices("helo thand", k=400)).replace(" ", "")
    text = " ".join(letters[:length] for length in range(1, 300))
    assert trained.encode_block(Block([text])).tolist() == trained._encode_short(text)


def test_encoding_a_file_in_one_or_two_processes_equals_encoding_its_text(trained, tale, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(counting, "ALONE", 1)
    (tmp_path / "t.txt").write_bytes(tale.encode())
    expected = trained._encode_short(tale)
    for processes in (1, 2):
        found = trained.encode_file(tmp_path / "t.txt", processes)
        assert (found.dtype, found.tolist()) == (np.uint16, expected)
    assert np.concatenate(list(trained.encode_stream([tale[:5000], tale[5000:]]))).tolist() == expected
    assert BPETokenizer.train([tmp_path / "t.txt"], vocab_size=900, processes=2) == trained


@pytest.mark.parametrize("pattern", ["gpt2", "gpt4", "words", r"\w+|\W"])
def test_a_file_without_spaces_or_of_one_word_has_the_words_of_its_text(pattern, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 300)
    tokenizer = BPETokenizer([], pattern)
    for text in ("我喜欢语言模型。日本語、한국어" * 50, "x" * 5000, "x \n\n " * 90, "\u3000 \u3000a" * 200, "", "a"):
        (tmp_path / "t.txt").write_bytes(text.encode())
        words = []
        for block in blocks.file_blocks(tmp_path / "t.txt", tokenizer.safe_cut):
            words += [word for part in block.texts for word in tokenizer._splitter.words(part)]
        assert words == tokenizer._splitter.words(text)
        assert tokenizer.encode_file(tmp_path / "t.txt").tolist() == tokenizer.encode(text)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_is_not_utf8_is_refused_with_the_position(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(counting, "ALONE", 1)
    (tmp_path / "t.txt").write_bytes(b"word " * 2000 + b"\xff" + b" word" * 100)
    with pytest.raises(DataError, match=r"t\.txt: is not UTF-8 at byte 10000 \(invalid start byte\); repair"):
        BPETokenizer([]).encode_file(tmp_path / "t.txt", processes)
    with pytest.raises(DataError, match=r"t\.txt: is not UTF-8 at byte 10000"):
        BPETokenizer.train([tmp_path / "t.txt"], processes=processes)


@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_any_bytes_round_trip(trained, data):
    text = data.decode("latin-1")
    assert trained.decode(trained.encode(text), errors="strict") == text
    pieces = trained.encode(data.decode("utf-8", "replace"))
    assert b"".join(trained.token_bytes[token] for token in pieces) == data.decode("utf-8", "replace").encode()


@pytest.mark.parametrize("text", ["a", "ab", None], ids=["one letter", "two letters", "random bytes"])
def test_merging_a_long_word_is_near_linear_in_its_length(text, monkeypatch):
    """Counts heap pops for two lengths. A scan of all pairs per merge would grow 16-fold."""
    letters = random.Random(0).choices("abcdefgh", k=40_000)
    tokenizer = BPETokenizer.train_from_texts(
        ["".join(letters[:5000])] if text is None else [text * 500], vocab_size=300
    )
    pops, pop = [], merging.heappop
    for length in (10_000, 40_000):
        word = "".join(letters[:length]) if text is None else (text * length)[:length]
        calls = Counter()
        monkeypatch.setattr(merging, "heappop", lambda heap, calls=calls: (calls.update("p"), pop(heap))[1])
        assert tokenizer.decode(tokenizer.encode(word)) == word
        pops.append(calls["p"])
    assert pops[0] > 1000
    assert pops[1] < 5 * pops[0]


# --- training


def test_merges_equal_those_of_tokenizers(tale, trained):
    other = json.loads(hugging_face(tale, 900).to_str())["model"]
    names = {token: name for name, token in other["vocab"].items()}
    assert [[names[left], names[right]] for left, right in trained.merges] == [list(pair) for pair in other["merges"]]
    assert len(trained.merges) == 900 - 256


@few
@given(st.text("abc é\n'", min_size=1, max_size=60), st.integers(0, 30))
@example("atat at" + "at" * 9 + " bat aat", 20)
def test_merges_equal_those_of_tokenizers_on_any_text(text, num_merges):
    merges = BPETokenizer.train_from_texts([text], vocab_size=256 + num_merges).merges
    other = json.loads(hugging_face(text, 256 + num_merges).to_str())["model"]
    names = {token: name for name, token in other["vocab"].items()}
    assert [[names[left], names[right]] for left, right in merges] == [list(pair) for pair in other["merges"]]


def test_several_processes_learn_the_same_merges(tale, trained, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2000)
    monkeypatch.setattr(counting, "ALONE", 1)
    reported = []
    parallel = BPETokenizer.train_from_texts(
        [tale], vocab_size=900, processes=2, progress=lambda stage, done: reported.append((stage, done))
    )
    assert parallel == trained
    counted = [done for stage, done in reported if stage == "counting"]
    assert len(counted) > 10 and counted == sorted(counted) and counted[-1] == len(tale.encode())
    assert [done for stage, done in reported if stage == "merging"] == list(range(1, 900 - 256 + 1))


def test_only_the_beginning_of_a_very_long_word_is_learned_from(capsys, monkeypatch):
    """é has two bytes. The limit falls inside an é, which is left out."""
    monkeypatch.setattr(counting, "LONG", 100)
    found = BPETokenizer.train_from_texts(["the cat " + "aé" * 500 + "zz" * 500], vocab_size=300)
    assert "a word of 2,501 bytes: learning from the first 100 bytes" in capsys.readouterr().err
    assert found == BPETokenizer.train_from_texts(["the cat " + "aé" * 33], vocab_size=300)


def test_a_memory_limit_forgets_rare_words_with_a_notice(monkeypatch, capfd):
    monkeypatch.setattr(counting, "WORDS_PER_MEGABYTE", 10)
    text = "the cat " * 200 + " ".join(map("".join, product("zyxwvu", repeat=3)))
    limited = BPETokenizer.train_from_texts([text], vocab_size=262, memory_limit=2)
    assert re.search(r"more words than 2 MB can hold: forgot rare ones, \d+ occurrences", capfd.readouterr().err)
    assert {b" the", b" cat"} <= set(limited.token_bytes)
    unlimited = BPETokenizer.train_from_texts([text], vocab_size=262, memory_limit=1000)
    assert unlimited == BPETokenizer.train_from_texts([text], vocab_size=262)
    assert capfd.readouterr().err == ""


def test_training_stops_when_every_word_is_one_token():
    tokenizer = BPETokenizer.train_from_texts(["hello hello"], vocab_size=5000, special_tokens=[END_OF_TEXT])
    assert tokenizer.encode("hello hello") == [token for token, piece in enumerate(tokenizer.token_bytes)
                                               if piece in (b"hello", b" hello")]  # fmt: skip
    assert tokenizer.vocab_size == len(tokenizer.merges) + 257 < 300


def test_merges_span_the_chunks_of_a_text_but_never_two_texts():
    apart = BPETokenizer.train_from_texts(["he", "lo"] * 9, vocab_size=259)
    whole = BPETokenizer.train_from_streams([["he", "lo"]] * 9, vocab_size=259)
    assert [apart.token_bytes[token] for token in apart.encode("helo")] == [b"he", b"lo"]
    assert [whole.token_bytes[token] for token in whole.encode("helo")] == [b"helo"]


def test_vocab_size_counts_bytes_merges_and_special_tokens():
    tokenizer = BPETokenizer.train_from_texts(["hello " * 9], vocab_size=260, special_tokens=[END_OF_TEXT])
    assert (tokenizer.vocab_size, len(tokenizer.merges), tokenizer.end_of_text) == (260, 3, 259)
    with pytest.raises(ConfigError, match="vocab_size must be at least 257, the bytes and special tokens, got 256"):
        BPETokenizer.train_from_texts(["a"], vocab_size=256, special_tokens=[END_OF_TEXT])


def test_training_on_no_text_is_refused():
    for texts in ([], [""]):
        with pytest.raises(DataError, match="the corpus is empty"):
            BPETokenizer.train_from_texts(texts)


# --- invalid merges


@pytest.mark.parametrize("merges", [[(256, H)], [(H, -1)], [(H, E), (H, E)], [(H, E), (257, H)]])
def test_merges_of_unknown_ids_are_refused(merges):
    with pytest.raises(
        ConfigError,
        match=f"merges: merge {len(merges) - 1} repeats an earlier one, or uses",
    ):
        BPETokenizer(merges)


# --- custom ids


@settings(max_examples=20, deadline=None)
@given(st.text(), st.randoms(use_true_random=False), st.integers(0, 50))
def test_custom_ids_renumber_the_default_ids(trained, text, random, holes):
    specials = ["<x>", END_OF_TEXT]
    counted = BPETokenizer(trained.merges, special_tokens=specials)
    ids = random.sample(range(counted.vocab_size + holes), counted.vocab_size)
    other = BPETokenizer(trained.merges, special_tokens=specials, ids=ids)

    text = f"<x>{text}{END_OF_TEXT}{text}"
    for special in (False, True):
        found = other.encode(text, allow_special=special)
        assert found == [ids[token] for token in counted.encode(text, allow_special=special)]
        assert other.decode(found) == "".join(other.decode_stream(found)) == text
    assert np.concatenate(list(other.encode_stream([text[:7], text[7:]]))).tolist() == other.encode(text)

    assert other.vocab_size == max(ids) + 1
    assert other.end_of_text == ids[counted.end_of_text]
    assert other.special_tokens == {name: ids[token] for name, token in counted.special_tokens.items()}
    tokens = dict(zip(ids, zip(counted.token_bytes, counted.byte_lengths, strict=True), strict=True))
    found = list(zip(other.token_bytes, other.byte_lengths, strict=True))
    assert found == [tokens.get(token, (b"", 0)) for token in range(other.vocab_size)]


def test_custom_ids_are_saved_and_default_ids_are_not(trained, tmp_path):
    ids = [*range(1, trained.vocab_size), 0]
    other = BPETokenizer(trained.merges, ids=ids)
    other.save(tmp_path / "t.json")
    loaded = load_tokenizer(tmp_path / "t.json")
    assert loaded == other != trained
    assert (loaded.ids, loaded.encode("hello")) == (ids, other.encode("hello"))

    counted = BPETokenizer(trained.merges, ids=range(trained.vocab_size))
    assert counted == trained
    assert counted.ids is None and "ids" not in counted.to_dict()


@pytest.mark.parametrize(
    ("change", "got"),
    [
        (lambda ids: ids[1:], "got 257, 257 of them distinct, from 1 to 257"),
        (lambda ids: [*ids, 300], "got 259, 259 of them distinct"),
        (lambda ids: [7, *ids[1:]], "got 258, 257 of them distinct"),
        (lambda ids: [-2, *ids[1:]], "from -2 to 257"),
        (lambda ids: [*ids[:-1], -1], "from -1 to 256"),
        (lambda ids: [1 << 24, *ids[1:]], "from 0 to 16777215, .* to 16777216"),
        (lambda ids: [], "integers"),
        (lambda ids: [0.0, *ids[1:]], "integers"),
        (lambda ids: [1 << 80, *ids[1:]], "integers"),
        (lambda ids: list(map(str, ids)), "integers"),
        (lambda ids: [ids], "integers"),
    ],
)
def test_invalid_ids_are_refused(change, got, tmp_path):
    ids = change(list(range(258)))
    with pytest.raises(ConfigError, match=f"ids must be .*{got}"):
        BPETokenizer([(H, E)], special_tokens=["<x>"], ids=ids)
    values = BPETokenizer([(H, E)], special_tokens=["<x>"]).to_dict() | {"ids": ids}
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"t\.json: is not a tinylm tokenizer \(ids must be"):
        load_tokenizer(tmp_path / "t.json")


def test_a_file_with_invalid_merges_is_refused(tmp_path):
    values = BPETokenizer([(H, E)]).to_dict()
    for merges in ([[1]], [["a", "b"]], 3, None):
        (tmp_path / "t.json").write_text(json.dumps(values | {"merges": merges}))
        with pytest.raises(DataError, match=r"t\.json: is not a tinylm tokenizer"):
            load_tokenizer(tmp_path / "t.json")


def test_the_word_caches_stay_bounded(monkeypatch):
    monkeypatch.setattr(words, "MAX_REMEMBERED", 10)
    monkeypatch.setattr(learned, "MAX_KNOWN", 10)
    tokenizer = BPETokenizer([(H, E)])
    for number in range(100):
        assert tokenizer.decode(tokenizer.encode(f"word{number} he")) == f"word{number} he"
        assert len(tokenizer._remembered) < 20
        assert np.array_equal(tokenizer.encode_block(Block([f"word{number} he"]))[-2:], tokenizer.encode(" he"))
        assert tokenizer._words.size < 30
    assert np.array_equal(tokenizer.encode_array("he"), [256])
