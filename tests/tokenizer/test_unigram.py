"""UnigramTokenizer against enumeration, `tokenizers` and `sentencepiece`."""

import json
import math
from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models

from tests.tokenizer.scripts import texts
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import END_OF_TEXT, Tokenizer, UnigramTokenizer, load_tokenizer, unigram, unigram_model
from tinylm.tokenizer.characters import BYTE_NAMES
from tinylm.tokenizer.fast import blocks, counting, cutting
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, to_tokenizer_json
from tinylm.tokenizer.formats.sentencepiece_writer import to_sentencepiece
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer

few = settings(max_examples=60, deadline=None)
TEXTS = texts(300, seed=3)
ALPHABET = "ab \u4e2d\u00e9\U0001f642"  # characters of one to four bytes
TEXT = st.text(ALPHABET + "x", max_size=40)
VOCABULARY = st.dictionaries(st.text(ALPHABET, min_size=1, max_size=4), st.integers(-9000, -100), max_size=12)


def tokenizer_of(longer: dict[str, int], **options) -> UnigramTokenizer:
    """A tokenizer with `<unk>`, single characters and these pieces; scores are multiples of 1/1024."""
    scores = {"a": -3000, "b": -2000, "c": -2500} | longer
    return UnigramTokenizer(["<unk>", *scores], [None, *(score / 1024 for score in scores.values())], 0, **options)


def theirs(tokenizer: UnigramTokenizer) -> tokenizers.Tokenizer:
    """The model in `tokenizers`, which segments the whole text at once."""
    pairs = zip(tokenizer.pieces, tokenizer.scores, strict=True)
    vocab = [(piece, 0.0 if score is None else score) for piece, score in pairs]
    return tokenizers.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=tokenizer.byte_fallback))


@pytest.fixture(scope="module")
def tale() -> str:
    return "".join(stories(seed=7, count=100)) + "".join(TEXTS[:60])


@pytest.fixture(scope="module")
def trained(tale) -> UnigramTokenizer:
    return UnigramTokenizer.train_from_texts([tale], vocab_size=1200, special_tokens=[END_OF_TEXT])


# --- the most likely segmentation


def test_the_most_likely_segmentation_by_hand():
    """hug s: -1.2 - 2.8 = -4; h u gs: -3 - 3.5 - 4 = -10.5; an unknown character: -4 - 10."""
    scores = {"hug": -1.2, "h": -3.0, "u": -3.5, "g": -3.2, "gs": -4.0, "s": -2.8}
    tokenizer = UnigramTokenizer(["<unk>", *scores], [None, *scores.values()], unknown=0)
    assert tokenizer.encode("hugs") == [1, 6]
    assert tokenizer.n_best("hugs", 2) == [([1, 6], pytest.approx(-4.0)), ([2, 3, 5], pytest.approx(-10.5))]
    assert tokenizer.n_best("sx", 5) == [([6, 0], pytest.approx(-16.8))]
    assert tokenizer.encode("xyhugx x") == [0, 1, 0]
    assert tokenizer.decode([1, 6]) == "hugs"


@few
@given(VOCABULARY, TEXT)
@example({"aa": -2000, "aaa": -3000}, "aaaaaaaaaaaaa aa")
@example({"ab": -5000, "ba": -5000, "b\u4e2d": -500, "\u4e2d": -500}, "abab\u4e2d\U0001f642\U0001f642ab")
def test_ids_of_short_texts_and_blocks_equal_those_of_tokenizers(longer, text):
    tokenizer = tokenizer_of(longer)
    expected = theirs(tokenizer).encode(text).ids
    assert tokenizer.encode(text) == expected
    assert tokenizer.model.encode_data(text.encode(), None).tolist() == expected
    assert [token.id for token in tokenizer.model.tokens(text)] == expected


def test_ids_of_a_trained_model_equal_those_of_tokenizers_and_decode_to_the_text(trained, tale):
    other = tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(trained)))
    for text in [*TEXTS, tale]:
        ids = trained.encode(text, allow_special=True)
        assert ids == other.encode(text, add_special_tokens=False).ids
        assert trained.decode(ids) == trained.decode(trained.encode(text)) == text


@few
@given(st.text())
@example("\u2581a <0x0A>\x00\n\n  \r\n ")
def test_any_text_round_trips(trained, text):
    assert trained.decode(trained.encode(text), errors="strict") == trained.normalized(text) == text


@pytest.fixture(scope="module")
def rounded() -> UnigramTokenizer:
    """A model whose pieces include runs of one character, and whose scores are inexact in binary."""
    characters = sorted({character for text in TEXTS for character in text} - {" ", "\0", "\u2581"})
    pieces = [*characters[::2], "\u2581", "\u2581t", "xx", "xxx", "xxxxx", "==", "=======", "aa", "aaa", "a\u2581a"]
    scores = [float(np.float32(-7 - 1.7 * math.sin(place) - len(piece))) for place, piece in enumerate(pieces)]
    normalizer = SentencePieceNormalizer().to_dict()
    options = {"unknown": 0, "marker": True, "normalizer": normalizer, "strip": True, "surface": " ?", "sums": "text"}
    return UnigramTokenizer(["<unk>", *pieces], [None, *scores], **options, special_tokens=["<unk>"])


RUNS = [f"{text[:60]} {'x' * size} {'=' * size}{'a' * size}" for size, text in enumerate(TEXTS[:100])]


def test_float32_sums_break_ties_as_in_sentencepiece(rounded):
    """Rounding decides among equally likely segmentations of a run of one character."""
    other = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(rounded))
    expected = [other.encode(text) for text in [*TEXTS, *RUNS]]
    assert [rounded.encode(text) for text in [*TEXTS, *RUNS]] == expected
    parts = UnigramTokenizer(**(rounded.options() | {"sums": "parts"}))
    assert [parts.encode(text) for text in [*TEXTS, *RUNS]] != expected  # the texts tell the two ways of summing apart


def test_large_sums_restart_as_in_sentencepiece(monkeypatch):
    """At 120,000 nats float32 cannot tell a, a (10.2) from aa (10.201), but sums restart from 0 at 100,000."""
    pieces = {"b": -30000, "a": -5.1, "aa": -10.201, "\u2581": -1}
    scores = [None, *(float(np.float32(score)) for score in pieces.values())]
    options = {"unknown": 0, "normalizer": SentencePieceNormalizer().to_dict(), "special_tokens": ["<unk>"]}
    ours = UnigramTokenizer(["<unk>", *pieces], scores, **options, marker=True, strip=True, sums="text")
    other = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(ours))
    texts = ["aa", "bbbaa", "bbbbaa", "bbbbbaabbb aa b b b b aaaa bbb aabbbb", "b" * 20 + "aa" * 4]
    assert [ours.encode(text) for text in texts] == [other.encode(text) for text in texts]
    monkeypatch.setattr(unigram_model, "LARGEST_SUM", np.inf)
    assert ours.encode("bbbbaa") != other.encode("bbbbaa")


def test_long_texts_are_segmented_as_short_ones_with_float32_sums(rounded, monkeypatch):
    long = [f"{a} {'x' * 50} {b} {'=' * 40}" for a, b in pairwise([*TEXTS[:20], *RUNS[::2]])]
    expected = [rounded.encode(text) for text in long]
    end = rounded.with_special_tokens([END_OF_TEXT])
    joined = list(chain.from_iterable([*ids, end.end_of_text] for ids in expected))[:-1]
    assert end.encode_block(Block(long)).tolist() == joined
    monkeypatch.setattr(unigram_model, "SHORT", 1 << 20)
    assert [rounded.encode(text) for text in long] == expected


# --- blocks, files, cuts


def test_several_processes_learn_the_same_model(tale, trained, monkeypatch):
    """Several processes count words in another order, so sums of floats may differ in the last bit."""
    monkeypatch.setattr(blocks, "BLOCK", 2000)
    monkeypatch.setattr(counting, "ALONE", 1)
    assert (
        UnigramTokenizer.train_from_texts([tale], vocab_size=1200, processes=2, special_tokens=[END_OF_TEXT]) == trained
    )


def test_blocks_files_and_streams_have_the_ids_of_the_text(trained, tale, tmp_path, monkeypatch):
    expected = trained.model.encode(tale)
    parts = [tale[begin:end] for begin, end in pairwise([0, 9, 500, 500, 5000, len(tale)])]
    joined = list(chain.from_iterable([*trained.encode(part), trained.end_of_text] for part in parts))[:-1]
    for _ in range(2):  # new parts, then known ones
        assert trained.encode_block(Block(parts)).tolist() == joined
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    path = tmp_path / "tale.txt"
    path.write_bytes(tale.encode())
    found = trained.encode_file(path)
    assert (found.dtype, found.tolist()) == (np.uint16, expected)
    assert np.concatenate(list(trained.encode_stream([tale[:5000], tale[5000:]]))).tolist() == expected
    monkeypatch.setattr(unigram, "LONG", 100)
    assert trained.encode(tale) == expected


@few
@given(VOCABULARY, TEXT, TEXT, st.booleans())
def test_a_safe_cut_changes_no_ids(longer, text, more, fallback):
    tokenizer = tokenizer_of(longer)
    if fallback:
        names = [*BYTE_NAMES, *tokenizer.pieces[1:]]
        tokenizer = UnigramTokenizer(names, [*[None] * 256, *tokenizer.scores[1:]], byte_fallback=True)
    cut = tokenizer.safe_cut(text)
    assert 0 <= cut < max(len(text), 1)
    assert tokenizer.encode(text[:cut]) + tokenizer.encode(text[cut:] + more) == tokenizer.encode(text + more)


def test_a_part_that_is_too_long_is_refused_with_its_position(trained, monkeypatch):
    monkeypatch.setattr(cutting, "LONGEST", 50)
    monkeypatch.setattr(unigram, "LONGEST", 50)
    monkeypatch.setattr(blocks, "BLOCK", 60)
    monkeypatch.setattr(unigram, "LONG", 60)
    for text in ("so " + "a" * 55, "so " + "a" * 500):
        with pytest.raises(DataError, match=r"\d+ bytes from '.*a'\.\.\. on .*insert spaces"):
            tokenizer_of({"aa": -2000}).encode(text)
    assert trained.decode(trained.encode("\0" * 500)) == "\0" * 500  # bytes can be cut
    with pytest.raises(DataError, match="lone surrogate"):
        trained.encode("a\ud800")


def test_offsets_and_spans_give_the_text_of_each_token(trained):
    for text in TEXTS[:100]:
        ids, offsets = trained.encode_with_offsets(text, allow_special=True)
        assert ids.tolist() == trained.encode(text, allow_special=True)
        for token, (begin, end) in zip(ids, offsets.tolist(), strict=True):
            assert trained.token_bytes[token] in text[begin:end].encode()
        plain = trained.encode_array(text)
        spans, data = trained.spans(text, plain), text.encode()
        assert all(trained.token_bytes[i] in data[a:b] for i, (a, b) in zip(plain, spans.tolist(), strict=True))
        assert trained.bytes_from(text, plain, 1) == len(data) - len(
            b"".join(trained.token_bytes[i] for i in plain[:1])
        )
    tokenizer = tokenizer_of({})
    assert tokenizer.encode_with_offsets("axyb")[1].tolist() == [[0, 1], [1, 3], [3, 4]]  # <unk> covers both
    assert tokenizer.bytes_from("axyb", tokenizer.encode_array("axyb"), 1) == 3


# --- other segmentations


def segmentations(text: str, scores: dict[str, float]) -> dict[tuple[str, ...], float]:
    """Every segmentation, and its log probability."""
    if not text:
        return {(): 0.0}
    return {
        (text[:end], *rest): scores[text[:end]] + score
        for end in range(1, len(text) + 1)
        if text[:end] in scores
        for rest, score in segmentations(text[end:], scores).items()
    }


@few
@given(st.dictionaries(st.text("abc ", min_size=1, max_size=3), st.integers(-9000, -100), max_size=9))
def test_n_best_and_the_total_agree_with_all_segmentations(longer):
    tokenizer, text = tokenizer_of({" ": -4000} | longer), "ab cabca b"
    every = segmentations(text, dict(zip(tokenizer.pieces[1:], tokenizer.scores[1:], strict=True)))
    best = sorted(every.values(), reverse=True)[:5]
    found = tokenizer.n_best(text, 5)
    assert [score for _, score in found] == best  # exact: multiples of 1/1024
    assert len({tuple(ids) for ids, _ in found}) == len(found)
    for ids, score in found:
        assert every[tuple(tokenizer.pieces[token] for token in ids)] == score
    assert found[0][0] == tokenizer.encode(text)
    total = math.log(math.fsum(map(math.exp, every.values())))
    assert tokenizer.log_probability(text) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_samples_have_the_probabilities_of_segmentations(alpha):
    """Copies of a word in one text are segmented independently, in proportion to probability to the power alpha."""
    tokenizer = tokenizer_of({"ab": -1500, "bc": -2600, "abc": -2900, "ca": -3300, " ": -1000})
    every = segmentations("abcab", dict(zip(tokenizer.pieces[1:], tokenizer.scores[1:], strict=True)))
    ids = tokenizer.sample(" ".join(["abcab"] * 4000), alpha, np.random.default_rng(0))
    drawn = Counter(tuple(word.split(",")) for word in ",".join(tokenizer.pieces[token] for token in ids).split(", ,"))
    assert drawn.total() == 4000
    weights = {pieces: math.exp(alpha * score) for pieces, score in every.items()}
    for pieces, weight in weights.items():
        chance = weight / math.fsum(weights.values())
        assert abs(drawn[pieces] / 4000 - chance) < 5 * math.sqrt(chance * (1 - chance) / 4000) + 1e-9, pieces


def test_samples_are_segmentations_of_the_text_and_the_best_at_a_high_alpha(trained):
    for text in TEXTS[:40]:
        random = np.random.default_rng(1)
        assert trained.decode(trained.sample(text, 0.2, random)) == text
        assert np.array_equal(
            trained.sample(text, 0.2, np.random.default_rng(5)), trained.sample(text, 0.2, np.random.default_rng(5))
        )
    assert trained.sample(TEXTS[3], 1e6, np.random.default_rng(0)).tolist() == trained.encode(TEXTS[3])
    with pytest.raises(ConfigError, match="alpha must be from 0"):
        trained.sample("a", -1.0, np.random.default_rng(0))


# --- training and files


def test_training_numbers_bytes_then_pieces_then_special_tokens(trained, tale):
    assert trained.pieces[:256] == BYTE_NAMES
    assert trained.special_tokens == {END_OF_TEXT: 1199}
    assert trained.scores[256:] == sorted(trained.scores[256:], reverse=True)
    assert all(score * 1024 == round(score * 1024) for score in trained.scores[256:])
    words = {piece.lstrip(" ") for piece in trained.pieces[256:]}
    assert not any(" " in word and word.strip() for word in words)  # a space begins a piece or is part of white space


def test_training_without_byte_fallback_has_an_unknown_token(tale, tmp_path):
    tokenizer = UnigramTokenizer.train_from_texts([tale], vocab_size=400, byte_fallback=False, character_coverage=0.98)
    assert tokenizer.vocab_size == 400
    ids = tokenizer.encode("the \U0001d518\U0001d518 cat")
    assert ids.count(tokenizer.unknown) == 1
    tokenizer.save(tmp_path / "t.json")
    assert load_tokenizer(tmp_path / "t.json") == tokenizer
    assert from_tokenizer_json(to_tokenizer_json(tokenizer), "t") == tokenizer
    other = tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(tokenizer)))
    assert all(tokenizer.encode(text) == other.encode(text).ids for text in TEXTS)


def test_training_on_files_equals_training_on_their_text(trained, tale, tmp_path):
    (tmp_path / "t.txt").write_bytes(tale.encode())
    again = UnigramTokenizer.train([tmp_path / "t.txt"], vocab_size=1200, special_tokens=[END_OF_TEXT], processes=1)
    assert again == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 259}, r"vocab_size must be at least 260, 4 characters and 256 other tokens, got 259"),
        ({"memory_limit": 0}, "memory_limit must be at least 1"),
    ],
)
def test_training_refuses_limits_that_are_too_small(options, message):
    with pytest.raises(ConfigError, match=message):
        UnigramTokenizer.train_from_texts(["a cat"], **options)
    with pytest.raises(DataError, match="the corpus is empty"):
        UnigramTokenizer.train_from_texts([""])


def test_a_model_with_normalization_equals_sentencepiece():
    """The text is normalized before words are counted; sentencepiece reads the model with its rules."""
    corpus = [text.replace("\0", "") for text in texts(200, 1)]  # a .model has no pieces with NUL
    ours = UnigramTokenizer.train_from_texts(corpus, vocab_size=900, normalization="nmt_nfkc", character_coverage=0.98)
    other = sentencepiece.SentencePieceProcessor(model_proto=to_sentencepiece(ours))
    for text in texts(200, 2):
        assert ours.normalized(text) == other.normalize(text)
        assert ours.encode(text) == other.encode(text), ascii(text)
        assert ours.decode(ours.encode(text)) == ours.normalized(text)
    assert ours.encode("\ufb01ne\tline\uff21") == ours.encode("fine lineA")  # a ligature, a full-width letter
    with pytest.raises(ConfigError, match="normalization: no rules 'nfk', did you mean 'nfkc'"):
        UnigramTokenizer.train_from_texts(corpus, normalization="nfk")


def test_special_tokens_are_plain_text_unless_requested(trained):
    more = trained.with_special_tokens(["<x>", END_OF_TEXT])
    assert more.special_tokens == {END_OF_TEXT: 1199, "<x>": 1200}
    assert more.encode("a<x>", allow_special=True) == [*more.encode("a"), 1200]
    assert more.decode(more.encode("a<x>")) == "a<x>" and 1200 not in more.encode("a<x>")
    assert Tokenizer.from_dict(more.to_dict()) == more
    piece = next(piece for piece in trained.pieces[256:] if len(piece) > 2)
    with pytest.raises(ConfigError, match="is an ordinary piece"):
        trained.with_special_tokens([piece])
    inside = UnigramTokenizer(
        ["<unk>", "<s>", "<", "s", ">"], [None, -1.0, -2.0, -2.0, -2.0], 0, special_tokens=["<s>"]
    )
    assert inside.encode("<s>") == [2, 3, 4]
    assert inside.encode("<s>", allow_special=True) == [1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pieces": ["<unk>", "a", "a"]}, "pieces must be distinct"),
        ({"scores": [None, 1.0]}, "with a score each"),
        ({"scores": [None, math.nan, 0.0]}, "scores must be numbers"),
        ({"byte_fallback": True}, "lacks the byte <0x00>"),
        ({"unknown": None}, "unknown must be the id of a piece"),
        ({"unknown": 3}, "unknown must be the id of a piece"),
        ({"split": "words"}, "split must be pieces or spaces"),
        ({"special_tokens": ["<x>", "<x>"]}, "special_tokens must be distinct"),
        ({"normalizer": {"kind": "nfx"}}, "no kind 'nfx'"),
    ],
)
def test_invalid_arguments_are_refused(change, message):
    options = {"pieces": ["<unk>", "a", "b"], "scores": [None, -1.0, -2.0], "unknown": 0}
    with pytest.raises(ConfigError, match=message):
        UnigramTokenizer(**(options | change))
