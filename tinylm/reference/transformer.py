"""NumpyTransformerLM: from token ids to logits, and from the loss back to every parameter."""

# pyright: reportPossiblyUnboundVariable=false
# (a forward and its backward test the same condition)

from collections.abc import Callable

import numpy as np

from tinylm.reference.attention import attention, causal_mask
from tinylm.reference.cache import KVCache
from tinylm.reference.config import Config
from tinylm.reference.feedforward import feedforward
from tinylm.reference.functions import (
    IGNORED,
    NO_MASKS,
    Array,
    Arrays,
    cross_entropy,
    dropout,
    embedding,
    linear,
    unchanged,
)
from tinylm.reference.normalization import NORMS
from tinylm.reference.parameters import Masks, check_parameters, draw_masks, initial_parameters
from tinylm.reference.positional import position_table

Grads = dict[str, Array]


class NumpyTransformerLM:
    """A language model: `model.logits(ids)` are, at every position, the logits of the next token.

    Args:
        config: the architecture
        parameters: by the names of `config.shapes()`. Default: random ones, as GPT-2's
        seed: of random parameters
        dtype: of random parameters, and so of everything computed
    """

    def __init__(
        self,
        config: Config,
        parameters: dict[str, Array] | None = None,
        *,
        seed: int = 0,
        dtype: type | np.dtype = np.float32,
    ) -> None:
        self.config = config
        self.parameters = initial_parameters(config, seed, dtype) if parameters is None else parameters
        check_parameters(config, self.parameters)
        self.dtype = self.parameters["embedding.weight"].dtype
        self.positions = position_table(config).astype(self.dtype)
        self.norm, self.placement = NORMS[config.norm], config.norm_placement
        self.kinds = config.layer_kinds
        self.windows = {kind: config.sliding_window if kind == "S" else None for kind in dict.fromkeys(self.kinds)}

    # --- forward

    def logits(self, ids: Array, documents: Array | None = None) -> Array:
        """The logits of the token after each token.

        Args:
            ids: (B, T)
            documents: the document of each token, (B, T); only with `document_mask`

        Returns:
            (B, T, V)

        Raises:
            ValueError: for more tokens than the context holds, or documents without `document_mask`.
        """
        return self.head(self.hidden(ids, documents)[0])[0]

    def head(self, x: Array) -> tuple[Array, Callable]:
        """Projects hidden states to logits, (..., D) -> (..., V), by a matrix of its own or the embedding's.

        backward: dz -> dx, gradients by name; the matrix is `head.weight` in either case
        """
        return linear(x, {"head.weight": self.parameters["embedding.weight"]} | self.parameters, "head")

    def hidden(
        self,
        ids: Array,
        documents: Array | None = None,
        masks: Arrays = NO_MASKS,
        cache: KVCache | None = None,
    ) -> tuple[Array, Callable]:
        """The last hidden states, which the head projects to logits.

        Args:
            ids: (B, T)
            documents: see `logits`
            masks: the dropout masks
            cache: the keys and values of earlier tokens; those of `ids` are appended

        Returns:
            (B, T, D), and backward: dx -> gradients by name
        """
        past, T, config = 0 if cache is None else cache.length, ids.shape[1], self.config
        end = past + T
        if end > config.max_seq_len:
            raise ValueError(f"the context holds {config.max_seq_len} tokens, got {end}; shorten the input")
        if documents is not None and not config.document_mask:
            raise ValueError("documents were given, but document_mask is off in the model's config; turn it on")
        seen = {kind: causal_mask(T, end, self.windows[kind], documents, self.dtype) for kind in self.windows}
        rotary = self.positions[:, past:end] if config.positional_encoding == "rotary" else None

        x, embedding_back = self.part(embedding, ids, "embedding")  # (B, T, D)
        if config.positional_encoding == "learned":
            rows, positions_back = embedding(np.arange(past, end), self.parameters, "positions")
            x = x + rows
        elif config.positional_encoding == "sinusoidal":
            x = x + self.positions[past:end]
        x, dropout_back = dropout(x, masks.get("embedding"))

        backs = []
        for number, kind in enumerate(self.kinds):
            layer, inputs = f"blocks.{number}", (masks, seen[kind], None if kind == "N" else rotary, masks, cache)
            if config.residual == "sequential":
                x, attention_back = self.residual(attention, x, f"{layer}.attention", *inputs)
                x, feedforward_back = self.residual(feedforward, x, f"{layer}.feedforward", masks)
                backs += [attention_back, feedforward_back]
            else:
                x, block_back = self.parallel(x, layer, *inputs)
                backs.append(block_back)
        x, norm_back = (x, unchanged) if self.placement == "post" else self.part(self.norm, x, "final_norm")

        def backward(dx: Array) -> Grads:
            dx, grads = norm_back(dx)
            for back in reversed(backs):
                dx, found = back(dx)
                grads |= found
            dx = dropout_back(dx)
            if config.positional_encoding == "learned":
                grads |= positions_back(dx.sum(axis=0))[1]  # the same rows were added to every sequence
            return grads | embedding_back(dx)[1]

        return x, backward

    def residual(
        self, function: Callable, x: Array, name: str, masks: Arrays, *arguments: object
    ) -> tuple[Array, Callable]:
        """x + f(norm(x)), or by `norm_placement` post: norm(x + f(x)), output: x + norm(f(x)); dropout follows f.

        A sum passes its gradient to both summands, so dx is dy plus the gradient that comes back through f.

        Args:
            function: f, `attention` or `feedforward`
            x: (B, T, D)
            name: of the layer; that of its norm is `name_norm`
            masks: the dropout masks
            arguments: passed on to f

        Returns:
            (B, T, D), and backward: dy -> dx, gradients by name
        """
        h, pre_back = self.part(self.norm, x, f"{name}_norm") if self.placement == "pre" else (x, unchanged)
        h, function_back = self.part(function, h, name, *arguments)
        h, output_back = self.part(self.norm, h, f"{name}_norm") if self.placement == "output" else (h, unchanged)
        h, dropout_back = dropout(h, masks.get(name))
        y, post_back = self.part(self.norm, x + h, f"{name}_norm") if self.placement == "post" else (x + h, unchanged)

        def backward(dy: Array) -> tuple[Array, Grads]:
            dy, post_grads = post_back(dy)
            dx, output_grads = output_back(dropout_back(dy))
            dx, grads = function_back(dx)
            dx, pre_grads = pre_back(dx)
            return dy + dx, grads | pre_grads | output_grads | post_grads

        return y, backward

    def parallel(self, x: Array, name: str, masks: Arrays, *arguments: object) -> tuple[Array, Callable]:
        """x + attention(n) + feedforward(m) for two norms n and m of x, or for one, n = m, with the gradients of both.

        Args:
            x: (B, T, D)
            name: of the block
            masks: the dropout masks
            arguments: passed on to `attention`

        Returns:
            (B, T, D), and backward: dy -> dx, gradients by name
        """
        one = self.config.residual == "parallel_one_norm"
        n, norm_back = self.part(self.norm, x, f"{name}.attention_norm")
        m, other_norm_back = (n, unchanged) if one else self.part(self.norm, x, f"{name}.feedforward_norm")
        a, attention_back = self.part(attention, n, f"{name}.attention", *arguments)
        a, attention_dropout_back = dropout(a, masks.get(f"{name}.attention"))
        f, feedforward_back = self.part(feedforward, m, f"{name}.feedforward")
        f, feedforward_dropout_back = dropout(f, masks.get(f"{name}.feedforward"))

        def backward(dy: Array) -> tuple[Array, Grads]:
            dn, grads = attention_back(attention_dropout_back(dy))
            dm, feedforward_grads = feedforward_back(feedforward_dropout_back(dy))
            if one:
                dx, norm_grads = norm_back(dn + dm)
            else:
                (dx_n, norm_grads), (dx_m, more) = norm_back(dn), other_norm_back(dm)
                dx, norm_grads = dx_n + dx_m, norm_grads | more
            return dy + dx, grads | feedforward_grads | norm_grads

        return x + a + f, backward

    def part(self, function: Callable, x: Array, name: str, *arguments: object) -> tuple[Array, Callable]:
        """One named part: its result and its backward. Subclasses trace or replace the parts here."""
        return function(x, self.parameters, name, self.config, *arguments)

    # --- the loss

    def loss_and_grads(
        self,
        inputs: Array,
        targets: Array,
        *,
        documents: Array | None = None,
        num_targets: int | None = None,
        dropout: np.random.Generator | Masks | None = None,
    ) -> tuple[float, Grads]:
        """The loss, and its gradient with respect to every parameter.

        Args:
            inputs: token ids, (B, T)
            targets: the ids to be predicted, (B, T); -100 where none is
            documents: see `logits`
            num_targets: the divisor of the sum over targets. Default: their number
            dropout: the masks (see `draw_masks`), or the generator that draws them. Default: no dropout

        Returns:
            nats per target, and gradients by the names and of the shapes of `parameters`
        """
        masks, num_targets = self.masks_and_divisor(inputs, targets, num_targets, dropout)
        x, backward = self.hidden(inputs, documents, masks)
        loss, dx, head_grads = self.head_loss(x.reshape(-1, x.shape[-1]), targets.ravel(), num_targets)
        grads = backward(dx.reshape(x.shape))
        if self.config.tie_embeddings:  # the matrix is used twice: the sum of both gradients
            grads["embedding.weight"] += head_grads.pop("head.weight")
        return loss, grads | head_grads

    def masks_and_divisor(
        self, inputs: Array, targets: Array, num_targets: int | None, dropout: np.random.Generator | Masks | None
    ) -> tuple[Masks, int]:
        """The dropout masks of a step and the divisor of its sum over targets; see `loss_and_grads`."""
        drawn = isinstance(dropout, np.random.Generator)
        masks = draw_masks(self.config, inputs.shape, dropout, self.dtype) if drawn else dropout or {}
        return masks, max(int(np.sum(targets != IGNORED)), 1) if num_targets is None else num_targets

    def head_loss(self, x: Array, targets: Array, num_targets: int) -> tuple[float, Array, Grads]:
        """The loss of hidden states x, (N, D), its gradient dx, (N, D), and those of the head."""
        z, head_back = self.head(x)  # (N, V)
        loss, dz = cross_entropy(z, targets, num_targets)
        return loss, *head_back(dz)

    def evaluate(self, inputs: Array, targets: Array, documents: Array | None = None) -> tuple[float, int, int]:
        """The sum of -log p over all targets, in nats; the number of targets; how many are the most likely token.

        The arguments are those of `loss_and_grads`.
        """
        z = self.logits(inputs, documents)  # (B, T, V)
        counted = targets != IGNORED
        nats, _ = cross_entropy(z[counted], targets[counted], 1)
        return nats, int(counted.sum()), int(np.sum((z.argmax(axis=-1) == targets) & counted))
