"""RankWatch: a rank that is missing, dead or stalled ends all ranks, which name it.

A collective operation waits for all ranks. If one is missing the others wait until its timeout, and then know only
that a connection failed. So each rank keeps a connection to rank 0 beside those of the collectives (rank_links.py).
This depends on no backend (gloo, NCCL) and on no launcher.
"""

import re
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ParallelStrategy
from torch.distributed import DistError

from tinylm.errors import TinyLMError
from tinylm.training.rank_links import Watch


def watch_ranks(trainer: pl.Trainer, timeout: float) -> None:
    """Lets the ranks of a trainer wait at most this long for one another, wherever they wait.

    Args:
        trainer: a trainer that has not run yet; without several ranks nothing changes
        timeout: seconds, for the start of all ranks, for every collective operation and for signs of life
    """
    if not isinstance(trainer.strategy, ParallelStrategy) or trainer.strategy.cluster_environment is None:
        return
    strategy: Any = trainer.strategy
    if getattr(strategy, "_timeout", None) == default_pg_timeout:  # not the user's own
        strategy._timeout = timedelta(seconds=timeout)
    callback, set_up = RankWatch(), strategy.setup_environment

    def set_up_together() -> None:
        strategy.set_world_ranks()
        if strategy.world_size > 1:
            callback.begin(strategy, timeout)
        set_up()

    strategy.setup_environment = set_up_together
    callbacks: list[Callback] = getattr(trainer, "callbacks")  # noqa: B009 (pyright does not see the attribute)
    callbacks.append(callback)


class RankWatch(Callback):
    """Tells the `Watch` of this rank how far training is, and how it ends."""

    watch: Watch | None = None

    def begin(self, strategy: Any, timeout: float) -> None:
        """Connects all ranks; returns when they are.

        Raises:
            TinyLMError: if rank 0 is missing. Missing others end this process.
        """
        self.watch = Watch(strategy, timeout)
        self.watch.ready.wait()

    def _pass(self, *_: Any, **__: Any) -> None:
        if self.watch is not None:
            self.watch.place += 1
            self.watch.activity += 1

    on_train_start = on_train_batch_start = on_before_backward = on_before_optimizer_step = on_train_batch_end = _pass
    on_validation_start = on_validation_epoch_end = on_validation_end = on_train_end = _pass
    on_test_epoch_end = on_predict_epoch_end = _pass

    def _work(self, *_: Any, **__: Any) -> None:
        if self.watch is not None:
            self.watch.activity += 1

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _work  # their number differs between ranks

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tells the others; after a failed collective it waits until it is known which rank is lost."""
        if self.watch is None:
            return
        collective = isinstance(exception, DistError) or re.search("gloo|nccl", str(exception), re.IGNORECASE)
        if collective and not isinstance(exception, TinyLMError):
            time.sleep(self.watch.timeout)  # the watch ends the process
        code = (
            130 if isinstance(exception, KeyboardInterrupt) else getattr(exception, "exit_code", TinyLMError.exit_code)
        )
        self.watch.leave(code, " ".join(str(exception).split()))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Says goodbye after a run that ended as planned."""
        if self.watch is not None:
            self.watch.leave(0)
            self.watch = None
