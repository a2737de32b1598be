"""Mixture of experts: many feed-forward layers; each token uses a few of them.

    cp scripts/examples/moe.py .
    tinylm fit -c examples/moe.yaml --trust moe
    tinylm generate --model runs/moe --trust-code

A router gives every token x a probability for each of N experts; the k most likely compute (Shazeer et al. 2017;
Mixtral, Jiang et al. 2024):

    p = softmax(W x)        y = Σ w_e expert_e(x), over the k largest p_e        w_e = p_e / Σ p of those k

The parameters grow with N, the work of a token only with k. Nothing keeps a router from sending all tokens to the same
few experts, which then are the only ones to learn. So a loss is added that is smallest, k, when all experts are
used alike (Switch Transformer, Fedus et al. 2021, equations 4 to 6):

    balance = N Σ f_e P_e,   f_e: tokens that chose expert e, per token;   P_e: mean of p_e over the tokens

A shared expert, which every token uses, lets the others specialize (DeepSeekMoE, Dai et al. 2024).

Left out: a capacity, beyond which an expert drops tokens; experts on different devices; and one batched product for
all experts instead of a loop over them.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from tinylm.checks import require
from tinylm.model import ModelConfig
from tinylm.model.count import count_parameters
from tinylm.model.feedforward import make_feedforward
from tinylm.model.normalization import widened


class MixtureOfExperts(nn.Module):
    """A feed-forward plug-in: y = Σ w_e expert_e(x) over the chosen experts, plus the shared one.

    Args:
        config: the model's config, whose activation and bias the experts have
        experts: N, number of experts to choose from
        top_k: k, experts per token
        width: F of an expert. Default: the model's, divided by k, so that a token costs what it costs without experts
        shared: F of the shared expert; 0: none
        normalize: scale the k weights so that they sum to 1
        balance: factor of the load-balancing loss

    Attributes:
        auxiliary_loss: the load-balancing loss of the last forward pass in training, times its factor
    """

    supports_cache = True  # each token is computed by itself
    auxiliary_loss: Tensor | None = None

    def __init__(
        self, config: ModelConfig, *, experts: int = 8, top_k: int = 2, width: int | None = None, shared: int = 0,
        normalize: bool = True, balance: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        require(1 <= top_k <= experts, f"top_k must be from 1 to experts, got top_k={top_k} and experts={experts}")
        require(width is None or width >= 1, f"width must be at least 1, got {width}")
        require(shared >= 0, f"shared must not be negative, got {shared}")
        require(balance >= 0, f"balance must not be negative, got {balance}")
        self.top_k, self.normalize, self.balance = top_k, normalize, balance
        dense = replace(config, feedforward=None)
        self.router = nn.Linear(config.d_model, experts, bias=False)
        expert = replace(dense, d_ff=width or max(1, dense.ff_width // top_k))
        self.experts = nn.ModuleList(make_feedforward(expert) for _ in range(experts))
        self.shared = make_feedforward(replace(dense, d_ff=shared)) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        tokens = x.flatten(0, -2)  # (n, D), for n = B T
        scores = widened(self.router(tokens)).softmax(dim=-1)  # p, (n, N)
        weights, chosen = scores.topk(self.top_k)  # (n, k) each
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(tokens) if self.shared is None else self.shared(tokens)
        for index, expert in enumerate(self.experts):  # also those without tokens: all need a gradient, if only zero
            row, rank = (chosen == index).nonzero(as_tuple=True)  # the tokens of this expert, and which choice it was
            y = y.index_add(0, row, (expert(tokens[row]) * weights[row, rank, None]).type_as(y))
        self.auxiliary_loss = self.balance * load_balance(scores, chosen) if self.training else None
        return y.view_as(x)

    @property
    def active_parameters(self) -> int:
        """Parameters that a token uses."""
        return count_parameters(self) - (len(self.experts) - self.top_k) * count_parameters(self.experts[0])


def load_balance(scores: Tensor, chosen: Tensor) -> Tensor:
    """N Σ f_e P_e: k if all experts are used alike, more if not.

    Args:
        scores: the probability of each expert for each token, (n, N)
        chosen: the experts of each token, (n, k)
    """
    share = torch.zeros_like(scores).scatter(1, chosen, 1.0).mean(dim=0)  # f, (N,), has no gradient
    return scores.shape[1] * (share * scores.mean(dim=0)).sum()
