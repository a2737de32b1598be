"""Token shards: the same files whoever builds them, opened only if complete, mended one by one."""

import json
import os
import subprocess
import sys
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tinylm.data import TextDataModule, open_shards, shard_builder, shard_folder, shard_index, write_shards
from tinylm.data.corpora.base import Corpus
from tinylm.data.shard_builder import Share
from tinylm.data.token_array import TokenArray
from tinylm.errors import CannotCreateError, DataError
from tinylm.files import sha256_file, sha256_json
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer
from tinylm.tokenizer.fast import blocks

TEXTS = [f"{number} is document number {number}, " * (3 + number % 5) for number in range(60)]


class GroupedCorpus(Corpus):
    """Every fourth document is for validation. `read` has the groups that have been read."""

    name, parts, separated = "grouped", ("train", "val"), True

    def __init__(self, num_groups=3, texts=TEXTS):
        self.num_groups, self._texts, self.read = num_groups, texts, []
        self.fingerprint = sha256_json([num_groups, texts])

    def items(self, group=None):
        self.read.append(group)
        for number, text in enumerate(self._texts):
            if group is None or number * self.num_groups // len(self._texts) == group:
                yield self.parts[number % 4 == 3], [text]

    def documents(self, part):
        return (document for found, document in self.items() if found == part)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 150)
    monkeypatch.setattr(shard_builder, "BLOCKS", 2)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train_from_texts(TEXTS, vocab_size=300, special_tokens=[END_OF_TEXT])


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected_ids(corpus, tokenizer, part):
    texts = ["".join(text) for text in corpus.documents(part)]
    return [token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_of_text]]


@pytest.mark.parametrize("num_groups", [1, 3, 60])
def test_the_ids_are_those_of_the_documents_in_order_however_they_are_grouped(num_groups, tokenizer, tmp_path):
    corpus = GroupedCorpus(num_groups)
    index = write_shards(tmp_path / "s", corpus, tokenizer, processes=1)
    assert index.complete and len(index.shards) >= max(num_groups, 20)
    parts, saved = open_shards(tmp_path / "s")
    assert saved == tokenizer
    for part in corpus.parts:
        assert np.asarray(parts[part]).tolist() == expected_ids(corpus, tokenizer, part)


def test_a_shard_has_the_name_of_its_place_and_the_index_its_checksum(tokenizer, tmp_path):
    write_shards(tmp_path, GroupedCorpus(), tokenizer, processes=1)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["complete"] and index["tokenizer"] == tokenizer.sha256 and index["dtype"] == "uint16"
    files = [shard["file"] for shards in index["parts"].values() for shard in shards]
    assert files[0] == "train-00000-00000.bin" and "val-00002-00000.bin" in files
    assert sorted([*files, "index.json", "tokenizer.tinylm.json"]) == sorted(content(tmp_path))
    for shards in index["parts"].values():
        for shard in shards:
            path = tmp_path / shard["file"]
            assert shard["sha256"] == sha256_file(path) and shard["tokens"] * 2 == path.stat().st_size
    digest = index.pop("sha256")
    assert digest == sha256_json(index)


@pytest.mark.parametrize("num_groups", [1, 3, 5])
@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_in_any_order_equal_one_run_byte_for_byte(num_groups, count, tokenizer, tmp_path):
    corpus = GroupedCorpus(num_groups)
    write_shards(tmp_path / "one", corpus, tokenizer, processes=1)
    expected = content(tmp_path / "one")
    for order in list(permutations(range(count)))[:: 1 if count == 2 else 7]:
        folder = tmp_path / "".join(map(str, order))
        for done, number in enumerate(order):
            index = write_shards(folder, corpus, tokenizer, Share(number, count), processes=1)
            assert index.complete == (done == count - 1)
        assert content(folder) == expected
        write_shards(folder, corpus, tokenizer, Share(order[0], count), processes=1)  # once more
        assert content(folder) == expected


def test_shares_divide_the_shards_and_whole_groups_where_there_are_enough(tokenizer, tmp_path):
    for num_groups, count in ((1, 3), (5, 3)):
        files = []
        for number in range(count):
            folder, corpus = tmp_path / f"{num_groups}-{number}", GroupedCorpus(num_groups)
            write_shards(folder, corpus, tokenizer, Share(number, count), processes=1)
            files += [path.name for path in folder.glob("*.bin")]
            assert corpus.read == ([0] if num_groups == 1 else [g for g in range(5) if g % 3 == number])
        assert len(files) == len(set(files))
        assert set(files) == {key.file for key in write_shards(tmp_path / "x", corpus, tokenizer).shards}
        subprocess.run(["rm", "-r", tmp_path / "x"], check=True)


KILLED = """
import os, signal
sys.path.insert(0, TESTS)
from test_shards import GroupedCorpus, blocks, shard_builder
from tinylm.data.shard_builder import Share, _ShardWriter
from tinylm.data.shard_folder import write_shards
from tinylm.tokenizer import load_tokenizer

folder, tokenizer, number, until = sys.argv[1:]
blocks.BLOCK, shard_builder.BLOCKS = 150, 2
add, count = _ShardWriter.add, 0
def dying(*arguments):
    global count
    count += 1
    if count == int(until):
        os.kill(os.getpid(), signal.SIGKILL)
    return add(*arguments)
_ShardWriter.add = dying
write_shards(folder, GroupedCorpus(GROUPS), load_tokenizer(tokenizer), Share(int(number), 4), processes=1)
"""


@pytest.mark.parametrize("num_groups", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_four_shares_of_which_one_is_killed_and_run_again_equal_one_run(num_groups, tokenizer, tmp_path, forked):
    write_shards(tmp_path / "one", GroupedCorpus(num_groups), tokenizer, processes=1)
    tokenizer.save(tmp_path / "t.json")
    code = KILLED.replace("TESTS", repr(os.path.dirname(__file__))).replace("GROUPS", str(num_groups))  # noqa: PTH120
    for number, until in ((2, 0), (1, 4), (3, 0), (0, 0), (1, 0)):
        process = forked(code, tmp_path / "four", tmp_path / "t.json", number, until)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-9 if until else 0), err
        if (number, until) == (0, 0):
            with pytest.raises(DataError, match=r"four: is not complete, it lacks .*; run `.*prepare tokens` again"):
                open_shards(tmp_path / "four")
    assert content(tmp_path / "four") == content(tmp_path / "one")


def test_shares_that_have_not_been_joined_are_joined_by_the_reader(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_folder, "_join", shard_folder.read_folder)
    for number in range(2):
        write_shards(tmp_path, GroupedCorpus(), tokenizer, Share(number, 2), processes=1)
    assert not (tmp_path / "index.json").exists()
    parts, _ = open_shards(tmp_path)
    assert np.asarray(parts["val"]).tolist() == expected_ids(GroupedCorpus(), tokenizer, "val")


@pytest.mark.parametrize("harm", ["flipped", "truncated", "deleted"])
def test_a_damaged_shard_alone_is_built_again(harm, tokenizer, tmp_path, capfd):
    write_shards(tmp_path, GroupedCorpus(), tokenizer, processes=1)
    good, path, corpus = content(tmp_path), tmp_path / "train-00001-00001.bin", GroupedCorpus()
    data = path.read_bytes()
    path.write_bytes({"flipped": bytes([data[0] ^ 1]) + data[1:], "truncated": data[:-2], "deleted": b""}[harm])
    if harm == "deleted":
        path.unlink()
    with pytest.raises(DataError, match=r"train-00001-00001\.bin: is missing or damaged; .* --verify"):
        open_shards(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in content(tmp_path)}
    capfd.readouterr()
    write_shards(tmp_path, corpus, tokenizer, processes=1)
    assert content(tmp_path) == good and corpus.read == [1]
    changed = {name for name in good if (tmp_path / name).stat().st_mtime_ns != times.get(name)}
    assert changed <= {path.name, "index.json"}
    count = len(list(tmp_path.glob("*.bin")))
    assert f"damaged: encoding again 1 of {count} shards (train-00001-00001.bin)\n" in capfd.readouterr().err


def test_large_folders_are_read_in_full_only_on_request(tokenizer, tmp_path, monkeypatch):
    index = write_shards(tmp_path, GroupedCorpus(), tokenizer, processes=1)
    monkeypatch.setattr(shard_index, "VERIFIED", index.num_bytes - 1)
    path = tmp_path / "train-00001-00001.bin"
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    monkeypatch.setattr(shard_index, "sha256_file", lambda path: pytest.fail(f"{path} was read"))
    open_shards(tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"train-00001-00001\.bin: is missing or damaged"):
        open_shards(tmp_path, full=True)
    path.write_bytes(data[:-2])
    monkeypatch.setattr(shard_index, "VERIFIED", 0)
    with pytest.raises(DataError, match=r"train-00001-00001\.bin: is missing or damaged"):
        open_shards(tmp_path)  # the size is always compared


def test_other_folders_are_refused_and_left_as_they_are(tokenizer, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    write_shards(tmp_path / "s", GroupedCorpus(), tokenizer, processes=1)
    before = content(tmp_path / "s")
    for folder, corpus, other in (
        ("notes", GroupedCorpus(), tokenizer),
        ("file", GroupedCorpus(), tokenizer),
        ("s", GroupedCorpus(texts=TEXTS[1:]), tokenizer),
        ("s", GroupedCorpus(), ByteTokenizer()),
    ):
        with pytest.raises(CannotCreateError, match=rf"{folder}: .*; choose another path"):
            write_shards(tmp_path / folder, corpus, other, processes=1)
    assert content(tmp_path / "s") == before
    assert content(tmp_path / "notes") == {"a.txt": b"mine"}


def test_a_folder_without_an_index_or_with_another_tokenizer_is_no_folder_of_shards(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"has no index\.json; it is not a folder of token shards"):
        open_shards(tmp_path)
    write_shards(tmp_path, GroupedCorpus(), tokenizer, processes=1)
    CharTokenizer("ab").save(tmp_path / "tokenizer.tinylm.json", overwrite=True)
    with pytest.raises(DataError, match=r"tokenizer\.tinylm\.json: is not the tokenizer of these shards"):
        open_shards(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of open files")
def test_more_shards_than_files_may_be_open(tokenizer, tmp_path, python):
    write_shards(tmp_path / "s", GroupedCorpus(60), tokenizer, processes=1)
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    from tinylm.data.shard_folder import open_shards
    print(len(open_shards(sys.argv[1])[0]["train"].pieces))
    """
    out, err = python(code, tmp_path / "s").communicate(timeout=60)
    assert int(out or pytest.fail(err)) >= 45


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="rlimits are POSIX's")
def test_a_full_disk_is_named_and_costs_the_shards_being_written_only(tokenizer, tmp_path, python):
    """The limit of file sizes stands for the disk: the fifth block is longer than it allows."""
    corpus, tests = GroupedCorpus(), os.path.dirname(__file__)  # noqa: PTH120
    write_shards(tmp_path / "one", corpus, tokenizer, processes=1)
    tokenizer.save(tmp_path / "t.json")
    code = f"""
    import resource, signal
    sys.path.insert(0, {tests!r})
    from test_shards import GroupedCorpus, blocks, shard_builder
    from tinylm.console import exit_code
    from tinylm.data.shard_folder import write_shards
    from tinylm.tokenizer import load_tokenizer
    blocks.BLOCK, shard_builder.BLOCKS, count = 150, 2, 0
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    add = shard_builder._ShardWriter.add
    def limited(*arguments):
        global count
        count += 1
        if count == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        return add(*arguments)
    shard_builder._ShardWriter.add = limited
    folder, tokenizer = sys.argv[1:]
    sys.exit(exit_code(lambda _: write_shards(folder, GroupedCorpus(), load_tokenizer(tokenizer), processes=1), []))
    """
    process = python(code, tmp_path / "full", tmp_path / "t.json")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 74, err
    assert err.startswith("tinylm: error: ") and "could not be written (File too large" in err and err.count("\n") == 1
    kept = {path.name for path in (tmp_path / "full").glob("*.bin")}
    assert kept and not list((tmp_path / "full").glob(".tmp-*"))
    write_shards(tmp_path / "full", corpus, tokenizer, processes=1)
    assert content(tmp_path / "full") == content(tmp_path / "one")


@pytest.mark.parametrize("options", [{}, {"train_tokens": 700}, {"tokenizer": "byte", "split": (0.5, 0.3, 0.2)}])
def test_a_data_module_gives_the_same_batches_from_many_shards_as_from_one(options, tmp_path, monkeypatch):
    options = {"corpus": "stories:80", "max_seq_len": 24, "batch_size": 4} | options
    many = TextDataModule(**options, cache_dir=str(tmp_path / "many"))
    assert isinstance(many.tokens["train"], TokenArray) and isinstance(many.tokens["val"], TokenArray)
    monkeypatch.undo()
    one = TextDataModule(**options, cache_dir=str(tmp_path / "one"))
    assert isinstance(one.tokens["train"], np.ndarray)
    assert many.floors.keys() == one.floors.keys()
    for found, expected in zip(many.floors.values(), one.floors.values(), strict=True):
        assert found.num_bytes == expected.num_bytes and found.log_probs.tolist() == expected.log_probs.tolist()
    assert many.example_prompt() == one.example_prompt() != ""
    for module in (many, one):
        module.trainer = SimpleNamespace(
            world_size=1, global_rank=0, accumulate_grad_batches=1, val_check_interval=1.0, limit_train_batches=1.0,
            max_steps=9, max_epochs=-1, state=SimpleNamespace(fn="fit"), global_step=0,
        )  # fmt: skip
        module.setup("fit")
    for loader in ("train_dataloader", "val_dataloader"):
        pairs = list(zip(getattr(many, loader)(), getattr(one, loader)(), strict=True))
        assert pairs
        for left, right in pairs:
            assert torch.equal(left.inputs, right.inputs) and torch.equal(left.targets, right.targets)
            assert left.log_prob == right.log_prob
