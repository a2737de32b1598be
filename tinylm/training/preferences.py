"""DPO: learning from preferences (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    loss = -log sigmoid(r(chosen) - r(rejected))        r(y) = beta * log(p(y | prompt) / reference(y | prompt))

r is the reward under which the network would be the best compromise between a high reward and staying close to the
reference. No separate reward model is needed: the loss is the cross-entropy of the preference given both implicit
rewards. At the start, where network and reference are equal, it is log 2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.checks import require
from tinylm.data import IGNORE, Batch
from tinylm.training.frozen_start import FrozenStart, log_probs
from tinylm.training.objective import per_sequence


class DPO(FrozenStart):
    """Direct preference optimization of `data.pairs` with `chosen` and `rejected`.

    Args:
        beta: how strongly the network is held to the reference
        reference: a run, model folder or checkpoint with the same tokenizer. None: the start of the run
    """

    preferences = True
    monitor = ("val/dpo_loss", "min")

    def __init__(self, beta: float = 0.1, reference: str | None = None) -> None:
        require(beta > 0, f"beta must be above 0, got {beta}")
        super().__init__(reference)
        self.beta = beta

    def forward(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """The loss, and the implicit rewards, for a micro-batch; each preference counts the same."""
        found = {name: value.sum() for name, value in self.evaluate(network, batch).items()}
        return per_sequence(network, batch, {"loss": found.pop("dpo_loss"), **found})

    def evaluate(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Values of each preference of a batch, (B,)."""
        counts = (batch.targets != IGNORE).any(1)  # a process without data of its own has none
        chosen, rejected = (reward[counts] for reward in self.rewards(network, batch))
        margin = chosen - rejected
        return {
            "dpo_loss": -F.logsigmoid(margin),
            "reward_accuracy": (margin > 0).to(margin),
            "reward_margin": margin.detach(),
            "reward_chosen": chosen.detach(),
            "reward_rejected": rejected.detach(),
        }

    def rewards(self, network: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The implicit rewards of the chosen and the rejected responses, (B,) each."""
        both = joined(batch)
        ratios = (log_probs(network, both) - self.reference_log_probs(network, both)).sum(1)  # (2 B,)
        chosen, rejected = (self.beta * ratios).chunk(2)
        return chosen, rejected

    @staticmethod
    def num_tokens(batch: Batch) -> int:
        """Tokens that a micro-batch computes."""
        return 2 * batch.inputs.numel()


def joined(batch: Batch) -> Batch:
    """The chosen responses, then the rejected ones, as the rows of one batch."""
    rejected = batch.rejected
    assert rejected is not None
    inputs, targets = (torch.cat([getattr(each, name) for each in (batch, rejected)]) for name in ("inputs", "targets"))
    if batch.documents is None or rejected.documents is None:
        return Batch(inputs, targets, batch.num_targets)
    return Batch(inputs, targets, batch.num_targets, documents=torch.cat([batch.documents, rejected.documents]))
