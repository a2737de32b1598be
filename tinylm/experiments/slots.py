"""The share of the machine that each of several concurrent trials gets."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from tinylm.checks import require
from tinylm.console import plural
from tinylm.experiments.trials import Trial, planned_options
from tinylm.workers import num_cores


@dataclass(frozen=True)
class Slot:
    """The place of one trial.

    Attributes:
        environment: variables that choose its GPUs
        threads: of PyTorch. None: as many as PyTorch takes
    """

    environment: dict[str, str] = field(default_factory=dict)
    threads: int | None = None


def job_slots(jobs: int, trials: Sequence[Trial]) -> list[Slot]:
    """Divides this machine's GPUs, or its processor cores if it has none, among `jobs` concurrent trials.

    A single trial gets the whole machine. If `OMP_NUM_THREADS` is set, it is the number of threads of each trial.

    Raises:
        ConfigError: if there are fewer GPUs than trials at a time.
    """
    require(jobs >= 1, f"--jobs must be at least 1, got {jobs}")
    if jobs == 1 or not trials:
        return [Slot()] * jobs
    on_cpu = all(planned_options(trial).get("trainer.accelerator") == "cpu" for trial in trials)
    devices = [] if on_cpu else visible_gpus()
    if not devices:
        return [Slot(threads=_threads(jobs))] * jobs
    each = len(devices) // jobs
    require(each > 0, f"--jobs {jobs}: there {'is' if len(devices) == 1 else 'are'} {plural(len(devices), 'GPU')}, "
                      f"and each trial needs one; give --jobs {len(devices)}")  # fmt: skip
    shares = [devices[place * each : (place + 1) * each] for place in range(jobs)]
    return [Slot({"CUDA_VISIBLE_DEVICES": ",".join(share)}) for share in shares]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [each.strip() for each in given.split(",") if each.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _threads(jobs: int) -> int | None:
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    return max(1, num_cores() // jobs)
