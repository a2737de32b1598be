"""Kills training runs with SIGKILL, resumes them, and compares each with a run that was never stopped.

    python scripts/bench/crash.py --kills 200 --seed 1

Every second kill comes at a random moment between the start of the process and its end, every second one right after a
call that changes a file (a write, fsync, rename, ...), and some of the resumed runs are killed again. A run is resumed
as a user would: by `--resume` or, where that finds nothing, by the first command. In the end everything in the run
folder must equal the whole run's, to the last bit: weights, optimizer, schedule, counters, metrics, samples, model. Only
measured speeds (`perf/*`) may differ. After every kill all checkpoints that exist must load.
"""

import argparse
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the last bits depend on it
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 (after the path is set)
import torch  # noqa: E402
import yaml  # noqa: E402

from tests import processes  # noqa: E402
from tinylm.bundle import load_bundle, read_checkpoint, save_bundle  # noqa: E402
from tinylm.console import table  # noqa: E402
from tinylm.model import ModelConfig, TransformerLM  # noqa: E402
from tinylm.reference.checkpoint import read_checkpoint as read_numpy_checkpoint  # noqa: E402
from tinylm.runs.metrics import read_metrics  # noqa: E402
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer  # noqa: E402

# --- the variants: a config, and what each changes in it

CONFIG = """
model:
  network: {d_model: 16, num_layers: 1, num_heads: 2, max_seq_len: 16, dropout: 0.1}
  optimizer: {name: muon, lr: 0.01}
  schedule: {warmup_steps: 2, min_lr: 0.001}
data: {corpus: INPUTS/fox.txt, tokenizer: char, batch_size: 4, split: [0.9, 0.1], cache_dir: cache}
run: {prompts: ["the "], sample_tokens: 4, peak_flops: 1.0e+12}
trainer:
  accelerator: cpu
  max_steps: 28
  gradient_clip_val: 1.0
  val_check_interval: 8
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  callbacks:
    - {class_path: tinylm.training.LastCheckpoint, init_args: {every_n_train_steps: 5}}
"""
PAIRS = "data: {pairs: INPUTS/pairs.jsonl, split: [0.8, 0.2]"
CALLBACK = "trainer: {callbacks+: [{class_path: "


@dataclass(frozen=True)
class Variant:
    """Changes of the config, the command, and environment variables."""

    changes: str = ""
    command: str = "fit"
    environment: dict[str, str] = field(default_factory=dict)


VARIANTS = {
    "muon": Variant(),
    "adamw": Variant("model: {optimizer: {name: adamw}}"),
    "sgd": Variant("model: {optimizer: {name: sgd, lr: 0.1}}"),
    "accumulation": Variant("data: {micro_batch_size: 1}"),
    "epochs": Variant("{data: {train_tokens: 600}, trainer: {max_steps: -1, max_epochs: 3}}"),
    "epochs-steps": Variant(
        "{data: {train_tokens: 600, micro_batch_size: 2}, trainer: {max_steps: 25, max_epochs: 4, "
        "val_check_interval: 1.0, check_val_every_n_epoch: 1}}"
    ),
    "fractions": Variant(
        "{data: {train_tokens: 600, micro_batch_size: 1}, trainer: {max_steps: -1, max_epochs: 3, "
        "val_check_interval: 0.3, check_val_every_n_epoch: 1}}"
    ),
    "workers": Variant("data: {num_workers: 2}"),
    "lora": Variant(f"{PAIRS}}}\nmodel: {{init_from: INPUTS/base, lora: {{rank: 4, dropout: 0.1}}}}"),
    "packing": Variant(
        f"{PAIRS}, packing: true}}\nmodel: {{init_from: INPUTS/base, network: {{document_mask: true}}}}\n"
        "trainer: {max_steps: -1, max_epochs: 4}"
    ),
    "early-stopping": Variant(
        f"{CALLBACK}lightning.pytorch.callbacks.EarlyStopping, init_args: {{monitor: val/loss, patience: 2, "
        "min_delta: 2.0}}], max_steps: 60, val_check_interval: 7}"
    ),
    "annealing": Variant(f"{CALLBACK}tinylm.training.DropoutAnnealing}}]}}"),
    "inspection": Variant(
        f"{CALLBACK}tinylm.training.GradientNorms, init_args: {{every_n_steps: 4}}}}, "
        "{class_path: tinylm.training.AttentionEntropy, init_args: {every_n_steps: 6}}]}"
    ),
    "own-checkpoint": Variant(
        f"{CALLBACK}lightning.pytorch.callbacks.ModelCheckpoint, "
        "init_args: {every_n_train_steps: 6, save_top_k: -1}}]}"
    ),
    "tensorboard": Variant(
        "trainer: {logger+: [{class_path: lightning.pytorch.loggers.TensorBoardLogger, "
        "init_args: {save_dir: '{run}', name: '', version: tensorboard}}]}"
    ),
    "wandb": Variant(
        "trainer: {logger+: [{class_path: tinylm.training.WandbTracker, init_args: {save_dir: '{run}'}}]}",
        environment={"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"},
    ),
    "two-ranks": Variant("trainer: {devices: 2, strategy: ddp}"),
    "numpy": Variant("data: {micro_batch_size: 2}", command="train-numpy"),
    "tmpdir": Variant(environment={"TMPDIR": "/dev/shm"}),
}


def write_inputs(folder: Path) -> None:
    """Writes the text, the pairs, a base model, and the configs."""
    folder.mkdir()
    lines = [f"the quick brown fox {number} jumps over the lazy dog {number * 7 % 13}.\n" for number in range(60)]
    (folder / "fox.txt").write_text("".join(lines))
    pairs = [{"prompt": f"fox {number}", "response": f" dog {number % 5}"} for number in range(30)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tokenizer = CharTokenizer.train_from_texts(lines, special_tokens=[END_OF_TEXT])
    torch.manual_seed(0)
    network = yaml.safe_load(CONFIG)["model"]["network"]
    model = TransformerLM(ModelConfig(vocab_size=tokenizer.vocab_size, **network))
    save_bundle(folder / "base", model, tokenizer)
    (folder / "crash.yaml").write_text(CONFIG.replace("INPUTS", str(folder)))
    for name, variant in VARIANTS.items():
        (folder / f"{name}.yaml").write_text(variant.changes.replace("INPUTS", str(folder)) or "{}")


# --- in the child process: counts the calls that change files, and kills the process after one of them

Place = tuple[str, int]  # a call with its file, and the number of its occurrence, from 1
CHANGES = ("write", "fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "truncate", "ftruncate")


def place_name(call: str, path: str) -> str:
    """The call and the file's name without numbers of processes and hashes."""
    name = re.sub(r"-\d+-[0-9a-f]{8}$|(?<=tfevents).*", "", Path(path).name)
    return f"{call} {re.sub(r'[0-9a-f]{8,}|[0-9]{8}_[0-9]{6}', '*', name)}"


def watch_files(passed: Callable[[str, str], None]) -> None:
    """Calls `passed(call, path)` after each call of this process that changes a file."""

    class Watched(io.FileIO):
        def write(self, data: Any) -> int:
            written = super().write(data)
            passed("write", str(self.name))
            return written

    plain = io.open

    def watched_open(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
        newline: Any = None, closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or isinstance(file, int) or opener:
            return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = Watched(file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    def watched(name: str) -> Callable:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            path = arguments[1] if name in ("replace", "rename") else arguments[0]
            passed(name, os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path))
            return result

        return call

    for name in CHANGES:
        setattr(os, name, watched(name))
    io.open = __builtins__["open"] = watched_open  # type: ignore[index]


def child(words: list[str], folder: Path, kill_after: Place | None, log: Path | None) -> None:
    """Runs `tinylm WORDS` in a folder, with the output in `said.txt`; kills itself after `kill_after`.

    Args:
        words: the command line
        folder: current folder of the command
        kill_after: place at which to end
        log: file to list all places in
    """
    os.setsid()  # a group of its own, which is killed with it
    tempfile.tempdir = None  # read again from the environment
    process, seen, write = os.getpid(), Counter[str](), os.write
    folders = (str(folder), os.environ["TMPDIR"])
    listing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log else None

    def passed(call: str, path: str) -> None:
        inside = os.path.abspath(path).startswith(folders)  # noqa: PTH100 (links are kept)
        if os.getpid() != process or not inside or path.endswith("said.txt"):
            return
        place = place_name(call, path)
        seen[place] += 1
        if listing is not None:
            write(listing, f"{place}\n".encode())
        if (place, seen[place]) == kill_after:
            os.kill(process, signal.SIGKILL)

    watch_files(passed)
    processes.command_line(words, folder, folder / "said.txt")


# --- what a run leaves behind


def wandb_rows(log: Path) -> Iterator[tuple]:
    """(step, metric, value) of a W&B log: protocol buffers in blocks of 32 KiB; CRC, length and kind before each."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, parts, place = log.read_bytes(), b"", 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts, place = parts + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4) and place <= len(data):  # whole, or the last part
            row = {"/".join(item.nested_key) or item.key: item.value_json for item in Record.FromString(parts).history.item}
            step = json.loads(row.pop("trainer/global_step", "-1"))
            yield from ((step, name, value) for name, value in row.items())
            parts = b""


def tensorboard_rows(log: Path) -> Iterator[tuple]:
    """(step, metric, value) of a file of TensorBoard's."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for event in EventFileLoader(str(log)).Load():
        yield from ((event.step, value.tag, str(value.tensor)) for value in event.summary.value)


def tracked(rows: Iterator[tuple]) -> set[tuple]:
    """Without speeds, times and what is not a number; a resumed run may give a row twice."""
    return {row for row in rows if not row[1].startswith(("perf/", "_", "samples", "curves"))}


def content(path: Path) -> Any:
    """The content of a file of a run, for comparison."""
    if path.suffix == ".ckpt":
        return read_checkpoint(path)
    if path.suffix == ".npz":
        found = read_numpy_checkpoint(path)
        return {"weights": found.model.parameters, "state": found.state, "step": found.step, "notes": found.notes}
    if path.name == "metrics.csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if not str(k).startswith("perf/")} for row in csv.DictReader(file)]
    if path.name == "wandb.json":
        return json.loads(path.read_text())["samples"]
    if path.name == "curves.png":  # shows speeds, too
        return path.read_bytes()[-12:]  # the end of a whole PNG
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below `runs`, and the names of the files in the other folders, which hold caches."""
    runs, found = folder / "runs", {}
    found["runs"] = sorted(path.name for path in runs.iterdir())
    logs: dict[str, set] = {"tensorboard": set(), "wandb": set()}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        if path.suffix == ".wandb":
            logs["wandb"] |= tracked(wandb_rows(path))
        elif "tfevents" in path.name:
            logs["tensorboard"] |= tracked(tensorboard_rows(path))
        elif "wandb" not in path.parts:
            found[str(path.relative_to(runs))] = content(path)
    for cache in ("cache", "tmp"):
        found[cache] = sorted({place_name("", str(path)) for path in (folder / cache).rglob("*")})
    return found | logs


def differences(ours: Any, whole: Any, where: str = "") -> Iterator[str]:
    """Names what differs in the last bit."""
    if isinstance(ours, torch.Tensor) and isinstance(whole, torch.Tensor):
        ours, whole = ours.numpy(), whole.numpy()
    if isinstance(ours, dict) and isinstance(whole, dict):
        for key in [*whole, *(key for key in ours if key not in whole)]:
            if key not in ours or key not in whole:
                yield f"{where}{key}: {'missing' if key in whole else 'extra'}"
            else:
                yield from differences(ours[key], whole[key], f"{where}{key}: ")
    elif isinstance(ours, list | tuple) and isinstance(whole, list | tuple) and len(ours) == len(whole):
        for number, pair in enumerate(zip(ours, whole, strict=True)):
            yield from differences(*pair, f"{where}{number}: ")
    elif isinstance(ours, set) and isinstance(whole, set):
        if ours != whole:
            yield f"{where}{len(whole - ours)} rows missing, {len(ours - whole)} extra, {sorted(whole ^ ours)[:1]}"
    elif isinstance(ours, np.ndarray) and isinstance(whole, np.ndarray):
        if (ours.dtype, ours.shape, ours.tobytes()) != (whole.dtype, whole.shape, whole.tobytes()):
            yield f"{where}other values"
    elif type(ours) is not type(whole) or (ours != whole and repr(ours) != repr(whole)):  # repr: NaN equals itself
        size = f"{len(ours)} for {len(whole)}" if isinstance(ours, bytes | list | tuple) else f"{ours} for {whole}"
        yield f"{where}{size}"


def unloadable(folder: Path) -> list[str]:
    """The files that a killed run has left in a state in which tinylm cannot read them."""
    readers: dict[str, Callable[[Path], Any]] = {"*.ckpt": read_checkpoint, "*.npz": read_numpy_checkpoint}
    readers |= {"metrics.csv": read_metrics, "config.yaml": lambda path: yaml.safe_load(path.read_text())}
    readers |= {"tinylm.json": lambda path: load_bundle(path.parent)}
    found = []
    for pattern, read in readers.items():
        for path in (folder / "runs").rglob(pattern):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                try:
                    read(path)
                except Exception as error:  # whatever it is, it is reported
                    found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found


# --- killing and resuming

SECONDS = 120  # a run that takes longer hangs


@dataclass
class Kill:
    """The moment at which a process is killed, in seconds after its start, or the place."""

    moment: float | None = None
    place: Place | None = None

    def __str__(self) -> str:
        return f"at {self.moment:.2f} s" if self.place is None else f"after {self.place[0]} ({self.place[1]})"


@dataclass
class Case:
    """A run that is killed, once or several times, and what came of it."""

    variant: str
    kills: list[Kill]
    killed: list[str] = field(default_factory=list)
    unloadable: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


def end(process: BaseProcess, seconds: float) -> int | None:
    """Waits, then kills what is left of the process and its children; the exit code, None if it was killed here."""
    process.join(seconds)
    code = process.exitcode
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.kill()
    process.join()
    return code


class Torture:
    """All variants in a work folder.

    Args:
        work: the folder
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self.wholes: dict[str, tuple[dict[str, Any], float, list[Place]]] = {}  # snapshot, seconds, places
        write_inputs(work / "inputs")
        processes.start(os.getpid).join()  # starts the server, which takes seconds

    def start(self, name: str, folder: Path, *more: str, place: Place | None = None, log: Any = None) -> BaseProcess:
        """Starts a run of a variant."""
        inputs, variant = self.work / "inputs", VARIANTS[name]
        temporary = Path(variant.environment.get("TMPDIR", folder)) / "tmp"
        temporary = temporary if temporary.parent == folder else temporary / f"{os.getpid()}-{folder.name}"
        temporary.mkdir(parents=True, exist_ok=True)
        words = [variant.command, "-c", str(inputs / "crash.yaml"), "-c", str(inputs / f"{name}.yaml"), *more]
        environment = {**variant.environment, "TMPDIR": str(temporary)}
        return processes.start(child, words, folder, place, log, **environment)

    def whole(self, name: str) -> None:
        """Runs a variant without a stop."""
        folder = self.work / f"{name}-whole"
        folder.mkdir()
        started = time.monotonic()
        code = end(self.start(name, folder, log=self.work / f"{name}.places"), SECONDS)
        seconds = time.monotonic() - started
        if code != 0:
            raise SystemExit(f"{name}: exit code {code}\n{(folder / 'said.txt').read_text()}")
        seen, places = Counter[str](), []
        for place in (self.work / f"{name}.places").read_text().splitlines():
            seen[place] += 1
            places.append((place, seen[place]))
        self.wholes[name] = snapshot(folder), seconds, places

    def draw(self, name: str, count: int, chance: random.Random) -> Iterator[Case]:
        """Draws cases of a variant: moments and places by turns, rare places as often as frequent ones."""
        _, seconds, places = self.wholes[name]
        kinds = sorted({place for place, _ in places})

        def kill(number: int) -> Kill:
            if number % 2 == 0:
                return Kill(moment=chance.random() * seconds)
            kind = kinds[number // 2 % len(kinds)]
            return Kill(place=chance.choice([place for place in places if place[0] == kind]))

        chance.shuffle(kinds)
        for number in range(count):
            again = [kill(chance.randrange(1000)) for _ in range(2) if chance.random() < 0.3]
            yield Case(name, [kill(number), *again])

    def run(self, case: Case, folder: Path) -> Case:
        """Kills a run as often as the case says, resumes it to the end, and compares."""
        name, code = case.variant, -9
        while not case.killed:  # again, where it had ended before
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if self.killed(case, folder, case.kills[0]) == 0:
                case.kills[0].moment = 0.7 * (case.kills[0].moment or 1.0)
        for kill in [*case.kills[1:], None]:
            code = self.killed(case, folder, kill, "--resume")
            if code == 66:  # nothing to resume from
                code = self.killed(case, folder, kill)
            if code == 0:
                break
        said = (folder / "said.txt").read_text().strip().splitlines()
        case.differences = [f"exit code {code}: {said[-1]}"] if code else []
        case.differences += [] if code else differences(snapshot(folder), self.wholes[name][0])
        return case

    def killed(self, case: Case, folder: Path, kill: Kill | None, *more: str) -> int:
        """Runs until a kill or the end; the exit code, negative for a signal."""
        kill = kill or Kill()
        process = self.start(case.variant, folder, *more, place=kill.place)
        code = end(process, SECONDS if kill.moment is None else kill.moment)
        if kill.moment is None and code is None:
            case.differences.append(f"hangs: {(folder / 'said.txt').read_text().splitlines()[-1]}")
        if code is None or code == -signal.SIGKILL:
            case.killed.append(str(kill))
            case.unloadable += [f"killed {kill}: {each}" for each in unloadable(folder)]
        return -9 if code is None else code


def torture(names: list[str], kills: int, seed: int, work: Path, jobs: int = 1) -> list[Case]:
    """Kills runs of the variants by turns and resumes them."""
    test = Torture(work)
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(test.whole, names))
        counts = Counter(names[number % len(names)] for number in range(kills))
        cases = [case for name in counts for case in test.draw(name, counts[name], random.Random(f"{seed} {name}"))]
        folders = [work / f"{case.variant}-{number}" for number, case in enumerate(cases)]
        return list(pool.map(test.run, cases, folders))


def report(cases: list[Case]) -> tuple[str, bool]:
    """The table, with the reasons of differences below it, and whether all is well."""
    rows = [("variant", "runs", "kills", "moments", "places", "identical", "unloadable")]
    reasons = []
    for name in dict.fromkeys(case.variant for case in cases):
        ours = [case for case in cases if case.variant == name]
        kills = [kill for case in ours for kill in case.killed]
        places = {kill.partition(" (")[0] for kill in kills if kill.startswith("after")}
        good = sum(not case.differences for case in ours)
        figures = (len(ours), len(kills), sum(kill.startswith("at") for kill in kills), len(places), good)
        rows.append((name, *map(str, figures), str(sum(len(case.unloadable) for case in ours))))
    for number, case in enumerate(cases):
        found = [*case.unloadable, *case.differences]
        more = f" (and {len(found) - 4} more)" if len(found) > 4 else ""
        if found:
            reasons.append(f"{case.variant}-{number}, killed {', '.join(case.killed)}: {'; '.join(found[:4])}{more}")
    good, bad = sum(not case.differences for case in cases), sum(bool(case.unloadable) for case in cases)
    summary = f"{good} of {len(cases)} bit-identical, {bad} unloadable"
    return "\n".join([table(rows), *reasons, summary]), good == len(cases) and not bad


def main() -> int:
    """Prints the table; the exit code is 1 unless all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="runs to kill (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments and places (default: %(default)s)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="new folder in which to keep all runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary) / "work"
        work.mkdir()
        text, good = report(torture(options.variants.split(","), options.kills, options.seed, work, options.jobs))
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
