"""Distillation (Hinton et al. 2015, arXiv:1503.02531): a small model learns the distribution of a larger one.

model:
  objective: {class_path: distill.Distillation, init_args: {teacher: runs/small, temperature: 2}}

tinylm fit -c tiny -c distill.yaml --trust distill --data.tokenizer runs/small/model/tokenizer.tinylm.json
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tinylm
from tinylm.data import IGNORE, Batch
from tinylm.errors import ConfigError
from tinylm.model.attention import documents_apart
from tinylm.training import LitTransformerLM


class Distillation(nn.Module):
    """share * T² * KL(teacher || student) at temperature T, and the cross-entropy for the rest.

    Args:
        teacher: a run, model folder or checkpoint with the same tokenizer; its weights are frozen
        temperature: T, by which the logits of both are divided
        share: of the divergence in the loss, from 0 to 1
    """

    def __init__(self, teacher: str, temperature: float = 1.0, share: float = 1.0) -> None:
        super().__init__()
        self.teacher, self.tokenizer = tinylm.load(teacher)
        self.teacher.requires_grad_(False)
        self.temperature, self.share = temperature, share

    def forward(self, network: LitTransformerLM, batch: Batch) -> dict[str, Tensor]:
        """Sums over the targets of a micro-batch."""
        if network.tokenizer.token_bytes != self.tokenizer.token_bytes:
            raise ConfigError(
                "model.objective: the teacher has another tokenizer; give data.tokenizer that of the teacher"
            )
        counts = batch.targets != IGNORE
        documents = documents_apart(self.teacher.config, batch.inputs, self.tokenizer.end_of_text, batch.documents)
        student = network(batch.inputs, batch.documents)[counts]  # (n, V)
        with torch.no_grad():
            teacher = self.teacher(batch.inputs, documents=documents)[counts]
        logs = [F.log_softmax(logits / self.temperature, dim=-1) for logits in (student, teacher)]
        divergence = F.kl_div(*logs, reduction="sum", log_target=True)
        nll = F.cross_entropy(student, batch.targets[counts], reduction="sum")
        loss = self.share * self.temperature**2 * divergence + (1 - self.share) * nll
        return {"loss": loss, "divergence": divergence, "nll": nll}
