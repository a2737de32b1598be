"""Messages of Lightning and PyTorch that do not apply to tinylm."""

import logging
import warnings

IGNORED = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*when logging on epoch level in distributed.*",  # metrics are summed
    ".*from an ambiguous collection.*",  # a Batch has its size found right
    ".*smaller than the logging interval.*",  # MetricsLog counts steps
    ".*`srun` command is available.*",  # harmless on a login node
    ".*in eval mode at the start of training.*",  # a teacher in an objective
    ".*LeafSpec.*",
    ".*WeightAveraging callback with a model that overrides.*",  # only sharding overrides it
)


def quiet_lightning() -> None:
    """Silences hardware lists, tips, and warnings that do not apply to tinylm."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("callbacks.model_summary", "profilers.profiler"):  # off unless they are asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # advice on meshes, not ours
    for message in IGNORED:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module="jsonargparse")
