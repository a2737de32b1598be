"""Sends every signal to every phase of training, and prints what each program does.

    python scripts/bench/signals.py [--programs fit,torchrun] [--phases validation]

The phases are marked in the child by wrapping one function of each; nothing in tinylm knows of them. As documented, a
program must end within two seconds with one line, `tinylm: stopped ...`, with 130 after SIGINT and 75 otherwise, and
what it saved can be resumed. Under a launcher, the signal goes to one of two ranks.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = {"SIGINT": 130, "SIGTERM": 75, "SIGUSR1": 75}
PHASES = {  # phase: module, object and method before which the child waits for the signal, and from which call on
    "imports": ("torch", "", "", 1),
    "tokenizer": ("tinylm.tokenizer.char", "CharTokenizer", "train_from_texts", 1),
    "token cache": ("tinylm.data.shard_builder", "_ShardWriter", "add", 1),
    "network": ("tinylm.model.transformer", "TransformerLM", "__init__", 1),
    "peak": ("tinylm.training.throughput", "", "measure_peak_flops", 1),
    "step": ("tinylm.training.module", "LitTransformerLM", "training_step", 6),
    "saving": ("torch", "", "save", 2),
    "validation": ("tinylm.training.module", "LitTransformerLM", "validation_step", 40),
    "samples": ("tinylm.training.samples", "SampleText", "_length", 1),
    "last save": ("torch", "", "save", 4),
    "whole split": ("tinylm.data.datamodule", "TextDataModule", "whole_validation", 1),
    "export": ("tinylm.training.finish", "", "save_bundle", 1),
    "curves": ("tinylm.training.finish", "", "draw_curves", 1),
}
ONE_RANK = ("tokenizer", "token cache")  # whichever of the ranks comes first does this, and the others wait
NUMPY_PHASES = PHASES | {  # where train-numpy's differ
    "peak": ("tinylm.commands.numpy_run", "", "measure_peak_flops", 1),
    "step": ("tinylm.commands.numpy_run", "FastTransformerLM", "loss_and_grads", 6),
    "saving": ("tinylm.commands.numpy_run", "", "save_checkpoint", 2),
    "validation": ("tinylm.commands.numpy_run", "FastTransformerLM", "evaluate", 40),
    "samples": ("tinylm.commands.numpy_run", "Run", "_show_sample", 1),
    "last save": ("tinylm.commands.numpy_run", "", "save_checkpoint", 3),
    "export": ("tinylm.commands.numpy_run", "files", "save", 1),
    "curves": ("tinylm.commands.numpy_run", "", "draw_curves", 1),
}
CONFIG = """
model:
  network: {d_model: 32, num_layers: 2, num_heads: 2, max_seq_len: 32}
  schedule: {warmup_steps: 2}
data: {corpus: long.txt, tokenizer: char, batch_size: 8, split: [0.5, 0.5], cache_dir: CACHE, max_val_tokens: 16384}
run: {prompts: ["the "], sample_tokens: 8}
trainer: {accelerator: cpu, max_steps: 12, val_check_interval: 8, check_val_every_n_epoch: null}
"""


def child(phase: str, arguments: list[str]) -> int:
    """Runs tinylm with the phase marked: prints READY and waits half a second there for the signal."""
    phases = NUMPY_PHASES if arguments[0] == "train-numpy" else PHASES
    module, owner, name, count = phases.get(phase, ("", "", "", 0))
    calls = 0

    def wait() -> None:
        nonlocal calls
        calls += 1
        first = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0
        if calls == count and (first or phase in ONE_RANK):
            Path("READY").write_text(str(os.getpid()))
            time.sleep(0.5)

    if phase == "imports":

        class Finder:
            @staticmethod
            def find_spec(found: str, *_: object) -> None:
                if found == module:
                    wait()

        sys.meta_path.insert(0, Finder)  # pyright: ignore[reportArgumentType]
    elif phase:
        place = __import__(module, fromlist=["_"])
        place = getattr(place, owner) if owner else place
        function = getattr(place, name)
        if isinstance(vars(place).get(name), classmethod):
            wrapped = classmethod(lambda cls, *given, **options: (wait(), function(*given, **options))[1])
        else:

            def wrapped(*given, **options):
                wait()
                return function(*given, **options)

        setattr(place, name, wrapped)
    from tinylm.commands import main

    sys.argv = [__file__, *arguments]
    return main()


def command_line(program: str) -> list[str]:
    """The command line of a program, which runs this file again in each of its processes."""
    fit = [__file__, "fit", "-c", "run.yaml", "--run.name", "run"]
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return {
        "fit": [sys.executable, *fit],
        "two ranks": [sys.executable, *fit, *two],
        "torchrun": [sys.executable, *launcher, *fit, *two],
        "train-numpy": [sys.executable, __file__, "train-numpy", *fit[2:]],
    }[program]


def try_phase(program: str, phase: str, name: str) -> str:
    """Starts a program, sends the signal in the phase, and describes every violation of the rule; "" if none."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lines, tokens = (150_000, 10_000_000) if phase == "validation" else (6_000, 16_384)  # 2.4 million, or 93,000
        (folder / "long.txt").write_text("".join(f"the quick brown fox {n} jumps.\n" for n in range(lines)))
        (folder / "run.yaml").write_text(CONFIG.replace("CACHE", place).replace("16384", str(tokens)))
        environment = {**os.environ, "TINYLM_BENCH_PHASE": phase, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        options = {"cwd": place, "env": environment, "stdin": subprocess.DEVNULL, "text": True}
        log = (folder / "log").open("w+")
        process = subprocess.Popen(command_line(program), stdout=log, stderr=log, **options)
        deadline = time.monotonic() + 120
        while not (folder / "READY").exists() or not (folder / "READY").read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                return "-"  # the program has no such phase
            time.sleep(0.01)
        os.kill(int((folder / "READY").read_text()), getattr(signal, name))
        sent = time.monotonic()
        try:
            code = process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            return "still running after 60 s"
        seconds = time.monotonic() - sent - 0.5
        said = (folder / "log").read_text()
        stops = [line for line in said.splitlines() if line.startswith(("tinylm: stopped", "tinylm: interrupted"))]
        problems = [] if code == (1 if program == "torchrun" else SIGNALS[name]) else [f"exit {code}"]
        problems += (
            [f"{len(stops)} lines of the stop"]
            if len(stops) != 1 or "tinylm: error: " in said or "Traceback" in said.split("torch/distributed")[0]
            else []
        )
        problems += [f"{seconds:.1f} s"] if seconds > (8 if program in ("torchrun", "two ranks") else 2.5) else []
        if "resume:" in said:
            again = [*command_line(program), "--resume", "--data.max_val_tokens", "16384"]
            options["env"] = {**environment, "TINYLM_BENCH_PHASE": ""}
            again = subprocess.run(again, **options, capture_output=True, check=False)
            problems += [] if again.returncode == 0 and (folder / "runs/run/model").is_dir() else ["resume failed"]
        elif (folder / "runs/run/checkpoints/last.ckpt").exists():
            problems.append("no command to resume")
        return ", ".join(problems) + (f": {said[-300:]}" if problems else "")


def main() -> int:
    """Prints a table; returns 1 if anything violates the rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", default="fit,two ranks,torchrun,train-numpy")
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--signals", default=",".join(SIGNALS))
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs would ignore
    bad = count = 0
    for program in options.programs.split(","):
        for phase in options.phases.split(","):
            found = {name: try_phase(program, phase, name) for name in options.signals.split(",")}
            count += sum(problem != "-" for problem in found.values())
            bad += sum(problem not in ("", "-") for problem in found.values())
            print(
                f"{program:12} {phase:12} " + "  ".join(f"{name} {each or 'ok'}" for name, each in found.items()),
                flush=True,
            )
    print(f"{count - bad} of {count} by the rule")
    return int(bad > 0)


if __name__ == "__main__":
    chosen = os.environ.get("TINYLM_BENCH_PHASE")
    if chosen is None:
        sys.exit(main())
    sys.exit(child(chosen, sys.argv[1:]))
