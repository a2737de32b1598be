"""Properties of a transformer block."""

import torch
import torch.nn.functional as F

from tinylm.model import ModelConfig
from tinylm.model.feedforward import SwiGLU
from tinylm.model.positional import rotary_table
from tinylm.model.transformer import Block


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    one = torch.ones(1, 1)
    x, weight = torch.randn(2, 5, 8), torch.rand(8) + 0.5
    config = ModelConfig(vocab_size=9, d_model=8, num_heads=2, max_seq_len=5, activation="swiglu", norm="rmsnorm")
    layer = SwiGLU(config)
    matrices = layer.gate.weight, layer.input.weight, layer.output.weight
    whole = Block(config, layer=0).eval()
    rotary = rotary_table(5, config.head_dim, 10000.0).float()

    def same(y):
        return y

    def in_place():
        given = x.clone()
        mine.block(given, same, same, same, same)
        return given

    yield (
        "the norm of (1, 7) is (0.2, 1.4)",
        torch.tensor([[0.2, 1.4]]),
        lambda: mine.rms_norm(torch.tensor([[1.0, 7.0]]), torch.ones(2), 0.0),
        "the mean square is (1 + 49) / 2 = 25; divide by its root, 5",
    )
    yield (
        "the norm of zeros is zeros",
        torch.zeros(3),
        lambda: mine.rms_norm(torch.zeros(3), torch.ones(3), 1e-5),
        "add eps to the mean square, under the root",
    )
    yield (
        "the norm is PyTorch's, with any weight",
        F.rms_norm(x, (8,), weight, 0.1),
        lambda: mine.rms_norm(x, weight, 0.1),
        "mean(dim=-1, keepdim=True); RMSNorm subtracts no mean, unlike LayerNorm",
    )
    yield (
        "SwiGLU of ones is silu(1) = 0.7311",
        torch.tensor([[0.731059]]),
        lambda: mine.swiglu(one, one, one, one),
        "silu(z) = z * sigmoid(z)",
    )
    yield (
        "the gate goes through silu, the input does not",
        torch.tensor([[3 * 2 * 0.880797]]),
        lambda: mine.swiglu(one, 2 * one, 3 * one, one),
        "here x G = 2 and x I = 3, so the result is 3 silu(2)",
    )
    yield (
        "SwiGLU is tinylm's layer",
        layer(x).detach(),
        lambda: mine.swiglu(x, *matrices),
        "weights have the shape (outputs, inputs), as in torch.nn.Linear: y = x @ W.T",
    )
    yield (
        "a block that adds 2 x, then 10 times the sum, makes 33 of 1",
        torch.full((1, 1), 33.0),
        lambda: mine.block(one, lambda y: 2 * y, lambda y: 10 * y, same, same),
        "the feed-forward layer reads the stream after attention has been added: 1 + 2 = 3, then 3 + 30",
    )
    yield (
        "layers that add nothing leave the stream as it is",
        x,
        lambda: mine.block(x, torch.zeros_like, torch.zeros_like, torch.sin, torch.sin),
        "the norm is for the layer alone: what is added to x is added to x itself, not to its norm",
    )
    yield (
        "the block is tinylm's",
        whole(x, None, rotary, None).detach(),
        lambda: mine.block(
            x,
            lambda y: whole.attention(y, None, rotary, None),
            whole.feedforward,
            whole.attention_norm,
            whole.feedforward_norm,
        ),
        "each layer has its own norm, applied before it",
    )
    yield (
        "the x that was given is not changed",
        x,
        in_place,
        "`x += y` changes the caller's tensor; `x = x + y` makes a new one",
    )
