"""WordPiece: training against the textbook; ids, offsets and text against `tokenizers`."""

import json
from collections import Counter

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.tokenizer.scripts import texts
from tinylm.data.grammar.stories import stories
from tinylm.errors import CannotCreateError, ConfigError, DataError
from tinylm.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    WordPieceTokenizer,
    load_tokenizer,
    read_tokenizer_json,
    textbook_wordpiece,
    write_tokenizer_json,
    write_vocab_txt,
)
from tinylm.tokenizer.base import Marks
from tinylm.tokenizer.fast import spelling
from tinylm.tokenizer.fast.blocks import Block, blocks
from tinylm.tokenizer.fast.chunks import SpacedWords
from tinylm.tokenizer.fast.scoring import PairTable, ScoreLearner
from tinylm.tokenizer.formats.folder import read_folder
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, to_tokenizer_json
from tinylm.tokenizer.normalizers.bert import BertNormalizer
from tinylm.tokenizer.pipeline import PipelineTokenizer

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
few = settings(max_examples=60, deadline=None)
counted = st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 9), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def corpus():
    return texts(600, seed=8)


@pytest.fixture(scope="module")
def sample():
    return texts(300, seed=7)


# --- training


def learned(counts: dict[str, int], num_pieces: int, least: int | None) -> list[str]:
    words = [textbook_wordpiece.split(word) for word in counts]
    names = sorted({piece for word in words for piece in word})
    numbers = np.array([names.index(piece) for word in words for piece in word])
    sizes, weights = np.array([*map(len, words)]), np.array([*counts.values()])
    list(ScoreLearner(numbers, sizes, weights, names, "##", least).learn(num_pieces))
    return names


@few
@given(counted, st.integers(3, 40))
def test_the_fast_learner_learns_the_textbooks_pieces(counts, num_pieces):
    assert learned(counts, num_pieces, 1) == textbook_wordpiece.learn_pieces(counts, num_pieces)


def test_the_fast_learner_learns_the_textbooks_pieces_of_a_text():
    counts = Counter("".join(stories(seed=1, count=12)).replace("#", "").split())
    expected = textbook_wordpiece.learn_pieces(counts, 150)
    assert len(expected) == 150 and learned(counts, 150, 1) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60), st.integers(0, 20))
def test_pairs_are_numbered_in_their_order(pairs, known):
    distinct = list(dict.fromkeys(left << 32 | right for left, right in pairs))
    table = PairTable(np.array(distinct[:known], dtype=np.int64))
    for _ in range(2):  # new pairs, then known ones
        assert [table.find_or_add(key) for key in distinct] == [*range(len(distinct))] and table.size == len(distinct)
    lefts, rights = table.parts(np.arange(len(distinct)))
    assert (lefts << 32 | rights).tolist() == distinct


def test_words_normalized_in_parts_are_counted_together(monkeypatch):
    """By hand: é, e and É are one word in lower case without accents, though each chunk is normalized by itself."""
    monkeypatch.setattr(spelling, "TOGETHER", 1)
    chunks = SpacedWords("bert", BertNormalizer())
    points, sizes, counts = spelling.count_words([Block(["é e É be, e"])], chunks, 1, "##", 100, lambda done: None)
    words = ["".join(map(chr, word)) for word in np.split(points, np.cumsum(sizes)[:-1])]
    assert dict(zip(words, counts.tolist(), strict=True)) == {"e": 4, "be": 1, ",": 1}


def test_a_falling_limit_merges_frequent_pairs_first():
    """By hand: ab 10 of a 10, ##b 10; xy 1 of x 1, ##y 1. The limit begins at 5, where only ab qualifies."""
    counts = {"ab": 10, "xy": 1}
    assert learned(counts, 5, None)[4:] == ["ab"]
    assert learned(counts, 5, 1)[4:] == ["xy"]  # 1 / (1 x 1) exceeds 10 / (10 x 10)
    assert learned(counts, 6, None)[4:] == ["ab", "xy"]
    assert learned(counts, 6, 2)[4:] == ["ab"]


def test_score_count_learns_the_pieces_of_tokenizers():
    """No two pairs are ever equally frequent: ab 7, bc 6, cd 4; xy 70, yz 60, zu 40; mn 300, then jmn 200, kmn 100."""
    counts = {"ab": 1, "abc": 2, "abcd": 4, "xy": 10, "xyz": 20, "xyzu": 40, "kmn": 100, "jmn": 200}
    corpus = [f"{word} " * count for word, count in counts.items()]
    other = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(vocab_size=1000, special_tokens=["[UNK]"], show_progress=False)
    other.train_from_iterator(corpus, trainer)
    ours = WordPieceTokenizer.train_from_texts(corpus, pattern="spaces", score="count", vocab_size=1000)
    expected = ["##mn", "jmn", "kmn", "xy", "xyz", "xyzu", "ab", "abc", "abcd"]
    for pieces in (ours.pieces, sorted(other.get_vocab(), key=other.get_vocab().get)):
        assert [piece for piece in pieces if len(piece.removeprefix("##")) > 1 and piece != "[UNK]"] == expected


def test_every_character_can_begin_a_word_and_continue_one():
    tokenizer = WordPieceTokenizer.train_from_texts(["ab#"], vocab_size=100)
    assert tokenizer.pieces == ["#", "##a", "##b", "a", "b", "ab"]  # a # is always a word by itself
    assert tokenizer.decode(tokenizer.encode("ba##ab#")) == "ba##ab#"
    assert tokenizer.encode("ba c") == [4, 1, tokenizer.unknown]


def test_words_that_look_like_continuing_pieces_are_not_learned():
    tokenizer = WordPieceTokenizer.train_from_texts(["##ab ##ab a#b a#b"], vocab_size=100, pattern="spaces")
    assert tokenizer.pieces == ["#", "###", "##a", "##b", "a", "b", "###b", "a#b"]
    assert tokenizer.decode(tokenizer.encode("a#b  b#")) == "a#b b#"


def test_rare_characters_are_left_out_of_a_small_vocabulary(capsys):
    tokenizer = WordPieceTokenizer.train_from_texts(["a" * 9 + "b" * 8 + "xyz"], vocab_size=9)
    assert "5 characters do not fit in half of the vocabulary: left out 3 rare ones, 3 occurrences" in (
        capsys.readouterr().err
    )
    assert tokenizer.pieces == ["##a", "##b", "a", "b"]
    with pytest.raises(ConfigError, match="vocab_size must leave room for at least 4 pieces, got 3"):
        WordPieceTokenizer.train_from_texts(["ab"], vocab_size=4)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"score": "frequency"}, "score must be likelihood or count, got 'frequency'"),
        ({"score": "count", "min_frequency": 2}, "min_frequency must be at least 1, and needs score likelihood"),
        ({"min_frequency": 0}, "min_frequency must be at least 1"),
        ({"normalizer": BertNormalizer().to_dict()}, "normalizer: needs a pattern of bert, whitespace, spaces, got"),
        (
            {"pattern": "bert", "normalizer": {"kind": "nfc"}},
            "normalizer: WordPiece has the kind bert, rewriting or none, got nfc",
        ),
    ],
)
def test_options_of_training_that_do_not_fit_are_refused(options, problem):
    with pytest.raises(ConfigError, match=problem):
        WordPieceTokenizer.train_from_texts(["ab"], **options)


def test_an_empty_corpus_is_refused():
    for found in ([], [""], ["\0 \n"]):
        with pytest.raises(DataError, match="the corpus is empty"):
            WordPieceTokenizer.train_from_texts(found, pattern="bert")


# --- our own: lossless


@pytest.fixture(scope="module", params=["likelihood", "count"])
def own(request, corpus):
    return WordPieceTokenizer.train_from_texts(corpus, vocab_size=3000, score=request.param)


def test_text_is_decoded_exactly_and_read_alike_by_tokenizers(own, sample, tmp_path):
    write_tokenizer_json(own, tmp_path / "tokenizer.json")
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in sample:
        assert own.encode(text, allow_special=True) == other.encode(text).ids, ascii(text)
        ids = own.encode(text)
        assert own.unknown in ids or own.decode(ids) == text == own.normalized(text)
        assert other.decode(ids, skip_special_tokens=False) == own.decode(ids)
    assert read_tokenizer_json(tmp_path / "tokenizer.json") == own


@few
@given(st.lists(st.sampled_from(["a", "##", "#", " ", "\n", "ab", "é", "a" * 101, "中"]), max_size=30).map("".join))
def test_any_text_of_known_characters_is_decoded_exactly(text):
    tokenizer = WordPieceTokenizer.train_from_texts(["ab# \né中", "aa aab ab"], vocab_size=60)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text == "".join(tokenizer.decode_stream(ids))
    offsets = tokenizer.encode_with_offsets(text)[1].tolist()
    assert [begin for begin, _ in offsets] == [0, *(end for _, end in offsets)][: len(offsets)]
    assert [text[begin:end] for begin, end in offsets] == [tokenizer.token_bytes[i].decode() for i in ids]


def test_unknown_words_are_refused_with_their_position_where_there_is_no_token_for_them():
    tokenizer = WordPieceTokenizer(["a", " ", "##a"])
    found = r"word ' ?z' at position 5 cannot be spelled by the vocabulary of 3 pieces; .* special token \[UNK\]"
    for encode in (tokenizer.encode, lambda text: list(tokenizer.encode_stream([text[:3], text[3:]]))):
        with pytest.raises(DataError, match=found):
            encode("aa aaz"[:5] + " z")
    with pytest.raises(DataError, match="lone surrogate"):
        WordPieceTokenizer(["a"], special_tokens=["[UNK]"]).encode("a\ud800")


# --- BERT's


def trained(corpus, normalizer, pre_tokenizer):
    other = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    other.normalizer, other.pre_tokenizer = normalizer, pre_tokenizer
    other.decoder, other.post_processor = decoders.WordPiece(), processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    options = {"vocab_size": 1200, "special_tokens": NAMES, "limit_alphabet": 300, "show_progress": False}
    other.train_from_iterator(corpus, trainers.WordPieceTrainer(**options))
    return other


STEPS = ["Nmt", "StripAccents", "NFKD", "Strip", "Lowercase"]
KINDS = {
    "uncased": (normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()),
    "cased": (normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()),
    "raw": (None, pre_tokenizers.BertPreTokenizer()),
    "whitespace": (normalizers.Lowercase(), pre_tokenizers.Whitespace()),
    "decomposed": (
        normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]),
        pre_tokenizers.BertPreTokenizer(),
    ),
    "steps": (
        normalizers.Sequence([getattr(normalizers, step)() for step in STEPS]),
        pre_tokenizers.Whitespace(),
    ),
    "spaces": (normalizers.BertNormalizer(handle_chinese_chars=False), pre_tokenizers.WhitespaceSplit()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_offsets_and_text_equal_those_of_tokenizers(kind, corpus, sample, tmp_path):
    other = trained(corpus, *KINDS[kind])
    other.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer_json(tmp_path / "tokenizer.json")
    assert isinstance(ours, WordPieceTokenizer) and ours.marks == Marks(2, 3, (3,))
    for text in sample:
        theirs = other.encode(text, add_special_tokens=False)
        ids, offsets = ours.encode_with_offsets(text, allow_special=True)
        assert ids.tolist() == theirs.ids, ascii(text)
        if kind not in ("decomposed", "steps"):  # ours give each part of a decomposed letter the whole letter
            assert [*map(tuple, offsets.tolist())] == theirs.offsets, ascii(text)
        plain = ours.encode(text)
        assert np.concatenate([ours.encode_block(block) for block in blocks([[text]], ours.safe_cut)]).tolist() == plain
        # in other kinds a word that begins with ## looks like a continuing piece
        if kind in ("uncased", "cased", "raw", "decomposed"):
            assert ours.decode(plain) == other.decode(plain, skip_special_tokens=False)
            assert ours.unknown in plain or ours.decode(plain) == ours.normalized(text)
            assert "".join(ours.decode_stream(plain)) == ours.decode(plain)
    assert to_tokenizer_json(ours) == json.loads((tmp_path / "tokenizer.json").read_text())


@pytest.mark.parametrize("lower", [True, False])
def test_a_vocab_txt_gives_the_ids_of_transformers_and_round_trips(lower, corpus, sample, tmp_path, capsys):
    vocab = trained(corpus, *KINDS["uncased" if lower else "cased"]).get_vocab()
    (tmp_path / "vocab.txt").write_text("".join(f"{piece}\n" for piece in sorted(vocab, key=vocab.__getitem__)))
    alone = load_tokenizer(tmp_path / "vocab.txt")
    assert f"assuming {'uncased' if lower else 'cased'}, since" in capsys.readouterr().err
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower, "tokenize_chinese_chars": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = read_folder(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path)
    assert alone.options()["normalizer"]["lowercase"] == lower and alone.encode("a cat") == ours.encode("a cat")
    for text in sample:
        assert [2, *ours.encode(text, allow_special=True), 3] == theirs(text)["input_ids"], ascii(text)
    write_vocab_txt(ours, tmp_path / "again")
    write_vocab_txt(ours, tmp_path / "again", overwrite=True)
    assert (tmp_path / "again/vocab.txt").read_bytes() == (tmp_path / "vocab.txt").read_bytes()
    theirs.save_pretrained(tmp_path / "saved")
    for folder in ("again", "saved"):
        found = read_folder(tmp_path / folder)
        assert (found.options(), found.marks) == (ours.options(), ours.marks)
    write = tmp_path / "saved/tokenizer_config.json"
    write.write_text(json.dumps(json.loads(write.read_text()) | {"do_lower_case": not lower}))
    with pytest.raises(DataError, match=r"do_lower_case is .*, unlike tokenizer\.json"):
        read_folder(tmp_path / "saved")


def test_only_berts_vocabularies_are_written_as_vocab_txt(own, tmp_path):
    for tokenizer, problem in {
        BPETokenizer([]): r"vocab\.txt needs kind wordpiece, got bpe",
        own: r"vocab\.txt needs the pattern bert",
        WordPieceTokenizer(["a"], "bert", BertNormalizer().to_dict(), special_tokens=["<x>"]): "only pieces without",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            write_vocab_txt(tokenizer, tmp_path / "folder")
    (tmp_path / "vocab.txt").write_text("my own words\n")
    with pytest.raises(CannotCreateError, match=r"vocab\.txt: exists and is not a WordPiece vocabulary"):
        write_vocab_txt(own, tmp_path, overwrite=True)


REFUSED = {
    "a field": (("model", "dropout"), 0.1, "model.dropout is 0.1"),
    "a hole": (("model", "vocab", "cat"), 99, "model.vocab: ids must be 0 to 7, each once"),
    "an empty piece": (("model", "vocab"), {"": 0}, "pieces and mark must be strings that are not empty"),
    "a normalizer": (("normalizer",), {"type": "NFKC"}, "normalizer is .*NFKC"),
    "a normalizer's option": (("normalizer", "lowercase"), "yes", "normalizer is .*yes"),
    "a pre_tokenizer": (("pre_tokenizer",), {"type": "Metaspace"}, "pre_tokenizer is .*Metaspace"),
    "no pre_tokenizer": (("pre_tokenizer",), None, "pre_tokenizer is null"),
    "a decoder": (("decoder", "prefix"), "@@", "decoder is .*@@"),
    "a step": (("postscript",), {}, "postscript is {}"),
    "a length": (("model", "max_input_chars_per_word"), 0, "longest at least 1"),
}


@pytest.mark.parametrize(("field", "value", "problem"), REFUSED.values(), ids=REFUSED)
def test_an_unsupported_tokenizer_json_is_refused_by_field(field, value, problem, tmp_path):
    ours = WordPieceTokenizer([*NAMES, "the", "cat", "##s"], "bert", BertNormalizer().to_dict(), special_tokens=NAMES)
    inner = values = to_tokenizer_json(ours)
    for name in field[:-1]:
        inner = inner[name]
    inner[field[-1]] = value
    if field == ("model", "vocab"):
        values["added_tokens"] = []
    (tmp_path / "t.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"t\.json: .*{problem}") as raised:
        load_tokenizer(tmp_path / "t.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["[UNK]\n\na\n", "[UNK]\n a\n", "[UNK]\na\na\n", "[UNK]\n\ud800\n"])
def test_a_damaged_vocab_txt_gives_a_one_line_error(content, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"vocab\.txt: ") as raised:
        load_tokenizer(tmp_path / "vocab.txt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["uncased", "decomposed"])
def test_added_tokens_with_flags_are_found_as_in_tokenizers(kind, corpus, sample, tmp_path):
    other = trained(corpus, *KINDS[kind])
    other.add_tokens(["CAT", AddedToken("[L]", lstrip=True, normalized=False), AddedToken("mat", single_word=True)])
    other.save(str(tmp_path / "t.json"))
    ours = read_tokenizer_json(tmp_path / "t.json")
    assert isinstance(ours, PipelineTokenizer)
    for text in [*sample[:150], "the Cat [L]sat on a mat, a matter of cats"]:
        ids = ours.encode(text, allow_special=True)
        assert ids == other.encode(text, add_special_tokens=False).ids, ascii(text)
        assert ours.encode_block(Block([text])).tolist() == ours.encode(text)
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=False)
    values = json.loads((tmp_path / "t.json").read_text())
    assert to_tokenizer_json(ours) == values
    values["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "StripAccents"}, {"type": "NFD"}]}
    with pytest.raises(DataError, match="normalizer, with added tokens that are found in every text, is"):
        from_tokenizer_json(values, "t.json")  # normalizing twice would give another text


def test_special_tokens_and_marks(corpus):
    tokenizer = WordPieceTokenizer(["[UNK]", "a", "##b"], "spaces", special_tokens=["[UNK]"])
    more = tokenizer.with_special_tokens([END_OF_TEXT])
    assert (more.special_tokens, more.end_of_text) == ({"[UNK]": 0, END_OF_TEXT: 3}, 3)
    assert more.encode(f"ab a{END_OF_TEXT}c", allow_special=True) == [1, 2, 1, 3, 0]
    assert more.decode([1, 2, 1, 3, 0]) == f"ab a {END_OF_TEXT} [UNK]"
    assert more.bytes_from("ab  a", np.array([1, 2, 1]), 2) == 1
    assert more.encode_block(Block(["a", "ab", ""])).tolist() == [1, 3, 1, 2, 3]


def test_encoding_a_file_equals_encoding_its_text(own, corpus, tmp_path):
    (tmp_path / "text").write_text("".join(corpus) * 6, newline="")
    text = (tmp_path / "text").read_bytes().decode()
    ids = own.encode_file(tmp_path / "text")
    assert len(text) > 300_000 and np.array_equal(ids, np.concatenate([*own.encode_stream([text])]))
    assert ids[:100].tolist() == own.encode(text[:1400])[:100]
