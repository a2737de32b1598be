"""Tokenizers shaped like published ones against `tokenizers`: ids, texts, offsets, blocks and written files."""

import json
import random

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.published import TOKENIZERS
from tinylm.data.grammar.stories import stories
from tinylm.errors import ConfigError
from tinylm.tokenizer import BPETokenizer, Tokenizer, read_tokenizer_json
from tinylm.tokenizer.fast import blocks
from tinylm.tokenizer.fast.pretokenize import QWEN2
from tinylm.tokenizer.formats.huggingface import from_tokenizer_json, to_tokenizer_json
from tinylm.tokenizer.formats.steps import GPT4

CORPUS = [
    *"".join(stories(seed=5, count=60)).split("\n"),
    "  naïve café 2024 1999 日本語 한국어 def f(x):\n\t\treturn 10  ",
    "e\u0301 👩‍👧",
]
SPECIAL = ["<s>", "</s>", "<|im_end|>", "<unk>"]
POOLS = [
    "abc XYZ efgh the and ing  \n\t'sdtll", "0123456789 ", "éèüßñ", "日本語中文字", "한국어 가나", "ᄀ까ᅢᆨᆩ", "🙂👨‍👩‍👧🏽",
    "\u0301\u0323\u0308\u0344e\u0301\u212b", "\x00\x01\x07\x7f\x85\u00a0\u2003\u200b\u2581▁", "<|>[]{}!?.,:;-_",
    "العربية हिन्दी ไทย עברית", "\u0f71\u0f72\u0f73\u0958\u0915\u093c\ufb1d",
]  # fmt: skip


def random_text(source, names):
    """Mixed scripts, emoji, combining marks, spaces, digits, control characters, and names of added tokens."""
    text = ""
    for _ in range(source.randrange(12)):
        kind = source.random()
        if kind < 0.15 and names:
            text += source.choice(names)
        elif kind < 0.3:
            spaces = [" " * source.randrange(1, 30), "\t" * source.randrange(1, 12), "\n" * 3, "\r\n", " \n "]
            text += source.choice(spaces)
        elif kind < 0.4:
            text += chr(
                source.choice([source.randrange(*each) for each in ((0x20, 0x500), (0x900, 0x2000), (0x2000, 0x3000))])
            )
        else:
            pool = source.choice(POOLS)
            text += "".join(source.choice(pool) for _ in range(source.randrange(1, 9)))
    return text


# --- tokenizers of each kind, trained here


def trained(pre_tokenizer, texts=CORPUS, normalizer=None, **options):
    other = tokenizers.Tokenizer(models.BPE())
    other.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        other.normalizer = normalizer
    options = {"vocab_size": 420, "show_progress": False, "special_tokens": SPECIAL} | options
    other.train_from_iterator(texts, trainers.BpeTrainer(**options))
    other.decoder = decoders.ByteLevel()
    return other


ALL_BYTES = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}


def level(**options):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False} | options)


def neox():
    other = trained(level(), normalizer=normalizers.NFC(), **ALL_BYTES)
    other.add_tokens([AddedToken(" " * n, normalized=True) for n in range(24, 1, -1)])
    return other


def smollm():
    return trained(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level()]))


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level(use_regex=False)])


def qwen():
    other = trained(split(QWEN2), normalizer=normalizers.NFC(), **ALL_BYTES)
    other.add_tokens(["<tool>", "日é+", "日e\u0301-"])  # ordinary, normalized
    return other


def llama3():
    other = trained(split(GPT4), **ALL_BYTES)
    template = {"single": "<s> $A", "pair": "<s> $A <s> $B", "special_tokens": [("<s>", 0)]}
    other.post_processor = processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(**template)])
    values = json.loads(other.to_str())
    values["model"]["ignore_merges"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def prefixed():
    return trained(level(add_prefix_space=True), **ALL_BYTES)


def flags():
    other = trained(level(), **ALL_BYTES)
    other.add_tokens([
        AddedToken("[L]", lstrip=True), AddedToken("[R]", rstrip=True), AddedToken("abc", single_word=True),
        AddedToken("a b", normalized=False), AddedToken("x</s>y"),
    ])  # fmt: skip
    other.add_special_tokens([AddedToken("[M]", lstrip=True, rstrip=True, normalized=True)])
    return other


def characters(normalizer=None, pre_tokenizer=None, strip=True):
    """Byte-fallback BPE as SentencePiece writes it; runs of ▁ are tokens, and so is `.▁T`, which spans two words."""
    other = trained(pre_tokenizers.Metaspace(split=True), vocab_size=300)
    model = json.loads(other.to_str())["model"]
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in model["vocab"] if name not in SPECIAL]
    pairs = [["▁", "▁"], ["▁▁", "▁▁"], ["▁", "T"], [".", "▁T"]]
    names += ["".join(pair) for pair in pairs]
    vocab = {name: token for token, name in enumerate(dict.fromkeys(names))}
    merges = [pair for pair in [*pairs, *map(list, model["merges"])] if pair not in pairs or pair in pairs[:4]]
    unique = [pair for place, pair in enumerate(merges) if pair not in merges[:place]]
    values = json.loads(other.to_str()) | {"model": model | {"vocab": vocab, "merges": unique}, "normalizer": None}
    values["model"] |= {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    values["added_tokens"] = [
        token | {"id": vocab[token["content"]], "normalized": token["content"] in ("<s>", "<unk>")}
        for token in values["added_tokens"]
    ]
    made = tokenizers.Tokenizer.from_str(json.dumps(values))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if strip else back)
    made.add_tokens(["<tool>"])
    return made


def replaced(*before):
    return characters(normalizers.Sequence([*before, normalizers.Replace(" ", "▁")]))


def metaspace(scheme, split):
    return characters(None, pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split), strip=scheme != "never")


KINDS = {
    "GPT-NeoX": neox,
    "SmolLM": smollm,
    "Qwen2": qwen,
    "Llama 3": llama3,
    "a prefix space": prefixed,
    "flags": flags,
    "Llama 2": lambda: replaced(normalizers.Prepend("▁")),
    "Gemma": lambda: characters(
        normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), False
    ),
    **{
        f"Metaspace {scheme} {split}": lambda scheme=scheme, split=split: metaspace(scheme, split)
        for scheme in ("always", "first", "never")
        for split in (True, False)
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(kind) returns our tokenizer and theirs, cached."""
    folder, done = tmp_path_factory.mktemp("made"), {}

    def made(kind):
        if kind not in done:
            other, path = KINDS[kind](), folder / f"{len(done)}.json"
            other.save(str(path))
            done[kind] = read_tokenizer_json(path), other
        return done[kind]

    return made


every_kind = pytest.mark.parametrize("kind", KINDS)


def check_equal(ours, other, count):
    """Compares ids and decoded texts, with and without special tokens, and after the file is written again."""
    again = tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(ours)))
    names, source = [token.content for token in other.get_added_tokens_decoder().values()], random.Random(0)
    for number in range(count):
        text, special = random_text(source, names), number % 2 == 0
        other.encode_special_tokens = again.encode_special_tokens = not special
        ids = other.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, allow_special=special) == ids, text
        if number % 10 > 1:  # the slower checks run on every fifth text
            continue
        assert again.encode(text, add_special_tokens=False).ids == ids, text
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=False), text
        assert "".join(ours.decode_stream(ids)) == ours.decode(ids)
        check_offsets(*ours.encode_with_offsets(text, allow_special=special), ids, text, ours)
    assert from_tokenizer_json(json.loads(json.dumps(to_tokenizer_json(ours))), "again") == ours


def check_offsets(found, offsets, ids, text, ours):
    """Checks that offsets lie in the text and never decrease; in unchanged ASCII text they cover the tokens' bytes."""
    assert found.tolist() == ids
    assert offsets.shape == (len(ids), 2)
    assert ((offsets >= 0) & (offsets <= len(text))).all() and (offsets[:, 0] <= offsets[:, 1]).all()
    assert (offsets[1:] >= offsets[:-1]).all()
    if isinstance(ours, BPETokenizer) and not ours.missing and text.isascii():
        assert all(ours.token_bytes[i].decode() == text[a:b] for i, (a, b) in zip(ids, offsets.tolist(), strict=True))


@every_kind
def test_ids_and_texts_equal_those_of_tokenizers(kind, made):
    ours, other = made(kind)
    check_equal(ours, other, count=800)
    assert Tokenizer.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parametrize(
    "name", ["gpt-neox/tokenizer.json", "phi-2/tokenizer.json", "smollm/tokenizer.json", "llama-sentencepiece.json"]
)
@pytest.mark.slow
def test_ids_and_texts_of_published_tokenizers_equal_those_of_tokenizers(name):
    if not TOKENIZERS.is_dir():
        pytest.skip(f"{TOKENIZERS} is not there")
    other = tokenizers.Tokenizer.from_file(str(TOKENIZERS / name))
    other.no_truncation()
    other.no_padding()
    check_equal(read_tokenizer_json(TOKENIZERS / name), other, count=2000)


@every_kind
def test_cutting_a_text_into_blocks_changes_no_ids(kind, made, tmp_path, monkeypatch):
    """Blocks of 40 characters put cuts everywhere: in chunks, in files and in worker processes."""
    ours, other = made(kind)
    other.encode_special_tokens = True
    names = [token.content for token in other.get_added_tokens_decoder().values()]
    source = random.Random(1)
    monkeypatch.setattr(blocks, "BLOCK", 40)
    for number in range(25):
        text = " ".join(random_text(source, names) for _ in range(12)) + "日本語中文字" * source.randrange(3)
        ids = other.encode(text, add_special_tokens=False).ids
        size = source.randrange(1, 60)
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        assert [i for part in ours.encode_stream(chunks) for i in part.tolist()] == ids
        path = tmp_path / "text"
        path.write_text(text, encoding="utf-8", newline="")
        if "\x00" not in text:
            assert ours.encode_file(path, processes=1 + (number == 0)).tolist() == ids
        separated = other.encode("b", add_special_tokens=False).ids
        end = [] if ours.end_of_text is None else [ours.end_of_text]
        assert ours.encode_block(blocks.Block([text, "b"])).tolist() == [*ids, *end, *separated]


@every_kind
def test_a_long_text_can_be_cut(kind, made):
    """Bulk encoding does not need the whole text in memory."""
    ours, _ = made(kind)
    text = " ".join(CORPUS)
    assert len(text) // 2 < ours.safe_cut(text) <= len(text)


def test_the_kinds_cover_the_intended_cases(made):
    assert isinstance(made("SmolLM")[0], BPETokenizer) and made("SmolLM")[0].missing
    assert made("Llama 3")[0].marks.begin == 0 and made("Llama 3")[0].end_of_text is None
    assert made("Llama 2")[0].end_of_text == 1  # </s>
    assert made("Qwen2")[0].special_tokens == dict(zip(SPECIAL, range(4), strict=True))


@every_kind
def test_new_special_tokens_get_the_next_ids(kind, made):
    ours, _ = made(kind)
    more = ours.with_special_tokens(["<|user|>", "</s>"])
    assert more.special_tokens == ours.special_tokens | {"<|user|>": ours.vocab_size}
    assert more.encode("a<|user|>", allow_special=True)[-1] == ours.vocab_size
    other = tokenizers.Tokenizer.from_str(json.dumps(to_tokenizer_json(more)))
    assert other.encode("Tom <|user|>b</s>", add_special_tokens=False).ids == more.encode(
        "Tom <|user|>b</s>", allow_special=True
    )


def test_an_ordinary_added_token_cannot_become_special(made):
    with pytest.raises(ConfigError, match="special_tokens: '<tool>' is an ordinary added token"):
        made("Qwen2")[0].with_special_tokens(["<tool>"])


def test_a_continuation_keeps_its_first_space(made):
    """The completion of "Once" by " upon" begins with the space that the whole text would lose."""
    ours, other = made("Llama 2")
    ids = other.encode("upon", add_special_tokens=False).ids
    assert ours.decode(ids) == other.decode(ids) == "upon"
    assert ours.decode(ids, continues=True) == " upon"
    piece_of = ours.piece_decoder()
    assert "".join(piece_of(i) for i in [*ids, None]) == " upon"
