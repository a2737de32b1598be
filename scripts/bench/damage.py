"""Damages files and fills disks: `python scripts/bench/damage.py --flips 2000 --cuts 500 --sizes 30 --seed 0`.

Flips a bit or cuts the end of every kind of file that tinylm writes, and reads it as the program does. A damage is
refused by name, repaired (the token cache), or harmless, which is proven by comparing what was read with the original;
anything else is silently wrong. Then commands run on a disk that is full after so many bytes: each must end with exit
code 74, name the file and leave what was there before as it was. Exits with 1 if anything was wrong.
"""

import argparse
import contextlib
import gc
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tinylm.training.cli  # imported once, before the children are forked
from tinylm.adapt import load_adapter
from tinylm.bundle import load_bundle, read_checkpoint, rebuild_model
from tinylm.commands import main as run
from tinylm.console import table
from tinylm.data import open_corpus
from tinylm.data.tokens import open_tokens
from tinylm.errors import TinyLMError
from tinylm.reference import files as twin
from tinylm.reference.checkpoint import read_checkpoint as read_archive
from tinylm.runs.compare import reading
from tinylm.runs.metrics import read_metrics
from tinylm.safe_yaml import read_yaml
from tinylm.tokenizer import load_tokenizer

CONFIG = """
model:
  network: {d_model: 32, num_layers: 2, num_heads: 2, max_seq_len: 32}
  schedule: {warmup_steps: 2}
data: {corpus: fox.txt, tokenizer: char, batch_size: 8, cache_dir: cache}
run: {prompts: ["the "], sample_tokens: 8, peak_flops: 1.0e+12}
trainer: {accelerator: cpu, max_steps: 12, val_check_interval: 4, check_val_every_n_epoch: null, log_every_n_steps: 2}
"""
LORA = ["--model.init_from", "runs/mini", "--model.lora", "{rank: 2}", "--run.name", "tuned"]
LAST = ["--trainer.callbacks", "[{class_path: tinylm.training.LastCheckpoint, init_args: {every_n_train_steps: 6}}]"]
FIT = ["fit", "-c", "mini.yaml", *LAST]


# --- what is damaged, and how it is read


def read_table(path: Path) -> Any:
    """The metrics, as `plot` and `compare` read them."""
    with reading(path.parent):
        return read_metrics(path)


TEXTS = {"metrics.csv": read_table, "config.yaml": read_yaml, "samples.txt": Path.read_text}


def equal(one: Any, other: Any) -> bool:
    """Whether two values are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or one != one


def read_model(folder: Path) -> Any:
    """Everything that a model folder contains."""
    bundle = load_bundle(folder)
    return bundle.model.state_dict(), bundle.model.config, bundle.tokenizer.to_dict(), bundle.info


def read_adapter(folder: Path) -> Any:
    """The weights of a model with the adapter."""
    base = read_checkpoint(folder.parents[1] / "mini" / "checkpoints" / "best.ckpt")
    weights = {name.removeprefix("net."): each for name, each in base["state_dict"].items() if name.startswith("net.")}
    model = rebuild_model(base["tinylm"]["model"], weights, "base")
    load_adapter(folder, model)
    return model.state_dict(), [each.scales for each in model.modules() if hasattr(each, "scales")]


def read_cache(folder: Path) -> Any:
    """The tokens that a run would read, from the cache or encoded again."""
    corpus = open_corpus("fox.txt", split=(0.9, 0.1), cache_dir=folder.parents[1])
    tokens = open_tokens(corpus, load_tokenizer("runs/mini/model/tokenizer.tinylm.json"), folder.parents[1])
    return {part: np.array(ids) for part, ids in tokens.items()}


def read_state(path: Path) -> Any:
    """Everything in a checkpoint of the NumPy twin."""
    found = read_archive(path)
    return found.model.parameters, found.model.config, found.state, found.step, found.notes


def read_twin(path: Path) -> Any:
    """A model of the NumPy twin."""
    model = twin.load(path)
    return model.parameters, model.config


def damaged_files() -> Iterator[tuple[str, Path, Callable[[], Any]]]:
    """(kind, file, its reader) of everything in the folder of the runs."""
    for name in ("last", "best"):
        path, archive = Path(f"runs/mini/checkpoints/{name}.ckpt"), Path(f"runs/mini-numpy/checkpoints/{name}.npz")
        yield path.name, path, lambda path=path: read_checkpoint(path)
        yield archive.name, archive, lambda path=archive: read_state(path)
    yield "model.npz", Path("model.npz"), lambda: read_twin(Path("model.npz"))
    yield "tokenizer", Path("tok.json"), lambda: load_tokenizer("tok.json").to_dict()
    folders = {
        "runs/mini/model": read_model,
        "int8": read_model,
        "int4": read_model,
        "runs/tuned/adapter": read_adapter,
    }
    folders[str(next(Path("cache/tokens").glob("fox*/")))] = read_cache
    for folder, reader in folders.items():
        kind = "token cache" if reader is read_cache else folder.removeprefix("runs/mini/").removeprefix("runs/tuned/")
        for path in sorted(Path(folder).iterdir()):
            yield f"{kind}/{path.name}", path, lambda path=path, reader=reader: reader(path.parent)
    for name, reader in TEXTS.items():
        path = Path("runs/mini") / name
        yield name, path, lambda path=path, reader=reader: reader(path)


def damage(kind: str, path: Path, read: Callable[[], Any], cut: bool, place: float) -> str:
    """The outcome of one damage; the file is restored."""
    whole, folder, original = path.read_bytes(), path.parent, read()
    if kind.startswith("token cache"):
        shutil.copytree(folder, "intact")
    position = int(place * len(whole))
    flipped = bytes([whole[position] ^ 1 << int(place * 1e6) % 8])
    path.write_bytes(whole[:position] if cut else whole[:position] + flipped + whole[position + 1 :])
    try:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            found = read()
        if equal(found, original):
            return "repaired" if "damaged: encoding again" in said.getvalue() else "harmless"
        return "as edited" if kind in TEXTS else "silently wrong"
    except (TinyLMError, UnicodeDecodeError) as error:
        return "refused" if path.name in str(error) or folder.name in str(error) or kind in TEXTS else "unnamed"
    except ValueError as error:  # of the twin, which has no errors of tinylm
        return "refused" if path.name in str(error) or kind in TEXTS else "unnamed"
    except Exception as error:
        return f"{type(error).__name__}"
    finally:
        if kind.startswith("token cache"):
            shutil.rmtree(folder)
            shutil.move("intact", folder)
        else:
            path.write_bytes(whole)


def damage_all(flips: int, cuts: int, seed: int) -> bool:
    """Prints the outcomes by file, and returns whether none is wrong."""
    generator, targets, rows = random.Random(seed), list(damaged_files()), []
    outcomes: dict[str, Counter] = {kind: Counter() for kind, _, _ in targets}
    for number in range(flips + cuts):
        kind, path, read = targets[number % len(targets)]
        outcomes[kind][damage(kind, path, read, number >= flips, generator.random())] += 1
    columns = ["refused", "repaired", "harmless", "as edited"]
    columns += sorted(set().union(*outcomes.values()) - set(columns))
    for kind, counts in outcomes.items():
        rows.append([kind, *(str(counts[name] or "") for name in columns)])
    total = sum(outcomes.values(), Counter())
    print(table([["file", *columns], *rows, ["all", *(str(total[name]) for name in columns)]]), flush=True)
    return len(columns) == 4


# --- full disks


def child(words: list[str], limit: int | None, output: Path | None = None) -> tuple[int, str]:
    """Runs a command in a process that cannot write a file beyond `limit` bytes; returns exit code and stderr."""
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        os.environ.pop("TINYLM_RUN_FOLDER", None)
        os.dup2(write_end, 2)
        os.dup2(os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)  # the parent's know other files
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["tinylm", *words]
        os._exit(run(words))
    os.close(write_end)
    with os.fdopen(read_end, encoding="utf-8") as stderr:
        said = stderr.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


def contents(folder: Path) -> dict[str, bytes]:
    """Path -> content of all files but locks."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def check_fit(code: int, said: str, before: dict[str, bytes], run_folder: Path) -> str:
    """The problem with a resumed run on a full disk: a file must be unchanged, or replaced by a complete newer one."""
    after = contents(run_folder)
    if code != 74 or "bytes" not in said:
        return f"exit {code}: {said.strip().splitlines()[-1:]}"
    for name, content in before.items():
        if name.endswith((".ckpt", ".npz")):
            (read_archive if name.endswith(".npz") else read_checkpoint)(run_folder / name)
        elif name in ("metrics.csv", "samples.txt"):
            if not after.get(name, b"").startswith(content):
                return f"{name} has lost rows"
        elif name not in ("config.yaml", "run.json") and after.get(name) != content:
            return f"{name} has changed"
    return next((f"{name} was left behind" for name in after if ".tmp-" in name), "")


def fill_disk(sizes: int) -> bool:
    """Prints the outcome of each command on disks of several sizes, and returns whether all are right."""
    rows, good = [["command", "disks", "exit 74, intact", "first problem"]], True
    once = {
        "export": (["export", "--model", "runs/mini", "--to", "hf", "--out", "out"], 8),
        "quantize": (["quantize", "--model", "runs/mini", "--out", "out"], 8),
        "predict": (["predict", "-c", "mini.yaml", "--data.text", "fox.txt", "--run.output", "out"], 6),
        "generate --out": (["generate", "--model", "runs/mini", "--prompt", "the ", "--out", "out.jsonl"], 3),
        "generate > file": (["generate", "--model", "runs/mini", "--prompt", "the ", "--seed", "1"], 3),
        "tokenizer": (["tokenizer", "train", "fox.txt", "--vocab-size", "300", "--out", "out.json"], 4),
        "prepare": (["prepare", "questions", "--train", "50", "--val", "9", "--test", "9", "--out", "out"], 4),
        "plot": (["plot", "runs/mini", "--out", "out.png"], 4),
        "adapter": ([*FIT, *LORA, "--resume", "--trainer.max_steps", "24"], 8),
        "train-numpy": (["train-numpy", "-c", "mini.yaml", "--resume", "--trainer.max_steps", "24"], 8),
    }
    cases = {"fit --resume": ([*FIT, "--resume", "--trainer.max_steps", "24"], sizes), **once}
    for name, (words, count) in cases.items():
        count = min(count, sizes)
        problems = [problem for problem in fill(name, words, count) if problem]
        good &= not problems
        rows.append([name, str(count), str(count - len(problems)), *problems[:1]])
        rows[-1] += [""] * (4 - len(rows[-1]))
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    return good


def fill(name: str, words: list[str], count: int) -> Iterator[str]:
    """The problem, or an empty string, on each of `count` disks, from an empty one to one that is a byte too small."""
    folders = {"fit --resume": "runs/mini", "adapter": "runs/tuned", "train-numpy": "runs/mini-numpy"}
    with tempfile.TemporaryDirectory(dir=".") as spare:
        saved = Path(spare) / "runs"
        shutil.copytree("runs", saved)
        before = contents(Path())
        output = Path("out.txt") if name == "generate > file" else None
        child(words, None, output)
        grown = {path: content for path, content in contents(Path()).items() if before.get(path) != content}
        largest = max(len(content) for path, content in grown.items() if not path.startswith(spare))
        for step in range(count):
            restore(saved)
            held = contents(Path(folders[name])) if name in folders else contents(Path())
            code, said = child(words, int(largest * (step / count) ** 2), output)
            if name in folders:
                yield check_fit(code, said, held, Path(folders[name]))
            else:
                lost = [path for path, content in contents(Path()).items() if held.get(path, content) != content]
                yield "" if code == 74 and "bytes" in said and not lost else f"exit {code}, {lost}: {said[-200:]}"
        restore(saved)


def restore(saved: Path) -> None:
    """Restores the runs, and removes what a command wrote."""
    for path in Path().glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree("runs")
    shutil.copytree(saved, "runs")


def small_disks() -> bool:
    """Resumes the run on real file systems that are full; only root can make them."""
    problems, kilobytes = [], (0, 8, 32, 64, 128, 200)
    for spare in kilobytes:
        disk, used = Path("disk"), sum(map(len, contents(Path("runs/mini")).values()))
        disk.mkdir(exist_ok=True)
        size = (used >> 10) + 80 + spare
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], capture_output=True
        ).returncode:
            print("small disks: skipped, since this user cannot mount one")
            return True
        try:
            shutil.copytree("runs/mini", disk / "mini")
            before = contents(disk / "mini")
            code, said = child([*FIT, "--run.dir", "disk", "--resume", "--trainer.max_steps", "24"], None)
            problems += [problem] if (problem := check_fit(code, said, before, disk / "mini")) else []
        finally:
            subprocess.run(["umount", disk], check=True)
    print(f"fit --resume on {len(kilobytes)} small disks: {len(kilobytes) - len(problems)} as above", *problems[:1])
    return not problems


def prepare() -> None:
    """Trains the runs and writes all kinds of files into the current folder."""
    fox = (f"the quick brown fox {n} jumps over the lazy dog {n * 7 % 13}.\n" for n in range(120))
    Path("fox.txt").write_text("".join(fox))
    Path("mini.yaml").write_text(CONFIG)
    quantize = ["quantize", "--model", "runs/mini", "--text", "fox.txt"]
    numpy, tokenizer = ["train-numpy", "-c", "mini.yaml"], ["tokenizer", "train", "fox.txt", "--vocab-size", "300"]
    for words in (FIT, [*FIT, *LORA], numpy, [*quantize, "--out", "int8"], [*quantize, "--bits", "4", "--out", "int4"],
                  [*tokenizer, "--out", "tok.json"]):  # fmt: skip
        code, said = child(words, None)
        assert code == 0, said
    twin.save(twin.load("runs/mini"), "model.npz")


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("flips", 2000), ("cuts", 500), ("sizes", 30), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    tinylm.training.cli.quiet_lightning()
    gc.freeze()  # children do not search for garbage in what is imported
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        prepare()
        good = damage_all(options.flips, options.cuts, options.seed)
        good &= options.sizes == 0 or (fill_disk(options.sizes) and small_disks())
    sys.exit(not good)


if __name__ == "__main__":
    main()
