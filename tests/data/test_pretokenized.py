"""Token ids of nanoGPT, llm.c and Megatron: read where they lie, told by content, and written as those programs read.

The files that are read are built here from the formats' descriptions; those that we write are read by the others' own
few lines (nanoGPT's memmap and pickle, modded-nanogpt's shard loader, Megatron's index).
"""

import os
import pickle
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tinylm.commands import prepare_shards
from tinylm.data.content import Settings
from tinylm.data.datamodule import TextDataModule
from tinylm.data.evaluation_rows import EvaluationBatches
from tinylm.data.mixture_content import MixtureContent
from tinylm.data.pretokenized import find_pretokenized, nanogpt
from tinylm.data.pretokenized.write import write_pretokenized
from tinylm.data.shard_content import ShardContent
from tinylm.data.shard_folder import write_shards
from tinylm.data.text_content import TextContent
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError, TinyLMError
from tinylm.stages import Stages
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer

TEXT = "To be, or not to be: that is the question.\n" * 40
CHARS = CharTokenizer("".join(sorted(set(TEXT))))
IDS = CHARS.encode_array(TEXT)  # 1,720
WIDE = CharTokenizer("".join(map(chr, range(0x10000, 0x10000 + 70_000))))


# --- files as the others write them


def write_nanogpt(folder: Path, ids=IDS, cut=1548, meta=None) -> Path:
    folder.mkdir()
    for name, part in (("train", ids[:cut]), ("val", ids[cut:])):
        np.array(part, dtype=np.uint16).tofile(folder / f"{name}.bin")
    if meta is None:
        itos = dict(enumerate(CHARS.characters))
        meta = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    if meta:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def llmc_bytes(ids, magic=20240520, version=1, dtype=np.uint16, count=None) -> bytes:
    header = np.zeros(256, dtype=np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + np.array(ids, dtype=dtype).tobytes()


def write_megatron(prefix: Path, documents, code=8, dtype: Any = np.uint16) -> str:
    prefix.parent.mkdir(exist_ok=True)
    lengths = np.array([len(each) for each in documents])
    prefix.with_name(prefix.name + ".bin").write_bytes(np.concatenate(documents).astype(dtype).tobytes())
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(lengths) + 1)
    index += lengths.astype(np.int32).tobytes()
    index += ((np.cumsum(lengths) - lengths) * np.dtype(dtype).itemsize).astype(np.int64).tobytes()
    index += np.arange(len(lengths) + 1, dtype=np.int64).tobytes()
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    return str(prefix)


def settings(tmp_path: Path, tokenizer="char", **changes) -> Settings:
    plain: dict[str, Any] = dict(
        context=16, batch_size=Stages(4), split=(0.9, 0.1), seed=3, errors="strict", train_tokens=None
    )
    return Settings(tokenizer=tokenizer, cache_dir=tmp_path / "cache", **(plain | changes))


def shards(source, tmp_path: Path, tokenizer="char", **changes) -> ShardContent:
    found = find_pretokenized(str(source))
    assert found is not None
    return ShardContent(found, settings(tmp_path, tokenizer, **changes))


@pytest.fixture
def saved(tmp_path):
    """The file of the tokenizer of TEXT."""
    CHARS.save(tmp_path / "chars.json")
    return str(tmp_path / "chars.json")


def parts(content: ShardContent) -> dict[str, list[int]]:
    return {part: np.asarray(ids).tolist() for part, ids in content.tokens.items()}


# --- reading


def test_nanogpts_folder_has_its_own_parts_and_the_characters_of_its_meta(tmp_path):
    content = shards(write_nanogpt(tmp_path / "chars"), tmp_path)
    assert parts(content) == {"train": IDS[:1548].tolist(), "val": IDS[1548:].tolist()}
    assert content.tokenizer == CHARS


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, np.uint16), (20240801, 7, np.uint32)], ids=["gpt-2", "llama-3"]
)
def test_header_shards_are_read_in_the_order_of_their_names(magic, version, dtype, tmp_path, saved):
    for name, piece in (("train_000002", IDS[500:1500]), ("train_000001", IDS[:500]), ("val_000000", IDS[1500:])):
        (tmp_path / f"fineweb_{name}.bin").write_bytes(llmc_bytes(piece, magic, version, dtype))
    for source in (tmp_path, tmp_path / "fineweb_*.bin"):
        content = shards(source, tmp_path, saved)
        assert parts(content) == {"train": IDS[:1500].tolist(), "val": IDS[1500:].tolist()}
    alone = shards(tmp_path / "fineweb_*_00000[12].bin", tmp_path, saved)  # no file of val: data.split cuts
    assert parts(alone) == {"train": IDS[:1350].tolist(), "val": IDS[1350:1500].tolist()}


@pytest.mark.parametrize(("code", "dtype"), [(8, np.uint16), (4, np.int32), (5, np.int64), (1, np.uint8)])
def test_megatrons_documents_follow_each_other(code, dtype, tmp_path, saved):
    prefix = write_megatron(tmp_path / "m" / "my_text_document", [IDS[:100], [], IDS[100:]], code, dtype)
    for source in (prefix, f"{prefix}.bin", f"{prefix}.idx", tmp_path / "m"):
        content = shards(source, tmp_path, saved)
        assert parts(content) == {"train": IDS[:1548].tolist(), "val": IDS[1548:].tolist()}  # 9/10 of 1,720


def test_ids_are_memory_mapped_and_no_file_is_written_beside_them(tmp_path):
    folder = write_nanogpt(tmp_path / "chars")
    content = shards(folder, tmp_path)
    assert all(isinstance(piece.base, np.memmap) or isinstance(piece, np.memmap) for ids in content.tokens.values()
               for piece in ids.pieces)  # fmt: skip
    assert content.tokens["train"].dtype == np.uint16
    assert {path.name for path in folder.iterdir()} == {"train.bin", "val.bin", "meta.pkl"}
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_file_without_a_header_needs_the_name_of_its_tokenizer(tmp_path, saved):
    IDS.astype(np.uint16).tofile(tmp_path / "ids.bin")
    assert len(shards(tmp_path / "ids.bin", tmp_path, saved).tokens["train"]) == 1548
    with pytest.raises(ConfigError, match=r"char would be trained on a text, but .*ids\.bin holds token ids") as caught:
        _ = shards(tmp_path / "ids.bin", tmp_path).tokenizer
    assert "\n" not in str(caught.value)


def test_a_large_vocabulary_means_32_bits_in_a_file_without_a_header(tmp_path):
    WIDE.save(tmp_path / "wide.json")
    np.array([69_999, 1, 2] * 50, dtype=np.uint32).tofile(tmp_path / "ids.bin")
    tokens = shards(tmp_path / "ids.bin", tmp_path, str(tmp_path / "wide.json")).tokens
    assert np.asarray(tokens["train"])[:3].tolist() == [69_999, 1, 2]


@pytest.mark.parametrize("name", ["notes.bin", "train.bin"])
def test_a_text_named_bin_stays_a_text(name, tmp_path):
    (tmp_path / name).write_text(TEXT)
    assert find_pretokenized(str(tmp_path / name)) is None
    assert find_pretokenized(str(tmp_path)) is None


def test_without_meta_the_tokenizer_is_the_folders_then_gpt2s(tmp_path, capsys):
    folder = write_nanogpt(tmp_path / "chars", meta={})
    with pytest.raises(MissingInputError, match=r"r50k_base\.tiktoken"):  # the server of the vocabulary is out of reach
        _ = shards(folder, tmp_path).tokenizer
    assert "GPT-2's is assumed" in capsys.readouterr().err
    CHARS.save(folder / "tokenizer.tinylm.json")
    assert shards(folder, tmp_path).tokenizer == CHARS


def test_the_size_of_a_vocabulary_alone_asks_for_its_tokenizer(tmp_path, saved):
    folder = write_nanogpt(tmp_path / "chars", meta={"vocab_size": 18})
    with pytest.raises(ConfigError, match=r"name the file of the tokenizer .* of 18 tokens by meta\.pkl"):
        _ = shards(folder, tmp_path).tokenizer
    assert shards(folder, tmp_path, saved).tokenizer == CHARS


def test_a_tokenizer_that_contradicts_the_folder_is_refused(tmp_path):
    folder = write_nanogpt(tmp_path / "chars")
    CharTokenizer(CHARS.characters[::-1]).save(tmp_path / "other.json")
    with pytest.raises(ConfigError, match=r"is not the one that .*meta\.pkl records"):
        _ = shards(folder, tmp_path, str(tmp_path / "other.json")).tokens
    CHARS.with_special_tokens([END_OF_TEXT]).save(tmp_path / "more.json")  # the same ids, and one more
    assert parts(shards(folder, tmp_path, str(tmp_path / "more.json")))["train"] == IDS[:1548].tolist()


# --- refusals, each in one line


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"vocab_size": Evil()}, "refers to builtins.print"),
        ({"vocab_size": np.int64(18)}, "refers to numpy"),
        ([1, 2], "does not hold a dict"),
        ({"vocab_size": -1}, "must be a whole number above 0"),
        ({"stoi": {"a": 0, "b": 2}}, "does not number its pieces"),
        ({"stoi": {"a": 0}, "itos": {0: "b"}}, "not the inverse"),
        ({"stoi": {"the": 0, "cat": 1}}, "not characters"),
        ({"vocab_size": 3, "stoi": {"a": 0}}, "does not number its pieces"),
        ({"other": 1}, "has neither vocab_size nor stoi"),
    ],
)
def test_a_meta_that_is_no_vocabulary_is_refused_and_never_executed(meta, message, tmp_path, capsys):
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta))
    with pytest.raises(DataError, match=message):
        nanogpt.read_meta(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "data", [b"", b"garbage", pickle.dumps({"vocab_size": 3})[:-3], b"\x80\x02K\x01r\x00\x00\x00\x70."],
    ids=["empty", "text", "truncated", "a memo of 15 GB"],
)  # fmt: skip
def test_a_damaged_meta_is_refused(data, tmp_path):
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(DataError, match=r"meta\.pkl: is not read"):
        nanogpt.read_meta(tmp_path / "meta.pkl")


def damaged(tmp_path: Path, kind: str) -> Path:
    """A corpus with a fault."""
    if kind == "odd":
        (write_nanogpt(tmp_path / "f") / "train.bin").write_bytes(b"\1\0" * 40 + b"\1")
        return tmp_path / "f"
    if kind == "wide":
        IDS.astype(np.uint32).tofile(write_nanogpt(tmp_path / "f") / "train.bin")
        return tmp_path / "f"
    if kind.startswith("megatron"):
        prefix = write_megatron(tmp_path / "m" / "x", [IDS[:100], IDS[100:]])
        data, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
        if kind == "megatron-missing":
            data.unlink()
        elif kind == "megatron-short":
            data.write_bytes(data.read_bytes()[:-2])
        elif kind == "megatron-truncated":
            index.write_bytes(index.read_bytes()[:-8])
        elif kind == "megatron-gap":
            content = bytearray(index.read_bytes())
            content[34 + 8 + 8] += 2  # the offset of the second sequence
            index.write_bytes(content)
        elif kind == "megatron-floats":
            content = bytearray(index.read_bytes())
            content[17] = 7
            index.write_bytes(content)
        return Path(prefix)
    path = tmp_path / "x_train_0.bin"
    if kind == "truncated":
        path.write_bytes(llmc_bytes(IDS)[:-2])
    elif kind == "header":
        path.write_bytes(llmc_bytes(IDS)[:100])
    elif kind == "version":
        path.write_bytes(llmc_bytes(IDS, version=2))
    elif kind == "questions":
        path.write_bytes(llmc_bytes(IDS, magic=20240522))
    elif kind == "mixed":
        path.write_bytes(llmc_bytes(IDS))
        write_megatron(tmp_path / "y_val", [IDS])
        return tmp_path
    elif kind == "parts":
        path.write_bytes(llmc_bytes(IDS))
        (tmp_path / "rest.bin").write_bytes(llmc_bytes(IDS))
        return tmp_path
    return path


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("odd", 65, r"train\.bin: has 81 bytes of ids, which are 2 bytes each"),
        ("wide", 65, r"every second id is 0: the ids are 32 bits wide"),
        ("truncated", 65, r"its header says 1,720 ids, but 1,719 follow"),
        ("header", 65, r"is truncated within its header"),
        ("version", 65, r"has version 2 of llm\.c's format, tinylm reads 1"),
        ("questions", 65, r"holds multiple-choice questions"),
        ("mixed", 65, r"token ids of several formats, .*llm\.c.*Megatron"),
        ("parts", 65, r"the name of rest\.bin says neither train nor val"),
        ("megatron-missing", 66, r"x\.bin: no such file; Megatron's ids lie beside x\.idx"),
        ("megatron-short", 65, r"has 1,719 ids, x\.idx lists 1,720"),
        ("megatron-truncated", 65, r"x\.idx: has \d+ bytes, its header says \d+"),
        ("megatron-gap", 65, r"its sequences do not follow each other"),
        ("megatron-floats", 65, r"has version 1 and type 7"),
    ],
)
def test_files_that_do_not_fit_are_refused_in_one_line(kind, code, message, tmp_path):
    with pytest.raises(TinyLMError, match=message) as caught:
        find_pretokenized(str(damaged(tmp_path, kind)))
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def test_an_id_beyond_the_vocabulary_is_named_with_its_position(tmp_path):
    ids = IDS.copy()
    ids[1234] = 60_000
    content = shards(write_nanogpt(tmp_path / "chars", ids), tmp_path)
    with pytest.raises(DataError, match=r"train\.bin: id 60,000 at position 1,234 is outside the vocabulary of 18 tok"):
        _ = content.tokens
    prefix = write_megatron(tmp_path / "m" / "x", [np.array([1, -1, 2] * 20)], 4, np.int32)
    CHARS.save(tmp_path / "m" / "tokenizer.tinylm.json")
    with pytest.raises(DataError, match=r"id -1 at position 1 is outside"):
        _ = shards(prefix, tmp_path).tokens


def test_ids_are_checked_once_for_each_state_of_a_file(tmp_path, monkeypatch):
    folder = write_nanogpt(tmp_path / "chars", np.tile(IDS, 200), 172_000)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))  # files of this second are not remembered: they could still change
    first = shards(folder, tmp_path).fingerprint
    monkeypatch.setattr("tinylm.data.pretokenized.scan._read", lambda shard, bar: pytest.fail("read again"))
    assert shards(folder, tmp_path).fingerprint == first
    monkeypatch.undo()
    changed = np.fromfile(folder / "train.bin", np.uint16)
    changed[100_000] += 1
    changed.tofile(folder / "train.bin")
    assert shards(folder, tmp_path).fingerprint != first


def test_parts_that_are_missing_or_too_short_are_named(tmp_path, saved):
    content = shards(write_nanogpt(tmp_path / "chars"), tmp_path)
    with pytest.raises(ConfigError, match="no file is named test; name one so"):
        content.num_tokens("test")
    (tmp_path / "x.bin").write_bytes(llmc_bytes(IDS[:10]))
    short = shards(tmp_path / "x.bin", tmp_path, saved)
    with pytest.raises(DataError, match="val has 1 tokens, needs at least 2"):
        short.num_tokens("val")
    assert (short.order.context, short.settings.context) == (8, 16)


def test_options_of_texts_are_refused_for_token_ids(tmp_path):
    folder = str(write_nanogpt(tmp_path / "chars"))
    with pytest.raises(ConfigError, match=r"data\.errors: is for files of text"):
        TextDataModule(corpus=folder, errors="replace")


# --- the same order, whatever the format


def test_the_first_100_batches_are_those_of_the_text(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    text = TextContent(str(tmp_path / "t.txt"), settings(tmp_path))
    expected = text.training(accumulate=1, world_size=1, rank=0)
    for form in prepare_shards.FORMATS:
        write_pretokenized(form, text.tokens, text.tokenizer, tmp_path / form, shard_tokens=100)
        content = shards(tmp_path / form, tmp_path)
        assert content.tokenizer == text.tokenizer
        found = content.training(accumulate=1, world_size=1, rank=0)
        for step in range(100):
            assert found[step].inputs.tolist() == expected[step].inputs.tolist()
            assert found[step].targets.tolist() == expected[step].targets.tolist()
        rows = [cast(EvaluationBatches, each.evaluation("val", None, 2, 1, 0)) for each in (text, content)]
        assert len(rows[0]) == len(rows[1]) == 6  # 172 tokens in rows of 16 targets, by twos
        for number in range(6):
            assert rows[0][number].targets.tolist() == rows[1][number].targets.tolist()


def test_a_mixture_takes_token_ids_beside_texts(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    (tmp_path / "u.txt").write_text(TEXT[::-1])
    sources = {"t": str(tmp_path / "t.txt"), "u": str(tmp_path / "u.txt")}
    expected = MixtureContent(sources, {"t": 3, "u": 1}, settings(tmp_path))
    text = TextContent(sources["t"], settings(tmp_path))
    write_pretokenized("llmc", text.tokens, text.tokenizer, tmp_path / "ids")
    found = MixtureContent(sources | {"t": str(tmp_path / "ids")}, {"t": 3, "u": 1}, settings(tmp_path))
    data = [each.training(accumulate=1, world_size=1, rank=0) for each in (found, expected)]
    for step in range(30):
        assert data[0][step].inputs.tolist() == data[1][step].inputs.tolist()


# --- writing


def test_nanogpt_reads_what_we_write(tmp_path):
    write_pretokenized("nanogpt", {"train": IDS[:1000], "val": IDS[1000:]}, CHARS, tmp_path / "out")
    data = np.memmap(tmp_path / "out" / "train.bin", dtype=np.uint16, mode="r")
    meta = pickle.loads((tmp_path / "out" / "meta.pkl").read_bytes())
    assert "".join(meta["itos"][int(i)] for i in data) == TEXT[:1000]
    assert [meta["stoi"][c] for c in TEXT[:1000]] == data.tolist()
    assert meta["vocab_size"] == 18


@pytest.mark.parametrize(
    ("tokenizer", "magic", "version", "dtype"),
    [(ByteTokenizer(), 20240520, 1, np.uint16), (WIDE, 20240801, 7, np.uint32)],
    ids=["16 bits", "32 bits"],
)
def test_the_loaders_of_llmc_read_what_we_write(tokenizer, magic, version, dtype, tmp_path):
    ids = np.arange(250)
    counts = write_pretokenized("llmc", {"train": ids, "val": ids[:30]}, tokenizer, tmp_path / "my", shard_tokens=100)
    assert counts == {f"my_train_{n:06}.bin": c for n, c in enumerate([100, 100, 50])} | {"my_val_000000.bin": 30}
    read = []
    for path in sorted((tmp_path / "my").glob("my_train_*.bin")):
        header = np.fromfile(path, dtype=np.int32, count=256)
        assert header[:2].tolist() == [magic, version]
        tokens = np.fromfile(path, dtype=dtype, offset=1024)
        assert len(tokens) == header[2]
        read += tokens.tolist()
    assert read == ids.tolist()


def test_megatrons_index_lists_the_documents_that_we_write(tmp_path):
    tokenizer = CharTokenizer("abc", [END_OF_TEXT])
    ids = np.array([0, 1, 3, 2, 3, 3, 1, 1])  # "ab", "c", "", and "bb", which is cut
    write_pretokenized("megatron", {"train": ids, "val": ids[:3]}, tokenizer, tmp_path / "out")
    index = (tmp_path / "out" / "train.idx").read_bytes()
    assert struct.unpack_from("<9sQBQQ", index) == (b"MMIDIDX\x00\x00", 1, 8, 4, 5)
    assert np.frombuffer(index, np.int32, 4, 34).tolist() == [3, 2, 1, 2]
    assert np.frombuffer(index, np.int64, 4, 50).tolist() == [0, 6, 10, 12]
    assert np.frombuffer(index, np.int64, 5, 82).tolist() == [0, 1, 2, 3, 4]
    assert len(index) == 82 + 40
    assert np.fromfile(tmp_path / "out" / "train.bin", np.uint16).tolist() == ids.tolist()
    assert struct.unpack_from("<QQ", (tmp_path / "out" / "val.idx").read_bytes(), 18) == (1, 2)


def test_a_vocabulary_beyond_16_bits_is_refused_for_nanogpt(tmp_path):
    with pytest.raises(ConfigError, match="--to nanogpt: the ids of 70,000 tokens do not fit into its 16 bits"):
        write_pretokenized("nanogpt", {"train": IDS}, WIDE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_shards_of_ours_are_replaced(tmp_path):
    theirs = write_nanogpt(tmp_path / "theirs")
    with pytest.raises(CannotCreateError, match="exists and is not a folder of shards of tinylm"):
        write_pretokenized("nanogpt", {"train": IDS}, CHARS, theirs, overwrite=True)
    write_pretokenized("llmc", {"train": IDS}, CHARS, tmp_path / "ours", shard_tokens=500)
    with pytest.raises(CannotCreateError, match="replace it with --overwrite"):
        write_pretokenized("nanogpt", {"train": IDS}, CHARS, tmp_path / "ours")
    write_pretokenized("nanogpt", {"train": IDS}, CHARS, tmp_path / "ours", overwrite=True)
    names = {path.name for path in (tmp_path / "ours").iterdir()}
    assert names == {"train.bin", "meta.pkl", "shards.json", "tokenizer.tinylm.json"}


def test_prepare_shards_encodes_a_text_and_converts_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(TEXT)
    options = ["--cache-dir", "cache"]
    prepare_shards.write_shards(["t.txt", "--to", "nanogpt", "--tokenizer", "char", "--out", "a", *options])
    prepare_shards.write_shards(["a", "--to", "megatron", "--out", "b", *options])
    prepare_shards.write_shards(["b", "--to", "llmc", "--out", "c", "--shard-tokens", "1000", *options])
    assert parts(shards("c", tmp_path)) == {"train": IDS[:1548].tolist(), "val": IDS[1548:].tolist()}
    assert f"{Path('c/c_train_000001.bin')}: 548 token ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("t.txt --to llm.c --tokenizer char --out x", r"--to llm\.c: no such format, did you mean 'llmc'\?"),
        ("t.txt --to nanogpt --out x", "--tokenizer: missing"),
        ("t.txt --to nanogpt --tokenizer char --out x --shard-tokens 9", "has one file for each part"),
        ("t.txt --to llmc --tokenizer char --out x --shard-tokens 0", "--shard-tokens must be at least 1"),
        ("t.txt --to llmc --tokenizer char --out x --split 0.9", "--split must be one to three fractions"),
        ("ids --to llmc --out x --errors replace", "--errors: is for texts"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(TEXT)
    write_nanogpt(Path("ids"))
    with pytest.raises(ConfigError, match=message):
        prepare_shards.write_shards([*words.split(), "--cache-dir", "cache"])


# --- our own token shards


def test_a_folder_of_prepare_tokens_has_the_batches_of_its_text(tmp_path):
    (tmp_path / "t.txt").write_text(TEXT)
    text = TextContent(str(tmp_path / "t.txt"), settings(tmp_path))
    index = write_shards(tmp_path / "own", text.corpus, text.tokenizer)
    content = shards(tmp_path / "own", tmp_path)
    expected, found = (each.training(accumulate=1, world_size=1, rank=0) for each in (text, content))
    assert all(found[step].inputs.tolist() == expected[step].inputs.tolist() for step in range(100))
    assert content.tokenizer == text.tokenizer
    index.groups = [None]
    index.save(tmp_path / "own" / "index.json")
    with pytest.raises(DataError, match=r"is not complete; wait for prepare tokens, or .* data\.streaming=true"):
        find_pretokenized(str(tmp_path / "own"))


def test_a_folder_of_notes_with_an_index_of_anyone_is_a_text(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "index.json").write_text('{"text": "a list of notes"}')
    assert find_pretokenized(str(folder)) is None
