"""run.json: the code, versions, machine, data and parents that made a run, with an entry for every start.

    run.json    the facts of the first start, and `starts`: begin, end, steps, command line and what had changed
    run.diff    local changes of tinylm's clone or of the working folder's repository, for `git apply`

Host, user and secrets are left out. The model folder carries the same record under `provenance`.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tinylm import __version__
from tinylm.errors import DataError, TinyLMError, notice
from tinylm.files import atomic_write, read_json, sha256_bytes, sha256_file, sha256_json, write_json
from tinylm.locate import MANIFEST
from tinylm.runs.folder import RECORD
from tinylm.runs.masking import impersonal, masked, masked_words
from tinylm.runs.repository import Repository, find_repository, own_repository
from tinylm.runs.settings import flat_config

ENTRY = "provenance"  # of a model folder's information
FORMAT = 1
PACKAGES = ("torch", "lightning", "numpy")
GROUPS = ("code", "versions", "machine", "compute", "text", "tokenizer", "seeds", "parents", "plugins", "options")
MOST_NAMES = 50  # of changed and of untracked files


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The facts of a start that only the run itself knows; all values are plain.

    Attributes:
        command: `fit` or `train-numpy`
        words: the command line after `tinylm`
        compute: accelerator, number of processes, precision, threads, launcher
        devices: names of the accelerators
        text: name and fingerprint of the text, with the fingerprints of its sources
        tokenizer: kind and SHA-256
        seeds: by option
        parents: by option, the checkpoint from which the run began: path, step, SHA-256
        plugins: class path -> SHA-256 of its source
        options: options that config.yaml leaves out
        given: names of the options whose value is not the default
    """

    command: str
    words: Sequence[str]
    compute: dict[str, Any]
    text: dict[str, Any]
    tokenizer: dict[str, Any]
    seeds: dict[str, Any]
    devices: Sequence[str] = ()
    parents: dict[str, Any] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    given: Sequence[str] = ()


# --- the record of a run


def begin_record(folder: Path, facts: RunFacts, step: int, changes: Iterable[str] = ()) -> None:
    """Adds a start to run.json, and creates the file for the first one.

    Args:
        folder: the run folder
        facts: what the run knows
        step: optimizer step from which this start continues
        changes: differences from the config of the previous start
    """
    now = {
        "command": facts.command, "code": _code(folder), "versions": versions(), "machine": machine(facts.devices),
        "compute": facts.compute, "text": facts.text, "tokenizer": facts.tokenizer, "seeds": facts.seeds,
        "parents": facts.parents, "plugins": facts.plugins, "options": facts.options, "given": [*facts.given],
    }  # fmt: skip
    start: dict[str, Any] = {"begun": _time(), "ended": None, "step": step, "last_step": None}
    start["command_line"] = ["tinylm", facts.command, *masked_words(facts.words)]
    earlier = _earlier(folder)
    starts = [] if earlier is None else earlier["starts"]
    if earlier is None or step == 0:  # the weights come from this start
        record = {"format": FORMAT, "run": folder.resolve().name, **now, "starts": starts}
    else:
        record, start["changed"] = earlier, {name: pair[1] for name, pair in differences(earlier, now).items()}
    if changes := [*changes]:
        start["config"] = changes
    write_json(folder / RECORD, {**record, "starts": [*starts, start]})


def end_record(folder: Path, step: int) -> None:
    """Notes the end of the last start, and its last step."""
    try:
        record = read_record(folder / RECORD)
    except (DataError, OSError) as error:
        return notice(f"warning: the end of the run is not recorded: {error}")
    record["starts"][-1] |= {"ended": _time(), "last_step": step}
    write_json(folder / RECORD, record)


def bundle_record(folder: Path) -> dict[str, Any]:
    """The record of a run as an entry of its model's information; empty if it has none."""
    with contextlib.suppress(TinyLMError, OSError):
        return {ENTRY: read_record(folder / RECORD)}
    return {}


def read_record(path: Path) -> dict[str, Any]:
    """Reads run.json, or the record in the manifest of a model folder.

    Raises:
        DataError: if there is none, or it is damaged.
    """
    record = read_json(path)
    if path.name == MANIFEST:
        record = record.get("info", {}).get(ENTRY) if isinstance(record, dict) else None
        if record is None:
            raise DataError(f"{path}: has no record of its run, which was made by an older tinylm or another program")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else None
        raise DataError(f"{path}: has format {found}, this tinylm reads format {FORMAT}")
    starts = record.get("starts")
    whole = isinstance(starts, list) and starts and all(isinstance(each, dict) for each in starts)
    if not whole or not all(isinstance(record.get(name), dict) for name in GROUPS):
        raise DataError(f"{path}: is damaged (it must have starts, {', '.join(GROUPS)})")
    return record


def code_and_versions(record: dict[str, Any] | None) -> dict[str, str]:
    """Commit and versions of a record for a table, such as a model card's; empty without a record."""
    if record is None:
        return {}
    found = {}
    for name, state in record["code"].items():
        changed = " with local changes" if state.get("changed") else ""
        found[f"commit of {'tinylm' if name == 'tinylm' else 'the project'}"] = f"{state.get('commit')}{changed}"
    return {**found, "versions": ", ".join(f"{name} {value}" for name, value in record["versions"].items())}


def _earlier(folder: Path) -> dict[str, Any] | None:
    """The record so far; None without one. A damaged record is set aside, and the run continues."""
    if not (folder / RECORD).is_file():
        return None
    try:
        return read_record(folder / RECORD)
    except DataError as error:
        copy = folder / "run-damaged.json"
        shutil.copyfile(folder / RECORD, copy)
        notice(f"warning: {error}; a new record begins, {copy} is a copy")
        return None


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The facts that differ, by dotted name: (then, now); None where a fact is unknown."""
    pairs = {}
    for group in GROUPS:
        before, after = flat_config(then[group], f"{group}."), flat_config(now[group], f"{group}.")
        pairs |= {name: (before.get(name), after.get(name)) for name in {**before, **after}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- facts


def versions() -> dict[str, str | None]:
    """Versions of Python, tinylm and the packages whose code computes."""
    found: dict[str, str | None] = {"python": platform.python_version(), "tinylm": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine(devices: Sequence[str] = ()) -> dict[str, Any]:
    """System, processor with its vector instructions, and the names of accelerators; no names of hosts."""
    torch = sys.modules.get("torch")
    instructions = None if torch is None else torch.backends.cpu.get_cpu_capability()
    system = f"{platform.system()} {platform.machine()}"
    return {"system": system, "processor": _processor(), "instructions": instructions, "devices": [*devices]}


def _processor() -> str:
    """The model of the processor, as in `AMD EPYC 7763 64-Core Processor`."""
    with contextlib.suppress(OSError):
        if found := re.search(
            r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
        ):
            return found[1].strip()
    if sys.platform == "darwin":
        words = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return platform.processor() or platform.machine()


def launcher() -> str | None:
    """The launcher in whose environment this process runs: torchrun or SLURM."""
    return "torchrun" if "TORCHELASTIC_RUN_ID" in os.environ else "SLURM" if "SLURM_PROCID" in os.environ else None


def parent(path: str | Path, step: int | None) -> dict[str, Any]:
    """A checkpoint or model from which a run begins: path, step, SHA-256.

    For a model folder, the SHA-256 is that of the manifest, which lists those of the other files; for another folder,
    it covers all files.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        digest = sha256_file(path / MANIFEST)
    elif path.is_dir():
        digest = sha256_json({each.name: sha256_file(each) for each in path.iterdir() if each.is_file()})
    else:
        digest = sha256_file(path)
    return {"path": impersonal(str(path)), "step": step, "sha256": digest}


# --- code


def repositories() -> dict[str, Repository]:
    """The repositories of tinylm (`tinylm`) and of the working folder (`folder`), if that is another."""
    found = {"tinylm": own_repository(), "folder": find_repository(Path.cwd())}
    if found["tinylm"] and found["folder"] and found["tinylm"].root == found["folder"].root:
        del found["folder"]
    return {name: repository for name, repository in found.items() if repository is not None}


def code_state(repository: Repository) -> dict[str, Any]:
    """Commit, changed and untracked files of a repository, and the SHA-256 of the changes."""
    changed, diff = repository.changed, None if repository.diff is None else masked_diff(repository.diff)
    return {
        "commit": repository.commit,
        "changed": None if changed is None else [*changed[:MOST_NAMES]],
        "diff_sha256": sha256_bytes(diff) if diff else None,
        "untracked": [*repository.untracked[:MOST_NAMES]],
    }


def masked_diff(diff: bytes) -> bytes:
    """A diff without secrets of the environment; unchanged if it contains none."""
    text = diff.decode("utf-8", "surrogateescape")
    return masked(text, named=False).encode("utf-8", "surrogateescape")


def _code(folder: Path) -> dict[str, Any]:
    """The state of the repositories; their changes are kept in the run folder."""
    found = {}
    for name, repository in repositories().items():
        found[name] = state = code_state(repository)
        own = os.path.relpath(folder.resolve(), repository.root) + "/"
        state["untracked"] = [each for each in state["untracked"] if not own.startswith(each)]
        state["diff"] = _keep(folder, masked_diff(repository.diff)) if repository.diff else None
    return found


def _keep(folder: Path, diff: bytes) -> str:
    """Writes a diff as run.diff, run-2.diff, ... and returns the name; an existing copy of it is reused."""
    path, number = folder / "run.diff", 1
    while path.is_file() and path.read_bytes() != diff:
        number += 1
        path = folder / f"run-{number}.diff"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(diff)
    return path.name
