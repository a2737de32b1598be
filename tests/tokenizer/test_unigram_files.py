"""Unigram models of tokenizer.json files shaped like T5's, XLM-R's, ALBERT's and others, against `tokenizers`."""

import io
import json

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.tokenizer.scripts import texts
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError, DataError
from tinylm.tokenizer import UnigramTokenizer, load_tokenizer, read_tokenizer_json, write_tokenizer_json
from tinylm.tokenizer.base import Marks
from tinylm.tokenizer.characters import BYTE_NAMES
from tinylm.tokenizer.fast import blocks
from tinylm.tokenizer.fast.blocks import Block
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, to_tokenizer_json
from tinylm.tokenizer.formats.sentencepiece import from_sentencepiece
from tinylm.tokenizer.normalizers.sentencepiece import SentencePieceNormalizer
from tinylm.tokenizer.normalizers.sequence import Rewriting
from tinylm.tokenizer.pipeline import PipelineTokenizer

TEXTS = texts(300, seed=4)
SPACES = normalizers.Replace(Regex(" {2,}"), " ")
QUOTES = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]


@pytest.fixture(scope="module")
def learned() -> tuple[list[tuple[str, float]], bytes]:
    """A model that sentencepiece trained: its pieces with scores, and its table of replacements."""
    written = io.BytesIO()
    lines = ["".join(stories(seed=9, count=60)), *texts(100, seed=5)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, vocab_size=700, minloglevel=2, hard_vocab_limit=False,
        num_threads=1,
    )  # fmt: skip
    tokenizer = from_sentencepiece(written.getvalue())
    assert isinstance(tokenizer, UnigramTokenizer) and isinstance(tokenizer.normalizer, SentencePieceNormalizer)
    pairs = zip(tokenizer.pieces, tokenizer.scores, strict=True)
    return [(piece, score) for piece, score in pairs if score is not None], tokenizer.normalizer.table


def metaspace(scheme="always", split=True):
    return {
        "pre_tokenizer": pre_tokenizers.Metaspace("▁", scheme, split),
        "decoder": decoders.Metaspace("▁", scheme, split),
    }


def words(scheme="always"):
    steps = metaspace(scheme)
    return steps | {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), steps["pre_tokenizer"]])
    }


def back(fallback, strip):
    steps = [decoders.Replace("▁", " "), *[decoders.ByteFallback()] * fallback, decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)


def normalized(*steps):
    return {"normalizer": normalizers.Sequence([*steps])}


def t5(table):
    template = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)])
    return words() | {"normalizer": table, "post_processor": template}


def albert(table):
    steps = [*QUOTES, normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), table, SPACES]
    return words() | normalized(*steps)


def xlm_r(table):
    tokens = [("</s>", 1), ("<pad>", 0)]
    template = processors.TemplateProcessing(
        single="<pad> $A </s>", pair="<pad> $A </s> </s> $B </s>", special_tokens=tokens
    )
    mask = AddedToken("<mask>", lstrip=True, special=True, normalized=False)
    return metaspace() | {
        "normalizer": normalizers.Sequence([table, SPACES]), "post_processor": template, "added": [mask],
    }  # fmt: skip


def from_spm(table):
    """The steps to which transformers 5 converts a `.model` with byte fallback."""
    ends, marks = normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(r"\A▁"), "▁▁")
    steps = [table, ends, SPACES, normalizers.Replace(" ", "▁"), marks]
    return metaspace(split=False) | {"normalizer": normalizers.Sequence(steps), "decoder": back(True, True)}


def llama(table):
    steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return {"normalizer": normalizers.Sequence(steps), "decoder": back(True, True)}


LATE = [normalizers.Strip(left=False), normalizers.Replace(Regex(" {2,}"), "▁")]
KINDS = {
    "T5": t5,
    "T5, converted": lambda table: metaspace() | normalized(table, *LATE),
    "XLM-R": xlm_r,
    "ALBERT": albert,
    "mBART": lambda table: words() | {"added": ["<tool>", AddedToken("é▁b", normalized=True)]},
    "SentencePiece": from_spm,
    "Llama": llama,
    "first": lambda table: metaspace("first", False) | normalized(normalizers.Nmt(), normalizers.NFKC()),
    "first, added": lambda table: metaspace("first") | {"normalizer": normalizers.NFD(), "added": ["<tool>"]},
    "never": lambda table: metaspace("never") | {"normalizer": normalizers.NFC(), "added": ["<tool>"]},
    "stripped": lambda table: metaspace() | normalized(normalizers.Strip(), normalizers.Lowercase(), SPACES),
}
ADDED = {"XLM-R", "mBART", "first, added", "never"}  # their added tokens are found in every text or include spaces
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def made(learned):
    """made(kind) returns our tokenizer, theirs, and the content of the file, cached."""
    pieces, table = learned
    done = {}

    def made(kind):
        if kind not in done:
            steps = KINDS[kind](normalizers.Precompiled(table))
            fallback = "ByteFallback" in str(steps["decoder"])
            first = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
            vocab = first + [(name, 0.0) for name in BYTE_NAMES] * fallback + pieces
            other = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=fallback))
            added = steps.pop("added", [])
            for name, step in steps.items():
                setattr(other, name, step)
            other.add_special_tokens([name for name, _ in first])
            other.add_tokens(added)
            values = json.loads(other.to_str())
            done[kind] = from_tokenizer_json(values, kind), other, values
        return done[kind]

    return made


@every_kind
def test_ids_and_texts_equal_those_of_tokenizers(made, kind):
    ours, other, _ = made(kind)
    names = [*ours.special_tokens, "<tool>", "e\u0301▁b", "<mask>"]
    for place, text in enumerate(TEXTS):
        if place % 3 == 0:
            cut = len(text) // 2
            text = text[:cut] + names[place % len(names)] + text[cut:]
        found, expected = ours.encode(text, allow_special=True), other.encode(text, add_special_tokens=False).ids
        if place % 8 == 0:
            ids, offsets = ours.encode_with_offsets(text, allow_special=True)
            assert ids.tolist() == found
            assert ((offsets >= 0) & (offsets <= len(text))).all() and (offsets[:, 0] <= offsets[:, 1]).all()
        if kind in ("ALBERT", "stripped") and any(text.lower().count(name) > text.count(name) for name in names):
            continue  # `tokenizers` finds names of special tokens that appear only in lower case
        assert found == expected, text
        if place % 4 == 0 and "ByteFallback" not in str(other.decoder):
            assert ours.decode(found) == other.decode(found, skip_special_tokens=False)


@every_kind
def test_a_file_round_trips(made, kind, tmp_path):
    ours, _, values = made(kind)
    written = to_tokenizer_json(ours)
    assert {name: value for name, value in written.items() if value != values[name]} == {}
    write_tokenizer_json(ours, tmp_path / "tokenizer.json")
    assert read_tokenizer_json(tmp_path / "tokenizer.json") == ours
    ours.save(tmp_path / "ours.json")
    assert load_tokenizer(tmp_path / "ours.json") == ours
    assert isinstance(ours, PipelineTokenizer if kind in ADDED else UnigramTokenizer)


@every_kind
def test_files_and_streams_have_the_ids_of_the_text(made, kind, tmp_path, monkeypatch):
    ours = made(kind)[0]
    text = " and then\n".join(TEXTS[:60]).replace("\r", "")
    expected = ours.encode(text)
    monkeypatch.setattr(blocks, "BLOCK", 200)
    (tmp_path / "t.txt").write_bytes(text.encode())
    assert ours.encode_file(tmp_path / "t.txt").tolist() == expected
    assert np.concatenate(list(ours.encode_stream([text[:3000], text[3000:]]))).tolist() == expected
    assert ours.safe_cut("And then the cat sat") > 0
    for text in filter(ours.safe_cut, TEXTS[:60]):  # the text may end right after the cut
        cut = ours.safe_cut(text)
        parts = [ours.encode_block(Block([text[:cut]])), ours.encode_block(Block([text[cut:]], start=cut))]
        assert np.concatenate(parts).tolist() == ours.encode(text)


@every_kind
@settings(max_examples=15, deadline=None)
@given(text=st.text())
def test_decoding_gives_the_normalized_text(made, kind, text):
    ours = made(kind)[0]
    core = ours.core if isinstance(ours, PipelineTokenizer) else ours
    ids = ours.encode(text)
    if core.unknown not in ids:
        assert ours.decode(ids) == ours.normalized(text)


def test_marks_equal_those_of_the_template(made):
    assert made("T5")[0].marks == Marks(None, 1, (1,))
    assert made("XLM-R")[0].marks == Marks(0, 1, (1,))


STEPS = [
    normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Nmt(), normalizers.NFC(), normalizers.NFD(),
    normalizers.NFKC(), normalizers.NFKD(), normalizers.Strip(), normalizers.Strip(left=False), *QUOTES, SPACES,
    normalizers.Prepend("▁"), normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(r"\A▁"), "▁▁"),
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_each_normalizer_equals_that_of_tokenizers(step):
    ours = Rewriting([json.loads(step.__getstate__())])
    for text in TEXTS:
        normal = ours.normalize(text)
        assert normal == step.normalize_str(text)
        begins, ends = ours.offsets(text)
        assert len(begins) == len(ends) == len(normal)
        kept = [normal[i] == text[begin:end] for i, (begin, end) in enumerate(zip(begins, ends, strict=True))]
        if normal == text:
            assert all(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "ByteLevel"}}, "normalizer is"),
        ({"normalizer": {"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}}, "normalizer is"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 99}}, "normalizer is"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "pre_tokenizer is"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer is"),
        ({"decoder": None}, "decoder is null"),
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder is"),
        ({"model": {"alpha": 0.1}}, "model.alpha is"),
        ({"model": {"vocab": [["a", 0.0], ["a", 0.0], ["<unk>", 0.0]]}}, "pieces must be distinct"),
        ({"model": {"unk_id": 9999}}, "model.unk_id is 9999"),
        ({"model": {"unk_id": None}}, "unknown must be"),
        ({"model": {"byte_fallback": True}, "decoder": json.loads(back(True, True).__getstate__())}, "lacks the byte"),
        ({"model": {"vocab": [["a", "b"]]}}, "is not a Hugging Face tokenizer.json"),
    ],
)
def test_an_unsupported_file_is_refused_by_field(made, change, message):
    values = made("T5")[2]
    changed = values | change | {"model": values["model"] | change.get("model", {}), "added_tokens": []}
    with pytest.raises(DataError, match=message):
        from_tokenizer_json(changed, "x.json")


def test_a_split_at_spaces_is_ignored_if_the_normalizer_leaves_none(made):
    ours, other, values = made("Llama")
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    same = Tokenizer.from_str(json.dumps(values | {"pre_tokenizer": split}))
    assert from_tokenizer_json(values | {"pre_tokenizer": split}, "x.json") == ours
    assert same.encode("a  b c ").ids == other.encode("a  b c ").ids
    with pytest.raises(DataError, match=r"pre_tokenizer is .*Split"):
        from_tokenizer_json(values | {"pre_tokenizer": split, "normalizer": None}, "x.json")


def test_options_without_a_counterpart_in_hugging_face_are_not_written():
    options = {"pieces": ["<unk>", "ab", "b"], "scores": [None, -1.0, -2.0], "unknown": 0}
    with pytest.raises(ConfigError, match=r"unknown_score is -3.0, but Hugging Face takes -30.0"):
        to_tokenizer_json(UnigramTokenizer(**options, unknown_score=-3.0))
    normalizer = SentencePieceNormalizer(treat_whitespace_as_suffix=True).to_dict()
    with pytest.raises(ConfigError, match="treat_whitespace_as_suffix has no counterpart"):
        to_tokenizer_json(UnigramTokenizer(**options, normalizer=normalizer))


def test_a_text_that_spells_the_name_of_a_byte_token(capfd):
    """We never encode the text `<0x0A>` as a byte. `tokenizers` does if no pieces spell it, which a notice says."""
    spelled = [*dict.fromkeys("".join(BYTE_NAMES))]
    whole = UnigramTokenizer([*BYTE_NAMES, *spelled], [*[None] * 256, *[-3.0] * len(spelled)], byte_fallback=True)
    other = Tokenizer.from_str(json.dumps(to_tokenizer_json(whole)))
    assert whole.encode("<0x0A>") == other.encode("<0x0A>").ids == [256 + spelled.index(each) for each in "<0x0A>"]
    assert from_tokenizer_json(to_tokenizer_json(whole), "x") == whole
    assert capfd.readouterr().err == ""
    part = UnigramTokenizer(whole.pieces[:-1], whole.scores[:-1], byte_fallback=True)
    values = to_tokenizer_json(part)
    assert "is not a piece" in capfd.readouterr().err
    name = next(name for name in BYTE_NAMES if spelled[-1] in name)
    assert from_tokenizer_json(values, "x") == part
    assert part.decode(part.encode(name)) == name
    assert Tokenizer.from_str(json.dumps(values)).encode(name).ids == [BYTE_NAMES.index(name)]


def test_in_another_programs_file_the_name_of_a_byte_token_may_encode_as_the_byte(made):
    ours, other, _ = made("Llama")
    byte = ours.core.pieces.index("<0x0A>") if isinstance(ours, PipelineTokenizer) else ours.pieces.index("<0x0A>")
    assert ours.encode("a<0x0A>")[-1] == other.encode("a<0x0A>", add_special_tokens=False).ids[-1] == byte
