"""nanoGPT's network in plain PyTorch, and its checkpoints, for tests without a clone of nanoGPT."""

import math
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class Reference(nn.Module):
    """The function that nanoGPT's model.py computes, from a flat dict of its weights."""

    def __init__(self, arguments: dict, weights: dict) -> None:
        super().__init__()
        self.arguments, self.weights = arguments, weights

    def linear(self, x, name):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, x, name):
        weight = self.weights[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.weights.get(f"{name}.bias"), 1e-5)

    def forward(self, ids):
        B, T = ids.shape
        D, H = self.arguments["n_embd"], self.arguments["n_head"]
        x = F.embedding(ids, self.weights["transformer.wte.weight"])
        x = x + F.embedding(torch.arange(T), self.weights["transformer.wpe.weight"])
        for layer in range(self.arguments["n_layer"]):
            block = f"transformer.h.{layer}"
            projected = self.linear(self.norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
            q, k, v = (part.view(B, T, H, D // H).transpose(1, 2) for part in projected.split(D, dim=2))
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.linear(attended.transpose(1, 2).contiguous().view(B, T, D), f"{block}.attn.c_proj")
            hidden = F.gelu(self.linear(self.norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc"))
            x = x + self.linear(hidden, f"{block}.mlp.c_proj")
        return self.linear(self.norm(x, "transformer.ln_f"), "lm_head")


def random_weights(arguments: dict, seed: int = 0) -> dict:
    """Weights with nanoGPT's names and shapes; the output projection is the embedding."""
    generator = torch.Generator().manual_seed(seed)
    D, L = arguments["n_embd"], arguments["n_layer"]
    norms = ["transformer.ln_f", *(f"transformer.h.{i}.ln_{n}" for i in range(L) for n in (1, 2))]
    linear = {"attn.c_attn": (3 * D, D), "attn.c_proj": (D, D), "mlp.c_fc": (4 * D, D), "mlp.c_proj": (D, 4 * D)}
    shapes = {
        "transformer.wte.weight": (arguments["vocab_size"], D),
        "transformer.wpe.weight": (arguments["block_size"], D),
    }
    shapes |= {f"{norm}.weight": (D,) for norm in norms}
    shapes |= {f"transformer.h.{i}.{name}.weight": shape for i in range(L) for name, shape in linear.items()}
    if arguments["bias"]:
        shapes |= {
            f"{name.removesuffix('.weight')}.bias": shape[:1]
            for name, shape in shapes.items()
            if "transformer.w" not in name
        }
    weights = {
        name: torch.randn(shape, generator=generator) * (0.3 if len(shape) == 1 else 1.5 / math.sqrt(shape[-1]))
        for name, shape in shapes.items()
    }
    weights |= {name: weight + 1 for name, weight in weights.items() if "ln_" in name and name.endswith("weight")}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def nanogpt_module():
    """nanoGPT's own model.py from the folder in $NANOGPT; None if it is not set."""
    folder = os.environ.get("NANOGPT")
    if folder is None:
        return None
    sys.path.insert(0, str(Path(folder).resolve()))
    try:
        import model
    finally:
        sys.path.pop(0)
    return model
