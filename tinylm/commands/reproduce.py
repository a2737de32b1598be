"""Prints how to train a run again, and what differs today from when it was trained.

tinylm reproduce runs/small
tinylm reproduce runs/small --run

Nothing is checked out or installed. --run trains again from the config of the run, with the code and the packages that
are installed now, and compares the losses in metrics.csv: exit code 0 if all are the same to the last digit, else 70.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinylm.console import Parser
from tinylm.errors import ConfigError, DataError, MissingInputError, NumericError, notice
from tinylm.locate import MANIFEST, command
from tinylm.runs.compare import read_config
from tinylm.runs.folder import RECORD, RUN_FOLDER
from tinylm.runs.losses import compare_losses
from tinylm.runs.provenance import read_record, repositories
from tinylm.runs.repository import Repository, has_commit
from tinylm.signals import SIGNALS

NOTHING = "nothing that is recorded differs today"
MOST = 4  # names shown
COMMIT, VERSION = re.compile(r"[0-9a-f]{40,64}"), re.compile(r"\w[\w.+!-]*")
WHEELS = "https://download.pytorch.org/whl"  # PyTorch's builds with a local version, such as +cpu


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = Parser("reproduce", __doc__)
    parser.add_argument("run", type=Path, help="run folder, or model folder")
    parser.add_argument("--run", dest="again", action="store_true", help="train it again, and compare the losses")
    trusted = "with --run: a module of yours whose classes its config names; may be repeated"
    parser.add_argument("--trust", action="append", default=[], metavar="MODULE", help=trusted)
    options = parser.parse(arguments)
    if options.trust and not options.again:
        raise ConfigError("--trust: does not work without --run; leave it out")
    return options


def run(arguments: list[str]) -> int:
    """Prints the report; with `--run`, trains and compares."""
    options = parse(arguments)
    folder = find_run(options.run)
    record = open_record(folder)
    new = new_folder(folder)
    words = fit_words(folder, new, record) if (folder / "config.yaml").is_file() else None
    if options.again:
        check_again(folder, record, words, options.trust)
    print("\n".join([*summary(folder, record), *commands(folder, record, words)]), flush=True)

    from tinylm.commands.reproduce_today import differences_today

    found = differences_today(record, read_config(folder) if words else None)
    print("\n".join(["different today:", *(f"  {plain(each)}" for each in found)] if found else [NOTHING]), flush=True)
    if not options.again or words is None:
        return 0
    trust = [word for module in options.trust for word in ("--trust", module)]
    return train_again([*words, *trust], threads(record)) or compare(folder, new)


# --- the record


def find_run(path: Path) -> Path:
    """The run folder at a path, or the run folder of the model folder there; any other model folder is returned."""
    for folder in (path, path.parent):
        if (folder / "config.yaml").is_file() and (folder == path or path.name == "model"):
            return folder
    if (path / MANIFEST).is_file():
        return path
    raise MissingInputError(f"{path}: not a run folder or model folder; give the folder of a run, such as runs/small")


def open_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run or model folder; None for a run without one."""
    if (folder / RECORD).is_file():
        return read_record(folder / RECORD)
    return None if (folder / "config.yaml").is_file() else read_record(folder / MANIFEST)


def plain(value: Any) -> str:
    """A value of a record on one line, without control characters."""
    return "".join(character for character in " ".join(str(value).split()) if character.isprintable())


def names(values: list[Any]) -> str:
    """The first few of several names."""
    shown, rest = ", ".join(map(str, values[:MOST])), len(values) - MOST
    return plain(f"{shown} and {rest} more" if rest > 0 else shown)


def threads(record: dict[str, Any] | None) -> int | None:
    """The threads of the run, if they are known."""
    found = None if record is None else record["compute"].get("threads")
    return found if isinstance(found, int) and 0 < found < 10_000 else None


def summary(folder: Path, record: dict[str, Any] | None) -> list[str]:
    """Steps and times of the run, and the changes at each resume."""
    if record is None:
        unknown = "its code, versions, machine, text, tokenizer and given options are unknown"
        return [f"{folder}: has no {RECORD}, as it was trained by an older tinylm: {unknown}"]
    starts = record["starts"]
    begin, end, last = starts[0].get("begun"), starts[-1].get("ended"), starts[-1].get("last_step")
    where = f"{last:,} steps, from {begin} to {end}" if isinstance(last, int) and end else f"begun {begin}, and stopped"
    lines = [f"{folder}: {plain(record.get('command'))}, {plain(where)}"]
    for start in starts[1:]:
        changes = [f"{name} {value}" for name, value in (start.get("changed") or {}).items()]
        changes += [f"config: {each}" for each in start.get("config") or []]
        lines.append(plain(f"resumed from step {start.get('step')}: {'; '.join(changes) or 'nothing changed'}"))
    return lines


# --- the commands


def new_folder(folder: Path) -> Path:
    """The folder of a new run beside an existing one: `small-again`, or the first free number of it."""
    name, number = f"{folder.resolve().name}-again", 2
    place = folder.parent if folder.name else folder.resolve().parent
    new = place / name
    while new.exists():
        new, number = place / f"{name}-{number}", number + 1
    return new


def fit_words(folder: Path, new: Path, record: dict[str, Any] | None) -> list[str]:
    """The words after `tinylm` that train the run again."""
    head = (folder / "config.yaml").read_text(encoding="utf-8", errors="replace")[:100]
    name = "train-numpy" if head.startswith("# tinylm train-numpy") else "fit"
    words = [name, "-c", str(folder / "config.yaml"), "--run.dir", str(new.parent), "--run.name", new.name]
    parts = None if record is None else record["options"].get("threads")
    return [*words, *(["--threads", str(parts)] if isinstance(parts, int) else [])]


def recorded_trust(record: dict[str, Any] | None) -> list[str]:
    """The modules that the command line of the run trusted."""
    return [] if record is None else [str(each) for each in record["options"].get("trust") or []]


def commands(folder: Path, record: dict[str, Any] | None, words: list[str] | None) -> list[str]:
    """The lines to type in a shell: code, packages, threads, training."""
    lines = ["to train it again:"]
    if record is not None:
        lines += [*code(folder, record), *install(record)]
        if count := threads(record):
            lines.append(f"{'set' if os.name == 'nt' else 'export'} OMP_NUM_THREADS={count}")
        if (processes := record["compute"].get("processes")) != 1 or record["compute"].get("launcher"):
            launcher = record["compute"].get("launcher") or "Lightning"
            lines.append(f"# {plain(processes)} processes, started by {plain(launcher)}")
    if words is not None:
        lines.append(command(*words, *(word for each in recorded_trust(record) for word in ("--trust", each))))
    elif record is not None:
        typed = [[str(word) for word in start.get("command_line") or ()][1:] for start in record["starts"]]
        lines.append("# its config is in the run folder, which is not here; the command line was:")
        lines += [f"# {plain(command(*each))}" for each in typed]
    return [lines[0], *(f"  {line}" for line in lines[1:])]


def code(folder: Path, record: dict[str, Any]) -> list[str]:
    """The commands that restore the code of the run, in the repositories of tinylm and of the working folder."""
    lines, today = [], repositories()
    for name, state in record["code"].items():
        commit = str(state.get("commit"))
        repository = today.get(name) or today.get("tinylm")
        if not COMMIT.fullmatch(commit) or repository is None:
            lines.append(f"# {name}: the code was that of commit {plain(commit)}, and there is no repository here")
            continue
        lines += [f"# {name}: this repository does not have the commit"] * (not has_commit(repository.root, commit))
        lines.append(in_repository(repository, "checkout", commit))
        lines += local_changes(folder, repository, name, state)
    return lines


def local_changes(folder: Path, repository: Repository, name: str, state: dict[str, Any]) -> list[str]:
    """The command that applies the run's local changes, and remarks on changes that cannot be restored."""
    lines, diff = [], str(state.get("diff"))
    if state.get("diff") and (folder / Path(diff).name).is_file():
        lines.append(in_repository(repository, "apply", str((folder / Path(diff).name).resolve())))
    elif state.get("changed"):
        lines.append(f"# {name}: local changes that are not kept: {names(state['changed'])}")
    if state.get("untracked"):
        lines.append(f"# {name}: not in the commit: {names(state['untracked'])}")
    return lines


def in_repository(repository: Repository, *words: str) -> str:
    """A git command for a repository, which may differ from that of the current folder."""
    place = min(os.path.relpath(repository.root), str(repository.root), key=len)
    return shlex.join(["git", *([] if place == "." else ["-C", place]), *words])


def install(record: dict[str, Any]) -> list[str]:
    """The command that installs the versions of the run."""
    versions = {name: str(value) for name, value in record["versions"].items() if VERSION.fullmatch(str(value))}
    python = versions.pop("python", "?")
    if record["code"].get("tinylm"):
        versions.pop("tinylm", None)
    local = versions.get("torch", "").partition("+")[2]
    wheels = [f"--extra-index-url {WHEELS}/{local}"] if local else []
    packages = [f"{name}=={value}" for name, value in versions.items() if value != "None"]
    return [f"{' '.join(['python -m pip install', *packages, *wheels])}  # Python {python}"]


# --- training again


def check_again(folder: Path, record: dict[str, Any] | None, words: list[str] | None, trust: list[str]) -> None:
    """Refuses `--run` where the run cannot be repeated by one command of this process.

    Raises:
        ConfigError: naming the reason.
        DataError: if the run has no losses to compare with.
    """
    if words is None:
        raise ConfigError(f"--run: {folder} has no config.yaml; give the run folder")
    if not (folder / "metrics.csv").is_file():
        raise DataError(f"{folder}: has no metrics.csv, so there are no losses to compare with; leave out --run")
    if (read_config(folder).get("run") or {}).get("seconds") is not None:
        raise ConfigError("--run: the steps of the run followed the clock (run.seconds), which no second run repeats")
    if launcher := None if record is None else record["compute"].get("launcher"):
        raise ConfigError(f"--run: the run was started by {plain(launcher)}; start the printed command the same way")
    if missing := [each for each in recorded_trust(record) if each not in trust]:
        raise ConfigError(
            f"--run: imports {missing[0]}, which runs its code; if you trust it, add --trust {missing[0]}"
        )


def train_again(words: list[str], count: int | None) -> int:
    """Trains in a process with this number of threads, passes signals on to it, and returns its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != RUN_FOLDER}
    if count is not None:
        environment["OMP_NUM_THREADS"] = str(count)
    notice(f"training again: {command(*words)}")
    program = [sys.executable, "-m", "tinylm", *words]
    process = subprocess.Popen(program, env=environment, start_new_session=os.name == "posix")  # we pass Ctrl-C on
    earlier = {number: signal.signal(number, lambda sent, _: process.send_signal(sent)) for number in SIGNALS}
    try:
        return process.wait()
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def compare(folder: Path, new: Path) -> int:
    """Prints whether the losses of the new run are those of the first one.

    Raises:
        NumericError: naming the first loss that differs.
    """
    found = compare_losses(folder, new)
    if found.first is None:
        print(f"{new}: all {found.rows:,} losses are those of {folder}, to the last digit")
        return 0
    step, name, ours, theirs = found.first
    where = f"at step {step:,} {name} is {theirs}, and was {ours}"
    equal = f"{found.equal:,} of {found.rows:,} losses are the same"
    raise NumericError(f"{new}: not the losses of {folder}: {where}; {equal}; see what differs today, above")
