"""An ablation as a W&B sweep, a SLURM array or a script for Ray Tune.

Each of their tasks is `tinylm ablate FILE --trial TRIAL`, so the run folders, and the table that `tinylm ablate FILE`
makes of them afterwards, are the same as on a single machine.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tinylm.experiments.ablation import Ablation

KINDS = {"wandb": "sweep.yaml", "slurm": "array.sh", "ray": "ray_tune.py"}
WANDB = "overlays/wandb.yaml"


@dataclass(frozen=True)
class Task:
    """The command line of a task, without its trial.

    Attributes:
        ablation: the ablation
        folder: its folder
        words: further words of `tinylm ablate`
        trials: names of all trials, in order
    """

    ablation: Ablation
    folder: Path
    words: Sequence[str]
    trials: Sequence[str]

    @property
    def arguments(self) -> list[str]:
        """The words after `tinylm`."""
        return ["ablate", str(self.ablation.path), "--out", str(self.folder), *self.words]


def exported(kind: str, task: Task) -> str:
    """The content of the file for one of `KINDS`."""
    return {"wandb": wandb_sweep, "slurm": slurm_array, "ray": ray_script}[kind](task)


def usage(kind: str, path: Path) -> str:
    """The command that starts the exported file."""
    return {"wandb": "wandb sweep", "slurm": "sbatch", "ray": "python"}[kind] + f" {shlex.quote(str(path))}"


def _header(task: Task, kind: str) -> str:
    table = shlex.join(["tinylm", *task.arguments, "--table"])
    return (
        f"# {len(task.trials)} runs of {task.ablation.path}, a task each; written by tinylm ablate --export {kind}.\n"
        f"#   {usage(kind, task.folder / KINDS[kind])}\n"
        f"#   {table}     # when all tasks have ended\n"
    )


def wandb_sweep(task: Task) -> str:
    """A sweep over the runs by name. `run.name` is an option of `fit`, so W&B shows which run is which."""
    logged = [] if WANDB in task.ablation.base else ["--config", WANDB]
    command = ["${env}", "${interpreter}", "-m", "tinylm", *task.arguments, *logged, "${args}"]
    sweep = {
        "project": "tinylm",
        "name": task.ablation.path.stem,
        "method": "grid",
        "metric": {"name": "val/loss", "goal": "minimize"},
        "parameters": {"run.name": {"values": [*task.trials]}},
        "command": command,
    }
    return _header(task, "wandb") + yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True)


SLURM = """#!/usr/bin/env bash
{header}# Add partition, account, GPUs (--gpus-per-task=1) and modules here, or as options of sbatch.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.out
set -uo pipefail

# USR1 announces the time limit: the run saves, ends with code 75, and the task is requeued.
# TERM comes with scancel, requeue and preemption: the run saves, and SLURM decides whether the task is requeued.
task="" time_is_up="" ended_by_slurm=""
trap 'time_is_up=1; [ -z "$task" ] || kill -USR1 "$task" 2> /dev/null' USR1
trap 'ended_by_slurm=1; [ -z "$task" ] || kill -TERM "$task" 2> /dev/null' TERM

cd "${{SLURM_SUBMIT_DIR:-.}}" || exit 66
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
code=75 # until something has started
if [ -z "$time_is_up$ended_by_slurm" ]; then
    "${{PYTHON:-python}}" -m tinylm {arguments} --trial "$SLURM_ARRAY_TASK_ID" &
    task=$!
    while kill -0 "$task" 2> /dev/null; do wait "$task"; done # a trapped signal ends `wait` early
    wait "$task"
    code=$?
fi
case "$code" in 75) again=1 ;; 138 | 143) again=$time_is_up ;; *) again="" ;; esac
if [ -n "$again" ] && [ -z "$ended_by_slurm" ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
"""


def slurm_array(task: Task) -> str:
    """A batch script whose task i trains trial i, and requeues itself at the time limit."""
    return SLURM.format(
        header=_header(task, "slurm"),
        name=shlex.quote(task.ablation.path.stem),
        last=len(task.trials) - 1,
        arguments=shlex.join(task.arguments),
    )


RAY = '''{header}
"""Trains each run in a process of its own on Ray's workers, which must share this folder."""

import subprocess
import sys
from pathlib import Path

import ray
from ray import tune

from tinylm.experiments.results import read_result

HERE = Path({here!r})
ARGUMENTS = {arguments!r}
TRIALS = {trials!r}
RESOURCES = {{"cpu": 1, "gpu": 0}}  # of each run


def train(config):
    """Trains one run, and reports its validation loss."""
    words = [sys.executable, "-m", "tinylm", *ARGUMENTS, "--trial", config["trial"]]
    subprocess.run(words, cwd=HERE, check=True)
    row = read_result(HERE / {folder!r} / config["trial"]).row
    tune.report({{"val_loss": row.val_loss, "bpb": row.bpb, "excess": row.excess, "seconds": row.seconds}})


if __name__ == "__main__":
    ray.init()
    tuner = tune.Tuner(
        tune.with_resources(train, RESOURCES), param_space={{"trial": tune.grid_search(TRIALS)}}
    )
    results = tuner.fit()
    for error in results.errors:
        print(error, file=sys.stderr)
    sys.exit(bool(results.errors))
'''


def ray_script(task: Task) -> str:
    """A Python script that runs the trials as a grid search of Ray Tune."""
    return RAY.format(
        header=_header(task, "ray"), here=str(Path.cwd()), arguments=task.arguments, trials=[*task.trials],
        folder=str(task.folder),
    )  # fmt: skip
