"""Token shift (RWKV, B. Peng et al. 2023): the feed-forward layer also reads the vector of the previous token.

    model:
      network:
        feedforward: tinylm.model.token_shift.ShiftedFeedForward

So its neurons recognize pairs of neighboring tokens, which helps where a token is a letter. A key/value cache does not
store what the next token reads of this one, so text is generated without one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.checks import require
from tinylm.model.config import ModelConfig
from tinylm.model.feedforward import FeedForward, SwiGLU


class ShiftedFeedForward(nn.Module):
    """The config's feed-forward layer of x_t + f * x_(t-1), and of x_0 at the first token.

    The factors f, one per channel, start at zero.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        require(not config.document_mask, "document_mask: token shift would mix the documents of a sequence")
        self.factors = nn.Parameter(torch.zeros(config.d_model))
        self.layer = SwiGLU(config) if config.activation == "swiglu" else FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        previous = F.pad(x[:, :-1], (0, 0, 1, 0))  # zeros before the first token
        return self.layer(x + self.factors * previous)
