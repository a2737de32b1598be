"""The parts of a step that gpu.py times alone: attention by kernel, and Muon's update."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.bench.gpu_steps import Recipe, documents_of, timed
from tinylm.kernels.block_masks import attend_blocks, block_mask
from tinylm.model import TransformerLM
from tinylm.model.attention import attend_fused, visible_keys
from tinylm.optim.muon import orthogonalize
from tinylm.optim.optimizer import make_optimizer


def attention_kernels(recipe: Recipe, device: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """A layer's attention, forward and backward: the name of each kernel, and a call that gives its seconds.

    A CPU has neither cuDNN nor a gradient of FlexAttention.
    """
    config = recipe.config
    shape = recipe.rows, config.num_heads, config.max_seq_len, config.head_dim
    inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    documents = documents_of(recipe.rows, config.max_seq_len, device)
    length = config.max_seq_len

    def seconds(attend: Callable[..., Tensor], make_mask: Callable[[], object], backend: SDPBackend | None) -> float:
        mask = make_mask()

        def step() -> None:
            attend(*inputs, mask).sum().backward()

        with sdpa_kernel(backend) if backend else contextlib.nullcontext():
            return timed(step, 3, 20).seconds

    yield "causal, as PyTorch chooses", partial(seconds, attend_fused, lambda: None, None)
    if device == "cuda":
        yield "causal, FlashAttention", partial(seconds, attend_fused, lambda: None, SDPBackend.FLASH_ATTENTION)
        yield "causal, cuDNN", partial(seconds, attend_fused, lambda: None, SDPBackend.CUDNN_ATTENTION)
        blocks = partial(block_mask, length, None, documents, device)
        yield "documents, block mask", partial(seconds, attend_blocks, blocks, None)
    dense = partial(visible_keys, length, length, None, documents, device)
    yield "documents, dense mask", partial(seconds, attend_fused, dense, None)


def optimizer_step(recipe: Recipe, device: str, steps: int) -> float:
    """Seconds of the optimizer's step alone."""
    model = TransformerLM(recipe.config).to(device)
    optimizer = make_optimizer(model, recipe.optimizer, fused=True)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
    return timed(optimizer.step, 2, steps).seconds


def newton_schulz(recipe: Recipe, device: str, steps: int) -> float:
    """Seconds of five Newton-Schulz iterations on all matrices of the blocks, stacked by shape, in bfloat16."""
    D, L, width = recipe.config.d_model, recipe.config.num_layers, recipe.config.ff_width
    stacks = [torch.randn(n * L, D, size, device=device, dtype=torch.bfloat16) for n, size in ((4, D), (2, width))]

    def iterate() -> None:
        for stack in stacks:
            orthogonalize(stack)

    return timed(iterate, 2, steps).seconds


def quiet() -> None:
    """Silences PyTorch's advice about compilation."""
    warnings.filterwarnings("ignore", module="torch")
