"""The token cache equals direct encoding, is verified each time, and is built once by concurrent processes."""

import re
import time
from itertools import chain

import numpy as np
import pytest

from tinylm.data import open_corpus, open_tokens, resolve_tokenizer, shard_builder, tokens
from tinylm.data.corpora.generated import GrammarCorpus
from tinylm.data.grammar.stories import story_grammar
from tinylm.data.tokens import open_log_probs
from tinylm.errors import CannotCreateError, ConfigError, DataError, MissingInputError
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer
from tinylm.tokenizer.fast import blocks


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "t.txt").write_bytes("aé\r\nb😀a".encode() * 100)
    return files(tmp_path / "t.txt")


def files(source, split=(0.9, 0.1)):
    return open_corpus(str(source), split=split, cache_dir=source.parent / "cache")


def folders(cache_dir):
    return [path for path in (cache_dir / "tokens").iterdir() if path.is_dir()]


# --- contents


def test_ids_and_separators_by_hand(tmp_path):
    (tmp_path / "1.txt").write_text("aab")
    (tmp_path / "2.txt").write_text("bc")
    corpus = files(tmp_path / "*.txt", (0.8, 0.2))  # five characters, cut after four
    tokenizer = resolve_tokenizer("char", corpus, tmp_path)  # a 0, b 1, c 2, END_OF_TEXT 3
    found = open_tokens(corpus, tokenizer, tmp_path)
    assert {part: ids.tolist() for part, ids in found.items()} == {"train": [0, 0, 1, 3, 1, 3], "val": [2, 3]}


@pytest.mark.parametrize("kind", ["char", "byte", "bpe:300"])
def test_the_cache_equals_direct_encoding_with_a_separator_after_each_document(kind, tmp_path):
    corpus = GrammarCorpus("stories", story_grammar(), (0.8, 0.1, 0.1), seed=1, count=60)
    tokenizer = resolve_tokenizer(kind, corpus, tmp_path)
    found = open_tokens(corpus, tokenizer, tmp_path)
    assert list(found) == ["train", "val", "test"]
    for part, ids in found.items():
        expected = [[*tokenizer.encode("".join(text)), tokenizer.end_of_text] for text in corpus.documents(part)]
        assert ids.dtype == np.uint16
        assert ids.tolist() == list(chain.from_iterable(expected))


def test_one_document_has_no_separator(corpus, tmp_path):
    tokenizer = CharTokenizer.train_from_texts(corpus.texts(), special_tokens=[END_OF_TEXT])
    found = open_tokens(corpus, tokenizer, tmp_path)
    assert "".join(tokenizer.decode(found[part]) for part in ("train", "val")) == "".join(corpus.texts())
    assert all(tokenizer.end_of_text not in ids for ids in found.values())


@pytest.mark.parametrize(("num_characters", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_ids_above_65535_need_four_bytes(num_characters, dtype, tmp_path):
    text = "".join(chr(point) for point in range(80_000) if not 0xD800 <= point < 0xE000)[:num_characters]
    (tmp_path / "t.txt").write_bytes(text.encode())
    corpus = files(tmp_path / "t.txt", (0.5, 0.5))
    found = open_tokens(corpus, resolve_tokenizer("char", corpus, tmp_path), tmp_path)
    assert found["val"].dtype == dtype
    assert np.concatenate([found["train"], found["val"]]).tolist() == list(range(num_characters))


def test_an_empty_part_is_an_empty_array(tmp_path):
    (tmp_path / "t.txt").write_text("a")
    found = open_tokens(files(tmp_path / "t.txt"), ByteTokenizer(), tmp_path)
    assert {part: ids.tolist() for part, ids in found.items()} == {"train": [], "val": [97]}


# --- when the cache is built


def test_a_good_cache_is_opened_and_not_built_again(corpus, tmp_path, monkeypatch, capfd):
    first = open_tokens(corpus, ByteTokenizer(), tmp_path)
    assert len(re.findall(r"encoded .*t\.txt into tokens: [\d,]+ train, [\d,]+ val", capfd.readouterr().err)) == 1
    monkeypatch.setattr(tokens, "complete_folder", lambda *_: pytest.fail("built again"))
    again = open_tokens(files(tmp_path / "t.txt"), ByteTokenizer(), tmp_path)
    assert all((first[part] == again[part]).all() for part in first)
    assert capfd.readouterr().err == ""


TRAIN, VAL, INDEX = "train-00000-00000.bin", "val-00000-00000.bin", "index.json"
DAMAGES = {
    "flipped byte": (TRAIN, lambda path, data: path.write_bytes(bytes([data[0] ^ 1]) + data[1:])),
    "flipped last byte": (
        "val-00000-00000.bin",
        lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 128])),
    ),
    "truncated": (VAL, lambda path, data: path.write_bytes(data[:-2])),
    "emptied": (TRAIN, lambda path, data: path.write_bytes(b"")),
    "longer": (TRAIN, lambda path, data: path.write_bytes(data + b"\0\0")),
    "part deleted": (VAL, lambda path, data: path.unlink()),
    "index deleted": (INDEX, lambda path, data: path.unlink()),
    "index truncated": (INDEX, lambda path, data: path.write_bytes(data[:-10])),
    "index of something else": (INDEX, lambda path, data: path.write_text('{"sha256": 3}')),
    "index not an object": (INDEX, lambda path, data: path.write_text("[1]")),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_built_again_with_a_notice(name, damage, corpus, tmp_path, capfd):
    good = {part: ids.tolist() for part, ids in open_tokens(corpus, ByteTokenizer(), tmp_path).items()}
    [folder] = folders(tmp_path)
    capfd.readouterr()
    damage(folder / name, (folder / name).read_bytes())
    rebuilt = open_tokens(corpus, ByteTokenizer(), tmp_path)
    err = capfd.readouterr().err
    assert "t.txt is damaged: encoding again" in err and err.count("encoded") == 1
    assert {part: ids.tolist() for part, ids in rebuilt.items()} == good
    open_tokens(corpus, ByteTokenizer(), tmp_path)
    assert capfd.readouterr().err == ""


def test_a_changed_text_has_a_new_cache_with_a_notice(corpus, tmp_path, capfd):
    open_tokens(corpus, ByteTokenizer(), tmp_path)
    capfd.readouterr()
    (tmp_path / "t.txt").write_text("another text")
    found = open_tokens(files(tmp_path / "t.txt"), ByteTokenizer(), tmp_path)
    assert bytes(found["train"].astype(np.uint8)) == b"another te"  # int(12 * 0.9) bytes
    assert "from an earlier text, split or tokenizer: encoding again" in capfd.readouterr().err


def test_different_tokenizers_splits_and_files_have_different_caches(corpus, tmp_path, capfd):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "t.txt").write_bytes((tmp_path / "t.txt").read_bytes()[:-1])
    chars = CharTokenizer.train_from_texts(corpus.texts())
    cases = [
        (corpus, ByteTokenizer()), (corpus, chars), (corpus, CharTokenizer(chars.characters[::-1])),
        (files(tmp_path / "t.txt", (0.5, 0.5)), chars), (files(tmp_path / "copy" / "t.txt"), chars),
    ]  # fmt: skip
    for text, tokenizer in cases * 2:
        found = open_tokens(text, tokenizer, tmp_path)
        assert "".join(tokenizer.decode(ids) for ids in found.values()) == "".join(text.texts())
    assert len(folders(tmp_path)) == capfd.readouterr().err.count("encoded") == len(cases)


def test_text_that_cannot_be_encoded_is_refused_and_leaves_no_cache(corpus, tmp_path):
    with pytest.raises(DataError, match=r"character '\\xe9' \(U\+00E9\) at position 1 "):
        open_tokens(corpus, CharTokenizer("a"), tmp_path)
    assert folders(tmp_path) == []


def test_a_text_deleted_before_encoding_is_a_missing_input(corpus, tmp_path):
    (tmp_path / "t.txt").unlink()
    with pytest.raises(MissingInputError, match=r"t\.txt"):
        open_tokens(corpus, ByteTokenizer(), tmp_path / "cache")


@pytest.mark.parametrize("blocked", ["cache", "cache/tokens"])
def test_a_cache_folder_that_cannot_be_created_is_named(blocked, corpus, tmp_path):
    (tmp_path / "cache").mkdir(exist_ok=True)
    if blocked == "cache":
        (tmp_path / "cache").rmdir()
    (tmp_path / blocked).write_text("a file, not a folder")
    with pytest.raises(CannotCreateError, match=r"tokens.*: cannot be created .*; choose a folder") as raised:
        open_tokens(corpus, ByteTokenizer(), tmp_path / "cache")
    assert raised.value.exit_code == 73


def test_a_complete_cache_is_read_where_nothing_can_be_written(corpus, tmp_path, monkeypatch):
    """Root may write anywhere, so here every lock, folder and file that would be made fails."""
    tokenizer = resolve_tokenizer("bpe:300", corpus, tmp_path / "cache")
    expected = open_tokens(corpus, tokenizer, tmp_path / "cache")

    def refuse(*_, **__):
        pytest.fail("something was written")

    for name in ("locked", "make_folder", "write_json", "complete_folder"):
        monkeypatch.setattr(tokens, name, refuse)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert resolve_tokenizer("bpe:300", corpus, tmp_path / "cache") == tokenizer
    found = open_tokens(corpus, tokenizer, tmp_path / "cache")
    assert {part: ids.tolist() for part, ids in found.items()} == {part: ids.tolist() for part, ids in expected.items()}
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}


@pytest.mark.parametrize("spec", ["bpe:5000", "word:5000"])
def test_fewer_tokens_than_asked_for_are_said_in_one_line(spec, corpus, tmp_path, capsys):
    tokenizer = resolve_tokenizer(spec, corpus, tmp_path / "cache")
    said = capsys.readouterr().err
    assert said.startswith(f"tinylm: learned {tokenizer.vocab_size:,} tokens from {corpus.name} (")
    assert said.endswith("s): the text has no more (5,000 were requested)\n") and said.count("\n") == 1
    resolve_tokenizer(f"{spec.partition(':')[0]}:{tokenizer.vocab_size}", corpus, tmp_path / "cache")
    assert capsys.readouterr().err == ""


# --- several processes

BUILD = """
import time
from tinylm.data import tokens
from tinylm.data.corpora import open_corpus
from tinylm.data.shard_builder import _ShardWriter
from tinylm.tokenizer import ByteTokenizer

source, cache, ready, other = map(Path, sys.argv[1:])
add = _ShardWriter.add
def slow(*arguments):
    number = add(*arguments)
    (cache / "building").touch()
    time.sleep(PAUSE)
    return number
_ShardWriter.add = slow
corpus = open_corpus(str(source), split=(0.9, 0.1), cache_dir=cache)
ready.touch()
while not other.exists():
    time.sleep(0.01)
print(sum(len(ids) for ids in tokens.open_tokens(corpus, ByteTokenizer(), cache).values()))
"""


def wait_for(path, process, seconds=20):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def test_two_processes_build_one_cache_once(corpus, tmp_path, forked):
    code = BUILD.replace("PAUSE", "0.2")
    (tmp_path / "cache").mkdir()
    names = [tmp_path / "ready 1", tmp_path / "ready 2"]
    processes = [forked(code, tmp_path / "t.txt", tmp_path / "cache", *pair) for pair in (names, names[::-1])]
    results = [process.communicate(timeout=30) for process in processes]
    num_bytes = len("".join(corpus.texts()).encode())
    assert [(out.strip(), process.returncode) for (out, _), process in zip(results, processes, strict=True)] == [
        (str(num_bytes), 0),
        (str(num_bytes), 0),
    ], results
    assert sum(err.count("encoded") for _, err in results) == 1


def test_a_killed_builder_blocks_nobody_and_leaves_no_partial_cache(corpus, tmp_path, forked):
    cache = tmp_path / "cache"
    cache.mkdir()
    builder = forked(BUILD.replace("PAUSE", "600"), tmp_path / "t.txt", cache, tmp_path / "go", tmp_path / "go")
    wait_for(cache / "building", builder)
    builder.kill()
    builder.wait()
    assert not any(cache.rglob("*.bin"))
    found = open_tokens(corpus, ByteTokenizer(), cache)
    assert np.concatenate([found["train"], found["val"]]).tolist() == list("".join(corpus.texts()).encode())


RESUME = """
import os
import signal
from tinylm.data import shard_builder, tokens
from tinylm.data.corpora import open_corpus
from tinylm.tokenizer import load_tokenizer
from tinylm.tokenizer.fast import blocks

source, cache, tokenizer, until = sys.argv[1:]
blocks.BLOCK, shard_builder.BLOCKS = 1000, 3
add, count = shard_builder._ShardWriter.add, 0
def dying(*arguments):
    global count
    count += 1
    if count == int(until):
        os.kill(os.getpid(), signal.SIGKILL)
    print(arguments[0]._key.file, arguments[0]._blocks, flush=True)
    return add(*arguments)
shard_builder._ShardWriter.add = dying
tokens.open_tokens(
    open_corpus(source, split=(0.8, 0.1, 0.1), cache_dir=Path(cache)), load_tokenizer(tokenizer), Path(cache)
)
"""


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(shard_builder, "BLOCKS", 3)


@pytest.mark.parametrize("harm", [None, "index", "file"])
def test_a_killed_build_is_continued_with_the_same_result(harm, tmp_path, forked, small_shards):
    source = "stories:120" if harm is None else str(tmp_path / "*.txt")
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"It's {number} o'clock, said the clock.\n" * 300)
    corpus = open_corpus(source, split=(0.8, 0.1, 0.1), cache_dir=tmp_path)
    tokenizer = resolve_tokenizer("bpe:300", corpus, tmp_path)
    tokenizer.save(tmp_path / "t.json")
    expected = open_tokens(corpus, tokenizer, tmp_path / "whole")
    added = []
    for until in (12, 9, 0):
        builder = forked(RESUME, source, tmp_path / "cache", tmp_path / "t.json", until)
        out, err = builder.communicate(timeout=60)
        assert builder.returncode == (-9 if until else 0), err
        added.append(out.splitlines())
        if until == 9 and harm:
            [folder] = folders(tmp_path / "cache")
            name = "index.json" if harm == "index" else "train-00000-00001.bin"
            (folder / name).write_bytes((folder / name).read_bytes()[3:])
    [folder] = folders(tmp_path / "cache")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert files == {path.name: path.read_bytes() for path in folders(tmp_path / "whole")[0].iterdir()}
    assert len(files) > 8
    finished = [{line.split()[0] for line in lines if line.endswith(" 2")} for lines in added]
    assert len(finished[0]) >= 2 and not finished[0] & finished[1]  # whole shards are not encoded again
    again = {None: set(), "index": finished[0] | finished[1], "file": {"train-00000-00001.bin"}}[harm]
    assert finished[2] & (finished[0] | finished[1]) == again
    assert (" shards exist: continuing" in err) == (harm is None)
    assert ("damaged: encoding again" in err) == (harm is not None)
    found = open_tokens(corpus, tokenizer, tmp_path / "cache")
    assert all((np.asarray(found[part]) == np.asarray(expected[part])).all() for part in expected)
    known = open_log_probs(corpus, tokenizer, tmp_path / "cache")
    assert sorted(known) == ([] if harm else ["test", "val"])
    for part, nats in known.items():
        texts = ["".join(text) for text in corpus.documents(part)]
        assert nats.tolist() == [corpus.log_prob(text) for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tokens"), [("char", 14), ("byte", 14), ("word", 3), ("bpe:300", 3)])  # of 14 bytes
def test_memory_does_not_grow_with_the_text(kind, tokens, tmp_path, python):
    code = """
    from tinylm.data.corpora import open_corpus
    from tinylm.data.tokens import open_tokens, resolve_tokenizer
    def peak():  # of this process; getrusage starts from the parent's peak
        status = Path("/proc/self/status")
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024 if status.exists() else 0
    source, cache, kind = sys.argv[1:]
    before = peak()
    corpus = open_corpus(source, split=(0.9, 0.1), cache_dir=Path(cache))
    found = open_tokens(corpus, resolve_tokenizer(kind, corpus, Path(cache)), Path(cache))
    print(sum(len(ids) for ids in found.values()), peak() - before)
    """
    (tmp_path / "t.txt").write_bytes(b"one huge line " * (60_000_000 // 14))
    out, err = python(code, tmp_path / "t.txt", tmp_path, kind).communicate(timeout=100)
    count, megabytes = map(float, out.split() or pytest.fail(err))
    assert count == 60_000_000 // 14 * tokens + (tokens == 3)  # the last space
    assert megabytes < 100  # the text takes 57, its ids as int64 458


# --- choice of the tokenizer


def test_the_vocabulary_of_a_kind_is_built_from_the_whole_text_once(corpus, tmp_path, monkeypatch):
    tokenizer = resolve_tokenizer("char", corpus, tmp_path)
    assert tokenizer == CharTokenizer.train_from_texts(corpus.texts())
    [path] = (tmp_path / "tokenizers").glob("char-*.json")
    path.write_text("damaged")
    assert resolve_tokenizer("char", corpus, tmp_path) == tokenizer
    monkeypatch.setattr(CharTokenizer, "train_from_streams", lambda *_, **__: pytest.fail("trained again"))
    assert resolve_tokenizer("char", corpus, tmp_path) == tokenizer
    assert resolve_tokenizer("byte", corpus, tmp_path) == ByteTokenizer()


def test_bpe_is_trained_on_the_training_part_only_and_has_the_requested_size(corpus, tmp_path):
    tokenizer = resolve_tokenizer("bpe:260", corpus, tmp_path)
    train = ["".join(document) for document in corpus.documents("train")]
    assert tokenizer == BPETokenizer.train_from_texts(train, vocab_size=260)
    assert tokenizer != resolve_tokenizer("bpe:261", corpus, tmp_path)
    (tmp_path / "other.txt").write_text("b" * 90 + "zyzyzyzyzy")
    unseen = resolve_tokenizer("bpe:262", files(tmp_path / "other.txt"), tmp_path)
    assert b"zy" not in unseen.token_bytes


@pytest.mark.parametrize("spec", ["char:100", "byte:300", "bpe:many", "word:-1"])
def test_an_invalid_size_is_refused(spec, corpus, tmp_path):
    with pytest.raises(
        ConfigError,
        match=rf"data\.tokenizer: {spec}: only bpe, unigram, word, wordpiece have a size, written as bpe:2048",
    ):
        resolve_tokenizer(spec, corpus, tmp_path)


def test_words_come_from_the_training_part_and_others_are_unknown(tmp_path):
    (tmp_path / "t.txt").write_text("a cat, a cat, a dog, a cat, a bird")
    tokenizer = resolve_tokenizer("word", files(tmp_path / "t.txt"), tmp_path)
    found = open_tokens(files(tmp_path / "t.txt"), tokenizer, tmp_path)
    assert tokenizer.decode(found["train"]) == "a cat, a cat, a dog, a cat, a "[:30]
    assert tokenizer.decode(found["val"]) == "<unk>"
    assert resolve_tokenizer("word:6", files(tmp_path / "t.txt"), tmp_path).vocab_size == 6


def test_only_a_corpus_of_several_documents_has_a_separator(corpus, tmp_path):
    assert resolve_tokenizer("char", corpus, tmp_path).end_of_text is None
    assert (
        resolve_tokenizer("byte", GrammarCorpus("stories", story_grammar(), (0.9, 0.1), 0, 2), tmp_path).end_of_text
        == 256
    )


def test_a_tokenizer_file_is_loaded_as_saved(corpus, tmp_path):
    tokenizer = CharTokenizer("zyx", ["<x>"])
    tokenizer.save(tmp_path / "t.json")
    tokenizer.save(tmp_path / "no-suffix")
    assert resolve_tokenizer(str(tmp_path / "t.json"), corpus, tmp_path) == tokenizer
    assert resolve_tokenizer(str(tmp_path / "no-suffix"), corpus, tmp_path) == tokenizer


def test_a_missing_file_and_an_unknown_kind_are_refused(corpus, tmp_path):
    with pytest.raises(MissingInputError, match=r"nowhere\.json: no such tokenizer file"):
        resolve_tokenizer(str(tmp_path / "nowhere.json"), corpus, tmp_path)
    with pytest.raises(ConfigError, match="no kind 'chars', did you mean 'char'"):
        resolve_tokenizer("chars", corpus, tmp_path)
