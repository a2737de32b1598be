"""Properties of a LoRA layer."""

import torch
from torch import nn

from tinylm.model.lora import LoRALinear


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    x = torch.randn(3, 5, 6)
    weight, bias = torch.randn(4, 6), torch.randn(4)
    a, b = torch.randn(2, 6), torch.randn(4, 2)

    def linear(with_bias=True):
        layer = nn.Linear(6, 4, bias=with_bias)
        layer.load_state_dict({"weight": weight, "bias": bias} if with_bias else {"weight": weight})
        return layer

    def adapted(layer):
        """A layer of the reader's with the A and B above."""
        with torch.no_grad():
            layer.a.copy_(a)
            layer.b.copy_(b)
        return layer

    def by_hand():
        zero = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(zero.weight)
        layer = mine.LoRALinear(zero, 1, 2.0)
        nn.init.ones_(layer.a)
        nn.init.constant_(layer.b, 3.0)
        return layer(torch.tensor([10.0, 1.0]))

    def shapes():
        layer = mine.LoRALinear(linear(), 2, 4.0)
        return tuple(layer.a.shape), tuple(layer.b.shape)

    def gradients():
        layer = mine.LoRALinear(linear(), 2, 4.0)
        layer(x).square().sum().backward()
        return [name for name, parameter in layer.named_parameters() if parameter.grad is not None]

    def first_step():
        layer = mine.LoRALinear(linear(), 2, 4.0)
        layer(x).square().sum().backward()
        return layer.b.grad is not None and bool((layer.b.grad != 0).any())

    def after_merging():
        layer = linear()
        adapted(mine.LoRALinear(layer, 2, 4.0)).merged()
        return layer.weight

    theirs = LoRALinear(linear())
    theirs.add("default", rank=2, alpha=4.0, dropout=0.0)
    theirs.lora_a["default"].data, theirs.lora_b["default"].data = a, b

    yield (
        "A is (rank, inputs) and B is (outputs, rank)",
        ((2, 6), (4, 2)),
        shapes,
        "linear.in_features and linear.out_features are the sizes of the layer",
    )
    yield (
        "a new layer computes what the given layer does",
        x @ weight.T + bias,
        lambda: mine.LoRALinear(linear(), 2, 4.0)(x),
        "B is zero at the start, and the layer's bias is part of it",
    )
    yield (
        "of 28 frozen parameters and 20 new ones, 20 are trainable",
        20,
        lambda: sum(p.numel() for p in mine.LoRALinear(linear(), 2, 4.0).parameters() if p.requires_grad),
        "linear.requires_grad_(False) freezes; nn.Parameter makes A and B trainable",
    )
    yield (
        "only A and B get gradients",
        ["a", "b"],
        lambda: sorted(gradients()),
        "x and the product with W take part in the forward pass, but W is frozen",
    )
    yield (
        "the first step changes B",
        True,
        first_step,
        "the gradient of B is a product with A x: if A were zero like B, neither would ever change",
    )
    yield (
        "by hand: A = (1, 1), B = (3), rank 1 and alpha 2 make 66 of (10, 1)",
        torch.tensor([66.0]),
        by_hand,
        "A x = 11, B A x = 33, times alpha / rank = 2",
    )
    yield (
        "with other A and B the result is that of tinylm's LoRALinear",
        theirs(x).detach(),
        lambda: adapted(mine.LoRALinear(linear(), 2, 4.0))(x),
        "the scale is alpha / rank, here 2",
    )
    yield (
        "merged() has the weight W + scale B A",
        weight + 2 * b @ a,
        lambda: adapted(mine.LoRALinear(linear(), 2, 4.0)).merged().weight,
        "the update is scaled as in forward",
    )
    yield (
        "it computes the same",
        theirs(x).detach(),
        lambda: adapted(mine.LoRALinear(linear(), 2, 4.0)).merged()(x),
        "the bias is that of the given layer",
    )
    yield (
        "a layer without bias is merged into one without",
        x @ (weight + 2 * b @ a).T,
        lambda: adapted(mine.LoRALinear(linear(with_bias=False), 2, 4.0)).merged()(x),
        "nn.Linear(..., bias=False)",
    )
    yield (
        "merging leaves the given layer as it is",
        weight,
        after_merging,
        "`weight + update` makes a new tensor; `weight += update` changes the layer's",
    )
