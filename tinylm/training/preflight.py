"""Devices, packages and metrics that a run needs, checked before its first step."""

import contextlib
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy

from tinylm.checks import require
from tinylm.console import device_problem
from tinylm.data.division import data_ranks
from tinylm.data.run_data import RunData
from tinylm.data.trainer_settings import NO_END
from tinylm.errors import ConfigError, did_you_mean
from tinylm.runs.folder import started_from_outside
from tinylm.runs.style import chosen_theme
from tinylm.training.checkpoint import check_validated
from tinylm.training.frozen_start import FrozenStart
from tinylm.training.memory_check import check_memory
from tinylm.training.module import LitTransformerLM
from tinylm.training.tensor_parallel import check_tensor_parallel


def check_run(trainer: Any, module: LitTransformerLM, data: RunData) -> None:
    """Checks a run of `fit` whose data are set up, before other processes start.

    Raises:
        ConfigError: if a callback, the strategy or the memory of a step does not fit the run.
    """
    check_monitors(trainer, module, data)
    check_callbacks(trainer, module)
    if (size := getattr(trainer.strategy, "group_size", 1)) > 1:
        check_tensor_parallel(module, size)
    if isinstance(module.objective, FrozenStart):
        module.objective.check_strategy(trainer.strategy)
    share = data.batch_size // data_ranks(trainer)[0]
    if rows := data.micro_batch_size or share:
        check_memory(trainer, module, rows, data.content.sequence_length, accumulates=rows < share)


# --- options of the Trainer


def check_trainer(trainer: Any) -> None:
    """Checks the length of a run, its intervals in `trainer`, and the theme of its curves; for `fit` and `train-numpy`.

    Raises:
        ConfigError: if the run has no end, or a value would be misread.
    """
    chosen_theme()  # not only when the curves are drawn, at the end
    if trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
        raise ConfigError(NO_END)
    for name in ("gradient_clip_val", "log_every_n_steps"):
        if (trainer[name] or 0) < 0:
            raise ConfigError(f"trainer.{name} must not be negative, got {trainer[name]}")
    every = trainer.val_check_interval
    counts = every is None or isinstance(every, int | float)
    require(counts, f"trainer.val_check_interval: counts steps, so that a resumed run is exact; got {every}")
    remedy = "for no validations set trainer.limit_val_batches to 0"
    require(every is None or every > 0, f"trainer.val_check_interval must be positive, got {every}; {remedy}")
    settings = getattr(trainer.strategy, "init_args", None) or {}
    copied = isinstance(trainer.strategy, str) and re.match("ddp_(spawn|fork|notebook)", trainer.strategy)
    if copied or settings.get("start_method", "popen") != "popen":
        name = trainer.strategy if copied else f"start_method {settings['start_method']}"
        raise ConfigError(f"trainer.strategy: {name} is for a Trainer that a notebook makes; take ddp")


# --- devices


def check_devices(accelerator: Any, devices: Any) -> None:
    """Checks `trainer.accelerator` and `trainer.devices` against this machine.

    Raises:
        ConfigError: if there is no such device, or there are fewer.
    """
    if not isinstance(accelerator, str):
        return
    names = ["auto", "gpu", *AcceleratorRegistry]
    if accelerator not in names:
        hint = did_you_mean(accelerator, names) or f", known are {', '.join(names)}"
        raise ConfigError(f"trainer.accelerator: no kind {accelerator!r}{hint}")
    kinds = {"auto": ["tpu", "cuda", "mps", "cpu"], "gpu": ["cuda", "mps"]}.get(accelerator, [accelerator])
    usable = [AcceleratorRegistry[kind]["accelerator"] for kind in kinds]
    usable = [kind for kind in usable if kind.is_available()]
    if not usable:
        reason = device_problem({"gpu": "cuda", "tpu": "xla"}.get(accelerator, accelerator)) or "no such device"
        reason = reason.split(". ")[0]
        raise ConfigError(f"trainer.accelerator: {accelerator} cannot be used ({reason}); leave it out, or take cpu")
    on_cpu = usable[0] is AcceleratorRegistry["cpu"]["accelerator"]
    chosen = chosen_devices(devices, on_cpu)
    there = usable[0].auto_device_count()
    if not on_cpu and max(chosen, default=0) >= there:
        raise ConfigError(f"trainer.devices: this machine has {there}, got {devices}; lower it, or leave it out")


def follow_launcher(trainer: Any) -> dict[str, int]:
    """`devices` and `num_nodes` of the processes that torchrun or srun has started, where the config leaves them open.

    Args:
        trainer: the config of the Trainer

    Raises:
        ConfigError: if the config has other numbers.
    """
    found = launched()
    if found is None:
        return {}
    launcher, here, machines = found
    where = "this machine" if machines == 1 else f"each of {machines} machines"
    started = f"{launcher} has started {here} {'process' if here == 1 else 'processes'} on {where}"
    is_open = str(trainer.devices) in ("auto", "-1")
    agrees = is_open or len(chosen_devices(trainer.devices, on_cpu=False)) == here
    require(agrees, f"trainer.devices: {started}, got {trainer.devices}; leave it out")
    agrees = trainer.num_nodes in (1, machines)
    require(agrees, f"trainer.num_nodes: {started}, got {trainer.num_nodes}; leave it out")
    return {"num_nodes": machines} | ({"devices": here} if is_open else {})


def launched() -> tuple[str, int, int] | None:
    """The launcher of this process among others, their number on a machine, and that of machines; None if it is alone.

    Raises:
        ConfigError: if the machines have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        launcher, total, here = "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        machines = total // here
    elif started_from_outside() and "SLURM_NTASKS" in os.environ:
        launcher, total, machines = "srun", int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", 1))
        here = total // machines
    else:
        return None
    even = f"{launcher}: must start as many processes on each machine, got {total} on {machines}"
    require(here * machines == total, even)
    return launcher, here, machines


def chosen_devices(devices: Any, on_cpu: bool) -> list[int]:
    """The device numbers that `trainer.devices` asks for; empty for all."""
    words = devices if isinstance(devices, list) else str(devices).strip("[]").split(",")
    several = isinstance(devices, list) or len(words) > 1
    with contextlib.suppress(ValueError):
        numbers = [int(word) for word in words]
        if several and not on_cpu and min(numbers, default=-1) >= 0:
            return numbers
        if not several and (numbers[0] > 0 or (numbers[0] == -1 and not on_cpu)):
            return list(range(numbers[0]))
    if devices == "auto":
        return []
    form = "a positive number or auto" if on_cpu else "a positive number, auto, or a list of numbers"
    raise ConfigError(f"trainer.devices must be {form}, got {devices}")


# --- packages and metrics

LOGGERS = {  # class: name, modules of which one is needed, package
    "TensorBoardLogger": ("TensorBoard", ("tensorboard", "tensorboardX"), '"tinylm[tensorboard]"'),
    "WandbTracker": ("W&B", ("wandb",), "wandb"),
    "WandbLogger": ("W&B", ("wandb",), "wandb"),
    "MLFlowLogger": ("MLflow", ("mlflow",), "mlflow"),
    "CometLogger": ("Comet", ("comet_ml",), "comet-ml"),
    "NeptuneLogger": ("Neptune", ("neptune",), "neptune"),
}


def check_loggers(loggers: Any) -> None:
    """Refuses a logger in `trainer.logger` whose package is not installed, and W&B without a home folder.

    Raises:
        ConfigError: naming the package.
    """
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        kind = str(getattr(logger, "class_path", "")).rpartition(".")[2]
        if kind in LOGGERS and not any(find_spec(module) for module in LOGGERS[kind][1]):
            raise ConfigError(f"trainer.logger: {LOGGERS[kind][0]} is not installed; pip install {LOGGERS[kind][2]}")
        if kind.startswith("Wandb"):
            try:
                Path.home()
            except RuntimeError as error:
                raise ConfigError("trainer.logger: W&B needs a home folder, which this user lacks; set HOME") from error


def check_monitors(trainer: Any, module: Any, data: RunData) -> None:
    """Refuses a callback that monitors a metric which no validation measures, such as a column of metrics.csv.

    Raises:
        ConfigError: naming the callback and the metrics. With classes from elsewhere, which may log other metrics, only
            if there is no validation at all.
    """
    check_validated(trainer)
    known = [f"val/{name}" for name in ("loss", "perplexity", "bpb", "accuracy")]
    known += ["val/floor", "val/excess"] if "val" in data.floors else []
    known += [f"val/loss_{name}" for name in data.fingerprints]
    known += [each for each in getattr(module.objective, "monitor", ()) if each.startswith("val/")]
    kinds = [type(each) for each in (module, *trainer.callbacks)]
    if not all(kind.__module__.startswith(("tinylm.", "lightning.")) for kind in kinds):
        return
    more = ["step", "epoch", *(["lr-"] if "LearningRateMonitor" in {kind.__name__ for kind in kinds} else [])]
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor is not None and monitor not in known and not str(monitor).startswith(tuple(more)):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} monitors {monitor}, which no validation measures; "
                f"there are {', '.join(known)}"
            )


REFUSED = {
    StochasticWeightAveraging: "replaces the schedule, and no checkpoint holds its average; take "
    "lightning.pytorch.callbacks.EMAWeightAveraging, or average checkpoints by tinylm average",
    GradientAccumulationScheduler: "changes the micro-batches of a step, which are planned for the whole run; take "
    "data.batch_schedule, which changes the batch",
    BatchSizeFinder: "tries batches of other sizes than the run's; take tinylm estimate, which computes the largest",
    LearningRateFinder: "sets an attribute that nothing reads; compare learning rates by tinylm ablate",
    OnExceptionCheckpoint: "starts a new run from the file that another has left; every run saves itself when it is "
    "stopped, and goes on by --resume",
}  # callbacks of Lightning, and what to do instead


def check_callbacks(trainer: Any, module: Any) -> None:
    """Refuses callbacks of Lightning that would do nothing, or harm, in a run of tinylm.

    Raises:
        ConfigError: naming the callback and what to take instead.
    """
    by_tensor = isinstance(trainer.strategy, ModelParallelStrategy)
    sharded = by_tensor or isinstance(trainer.strategy, FSDPStrategy)
    for callback in trainer.callbacks:
        name = f"trainer.callbacks: {type(callback).__name__}"
        for kind, reason in REFUSED.items():
            require(not isinstance(callback, kind), f"{name} {reason}")
        lacks = isinstance(callback, BackboneFinetuning) and not hasattr(module, "backbone")
        require(not lacks, f"{name} unfreezes a `backbone`, which the network lacks; derive from BaseFinetuning")
        averages, unfreezes = (isinstance(callback, kind) for kind in (WeightAveraging, BaseFinetuning))
        require(not (averages and sharded), f"{name} cannot average sharded weights; leave it out, or take ddp")
        missed = unfreezes and by_tensor
        require(not missed, f"{name} does not find sharded weights in the optimizer; take ddp")
