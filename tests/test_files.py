"""Atomic writes, seals and locks under failing blocks, killed processes, full disks, damage and concurrent writers."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinylm import files
from tinylm.errors import CannotCreateError, DataError, MissingInputError, StorageError
from tinylm.files import (
    atomic_folder,
    atomic_write,
    check_seal,
    check_utf8,
    locked,
    make_folder,
    read_chunks,
    read_json,
    seal_zip,
    sha256_bytes,
    sha256_file,
    sha256_json,
    sweep,
    write_json,
    write_text,
)

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and rlimits are POSIX's")


def start(code, *arguments):
    """Starts a Python process that runs `code` with the arguments in `sys.argv[1:]`."""
    prelude = (
        "import os, signal, sys, time\nfrom pathlib import Path\n"
        "from tinylm.files import *\nfrom tinylm import errors, files\n"
    )
    command = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Waits up to 30 seconds; returns the exit status (minus the signal, if killed), stdout and stderr."""
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- atomic_write


def test_atomic_write_creates_folders_and_replaces_content(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    for content in (b"one", b"", b"\0\r\n\xff"):
        with atomic_write(path) as file:
            file.write(content)
        assert path.read_bytes() == content
    assert names(path.parent) == ["file"]


def test_the_old_content_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with atomic_write(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


KILL_AT = """
def die(*arguments): os.kill(os.getpid(), signal.SIGKILL)
where, path = sys.argv[1], Path(sys.argv[2])
replace, replaced = os.replace, 0
def replace_then_die(*arguments): replace(*arguments); die()
if where == "fsync": os.fsync = die
if where == "replace": os.replace = die
if where == "replaced": os.replace = replace_then_die
"""


@posix
@pytest.mark.parametrize(
    ("where", "content"), [("block", "old"), ("fsync", "old"), ("replace", "old"), ("replaced", "new")]
)
def test_a_kill_leaves_the_old_file_or_the_new_one_whole(tmp_path, where, content):
    path = tmp_path / "file"
    write_text(path, "old")
    code = KILL_AT + (
        "with atomic_write(path) as file:\n    file.write(b'new'); file.flush()\n    if where == 'block': die()"
    )
    assert finish(start(code, where, path))[0] == -signal.SIGKILL
    assert path.read_text() == content
    sweep(tmp_path, older_than=0)
    assert names(tmp_path) == ["file"]


# --- atomic_folder


def fill(folder, content):
    for name in ("config", "weights"):
        (folder / name).write_text(content)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_atomic_folder_replaces_a_folder_whole(tmp_path):
    path = tmp_path / "deep" / "model"
    with atomic_folder(path) as folder:
        fill(folder, "old")
        (folder / "extra").write_text("replaced")
        assert not path.exists()
    with atomic_folder(path) as folder:
        fill(folder, "new")
        assert contents(path)["config"] == "old"
    assert contents(path) == {"config": "new", "weights": "new"}
    assert names(path.parent) == ["model"]


def test_a_folder_block_that_raises_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        fill(folder, "old")
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        (folder / "config").write_text("new")
        raise ZeroDivisionError
    assert contents(path) == {"config": "old", "weights": "old"}
    assert names(tmp_path) == ["model"]


@posix
@pytest.mark.parametrize("where", ["block", "replace", "replaced"])
def test_a_kill_never_leaves_a_mixture_of_two_folders(tmp_path, where):
    """Between the two renames the folder is missing, but the old one still exists under a temporary name."""
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        fill(folder, "old")
    code = KILL_AT + (
        "with atomic_folder(path) as folder:\n"
        "    (folder / 'config').write_text('new')\n"
        "    if where == 'block': die()\n"
        "    (folder / 'weights').write_text('new')"
    )
    assert finish(start(code, where, path))[0] == -signal.SIGKILL
    folders = [contents(folder) for folder in tmp_path.iterdir()]
    assert {"config": "old", "weights": "old"} in folders
    assert path.exists() == (where != "replaced")
    assert not path.exists() or contents(path) == {"config": "old", "weights": "old"}


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["io", "interrupt"])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, error):
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        fill(folder, "old")
    rename = os.replace

    def failing(source, target):
        if Path(target) == path and "config" in contents(Path(source)) and contents(Path(source))["config"] == "new":
            raise error
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", failing)
        with pytest.raises((StorageError, KeyboardInterrupt)), atomic_folder(path) as folder:
            fill(folder, "new")
    assert contents(path) == {"config": "old", "weights": "old"}


# --- errors and exit codes


def use(manager):
    with manager:
        pass


@pytest.mark.parametrize(
    "create",
    [
        lambda path: write_text(path, "x"),
        make_folder,
        lambda path: use(atomic_folder(path)),
        lambda path: use(locked(path)),
    ],
    ids=["atomic_write", "make_folder", "atomic_folder", "locked"],
)
@pytest.mark.parametrize("below", ["sub", "sub/deeper"])
def test_a_path_that_cannot_be_created_is_exit_code_73(tmp_path, create, below):
    """The path is below a regular file, where even root cannot create anything."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match=r"file.*: cannot be created \(.+\); choose a folder you can") as error:
        create(tmp_path / "file" / below)
    assert error.value.exit_code == 73


@posix
@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_exit_code_73(tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    with pytest.raises(CannotCreateError, match="choose a folder you can write"):
        write_text(folder / "file", "x")


@posix
def test_a_file_that_grows_too_large_is_a_storage_error_and_the_old_one_is_intact(tmp_path):
    """RLIMIT_FSIZE simulates a full disk: writing a real file fails midway with an OSError."""
    path = tmp_path / "file"
    write_text(path, "old")
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    with atomic_write(sys.argv[1]) as file:
        for _ in range(100): file.write(b"x" * 1000)
except errors.StorageError as error:
    print(error); sys.exit(error.exit_code)
"""
    status, output, _ = finish(start(code, path))
    assert status == 74
    assert output.startswith(f"{path}: could not be written (")
    assert output.endswith("the previous content is intact\n")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


FOREIGN_ERRORS = [
    MissingInputError("corpus.txt: no such file"),
    FileNotFoundError(2, "No such file", "elsewhere.txt"),
    ConnectionRefusedError(111, "Connection refused"),
]


@pytest.mark.parametrize("error", FOREIGN_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("manager", [locked, atomic_write, atomic_folder], ids=lambda manager: manager.__name__)
def test_an_error_in_the_block_about_another_file_is_not_changed(tmp_path, manager, error):
    """A missing corpus while a lock is held is exit code 66; it is not reported as a failure to create the lock."""
    with pytest.raises(type(error)) as raised, manager(tmp_path / "file"):
        raise error
    assert raised.value is error


# --- sweep


def test_sweep_removes_old_leftovers_and_nothing_else(tmp_path):
    def leave(name, age, folder=False):
        path = tmp_path / name
        if folder:
            path.mkdir()
            fill(path, "x")
        else:
            path.write_text("x")
        os.utime(path, (time.time() - age,) * 2)
        return path

    old = [leave(".tmp-model-1-a", 3700), leave(".tmp-folder-2-b", 3700, folder=True)]
    leave(".tmp-young-3-c", 3500)
    leave("ordinary", 10**6)
    leave("other.tmp-", 10**6)
    (tmp_path / "sub").mkdir()
    leave("sub/.tmp-below-4-d", 10**6)
    assert sorted(sweep(tmp_path)) == sorted(old)
    assert names(tmp_path) == [".tmp-young-3-c", "ordinary", "other.tmp-", "sub"]
    assert names(tmp_path / "sub") == [".tmp-below-4-d"]
    assert sweep(tmp_path / "missing") == []


# --- locks


COUNT = """
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(15):
    with locked(lock):
        number = int(counter.read_text())
        time.sleep(0.002)
        counter.write_text(str(number + 1))
"""


def test_two_processes_under_one_lock_lose_no_update(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [start(COUNT, tmp_path / "folder" / "lock", counter) for _ in range(2)]
    assert [finish(process)[0] for process in processes] == [0, 0]
    assert counter.read_text() == "30"


@posix
def test_a_killed_holder_does_not_block_the_next(tmp_path):
    lock = tmp_path / "lock"
    holder = start("with locked(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)", lock)
    assert holder.stdout.readline() == "held\n"
    waiting = start("with locked(sys.argv[1]):\n    print('acquired')", lock)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=0.5)
    holder.kill()
    assert finish(waiting)[:2] == (0, "acquired\n")
    holder.communicate()


# --- SHA-256


def test_sha256_matches_the_standard():
    """The first example of FIPS 180-2, and the empty message."""
    assert sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_sha256_of_a_file_equals_that_of_its_bytes(tmp_path):
    data = bytes(range(256)) * 5000  # larger than one read
    (tmp_path / "file").write_bytes(data)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_sha256_of_json_ignores_only_the_order_of_keys():
    assert sha256_json({"a": 1, "b": [1, 2]}) == sha256_json({"b": [1, 2], "a": 1})
    assert sha256_json({"a": 1, "b": [1, 2]}) != sha256_json({"a": 1, "b": [2, 1]})
    assert sha256_json({"b": 1, "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()


# --- seals

MEMBERS = {"data/a": b"0123456789", "data/b": b"abc"}


def archive_bytes(path, seal):
    with path.open("w+b") as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in MEMBERS.items():
                archive.writestr(name, content)
        if seal:
            seal_zip(file)
    return path.read_bytes()


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def flips(whole):
    """Yields a copy for each bit, with that bit flipped."""
    for bit in range(8 * len(whole)):
        yield whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]


def truncations(whole):
    yield from (whole[:length] for length in range(len(whole)))


def passes(path):
    try:
        check_seal(path)
    except DataError as error:
        assert f"{path}: is " in str(error)
        return False
    return True


@pytest.mark.parametrize("seal", [True, False], ids=["sealed", "as-lightning-writes-it"])
def test_an_intact_archive_passes_and_remains_an_ordinary_zip(tmp_path, seal):
    path = tmp_path / "file.ckpt"
    archive_bytes(path, seal)
    assert passes(path)
    assert members(path) == MEMBERS


@pytest.mark.parametrize("damages", [flips, truncations])
def test_damage_anywhere_in_a_sealed_archive_is_detected(tmp_path, damages):
    """Damage to the seal itself may pass, since the CRCs show that the archive is intact."""
    path = tmp_path / "file.ckpt"
    for damaged in damages(archive_bytes(path, seal=True)):
        path.write_bytes(damaged)
        assert not passes(path) or members(path) == MEMBERS


def test_every_flipped_bit_before_the_seal_is_detected(tmp_path):
    """Including padding and time stamps, which no CRC covers."""
    path = tmp_path / "file.ckpt"
    whole = archive_bytes(path, seal=True)
    body = len(archive_bytes(path, seal=False)) - 2  # the length of the comment belongs to the seal
    for damaged in flips(whole[:body]):
        path.write_bytes(damaged + whole[body:])
        assert not passes(path)


@pytest.mark.parametrize("damages", [flips, truncations])
def test_damage_of_an_unsealed_archive_never_gives_wrong_bytes(tmp_path, damages):
    """CRCs cover each member but not the directory, so a member may go missing, which loading detects."""
    path = tmp_path / "file.ckpt"
    for damaged in damages(archive_bytes(path, seal=False)):
        path.write_bytes(damaged)
        assert not passes(path) or members(path).items() <= MEMBERS.items()


def test_a_file_that_is_not_an_archive_cannot_be_sealed():
    with pytest.raises(ValueError, match="not a zip archive"):
        seal_zip(io.BytesIO(b"x" * 100))


# --- JSON and text


def test_json_round_trip_keeps_unicode_and_is_readable(tmp_path):
    data = {"é": [1, 2.5, None, True], "text": "a\r\nb\u2028"}
    write_json(tmp_path / "file", data)
    assert read_json(tmp_path / "file") == data
    assert "é" in (tmp_path / "file").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{'a': 1}"])
def test_invalid_json_is_a_data_error(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match="file: is not valid JSON"):
        read_json(tmp_path / "file")


MEGABYTE = 1 << 20


def test_a_missing_text_is_a_missing_input(tmp_path):
    with pytest.raises(MissingInputError, match="corpus: no such file"):
        list(read_chunks(tmp_path / "corpus"))


@settings(max_examples=20, deadline=None)
@given(st.text(), st.integers(MEGABYTE - 5, MEGABYTE + 1))
def test_chunks_join_to_the_text_across_any_boundary(tmp_path_factory, tail, before):
    """Characters of up to four bytes, CR and LF straddle the end of the first megabyte."""
    path = tmp_path_factory.getbasetemp() / "chunks"
    text = "a" * before + "\r\né한😀\0" + tail
    path.write_bytes(text.encode())
    digest = hashlib.sha256()
    assert "".join(read_chunks(path, digest=digest)) == text
    assert digest.hexdigest() == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("before", [0, 3, MEGABYTE - 4, MEGABYTE - 1, MEGABYTE, MEGABYTE + 1, 2 * MEGABYTE + 3])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xf0\x9f\x98", b"\xed\xa0\x80"])
def test_invalid_utf8_is_refused_with_the_offset_of_its_first_byte(tmp_path, before, bad):
    """A stray byte, a broken sequence, a truncated character and a surrogate, each after a two-byte character."""
    path = tmp_path / "file"
    path.write_bytes(b"a" * before + "é".encode() + bad)
    with pytest.raises(DataError, match=rf"file: is not UTF-8 at byte {before + 2} \("):
        list(read_chunks(path))
    assert "".join(read_chunks(path, errors="replace")) == path.read_bytes().decode("utf-8", "replace")
    with pytest.raises(DataError, match=rf"file: is not UTF-8 at byte {before + 5} \("):
        check_utf8(path.read_bytes(), path, offset=3)
    check_utf8(path.read_bytes()[: before + 2], path)


def test_every_temporary_name_begins_as_sweep_expects(tmp_path):
    with atomic_write(tmp_path / "file"), atomic_folder(tmp_path / "folder"):
        assert all(name.startswith(files.TEMPORARY) for name in names(tmp_path))
        assert len(names(tmp_path)) == 2


# --- full disks: RLIMIT_FSIZE lets no file grow beyond a size

FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
path = Path(sys.argv[1])
try:
    {write}
except errors.StorageError as error:
    print(error); sys.exit(error.exit_code)
"""
LIBRARIES = {
    "torch": ("import torch, io", "with atomic_write(path) as file: torch.save({'w': torch.zeros(9999)}, file)"),
    "numpy": ("import numpy as np", "with atomic_write(path) as file: np.savez(file, w=np.zeros(9999))"),
    "matplotlib": (
        "from tinylm.runs.plots import *",
        "draw([Curves('', {'lr': (np.arange(99), np.arange(99))})], [path], panels=['lr'])",
    ),
    "text": ("", "write_text(path, 'x' * 9999)"),
    "append": ("", "append_text(path, 'x' * 9999)"),
}


@posix
@pytest.mark.parametrize(("imports", "write"), LIBRARIES.values(), ids=LIBRARIES)
def test_a_full_disk_is_74_with_path_and_bytes_whatever_the_library_raises(imports, write, tmp_path):
    path = tmp_path / "file.png"
    path.write_text("old")
    status, output, errors = finish(start(f"{imports}\n{FULL.format(write=write)}", path))
    assert status == 74, errors
    size = "9,999 bytes to append" if "append" in write else r"after [0-9,]+ bytes"
    assert re.fullmatch(
        rf"{re.escape(str(path))}: could not be written \(File too large, {size}\); the previous content is intact\n",
        output,
    ), output
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.png"]


@pytest.mark.slow
@posix
def test_a_full_disk_under_a_folder_names_the_folder(tmp_path):
    """safetensors writes by itself; the JSON file in the folder fails under the folder's temporary name."""
    for line in ("save_file({'w': torch.zeros(9999)}, new / 'w')", "write_json(new / 'j', 'x' * 9999)"):
        write = f"with atomic_folder(path) as new: {line}"
        code = f"import torch\nfrom safetensors.torch import save_file\n{FULL.format(write=write)}"
        status, output, errors = finish(start(code, tmp_path / "model"))
        assert status == 74, errors
        expected = (
            rf"{tmp_path}/model: could not be written \(File too large, after [0-9,]+ bytes\); free some space.*\n"
        )
        assert re.fullmatch(expected, output), output
        assert names(tmp_path) == []


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask_in_folders_too(umask, mode, tmp_path):
    """safetensors creates files that only their owner can read."""
    write = "with atomic_folder(path / 'm') as new: save_file({'w': np.zeros(3)}, new / 'w')"
    code = f"import numpy as np\nfrom safetensors.numpy import save_file\npath = Path(sys.argv[1])\n{write}\n"
    assert finish(start(f"os.umask({umask})\n{code}write_text(path / 't', 'x')", tmp_path))[0] == 0
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "m" / "w", tmp_path / "t")] == [mode, mode]
