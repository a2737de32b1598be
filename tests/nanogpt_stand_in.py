"""A model with the interface of nanoGPT's model.py, for the tests of benches."""

NANOGPT = '''
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    """A bigram model with nanoGPT's interface."""

    def __init__(self, config):
        super().__init__()
        print("number of parameters")  # as nanoGPT's does; benches do not show it
        self.logits = nn.Embedding(config.vocab_size, config.vocab_size)
        nn.init.zeros_(self.logits.weight)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), learning_rate, betas, weight_decay=weight_decay)

    def forward(self, ids, targets):
        logits = self.logits(ids)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())
'''
