"""Kills training runs with SIGKILL, resumes them, and compares each with a run that was never stopped.

    python scripts/bench/crash.py --kills 200 --seed 1

Half of the kills come at a random moment between the start of the process and its end, half right after a call that
changes a file (a write, fsync, rename, ...); some of the resumed runs are killed again. A run is resumed as a user
would: by `--resume` or, where that finds nothing, by the first command. In the end everything in the run folder must
equal the whole run's, to the last bit: weights, optimizer, schedule, counters, metrics, samples, model. Measured speeds
(`perf/*`) may differ. After every kill all checkpoints that exist must load.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the last bits depend on it
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for the tests' tools

import torch
import yaml

from tests import processes
from tests.failpoints import Place, run_and_kill
from tests.states import compared, snapshot, unloadable
from tinylm.bundle import save_bundle
from tinylm.console import table
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

# --- the variants: a config, and what each changes in it

CONFIG = """
model:
  network: {d_model: 16, num_layers: 1, num_heads: 2, max_seq_len: 16, dropout: 0.1}
  optimizer: {name: muon, lr: 0.01}
  schedule: {warmup_steps: 2, min_lr: 0.001}
data: {corpus: INPUTS/fox.txt, tokenizer: char, batch_size: 4, split: [0.9, 0.1], cache_dir: cache}
run: {name: crash, prompts: ["the "], sample_tokens: 4, peak_flops: 1.0e+12}
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
    """Changes of the config, the command, and where temporary files are."""

    changes: str = ""
    command: str = "fit"
    elsewhere: bool = False  # whether $TMPDIR is on another file system


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
    "mixture": Variant(
        "data: {corpus: {fox: INPUTS/fox.txt, tales: 'stories:40'}, weights: {fox: 0.7, tales: 0.3}, "
        "micro_batch_size: 2}"
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
        "trainer: {logger+: [{class_path: tinylm.training.WandbTracker, "
        "init_args: {save_dir: '{run}', mode: offline}}]}"
    ),
    "two-ranks": Variant("trainer: {devices: 2, strategy: ddp}"),
    "shards": Variant(
        "{model: {optimizer: {name: adamw}}, trainer: {devices: 2, strategy: {class_path: "
        "tinylm.training.ShardedStrategy, init_args: {sharded_checkpoints: true}}}}"
    ),
    "numpy": Variant("data: {micro_batch_size: 2}", command="train-numpy"),
    "tmpdir": Variant(elsewhere=True),
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


# --- killing and resuming

SECONDS = 120  # a run that takes longer hangs


@dataclass
class Kill:
    """The moment at which a process is killed, in seconds after its start, or the place."""

    moment: float | None = None
    place: Place | None = None

    def __str__(self) -> str:
        return (
            f"at {self.moment or SECONDS:.2f} s" if self.place is None else f"after {self.place[0]} ({self.place[1]})"
        )


@dataclass
class Case:
    """A run that is killed, once or several times, and the outcome."""

    variant: str
    kills: list[Kill]
    printed: bool  # resumed by the command that a run prints, else by the first one and `--resume`
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
        other: a folder on another file system
    """

    def __init__(self, work: Path, other: Path) -> None:
        self.work, self.other = work, other
        self.wholes: dict[str, tuple[dict[str, Any], float, list[Place]]] = {}  # snapshot, seconds, places
        write_inputs(work / "inputs")
        processes.start(os.getpid).join()  # starts the server, which takes seconds

    def start(self, name: str, folder: Path, *more: str, place: Place | None = None, log: Any = None) -> BaseProcess:
        """Starts a run of a variant; creates its folder if it is missing."""
        inputs, variant, temporary = self.work / "inputs", VARIANTS[name], folder / "tmp"
        if not folder.exists():
            folder.mkdir()
            target = self.other / folder.name if variant.elsewhere else folder / "temporary"
            target.mkdir(exist_ok=True)
            temporary.symlink_to(target)
        configs = ["-c", str(inputs / "crash.yaml"), "-c", str(inputs / f"{name}.yaml")]
        words = [variant.command, *(configs if len(more) < 2 else []), *more]
        settings = {"TMPDIR": str(temporary), "WANDB_ERROR_REPORTING": "false"}
        return processes.start(run_and_kill, words, folder, place, log, **settings)

    def whole(self, name: str) -> None:
        """Runs a variant without a stop."""
        folder = self.work / f"{name}-whole"
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
            yield Case(name, [kill(number), *again], chance.random() < 0.5)

    def run(self, case: Case, folder: Path) -> Case:
        """Kills a run as often as the case says, resumes it to the end, and compares."""
        code, first = 0, case.kills[0]
        while code == 0:  # again, and earlier, where it had ended before
            shutil.rmtree(folder, ignore_errors=True)
            code = self.killed(case, folder, first)
            if code == 0:
                first.moment, first.place = 0.7 * (first.moment or self.wholes[case.variant][1]), None
        for kill in [*case.kills[1:], Kill()]:
            printed = ["runs/crash" for _ in folder.glob("runs/crash/config.yaml")][: case.printed]
            code = self.killed(case, folder, kill, "--resume", *printed)
            if code == 66:  # killed before there was a folder
                code = self.killed(case, folder, kill)
            if code != -signal.SIGKILL:
                break
        if code == 0:
            case.differences += compared(snapshot(folder), self.wholes[case.variant][0])
        else:
            last = (folder / "said.txt").read_text().strip().splitlines()[-1:]
            case.differences.append(f"{'hangs' if code == -signal.SIGKILL else f'exit code {code}'}: {last}")
        return case

    def killed(self, case: Case, folder: Path, kill: Kill, *more: str) -> int:
        """Runs until a kill or the end; the exit code, negative for a signal."""
        process = self.start(case.variant, folder, *more, place=kill.place)
        code = end(process, SECONDS if kill.moment is None else kill.moment)
        if code in (None, -signal.SIGKILL):
            case.killed.append(str(kill))
            case.unloadable += [f"killed {kill}: {each}" for each in unloadable(folder)]
        return -signal.SIGKILL if code is None else code


def torture(names: list[str], kills: int, seed: int, work: Path, jobs: int = 1) -> list[Case]:
    """Kills runs of the variants by turns and resumes them."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as other,
        ThreadPoolExecutor(jobs) as pool,
    ):
        test = Torture(work, Path(other))
        list(pool.map(test.whole, names))
        counts = Counter(names[number % len(names)] for number in range(kills))
        cases = [case for name in counts for case in test.draw(name, counts[name], random.Random(f"{seed} {name}"))]
        folders = [work / f"{case.variant}-{number}" for number, case in enumerate(cases)]
        return list(pool.map(test.run, cases, folders))


def report(cases: list[Case]) -> tuple[str, bool]:
    """The table, with the causes of differences below it, and whether all runs passed."""
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
    """Prints the table; the exit code is 1 unless all runs passed."""
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
