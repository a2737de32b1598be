"""The loss by rows of logits equals the loss of all logits at once, and holds less memory."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests import processes
from tinylm.model import ModelConfig, TransformerLM
from tinylm.model.loss import IGNORE, summed_loss

B, T, D, V = 3, 5, 8, 31


def inputs(bias: bool, dtype: torch.dtype) -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=bias, dtype=dtype)
    x = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, (B, T))
    targets[0, :2] = targets[2, 4] = IGNORE
    return head, x, targets


def gradients(head: nn.Module, x: torch.Tensor, targets: torch.Tensor, rows: int | None, scale: float = 0.7):
    leaves = [x, *(each for each in head.parameters() if each.requires_grad)]
    loss = summed_loss(head, x, targets, rows)
    return loss.detach(), torch.autograd.grad(scale * loss, leaves)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4, 5, 15, 1000])
def test_loss_and_gradients_by_rows_are_those_of_all_rows(rows, bias):
    head, x, targets = inputs(bias, torch.float64)
    logits = head(x).flatten(0, 1)
    loss = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    expected = torch.autograd.grad(0.7 * loss, [x, *head.parameters()])
    found, ours = gradients(head, x, targets, rows)
    torch.testing.assert_close(found, loss.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("frozen", ["head", "x"])
def test_frozen_inputs_need_no_gradient(frozen):
    head, x, targets = inputs(True, torch.float64)
    head.requires_grad_(frozen != "head")
    x.requires_grad_(frozen != "x")
    leaves = [each for each in (x, *head.parameters()) if each.requires_grad]
    expected, found = (torch.autograd.grad(summed_loss(head, x, targets, rows), leaves) for rows in (None, 4))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_rounds_no_more_than_all_rows_do(dtype):
    """Compared with float64; the gradients of most of 5,000 logits are below float16's normal numbers."""
    torch.manual_seed(0)
    head, x = nn.Linear(64, 5000, bias=False), torch.randn(2, 32, 64, requires_grad=True)
    targets = torch.randint(5000, (2, 32))
    exact = gradients(head.double(), x.double().detach().requires_grad_(), targets, None)
    head.float()
    with torch.autocast("cpu", dtype):
        whole, parts = gradients(head, x, targets, None), gradients(head, x, targets, 16)
    assert abs(parts[0] - exact[0]) <= 1.1 * abs(whole[0] - exact[0]) + 1e-3
    for ours, theirs, true in zip(parts[1], whole[1], exact[1], strict=True):
        assert ours.dtype == torch.float32
        assert (ours - true).norm() <= 1.05 * (theirs - true).norm()


def test_weights_in_bfloat16_have_gradients_summed_in_float32():
    head, x, targets = inputs(True, torch.float64)
    _, exact = gradients(head, x, targets, None)
    low = [each.detach().to(torch.bfloat16) for each in (x, head.weight, head.bias)]
    head.weight, head.bias = (nn.Parameter(each) for each in low[1:])
    loss, found = gradients(head, low[0].requires_grad_(), targets, 1)
    assert loss.dtype == torch.float32
    for ours, true in zip(found, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - true).norm() < 2**-6 * true.norm()


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_network_has_the_gradients_of_all_rows(tie, checkpointing):
    torch.manual_seed(0)
    config = dict(vocab_size=V, d_model=16, num_layers=2, num_heads=2, max_seq_len=8, head_bias=True)
    net = TransformerLM(ModelConfig(**config, tie_embeddings=tie, activation_checkpointing=checkpointing)).double()
    ids, targets = torch.randint(V, (2, 3, 8))
    found = []
    for rows in (None, 7):
        net.loss_rows = rows
        net.zero_grad()
        for _ in range(2):  # accumulates
            net(ids, targets=targets).backward()
        found.append({name: parameter.grad.clone() for name, parameter in net.named_parameters()})
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)


def test_heads_that_are_more_than_a_product_are_computed_whole():
    head, x, targets = inputs(False, torch.float64)
    double = nn.Sequential(head, nn.Tanh())
    assert summed_loss(double, x, targets, 4) == summed_loss(double, x, targets)
    seen = []
    head.register_forward_hook(lambda module, args, output: seen.append(output.shape) or 2 * output)
    assert summed_loss(head, x, targets, 4) == summed_loss(head, x, targets)
    assert seen == [(B, T, V)] * 2


@pytest.mark.skipif(os.name != "posix", reason="the resource module")
def test_memory_by_rows_does_not_grow_with_all_logits(tmp_path):
    """GPT-2's vocabulary: the logits of 512 tokens take 103 MB in float32, those of 64 tokens 13 MB."""
    grown = {}
    for rows in (None, 64):
        process = processes.start(measure_growth, rows, tmp_path / f"{rows}.txt")
        process.join(200)
        grown[rows] = int((tmp_path / f"{rows}.txt").read_text())
    assert grown[None] > 2 * 4 * 512 * 50257  # logits and their gradient
    assert grown[64] < 4 * 512 * 50257


def measure_growth(rows: int | None, out: Path) -> None:
    """Writes by how many bytes the resident set grows for a loss and its gradient."""
    import resource

    head, x = nn.Linear(16, 50257, bias=False), torch.randn(1, 512, 16, requires_grad=True)
    summed_loss(head, x[:, :1], torch.zeros(1, 1, dtype=torch.long), rows).backward()  # what PyTorch loads at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    summed_loss(head, x, torch.zeros(1, 512, dtype=torch.long), rows).backward()
    out.write_text(str(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))
