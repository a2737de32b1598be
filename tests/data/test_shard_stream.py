"""Training from shards as they appear: the order does not depend on when, and the cache of remote ones is bounded."""

import hashlib
import itertools
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tests.token_folders import LENGTHS, publish, write_folder
from tinylm.data.content import Settings
from tinylm.data.datamodule import TextDataModule
from tinylm.data.evaluation_rows import EvaluationBatches
from tinylm.data.shard_cache import ShardCache
from tinylm.data.shard_index import ShardKey
from tinylm.data.shard_stream import LocalFolder, available
from tinylm.data.stream_content import StreamContent
from tinylm.errors import ConfigError, DataError, MissingInputError
from tinylm.stages import Stages

CONTEXT, BATCH = 8, 4


def content_of(source, tmp_path: Path, patience=20.0, max_cache=1 << 30, **changes) -> StreamContent:
    plain: dict[str, Any] = dict(
        context=CONTEXT, batch_size=Stages(BATCH), split=(0.9, 0.1), seed=3, errors="strict", train_tokens=None
    )
    settings = Settings(tokenizer="char", cache_dir=tmp_path / "cache", **(plain | changes))
    return StreamContent(str(source), settings, patience, max_cache)


def batches(content: StreamContent, steps: int, accumulate=1, world_size=1, rank=0) -> list[list[list[int]]]:
    data = content.training(accumulate, world_size, rank)
    return [data[number].inputs.tolist() for number in range(steps * accumulate)]


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "all")
    return tmp_path / "all"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(LocalFolder, "interval", 0.02)


# --- the order


def test_the_order_is_the_same_whether_all_shards_are_there_or_not(folder, tmp_path):
    whole = write_folder(tmp_path / "whole")
    expected = batches(content_of(folder, tmp_path), 60)
    growing = tmp_path / "growing"

    def build():
        for groups in range(1, len(LENGTHS) + 1):
            time.sleep(0.1)
            publish(whole, tmp_path / "whole", growing, groups)

    content = content_of(growing, tmp_path)  # the folder does not exist yet
    builder = threading.Thread(target=build)
    builder.start()
    assert batches(content, 60) == expected  # more than two epochs
    builder.join()
    assert content.fingerprint == content_of(folder, tmp_path).fingerprint


def test_the_first_batches_need_the_first_shard_alone(folder, tmp_path):
    whole = write_folder(tmp_path / "whole")
    publish(whole, tmp_path / "whole", tmp_path / "part", 1)
    content = content_of(tmp_path / "part", tmp_path, patience=0.1)
    windows = content.order.known(1)  # in the first shard
    steps = windows // BATCH
    assert batches(content, steps) == batches(content_of(folder, tmp_path), steps)
    with pytest.raises(MissingInputError, match=r"no new shard for 0\.1 s .*and train 1 is missing; start .*prepare"):
        batches(content, steps + 1)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2)])
def test_any_number_of_ranks_and_micro_batches_makes_the_same_global_batches(world_size, accumulate, folder, tmp_path):
    expected = batches(content_of(folder, tmp_path), 30)
    ranks = [batches(content_of(folder, tmp_path), 30, accumulate, world_size, r) for r in range(world_size)]
    for step in range(30):
        rows = [ranks[r][step * accumulate + m] for r in range(world_size) for m in range(accumulate)]
        assert list(itertools.chain.from_iterable(rows)) == expected[step]


def test_windows_are_runs_of_their_shards_and_targets_follow(folder, tmp_path):
    shards = [np.fromfile(folder / f"train-{g:05}-00000.bin", np.uint16) for g in range(len(LENGTHS))]
    runs = {tuple(ids[i : i + CONTEXT + 1].tolist()) for ids in shards for i in range(len(ids) - CONTEXT)}
    data = content_of(folder, tmp_path).training(1, 1, 0)
    for step in range(40):
        batch = data[step]
        for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
            assert (*inputs, targets[-1]) in runs
            assert inputs[1:] == targets[:-1]


def test_shards_count_up_to_the_first_that_is_missing(folder, tmp_path):
    index = write_folder(tmp_path / "x")
    del index.shards[ShardKey("train", 2, 0)]
    assert [key.group for key, _ in available(index, "train")] == [0, 1]
    index.groups[0] = None  # not read to its end
    assert [key.group for key, _ in available(index, "train")] == [0]


def test_the_first_shard_of_val_is_evaluated(folder, tmp_path):
    content = content_of(folder, tmp_path)
    rows = cast(EvaluationBatches, content.evaluation("val", None, 3, 1, 0))
    targets = [rows[number].targets.flatten() for number in range(len(rows))]
    assert sorted(int(each) for row in targets for each in row if each >= 0) == list(range(1, 50))
    with pytest.raises(ConfigError, match="has no tokens of a test part"):
        content.num_tokens("test")


# --- refusals


def test_a_damaged_shard_is_an_error_before_its_first_batch(folder, tmp_path):
    path = folder / "train-00002-00000.bin"
    ids = np.fromfile(path, np.uint16)
    ids[7] ^= 1
    ids.tofile(path)
    content = content_of(folder, tmp_path)
    first = next(step for step in range(40) if 2 in content.order.windows(step)[0])
    assert len(batches(content, first)) == first
    with pytest.raises(DataError, match=r"train-00002-00000\.bin: is damaged"):
        batches(content, first + 1)


def test_a_folder_that_becomes_that_of_another_text_is_refused(folder, tmp_path):
    whole = write_folder(tmp_path / "whole")
    publish(whole, tmp_path / "whole", tmp_path / "part", 1)
    content = content_of(tmp_path / "part", tmp_path)
    batches(content, 1)
    whole.fingerprint = "another"
    whole.save(tmp_path / "part" / "index.json")
    with pytest.raises(DataError, match="is now of another text or tokenizer"):
        batches(content, 20)


def test_a_first_shard_without_an_index_yet_is_waited_for(folder, tmp_path):
    (folder / "index.json").unlink()
    with pytest.raises(MissingInputError, match=r"no new shard for 0\.1 s .* index\.json is missing"):
        _ = content_of(folder, tmp_path, patience=0.1).order


def test_what_holds_no_shards_is_refused_at_once(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a text")
    for source in (tmp_path / "notes", tmp_path / "notes" / "a.txt"):
        with pytest.raises(DataError, match=r"holds no token shards, which data\.streaming needs"):
            _ = content_of(source, tmp_path).order
    for name in ("stories", "lines:a.txt"):
        with pytest.raises(ConfigError, match=rf"data\.streaming: is for token shards, not for {name}"):
            content_of(name, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_timeout": 3.0}, "data.shard_timeout: is for data.streaming"),
        ({"max_cache_gb": 3.0}, "data.max_cache_gb: is for data.streaming"),
        ({"streaming": True, "max_cache_gb": 3.0}, "data.max_cache_gb: is for shards at a URL"),
        ({"streaming": True, "num_workers": 1}, "data.num_workers: with data.streaming, the training process reads"),
        ({"streaming": True, "train_tokens": 5}, "data.train_tokens: does not work with data.streaming"),
        ({"streaming": True, "shard_timeout": 0.0}, "data.shard_timeout must be above 0"),
        ({"streaming": True, "corpus": {"a": "x", "b": "y"}}, "data.streaming: is for one folder"),
    ],
)
def test_options_that_do_nothing_are_refused(options, message, folder):
    with pytest.raises(ConfigError, match=message):
        TextDataModule(**({"corpus": str(folder)} | options))


def test_an_epoch_of_the_trainer_is_the_whole_run(folder, tmp_path):
    plain = dict(
        world_size=1, global_rank=0, accumulate_grad_batches=1, limit_train_batches=1.0, val_check_interval=1.0
    )
    data = TextDataModule(str(folder), max_seq_len=CONTEXT, batch_size=BATCH, streaming=True, cache_dir=str(tmp_path))
    data.trainer = SimpleNamespace(**plain, max_steps=500, max_epochs=-1)  # pyright: ignore[reportAttributeAccessIssue]
    data.setup("fit")
    assert (data.total_steps, data.steps_per_epoch) == (500, 500)
    for changes, message in (({"max_steps": -1}, "max_steps: missing"), ({"max_epochs": 2}, "max_epochs: does not")):
        trainer = SimpleNamespace(**(plain | {"max_steps": 500, "max_epochs": -1} | changes))
        data.trainer = trainer  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(ConfigError, match=message):
            data.setup("fit")


# --- shards at a URL


def serve(server, folder: Path) -> str:
    for path in folder.iterdir():
        server.serve(f"/shards/{path.name}", path.read_bytes(), ranges=True)
    return server.url + "/shards"


def downloads(server) -> list[str]:
    """The shards that were asked for, but for looks at their size."""
    asked = zip(server.requests, server.ranges, strict=True)
    return [path.rpartition("/")[2] for path, asked_range in asked if path.endswith(".bin") and asked_range]


def test_remote_shards_make_the_same_batches_and_stay_in_the_cache(server, folder, tmp_path):
    url = serve(server, folder)
    expected = batches(content_of(folder, tmp_path), 60)
    assert batches(content_of(url, tmp_path), 60) == expected
    assert sorted(downloads(server)) == [f"train-{g:05}-00000.bin" for g in (0, 1, 2, 4)]  # 3 has no window
    server.requests.clear(), server.ranges.clear()
    assert batches(content_of(url, tmp_path), 60) == expected
    assert downloads(server) == []


def test_the_cache_keeps_its_bound_and_the_shards_used_last(server, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.data.shard_stream.MAPPED", 1)
    url = serve(server, folder)
    most = 2 * (130 + 100)  # bytes: of the two largest shards
    content = content_of(url, tmp_path, max_cache=most)
    data = content.training(1, 1, 0)
    for step in range(60):
        data[step]
        assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin")) <= most
    assert len(downloads(server)) > 4  # some were removed, and downloaded again
    with pytest.raises(ConfigError, match=r"data\.max_cache_gb: .*train-00000-00000\.bin has 2e-07 GB"):
        batches(content_of(url, tmp_path / "other", max_cache=199), 1)


def test_a_download_that_breaks_off_is_continued(server, folder, tmp_path):
    url = serve(server, folder)
    server.pages["/shards/train-00000-00000.bin"].cuts = [0, 50]  # after the look at its size
    assert batches(content_of(url, tmp_path), 20) == batches(content_of(folder, tmp_path), 20)


def test_a_remote_shard_that_is_damaged_or_missing_is_named(server, folder, tmp_path):
    url = serve(server, folder)
    page = server.pages["/shards/train-00000-00000.bin"]
    page.body = b"\0" * len(page.body)
    with pytest.raises(DataError, match=r"/shards/train-00000-00000\.bin: is damaged"):
        batches(content_of(url, tmp_path), 1)
    assert not list((tmp_path / "cache").rglob("*train*"))
    del server.pages["/shards/index.json"]
    with pytest.raises(MissingInputError, match=r"/shards/index\.json: no such file"):
        batches(content_of(url, tmp_path / "other"), 1)


def test_processes_of_a_machine_download_each_shard_once(server, folder, tmp_path, forked):
    url = serve(server, folder)
    code = """
    import sys
    from pathlib import Path
    from tinylm.data.shard_cache import ShardCache
    url, folder, size, digest = sys.argv[1:]
    print(ShardCache(Path(folder), 1 << 20).open(url, int(size), digest, lambda path: path.stat().st_size))
    """
    name = "train-00002-00000.bin"
    data = (folder / name).read_bytes()
    arguments = (f"{url}/{name}", tmp_path / "cache", len(data), hashlib.sha256(data).hexdigest())
    processes = [forked(code, *arguments) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [str(len(data))] * 4
    assert downloads(server) == [name]


def test_a_partial_download_of_a_killed_process_is_removed(server, folder, tmp_path):
    url, cache = serve(server, folder), tmp_path / "cache"
    cache.mkdir()
    (cache / ".tmp-train-00000-00000.bin-1-abc").write_bytes(b"part")
    data = (folder / "val-00000-00000.bin").read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    ShardCache(cache, 1 << 20).open(f"{url}/val-00000-00000.bin", len(data), digest, Path.read_bytes)
    assert sorted(path.name for path in cache.iterdir()) == [".lock", f"{digest[:16]}-val-00000-00000.bin"]
