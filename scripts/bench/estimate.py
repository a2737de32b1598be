"""Compares `tinylm estimate` with real runs of `tinylm fit` on this machine: `python scripts/bench/estimate.py`.

Each case is estimated in one process and trained for some steps in another, which writes down the parameters, the
operations that PyTorch's FlopCounterMode counts in a step (with the plain kernel, whose products it knows), the peak of
its resident set, and the seconds of a step. The peak is given twice: of the whole process, and as its growth since just
before the model was made. `--only memory` leaves out the times, on a machine that others use too.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

STEPS = 24
CASES = {
    "tiny": "-c tiny",
    "tiny, batch 64": "-c tiny --data.batch_size 64",
    "small": "-c small",
    "small, AdamW, batch 64": "-c small --data.batch_size 64 --model.optimizer.name adamw",
    "small, micro-batch 4": "-c small --data.micro_batch_size 4",
    "medium": "-c medium --data.corpus stories",
    "medium, float32": "-c medium --data.corpus stories --trainer.precision 32-true",
    "medium, float32, checkpointing": "-c medium --data.corpus stories --trainer.precision 32-true "
    "--model.network.activation_checkpointing true",
    "small, batch 64, checkpointing": "-c small --data.batch_size 64 --model.network.activation_checkpointing true",
    "base, float32, checkpointing": "-c base --data.corpus stories --data.batch_size 8 --trainer.precision 32-true "
    "--model.network.activation_checkpointing true",
    "medium, float32, loss_rows 256": "-c medium --data.corpus stories --trainer.precision 32-true "
    "--model.loss_rows 256",
    "base, batch 8": "-c base --data.corpus stories --data.batch_size 8",
    "base, batch 16, float32": "-c base --data.corpus stories --data.batch_size 16 --trainer.precision 32-true",
}
QUICK = "--trainer.limit_val_batches 0 --run.sample_tokens 0 --model.schedule.warmup_steps 0 --run.peak_flops 1e11"


def status(name: str) -> int:
    """A figure of this process in bytes, from Linux's /proc."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def train(words: list[str], out: Path) -> None:
    """Runs `fit` in this process, and writes its measurements."""
    import time

    from lightning.pytorch.callbacks import Callback
    from torch.utils.flop_counter import FlopCounterMode

    import tinylm.training.cli as cli
    from tinylm.commands import main
    from tinylm.kernels.rms_norm import tune_for_training
    from tinylm.model import TransformerLM

    import torch  # isort: skip

    found: dict[str, float] = {}
    make = cli.TinyLMCLI.instantiate_classes

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step >= STEPS // 3:
                times.append((trainer.global_step, time.perf_counter()))
            if trainer.global_step == STEPS:
                found["peak"] = status("VmHWM")

    def instantiate(self):
        inner = self.instantiate_trainer

        def trainer(**options):
            made = inner(**options)
            made.callbacks.append(Watch())
            return made

        self.instantiate_trainer = trainer
        make(self)
        net, shape = self.model.net, (2, self.model.network.max_seq_len)
        found["parameters"] = sum(each.numel() for each in net.parameters())
        del net, shape

    init = cli.LitTransformerLM.__init__

    @functools.wraps(init)
    def first(self, *arguments, **options):
        found["before"] = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak so far is forgotten
        init(self, *arguments, **options)
        found["vocab_size"] = self.network.vocab_size
        networks.append(self.network)

    times: list[tuple[int, float]] = []
    networks: list = []
    cli.TinyLMCLI.instantiate_classes = instantiate
    cli.LitTransformerLM.__init__ = first
    code = main(["fit", *words])
    if code:
        sys.exit(code)
    (begun, start), (ended, end) = times[0], times[-1]
    found["seconds"] = (end - start) / (ended - begun)
    net = TransformerLM(replace(networks[0], attention_kernel="plain")).train()
    tune_for_training(net)
    ids = torch.zeros(2, networks[0].max_seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(ids, targets=ids).backward()
    found["flops"] = counter.get_total_flops() / ids.numel()
    out.write_text(json.dumps(found), encoding="utf-8")


def compare(name: str, words: str, folder: Path, timed: bool) -> dict[str, float]:
    """The ratios of estimate to measurement of a case."""
    out, here = folder / "figures.json", Path(__file__).resolve()
    environment = os.environ | {"PYTHONPATH": str(here.parents[2])}
    options = f"{words} {QUICK} --trainer.max_steps {STEPS} --run.dir {folder}/runs".split()
    quiet = dict(env=environment, stderr=subprocess.PIPE, text=True)
    ran = subprocess.run([sys.executable, str(here), "--train", str(out), *options], stdout=subprocess.PIPE, **quiet)
    if ran.returncode:
        sys.exit(f"{name}: {ran.stderr}")
    real = json.loads(out.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "tinylm", "estimate", "--json", "--vocab-size", str(int(real["vocab_size"]))]
    guess = json.loads(subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True, **quiet).stdout)
    (memory,) = guess["memory"].values()
    process = sum(memory.values())
    growth = real["peak"] - real["before"]
    own = memory["libraries"] - guess["resident"]
    plain = guess["token_flops"] + guess["recomputed_flops"]
    rows = {
        "parameters": (sum(guess["parameters"].values()), real["parameters"]),
        "FLOPs a token": (plain, real["flops"]),
        "peak of the process, MB": (process / 1e6, real["peak"] / 1e6),
        "growth by training, MB": ((process - memory["libraries"] + own) / 1e6, growth / 1e6),
    }
    if timed:
        rows["ms a step"] = (guess["seconds"] * 1e3, real["seconds"] * 1e3)
    for figure, (estimated, measured) in rows.items():
        print(
            f"{name:32} {figure:26} {estimated:14,.1f} {measured:14,.1f} {estimated / measured - 1:+8.1%}", flush=True
        )
    return {figure: estimated / measured - 1 for figure, (estimated, measured) in rows.items()}


def main() -> None:
    """Prints a row for each figure of each case, and the largest deviations."""
    if sys.argv[1:2] == ["--train"]:
        train(sys.argv[3:], Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=list(CASES), help="names of cases")
    parser.add_argument("--only", choices=["memory"], help="without the times")
    options = parser.parse_args()
    print(f"{'case':32} {'figure':26} {'estimated':>14} {'measured':>14} {'deviation':>9}")
    worst: dict[str, float] = {}
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for figure, deviation in compare(name, CASES[name], Path(folder), options.only is None).items():
                worst[figure] = max(worst.get(figure, 0.0), abs(deviation))
    for figure, deviation in worst.items():
        print(f"largest deviation of {figure}: {deviation:.1%}")


if __name__ == "__main__":
    main()
