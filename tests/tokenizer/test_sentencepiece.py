"""SentencePiece models, read and written, against the library; damaged ones are refused."""

import io
import json
import re
import struct
from functools import cache

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer.scripts import texts
from tinylm.errors import CannotCreateError, ConfigError, DataError
from tinylm.tokenizer import (
    BPETokenizer,
    Tokenizer,
    UnigramTokenizer,
    load_tokenizer,
    read_sentencepiece,
    write_sentencepiece,
)
from tinylm.tokenizer.characters import CharacterBPE
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.formats import converted
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, to_tokenizer_json
from tinylm.tokenizer.formats.protobuf import BYTES, FIXED32, VARINT, Field, integer, read_message, write_message
from tinylm.tokenizer.formats.scores import to_pieces
from tinylm.tokenizer.formats.sentencepiece import from_sentencepiece
from tinylm.tokenizer.formats.sentencepiece_model import ModelField, PieceType
from tinylm.tokenizer.formats.sentencepiece_writer import to_sentencepiece
from tinylm.tokenizer.pipeline import PipelineTokenizer

TEXTS = [*texts(300, seed=5), "", " ", "  a  b ", "<sep>x <sep> <sep>", "<s> ababab </s>", "▁▁▁", "☃☃ ☃", "\x01"]
TEXTS += [f"{symbol}{run * size}" for symbol in ("(", "ab") for run in "ax中" for size in range(3, 60, 4)]  # ties
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
SHAPES = {  # training options like those of these models
    "llama": IDENTITY | {"byte_fallback": True, "split_digits": True, "vocab_size": 900},
    "t5": {"normalization_rule_name": "nmt_nfkc", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    "albert": {
        "normalization_rule_name": "nmt_nfkc_cf",
        "control_symbols": ["[CLS]", "[SEP]"],
        "user_defined_symbols": ["(", "<sep>", "ab"],
    },
    "suffix": {"normalization_rule_name": "nfkc", "treat_whitespace_as_suffix": True, "character_coverage": 0.98},
    "bare": IDENTITY | {"add_dummy_prefix": False, "character_coverage": 0.98},
}
MODELS = [(kind, shape) for kind in ("bpe", "unigram") for shape in SHAPES] + [("char", "t5")]


@cache
def trained(kind: str, shape: str) -> bytes:
    """A model that the library trains on a few texts."""
    written, lines = io.BytesIO(), [text.replace("\n", " ").replace("\0", "") for text in texts(150, seed=7)]
    options = {"vocab_size": 600, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2} | SHAPES[shape]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, model_type=kind, max_sentence_length=20_000, **options
    )
    return written.getvalue()


def library(data: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=data)


@cache
def read(kind: str, shape: str) -> Tokenizer:
    return from_sentencepiece(trained(kind, shape))


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_decoding_drops_leading_spaces_as_the_library_does(kind, shape):
    ours, theirs = read(kind, shape), library(trained(kind, shape))
    space, word = theirs.piece_to_id("▁"), theirs.piece_to_id("a")
    spaced = [i for i in range(theirs.vocab_size()) if theirs.id_to_piece(i).startswith("▁") and i != space]
    longer = spaced[0] if spaced else word
    for ids in ([space], [space] * 3, [space, word], [space, space, word], [space, longer], [longer, space, word]):
        assert ours.decode(ids) == theirs.decode(ids) == "".join(ours.decode_stream(ids)), ids
        assert ours.decode(np.array(ids), continues=True) == "".join(ours.token_bytes[i].decode() for i in ids)


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_ids_and_decoded_text_equal_those_of_the_library(kind, shape):
    ours, theirs = read(kind, shape), library(trained(kind, shape))
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == "".join(ours.decode_stream(ids))
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == ours.normalized(text)
        again, offsets = ours.encode_with_offsets(text)
        assert again.tolist() == ids and (offsets[:, 0] <= offsets[:, 1]).all()


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_cutting_a_text_changes_no_ids(kind, shape):
    ours, cuts = read(kind, shape), 0
    if isinstance(ours, UnigramTokenizer):  # sums over a whole text would break ties differently
        ours = UnigramTokenizer(**ours.options() | {"sums": "parts"})
    for text in TEXTS[:80]:
        if 0 < (cut := ours.safe_cut(text[: len(text) // 2])) < len(text):
            parts = [ours.encode_block(Block([text[:cut]])), ours.encode_block(Block([text[cut:]], cut))]
            assert [*parts[0], *parts[1]] == ours.encode(text)
            cuts += 1
    assert cuts > 10 or shape == "suffix"


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_a_model_round_trips_byte_for_byte(kind, shape, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(trained(kind, shape))
    ours = load_tokenizer(tmp_path)
    ours.save(tmp_path / "t.json")
    write_sentencepiece(load_tokenizer(tmp_path / "t.json"), tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == trained(kind, shape)
    assert ours.end_of_text == (library(trained(kind, shape)).eos_id() if shape != "albert" else ours.end_of_text)
    with pytest.raises(CannotCreateError, match="exists"):
        write_sentencepiece(ours, tmp_path / "again.model")


# --- other formats, and models trained here


@pytest.mark.parametrize("shape", ["llama", "t5", "albert", "bare"])
def test_a_unigram_model_in_a_tokenizer_json(shape, monkeypatch, capfd):
    """The notice counts the texts that get different ids in tokenizers and in sentencepiece."""
    monkeypatch.setattr(converted, "TEXTS", 60)
    ours, theirs = read("unigram", shape), library(trained("unigram", shape))
    assert isinstance(ours, UnigramTokenizer)
    values = to_tokenizer_json(ours)
    notices = re.findall(r"(\d+) of (\d+)", capfd.readouterr().err.split("\n")[0])
    other, again = tokenizers.Tokenizer.from_str(json.dumps(values)), from_tokenizer_json(values, "x.json")

    def ids(text: str) -> list[int]:
        return other.encode(text, add_special_tokens=False).ids

    for (differ, count), samples in zip(notices, converted.sample_texts(ours), strict=True):
        assert sum(ids(text) != theirs.encode(text) for text in samples) == int(differ)
        assert len(samples) == int(count)
    for text in TEXTS[:100]:
        # `tokenizers` finds their names in every text, even names that appear only in lower case
        if not any(name.lower() in text.lower() for name in ours.special_tokens):
            assert again.encode(text) == ids(text)
    assert to_tokenizer_json(again) == values


def test_a_model_that_tinylm_trains_gives_the_same_ids_in_the_library():
    lines = [f"{text}\n\t  x".replace("▁", "").replace("\0", "") for text in TEXTS[:100]]
    ours = UnigramTokenizer.train_from_texts(lines, vocab_size=900, special_tokens=["<|endoftext|>", "</s>"])
    theirs = library(to_sentencepiece(ours))
    assert theirs.get_piece_size() == ours.vocab_size + 1 and theirs.unk_id() == ours.vocab_size
    assert theirs.id_to_piece(theirs.eos_id()) == "<|endoftext|>" and theirs.is_control(theirs.eos_id())
    for text in TEXTS:
        assert theirs.encode(text) == ours.encode(text)


def test_character_bpe_gives_the_same_ids_in_the_library():
    read_again = from_sentencepiece(to_sentencepiece(read("bpe", "llama").with_origin({})))
    assert read_again.options() == read("bpe", "llama").options()
    core = read("bpe", "llama").core
    assert isinstance(core, CharacterBPE)
    merged = {"kind": core.kind, "vocab": core.vocab, "merges": core.merges}  # as in a tokenizer.json
    ours = PipelineTokenizer(**read("bpe", "llama").options() | {"core": merged})
    theirs = library(to_sentencepiece(ours))
    runs = [text for text in TEXTS if ours.encode(text) != theirs.encode(text)]
    # runs differ: in the library all merges that make the same piece have one rank
    assert len(runs) < 15 and all(re.search(r"(.+?)\1\1\1", text) for text in runs)
    assert to_pieces(read("bpe", "llama"), "llama.cpp").prefix


def test_unused_pieces_are_split_again():
    """A piece of type unused is joined and then split into its parts again, as in SentencePiece."""
    model = read_message(trained("bpe", "bare"), "model")
    pieces = [read_message(bytes(field.value), "piece") for field in model if field.number == ModelField.PIECES]
    long = [token for token, piece in enumerate(pieces) if len(bytes(piece[0].value).decode()) > 2 and token > 3]
    for token in long[:150:3]:
        pieces[token] = [*pieces[token][:2], Field(3, VARINT, PieceType.UNUSED)]
    others = [field for field in model if field.number != ModelField.PIECES]
    data = write_message([*(Field(1, BYTES, write_message(piece)) for piece in pieces), *others])
    ours, theirs = from_sentencepiece(data), library(data)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]
    assert any(ours.encode(text) != read("bpe", "bare").encode(text) for text in TEXTS)
    assert to_sentencepiece(ours) == data


# --- refused models


def small(kind: str = "bpe") -> bytes:
    """A model of a few hundred bytes."""
    names = [
        ("<unk>", 0.0, 2),
        ("</s>", 0.0, 3),
        ("<x>", 0.0, 4),
        *((letter, -3.0, 1) for letter in "▁abé"),
        ("ab", -1.0, 1),
    ]
    pieces = [
        [Field(1, BYTES, n.encode()), Field(2, FIXED32, struct.pack("<f", s)), Field(3, VARINT, t)] for n, s, t in names
    ]
    trainer = [Field(3, VARINT, 2 if kind == "bpe" else 1), Field(42, VARINT, 1)]
    found = [Field(1, BYTES, write_message(piece)) for piece in pieces]
    return write_message([*found, Field(2, BYTES, write_message(trainer)), Field(3, BYTES, b"\x20\x00")])


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_truncated_model_gives_a_one_line_error(kind, tmp_path):
    data = small(kind)
    assert from_sentencepiece(data).decode(from_sentencepiece(data).encode("ab é<x>b")) == "ab é<x>b"
    for size in range(len(data)):
        (tmp_path / "cut.model").write_bytes(data[:size])
        with pytest.raises(DataError) as raised:
            load_tokenizer(tmp_path / "cut.model")
        assert str(raised.value).startswith(str(tmp_path)) and "\n" not in str(raised.value)


CHANGES = st.lists(st.tuples(st.integers(0, len(small()) - 1), st.integers(0, 255)), min_size=1, max_size=4)


@given(st.sampled_from(["bpe", "unigram"]), CHANGES)
@settings(max_examples=150, deadline=None)
def test_a_model_with_changed_bytes_is_read_or_gives_a_one_line_error(tmp_path_factory, kind, changes):
    data = bytearray(small(kind))
    for place, byte in changes:
        data[place] = byte
    path = tmp_path_factory.getbasetemp() / "changed.model"
    path.write_bytes(data)
    try:
        read_sentencepiece(path).encode("ab é <x> b")
    except DataError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


def changed(
    kind: str, trainer: dict[int, int] | None = None, pieces: dict[int, list[Field]] | None = None, **more
) -> bytes:
    """A small model with changed fields of trainer_spec, of pieces or of the model itself."""
    fields = []
    for number, field in enumerate(read_message(small(kind), "model")):
        inner = read_message(bytes(field.value), "inner")
        if field.number == ModelField.TRAINER:
            inner += [Field(key, VARINT, value) for key, value in (trainer or {}).items()]
        inner += (pieces or {}).get(number, [])
        fields.append(field._replace(value=write_message(inner)))
    return write_message([*fields, *more.get("fields", [])])


NAN = struct.pack("<f", float("nan"))
REFUSED = {
    "word": (changed("bpe", {3: 3}), "model_type is word"),
    "char": (changed("bpe", {3: 4}), "'ab' has several characters, in a model of type char"),
    "another type": (changed("bpe", {3: 9}), "model_type is 9"),
    "no bytes": (changed("bpe", {35: 1}), "byte_fallback is true, but 0 pieces are bytes"),
    "two unknown": (
        changed("bpe", pieces={3: [Field(3, VARINT, 2)]}),
        "exactly one piece must have the type unknown, got 2",
    ),
    "a type": (changed("bpe", pieces={3: [Field(3, VARINT, 7)]}), "a known type"),
    "no number": (changed("bpe", pieces={3: [Field(2, FIXED32, NAN)]}), "a finite score"),
    "a name twice": (changed("bpe", pieces={3: [Field(1, BYTES, b"ab")]}), "distinct names"),
    "no name": (changed("bpe", pieces={3: [Field(1, BYTES, b"")]}), "needs a name"),
    "a long name": (changed("bpe", pieces={3: [Field(1, BYTES, b"x" * 999)]}), "needs a name"),
    "a denormalizer": (changed("bpe", fields=[Field(5, BYTES, b"\x12\x01x")]), "denormalizer_spec: has a charsmap"),
    "spaces": (changed("bpe", fields=[Field(3, BYTES, b"\x28\x00")]), "escape_whitespaces is false"),
    "a group": (small() + b"\x0b", "a field has type 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_unsupported_model_is_refused(name):
    data, problem = REFUSED[name]
    with pytest.raises(ConfigError, match=problem):
        from_sentencepiece(data)


def test_a_model_that_the_library_would_read_differently_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match="kind bpe has no pieces with scores"):
        write_sentencepiece(BPETokenizer([]), tmp_path / "t.model")
    ours = read("bpe", "llama")
    added = {"content": "<new>", "id": ours.vocab_size, "special": False, "rstrip": True}
    options = ours.options()
    with pytest.raises(ConfigError, match="has rstrip"):
        to_sentencepiece(PipelineTokenizer(**options | {"added": [*options["added"], added]}))
    del added["rstrip"]
    with pytest.raises(ConfigError, match="is found before text is normalized"):
        to_sentencepiece(PipelineTokenizer(**options | {"added": [*options["added"], added]}))
    for problem, change in {
        "float32 scores, which cannot hold": {"scores": [-1.1]},
        "NUL": {"pieces": ["\0"]},
        "which SentencePiece cannot tell apart": {"pieces": ["▁"]},
        "another score": {"unknown_score": -5.0, "pieces": ["ab"]},
    }.items():
        plain = {
            "pieces": ["<unk>", *change.pop("pieces", ["a"])],
            "scores": [None, *change.pop("scores", [-1.0])],
            "unknown": 0,
        }
        with pytest.raises(ConfigError, match=problem):
            to_sentencepiece(UnigramTokenizer(**plain | change))
    for kind, shape in (("bpe", "t5"), ("bpe", "bare")):
        with pytest.raises(ConfigError, match=r"write a \.model"):
            to_tokenizer_json(read(kind, shape))
        with pytest.raises(ConfigError, match=r"normalizes text|no bytes for unknown characters"):
            to_pieces(read(kind, shape), "llama.cpp")


def test_varints_are_read_and_written_exactly():
    data = b"\x08\x96\x01\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # 150, the documentation's example, and -1
    assert integer(read_message(data, "m"), 1) == 150 and integer(read_message(data, "m"), 2) == -1
    assert write_message(read_message(data, "m")) == data
