"""The layers of `Decoder`: blocks rearranged to read one token of each text.

- Queries, keys and values come from one product, and so do the two inputs of SwiGLU.
- Matrices are transposed and, on a CPU, split into as many parts as there are threads: the library parallelizes a
  product over the few rows of x, but a batch of products over the batch.
- Queries and keys are normalized and rotated together.
- There is no dropout, no gradient, and no module around an operation.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinylm.model import RingKVCache, TransformerLM
from tinylm.model.feedforward import SwiGLU
from tinylm.model.normalization import HeadsRMSNorm, RMSNorm
from tinylm.model.positional import PositionTable
from tinylm.model.quantized import QuantizedLinear
from tinylm.model.transformer import Block


def position_rows(model: TransformerLM) -> Tensor | None:
    """A table with one row per position: vectors to add, (positions, D), or rotary cosines and signed sines of each
    rotated coordinate, (positions, 2, 1, 1, R)."""
    match model.positions:
        case nn.Embedding():
            return model.positions.weight
        case PositionTable() if model.config.positional_encoding == "rotary":
            cos, sin = model.positions(model.embedding.weight)  # (positions, R/2) each
            rows = torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)), dim=1)
            return rows[:, :, None, None]
        case PositionTable():
            return model.positions(model.embedding.weight)
    return None


def norm_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function that a norm computes."""
    if isinstance(module, nn.Identity):
        return module.forward
    assert isinstance(module, nn.LayerNorm | RMSNorm)
    weight, eps = module.weight, module.eps
    if isinstance(module, RMSNorm):
        return lambda x: torch.rms_norm(x, weight.shape, weight, eps)
    return lambda x: torch.layer_norm(x, weight.shape, weight, module.bias, eps)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """Rotates x, (..., R), by cosines and signed sines, (..., R), for R = width."""
    return torch.addcmul(x * cos, x.roll(width // 2, dims=-1), sin).type_as(x)


class Layer:
    """A `Block` that reads one token of each row; the first `rotary_dim` coordinates of a head are rotated."""

    def __init__(self, block: Block, parts: int, rotary_dim: int) -> None:
        attention, feedforward = block.attention, block.feedforward
        self.form, self.index, self.head_dim = block.form, attention.layer, attention.head_dim
        self.rotates, self.scale, self.rotary_dim = attention.rotates, attention.scale, rotary_dim
        self.attention_norm = norm_function(block.attention_norm)
        self.feedforward_norm = norm_function(block.feedforward_norm)
        self.heads = attention.query.out_features // self.head_dim
        self.kv_heads = attention.key.out_features // self.head_dim
        self.qk_weight, self.qk_norms = None, None
        if attention.query_norm is not None and attention.key_norm is not None:
            query, key = attention.query_norm.weight, attention.key_norm.weight
            if not isinstance(attention.query_norm, HeadsRMSNorm):
                both = torch.cat((query.expand(self.heads, -1), key.expand(self.kv_heads, -1)))
                self.qk_weight = both.detach()[:, None]  # (H + K, 1, E)
                self.eps = attention.query_norm.eps
            else:
                self.qk_norms = norm_function(attention.query_norm), norm_function(attention.key_norm)
        self.query_key_value = Product([attention.query, attention.key, attention.value], parts)
        self.attention_output = Product([attention.output], parts)
        self.gated = isinstance(feedforward, SwiGLU)
        inputs = [feedforward.gate, feedforward.input] if isinstance(feedforward, SwiGLU) else [feedforward.input]
        self.activation = None if isinstance(feedforward, SwiGLU) else feedforward.activation
        self.input, self.output = Product(inputs, parts), Product([feedforward.output], parts)

    def forward(self, x: Tensor, rotary: Sequence[Tensor] | None, mask: Tensor | None, cache: RingKVCache) -> Tensor:
        """(B, D) -> (B, D)

        Args:
            x: residual stream, (B, D)
            rotary: cosines and signed sines, (B, 1, 1, R) each, or one row for all
            mask: added to the attention scores, (B, 1, 1, S)
            cache: keys and values
        """
        if self.form == "pre":
            x = x + self._attend(self.attention_norm(x), rotary, mask, cache)
            return x + self._feed(self.feedforward_norm(x))
        if self.form == "post":
            x = self.attention_norm(x + self._attend(x, rotary, mask, cache))
            return self.feedforward_norm(x + self._feed(x))
        if self.form == "output":
            x = x + self.attention_norm(self._attend(x, rotary, mask, cache))
            return x + self.feedforward_norm(self._feed(x))
        normed = self.attention_norm(x)  # parallel
        other = self.feedforward_norm(x) if self.form == "parallel" else normed
        return x + self._attend(normed, rotary, mask, cache) + self._feed(other)

    def _attend(self, x: Tensor, rotary: Sequence[Tensor] | None, mask: Tensor | None, cache: RingKVCache) -> Tensor:
        B, H, K, E = x.shape[0], self.heads, self.kv_heads, self.head_dim
        heads = self.query_key_value.forward(x)  # (B, (H + 2 K) * E)
        if self.qk_norms is not None:
            query, key, value = heads.split_with_sizes((H * E, K * E, K * E), dim=-1)
            heads = torch.cat((self.qk_norms[0](query), self.qk_norms[1](key), value), dim=-1)
        heads = heads.view(B, H + 2 * K, 1, E)
        both, value = heads.split_with_sizes((H + K, K), dim=1)
        if self.qk_weight is not None:
            both = torch.rms_norm(both, (E,), None, self.eps) * self.qk_weight
        if rotary is not None and self.rotates:
            R = self.rotary_dim
            if R == E:
                both = rotated(both, rotary[0], rotary[1], R)
            else:
                both = torch.cat((rotated(both[..., :R], rotary[0], rotary[1], R), both[..., R:]), dim=-1)
        query, key = both.split_with_sizes((H, K), dim=1)  # (B, H, 1, E), (B, K, 1, E)
        keys, values = cache.append(self.index, key, value)  # (B, K, S, E) each
        query = query.view(B, K, H // K, E)  # the heads of a group, as if they were queries at several positions
        if B == 1 or query.is_cuda:
            attended = F.scaled_dot_product_attention(query, keys, values, mask, scale=self.scale)
            return self.attention_output.forward(attended.reshape(B, -1))
        query, keys, values = query.reshape(B * K, H // K, E), keys.flatten(0, 1), values.flatten(0, 1)
        mask = query.new_zeros(()) if mask is None else mask.expand(B, K, -1, -1).reshape(B * K, 1, -1)
        scale = E**-0.5 if self.scale is None else self.scale
        weights = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=scale).softmax(dim=-1)  # (B K, H/K, S)
        return self.attention_output.forward(torch.bmm(weights, values).view(B, H * E))

    def _feed(self, x: Tensor) -> Tensor:
        inside = self.input.forward(x)
        if self.gated:
            gate, inside = inside.chunk(2, dim=-1)
            return self.output.forward(F.silu(gate) * inside)
        assert self.activation is not None
        return self.output.forward(self.activation(inside))


class Product:
    """Linear layers of the same input as one product: (B, inputs) -> (B, all outputs).

    Args:
        layers: layers to combine. Quantized ones are joined if they are of one kind; otherwise each is computed by
            itself
        parts: number of parts into which the outputs are split, where it divides them
    """

    def __init__(self, layers: Sequence[nn.Module], parts: int) -> None:
        plain = [layer for layer in layers if type(layer) is nn.Linear]
        self.layers = None if len(plain) == len(layers) else list(layers)
        if self.layers is not None:
            joined = join_layers(self.layers)
            self.layers = self.layers if joined is None else [joined]
            return
        weight = torch.cat([layer.weight.detach() for layer in plain])  # (O, I)
        biases = [layer.bias.detach() for layer in plain if layer.bias is not None]
        outputs, inputs = weight.shape
        self.parts = parts if outputs % parts == 0 else 1
        weight = weight.view(self.parts, -1, inputs).transpose(1, 2).contiguous()  # (G, I, O/G)
        bias = torch.cat(biases).view(self.parts, 1, -1) if biases else None
        self.weight = weight if self.parts > 1 else weight[0]
        self.bias = bias if bias is None or self.parts > 1 else bias.flatten()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)"""
        if self.layers is not None:
            return self.layers[0](x) if len(self.layers) == 1 else torch.cat([each(x) for each in self.layers], dim=-1)
        if self.parts == 1:
            return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        x = x.expand(self.parts, -1, -1)  # (G, B, I)
        y = torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)
        rows = x.shape[1]
        return y.view(1, -1) if rows == 1 else y.transpose(0, 1).reshape(rows, -1)


def join_layers(layers: Sequence[nn.Module]) -> QuantizedLinear | None:
    """Joins layers of the same input into one, whose outputs follow each other; None if they differ in kind."""
    first = layers[0]
    if not isinstance(first, QuantizedLinear):
        return None
    parts = [each for each in layers if isinstance(each, QuantizedLinear) and type(each) is type(first)]
    if len(parts) < len(layers) or any(each.options != first.options for each in parts):
        return None
    biases = [each.bias.detach() for each in parts if each.bias is not None]
    joined = type(first)(first.in_features, sum(each.out_features for each in parts), bool(biases), **first.options)
    joined.codes = torch.cat([each.codes for each in parts])
    joined.scales = torch.cat([each.scales for each in parts])
    joined.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
    return joined
