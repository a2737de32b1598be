"""Facts about files are remembered until the files change; the memory is never necessary."""

import contextlib
import os
import sqlite3
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tinylm.data.sources import Source, remembered
from tinylm.data.sources.memory import NAME, SMALL

OLD = time.time_ns() - 3_600 * 10**9
BIG = bytes(SMALL)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))


def write(content: bytes, mtime_ns: int = OLD, name: str = "a.txt") -> Path:
    path = Path(name)
    path.write_bytes(content)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def calls(path: str = "a.txt", kind: str = "length", cache_dir: Path | None = None) -> int:
    """The number of times a file is read to ask for its length twice."""
    count = 0

    def compute() -> list[int]:
        nonlocal count
        count += 1
        return [len(Path(path).read_bytes())]

    for _ in range(2):
        assert remembered(path, kind, compute, cache_dir) == [Path(path).stat().st_size]
    return count


def test_a_value_is_computed_once(tmp_path):
    write(BIG)
    assert calls() == 1
    assert calls(str(tmp_path / "a.txt")) == 0  # the same file
    assert calls(kind="another") == 1
    assert calls(cache_dir=tmp_path / "other") == 1
    assert (tmp_path / "other" / NAME).is_file()


def test_a_fingerprint_is_that_of_the_bytes_and_read_once(monkeypatch):
    path = write(BIG)
    assert Source("a.txt").fingerprint() == sha256(BIG).hexdigest()
    path.chmod(0)  # cannot be read; root can, so the reading is refused too
    monkeypatch.setattr("tinylm.data.sources.local.open_input", None)
    assert Source("a.txt").fingerprint() == sha256(BIG).hexdigest()


def test_a_file_that_changes_in_any_way_is_read_again(tmp_path):
    write(BIG)
    calls()
    write(BIG + b"x")  # size
    assert calls() == 1
    write(BIG + b"y", OLD + 1)  # time
    assert calls() == 1
    other = write(BIG + b"z", OLD + 1, "b.txt")  # inode
    other.replace("a.txt")
    assert calls() == 1


@pytest.mark.parametrize("age", [0, 1.9, -60])
def test_a_file_written_to_just_now_is_not_remembered(age):
    write(BIG, time.time_ns() - int(age * 1e9))
    assert calls() == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered():
    write(BIG)
    assert remembered("a.txt", "length", lambda: len(write(BIG + b"x", OLD + 10**9).read_bytes())) == SMALL + 1
    assert calls() == 1


def test_a_small_file_is_read_and_leaves_no_database(tmp_path):
    write(BIG[1:])
    assert calls() == 2
    assert not (tmp_path / "cache").exists()


def test_a_damaged_database_is_replaced(tmp_path):
    write(BIG)
    calls()
    database = tmp_path / "cache" / NAME
    for damage in (b"not a database" * 1000, database.read_bytes()[:5000]):
        database.write_bytes(damage)
        assert calls() <= 2  # the first reading finds the damage
        assert calls() == 0
    database.write_bytes(b"")
    assert calls() == 1


def test_a_database_that_cannot_be_written_or_locked_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.data.sources.memory.WAIT", 0.01)
    write(BIG)
    calls(kind="one")
    with contextlib.closing(sqlite3.connect(tmp_path / "cache" / NAME)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert calls(kind="two") == 2
    assert calls(kind="one") == 0
    (tmp_path / "file").write_text("no folder")
    assert calls(cache_dir=tmp_path / "file") == 2
    (tmp_path / "folder" / NAME).mkdir(parents=True)
    assert calls(cache_dir=tmp_path / "folder") == 2


def test_a_user_without_a_home_folder_has_no_memory(monkeypatch):
    write(BIG)
    for name in ("TINYLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert calls() == 2


def test_several_processes_and_threads_write_at_once(python):
    code = """
    import os, sys
    from pathlib import Path
    from tinylm.data.sources.memory import remembered
    for i in range(20):
        assert remembered("a.txt", f"{sys.argv[1]} {i}", lambda: i) == i
    """
    write(BIG)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [python(code, number, env=environment) for number in range(3)]
    threads = [threading.Thread(target=calls, kwargs={"kind": f"thread {i}"}) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    for number in range(3):
        assert remembered("a.txt", f"{number} 19", lambda: None) == 19
