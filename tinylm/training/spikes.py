"""LossSpikes: how far the training loss jumps above its recent values.

The spike score is that of OLMo 2 (2 OLMo 2 Furious, arXiv:2501.00656): the percentage of values at least
seven standard deviations away from the mean of the last 1,000. Here the values are those of every
`trainer.log_every_n_steps`, without the denser rows of a run's start, and the mean and deviation are those of the
values before the one that is scored.
"""

from collections import deque
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback

from tinylm.checks import require
from tinylm.training.checkpoint import finished_step
from tinylm.training.inspection import log
from tinylm.training.module import LitTransformerLM
from tinylm.training.rows import row_is_due

FEWEST = 16  # values before the first score


class LossSpikes(Callback):
    """Logs `train/loss_deviations`, the loss in standard deviations above its mean, and `train/spike_score` in percent.

    The window is saved in every checkpoint, so a resumed run logs the scores of one that never stopped. Costs
    0.1 ms for each logged row.
    """

    def __init__(self, window: int = 1000, threshold: float = 7.0) -> None:
        """Creates the callback.

        Args:
            window: Logged losses that a loss is compared with
            threshold: Standard deviations from which a loss is a spike
        """
        require(window >= FEWEST, f"LossSpikes: window must be at least {FEWEST}, got {window}")
        require(threshold > 0, f"LossSpikes: threshold must be positive, got {threshold}")
        self.threshold = threshold
        self._losses: deque[float] = deque(maxlen=window)
        self._scored = self._spikes = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: LitTransformerLM, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Scores the loss of a step that is logged, from the first regular row on."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if finished_step(trainer, batch_idx) and row_is_due(trainer, step) and step >= every:
            pl_module.settle()
            if scores := self.score(pl_module.train_loss.item()):
                log(trainer, trainer.global_step, scores)

    def score(self, loss: float) -> dict[str, float]:
        """The scores of the next loss; none while the window has fewer than 16 values, or only equal ones."""
        earlier = np.array(self._losses)
        self._losses.append(loss)
        if len(earlier) < FEWEST or np.ptp(earlier) == 0:
            return {}
        deviations = float((loss - earlier.mean()) / earlier.std())
        self._scored, self._spikes = self._scored + 1, self._spikes + (abs(deviations) >= self.threshold)
        return {"train/loss_deviations": deviations, "train/spike_score": 100 * self._spikes / self._scored}

    def state_dict(self) -> dict[str, Any]:
        """The window and the counts."""
        return {"losses": list(self._losses), "scored": self._scored, "spikes": self._spikes}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the state."""
        self._losses.extend(state_dict["losses"])
        self._scored, self._spikes = state_dict["scored"], state_dict["spikes"]
