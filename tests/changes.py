"""Changes that a user may make to a network, after which its config no longer describes it.

`CHANGES` maps a name to a function that makes the change in place, and to a part of the expected error message.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from tinylm.model import TransformerLM
from tinylm.model.attention import Attention
from tinylm.model.feedforward import SwiGLU


class GatedAttention(Attention):
    """Multiplies the output by a learned gate in (0, 1)."""

    def forward(self, x, visible, rotary, cache):
        return super().forward(x, visible, rotary, cache) * torch.sigmoid(self.gate(x))


class SignedSwiGLU(SwiGLU):
    """Uses tanh instead of silu as the gate's activation. No new weights."""

    def forward(self, x):
        return self.output(torch.tanh(self.gate(x)) * self.input(x))


class ShiftedFeedForward(nn.Module):
    """Adds the previous token's input: correct only if the whole text is passed at once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x + F.pad(x, (0, 0, 1, 0))[:, :-1])


class CentredFeedForward(ShiftedFeedForward):
    """Subtracts the mean over the text: not causal, so a prefix alone has other logits than in the whole text."""

    def forward(self, x):
        return self.inner(x - x.mean(dim=1, keepdim=True))


class BatchedFeedForward(ShiftedFeedForward):
    """Subtracts half the mean over the rows: a text depends on the other rows of its batch."""

    def forward(self, x):
        return self.inner(x - 0.5 * x.mean(dim=0, keepdim=True))


class Rolled(TransformerLM):
    """Permutes the logits depending on the length of the text."""

    def forward(self, ids, **options):
        return super().forward(ids, **options).roll(ids.shape[1], dims=-1)


class Flipped(TransformerLM):
    """Reverses the logits."""

    def forward(self, ids, **options):
        return super().forward(ids, **options).flip(-1)


def gate(model: TransformerLM) -> None:
    for block in model.blocks:
        block.attention.__class__ = GatedAttention
        weight = block.attention.query.weight
        block.attention.gate = nn.Linear(weight.shape[1], weight.shape[1]).to(weight.dtype)
        generator = torch.Generator().manual_seed(3)
        block.attention.gate.weight.data.normal_(generator=generator, std=2.0)


def subclass(model: TransformerLM) -> None:
    for block in model.blocks:
        block.feedforward.__class__ = SignedSwiGLU


def hook(model: TransformerLM) -> None:
    """Steering: adds a vector to the residual stream."""
    width = model.config.d_model
    vector = torch.linspace(-3, 3, width, dtype=model.embedding.weight.dtype)
    model.blocks[0].register_forward_hook(lambda module, inputs, output: output + vector)


def hook_at_a_position(model: TransformerLM) -> None:
    """Changes all positions but the last, which a KV cache cannot reproduce."""

    def patch(module, inputs, output):
        return torch.cat((output[:, :-1].flip(-1), output[:, -1:]), dim=1)

    model.blocks[0].register_forward_hook(patch)


def hook_on_the_network(model: TransformerLM) -> None:
    """Makes the logits depend on all ids of the text."""

    def punish(module, inputs, output):
        return output - 2 * F.one_hot(inputs[0], output.shape[-1]).sum(1, keepdim=True)

    model.register_forward_hook(punish)


def parameter(model: TransformerLM) -> None:
    """Adds a parameter to a feed-forward layer, and a pre-hook that adds it to the input."""
    layer = model.blocks[1].feedforward
    layer.shift = nn.Parameter(torch.linspace(3, -3, model.config.d_model, dtype=model.embedding.weight.dtype))
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] + module.shift,))


def wrap(kind: type[ShiftedFeedForward]) -> Callable[[TransformerLM], None]:
    def change(model: TransformerLM) -> None:
        for block in model.blocks:
            block.feedforward = kind(block.feedforward)

    return change


def become(kind: type[TransformerLM]) -> Callable[[TransformerLM], None]:
    def change(model: TransformerLM) -> None:
        model.__class__ = kind

    return change


def attend(model: TransformerLM) -> None:
    for block in model.blocks:
        kernel = block.attention.attend
        block.attention.attend = lambda query, *rest, kernel=kernel: kernel(3 * query, *rest)


def own_forward(model: TransformerLM) -> None:
    norm = model.final_norm
    norm.forward = lambda x: type(norm).forward(norm, x).roll(1, -1)


CHANGES: dict[str, tuple[Callable[[TransformerLM], None], str]] = {
    "gate": (gate, "blocks.0.attention is a GatedAttention, not an Attention"),
    "subclass": (subclass, "blocks.0.feedforward is a SignedSwiGLU, not a SwiGLU"),
    "hook": (hook, "blocks.0 has a forward hook"),
    "hook at a position": (hook_at_a_position, "blocks.0 has a forward hook"),
    "hook on the network": (hook_on_the_network, "the model has a forward hook"),
    "parameter": (parameter, "blocks.1.feedforward.shift is not one of its parameters"),
    "reads the token before": (wrap(ShiftedFeedForward), "blocks.0.feedforward is a ShiftedFeedForward, not a SwiGLU"),
    "looks ahead": (wrap(CentredFeedForward), "blocks.0.feedforward is a CentredFeedForward, not a SwiGLU"),
    "mixes rows": (wrap(BatchedFeedForward), "blocks.0.feedforward is a BatchedFeedForward, not a SwiGLU"),
    "forward of a subclass": (become(Rolled), "the model is a Rolled, not a TransformerLM"),
    "logits of a subclass": (become(Flipped), "the model is a Flipped, not a TransformerLM"),
    "attend": (attend, "blocks.0.attention.attend is <lambda>, not attend_fused"),
    "forward of an instance": (own_forward, "final_norm.forward is not the method of its class"),
}
