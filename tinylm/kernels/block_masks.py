"""Block-sparse attention masks for training on a GPU: no (T, T) matrix is stored, and hidden blocks are skipped.

With a dense mask, PyTorch cannot use FlashAttention. FlexAttention (Dong et al. 2024) instead takes the rule by which a
query sees a key, and a table of the 128 x 128 blocks in which the rule holds somewhere or everywhere. Making the
table does not wait for the device, so a CUDA graph can hold it.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask, flex_attention

from tinylm.errors import first_line, notice
from tinylm.model.attention import Attention, attend_fused, visible_keys
from tinylm.model.transformer import Block, TransformerLM

BLOCK = 128  # queries and keys in a block; a shorter sequence has nothing to skip
NARROWEST = 16  # narrowest head that FlexAttention's kernel supports
TYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the weights
DEVICES = ("cuda",)  # the kernel for CPUs has no gradient
compiled = lru_cache(torch.compile)  # at first use, since torch.compile takes a second to import


def use_block_masks(model: TransformerLM) -> None:
    """Lets a model use block masks wherever they are faster. Elsewhere nothing changes."""
    model.visible_keys = VisibleBlocks(model)
    for block in model.blocks:
        if isinstance(block.attention, Attention) and block.attention.attend is attend_fused:
            block.attention.attend = attend_blocks


def attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, visible: Any, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """`attend_fused`, which also takes a `BlockMask`, for which there is no dropout."""
    if not isinstance(visible, BlockMask):
        return attend_fused(query, key, value, visible, dropout, scale)
    grouped = query.shape[1] != key.shape[1]
    if not VisibleBlocks.fails:
        try:
            return _fast(flex_attention)(query, key, value, block_mask=visible, scale=scale, enable_gqa=grouped)
        except Exception as error:
            _leave(error)
    B, _, T, _ = query.shape
    dense = create_mask(visible.mask_mod, B, 1, T, T, query.device)
    return attend_fused(query, key, value, dense, dropout, scale)


def block_mask(length: int, window: int | None, documents: Tensor | None, device: Any) -> BlockMask:
    """The mask of `visible_keys` for T = S = `length`, as a rule and a table of blocks."""

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        sees = key <= query
        if window is not None:
            sees = sees & (key > query - window)
        return sees if documents is None else sees & (documents[row, query] == documents[row, key])

    rows = None if documents is None else len(documents)
    return _fast(create_block_mask)(visible, rows, None, length, length, device=device)


class VisibleBlocks:
    """`visible_keys` of one model: a `BlockMask` where all its layers and the device take one, else a tensor."""

    fails = False  # on this machine, for all models

    def __init__(self, model: TransformerLM) -> None:
        self.model = model

    def __call__(
        self, num_queries: int, num_keys: int, window: int | None = None, documents: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> Any:  # fmt: skip
        """The mask of `visible_keys`, in either form."""
        hides = documents is not None or (window is not None and window < num_keys)
        if hides and num_queries == num_keys > BLOCK and self._serves(num_keys):
            try:
                return block_mask(num_keys, window, documents, device)
            except Exception as error:
                _leave(error)
        return visible_keys(num_queries, num_keys, window, documents, device)

    def _serves(self, length: int) -> bool:
        model, weight = self.model, self.model.embedding.weight
        fits = weight.device.type in DEVICES and weight.dtype in TYPES and model.config.head_dim >= NARROWEST
        usual = model.training or length == model.config.max_seq_len  # not worth compiling for each prompt
        return fits and usual and not self.fails and all(map(_takes_blocks, model.blocks))


def _takes_blocks(block: nn.Module) -> bool:
    """Whether a block passes its mask to `attend_blocks` only; other code needs a tensor."""
    if not isinstance(block, Block) or type(block).forward is not Block.forward:
        return False
    layer = block.attention
    ours = isinstance(layer, Attention) and type(layer).forward is Attention.forward and layer.attend is attend_blocks
    return ours and not (layer.training and layer.dropout > 0)


def _fast(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled by itself, unless it is part of a larger compiled program."""
    return function if torch.compiler.is_compiling() else compiled(function)


def _leave(error: Exception) -> None:
    """Gives up block masks, with a notice, if they could not be compiled; raises any other error again."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    if torch.compiler.is_compiling() or not isinstance(error, TorchDynamoException):
        raise error
    VisibleBlocks.fails = True
    cause = getattr(error, "inner_exception", None) or error
    notice(f"attention masks are dense, since FlexAttention cannot be compiled: {first_line(cause)}")
