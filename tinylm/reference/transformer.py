"""NumpyTransformerLM: from token ids to logits, and from the loss back to every parameter."""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tinylm.reference.attention import attention, hidden_keys
from tinylm.reference.cache import KVCache
from tinylm.reference.config import Config
from tinylm.reference.dropout import Masks, draw_masks, dropout
from tinylm.reference.feedforward import feedforward
from tinylm.reference.functions import IGNORED, Array, cross_entropy, embedding, unchanged
from tinylm.reference.normalization import norm
from tinylm.reference.parameters import check_parameters, initial_parameters
from tinylm.reference.positional import position_table
from tinylm.reference.trace import Trace, watched

Grads = dict[str, Array]


class NumpyTransformerLM:
    """A language model: `model.logits(ids)` are, at every position, the logits of the token that follows.

    Args:
        config: the architecture
        parameters: by the names of `config.shapes()`; None: random ones, as GPT-2's
        seed: of random parameters
        dtype: of random parameters, and so of everything computed
        threads: how many parts of a batch `loss_and_grads` computes at a time. NumPy's own passes over an array run in
            one thread each, only BLAS has more; with several here, BLAS should have one (OPENBLAS_NUM_THREADS=1, set
            before NumPy is imported)
    """

    def __init__(
        self,
        config: Config,
        parameters: dict[str, Array] | None = None,
        *,
        seed: int = 0,
        dtype: type | np.dtype = np.float32,
        threads: int = 1,
    ) -> None:
        self.config = config
        self.threads = threads
        self.before = config.norm_placement == "pre"
        self.parameters = initial_parameters(config, seed, dtype) if parameters is None else parameters
        check_parameters(config, self.parameters)
        self.dtype = self.parameters["embedding.weight"].dtype
        self.positions = position_table(config).astype(self.dtype)

    @property
    def head(self) -> Array:
        """What projects to the vocabulary, (V, D): the embedding, if they are tied."""
        return self.parameters["embedding.weight" if self.config.tie_embeddings else "head.weight"]

    def part(self, name: str) -> dict[str, Array]:
        """The parameters whose names begin with `name.`, without it."""
        return {key[len(name) + 1 :]: p for key, p in self.parameters.items() if key.startswith(f"{name}.")}

    # --- what it is used for

    def logits(self, ids: Array, documents: Array | None = None) -> Array:
        """The logits of the next token after each token.

        Args:
            ids: (B, T)
            documents: for `document_mask`: the document of each token, (B, T)

        Returns:
            (B, T, V)

        Raises:
            ValueError: for more tokens than the context holds, or documents without `document_mask`.
        """
        return self.hidden(ids, documents)[0] @ self.head.T

    def loss_and_grads(
        self,
        inputs: Array,
        targets: Array,
        *,
        documents: Array | None = None,
        num_targets: int | None = None,
        dropout: np.random.Generator | Masks | None = None,
        trace: Trace | None = None,
    ) -> tuple[float, Grads]:
        """The loss, and its gradient with respect to every parameter.

        Args:
            inputs: token ids, (B, T)
            targets: the ids to be predicted, (B, T); -100 where none is
            documents: as `logits`'
            num_targets: what the sum over targets is divided by; None: their number
            dropout: what draws the masks, or the masks (see `draw_masks`); None: nothing is dropped
            trace: takes down what passes through

        Returns:
            nats per target, and gradients by the names and of the shapes of `parameters`
        """
        drawn = isinstance(dropout, np.random.Generator)
        masks = draw_masks(self.config, inputs.shape, dropout, self.dtype) if drawn else dropout or {}
        if num_targets is None:
            num_targets = max(int(np.sum(targets != IGNORED)), 1)

        def share(rows: slice) -> tuple[float, Grads]:
            some = None if documents is None else documents[rows]
            mine = {name: mask[rows] for name, mask in masks.items()}
            return self._loss_and_grads(inputs[rows], targets[rows], some, num_targets, mine, trace)

        B, count = len(inputs), min(self.threads, len(inputs))
        if count == 1 or trace is not None:
            return share(slice(B))
        with ThreadPoolExecutor(count) as pool:
            shares = pool.map(share, [slice(B * i // count, B * (i + 1) // count) for i in range(count)])
            losses, grads = zip(*shares, strict=True)
        return sum(losses), {name: functools.reduce(np.add, [each[name] for each in grads]) for name in grads[0]}

    def _loss_and_grads(
        self,
        inputs: Array,
        targets: Array,
        documents: Array | None,
        num_targets: int,
        masks: Masks,
        trace: Trace | None,
    ) -> tuple[float, Grads]:
        """As `loss_and_grads`, in one thread."""
        x, backward = self.hidden(inputs, documents, masks, trace)
        rows = x.reshape(-1, x.shape[-1])  # (N, D)
        loss, dx, dhead = cross_entropy(rows, self.head, targets.ravel(), num_targets)
        grads = backward(dx.reshape(x.shape))
        if self.config.tie_embeddings:
            grads["embedding.weight"] += dhead  # one matrix in two places: the sum of what both say
        else:
            grads["head.weight"] = dhead
        return loss, grads

    def evaluate(self, inputs: Array, targets: Array, documents: Array | None = None) -> tuple[float, int, int]:
        """How well targets are predicted; arguments as `loss_and_grads`'.

        Returns:
            the sum of -log p over all targets, in nats; how many there are; how many are the likeliest token
        """
        z = self.logits(inputs, documents)  # (B, T, V)
        counted = targets != IGNORED
        top = z.max(axis=-1)
        right = np.take_along_axis(z, np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
        hits = np.sum((z.argmax(axis=-1) == targets) & counted)
        z -= top[..., None]
        nats = np.log(np.exp(z, out=z).sum(axis=-1)) + top - right
        return float(np.sum(nats, where=counted, dtype=np.float64)), int(counted.sum()), int(hits)

    # --- how it is computed

    def hidden(
        self,
        ids: Array,
        documents: Array | None = None,
        masks: Masks | None = None,
        trace: Trace | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Array, Callable]:
        """The last hidden states, which the head turns into logits.

        Args:
            ids: (B, T)
            documents: as `logits`'
            masks: of dropout
            trace: takes down what passes through
            cache: keys and values of the tokens before these; these are added to it

        Returns:
            (B, T, D), and backward: dx -> gradients by name
        """
        T = ids.shape[1]
        past = 0 if cache is None else cache.length
        self._check(past + T, documents)
        here = slice(past, past + T)
        context = Context(
            hidden=hidden_keys(T, past + T, self.config.sliding_window, documents, self.dtype),
            rotary=self.positions[:, here] if self.config.positional_encoding == "rotary" else None,
            masks=masks or {},
            trace=trace,
            cache=cache,
        )
        x, embedding_back = watched("embedding", self._embed(ids, here, context), trace)
        backs = []
        for layer in range(self.config.num_layers):
            x, back = self._block(x, layer, context)
            backs.append(back)
        x, final_back = self._normalize(x, "final_norm", context) if self.before else unchanged(x)
        if cache is not None:
            cache.length += T

        def backward(dx: Array) -> Grads:
            dx, grads = final_back(dx)
            for back in reversed(backs):
                dx, found = back(dx)
                grads |= found
            return grads | embedding_back(dx)

        return x, backward

    def _embed(self, ids: Array, here: slice, context: "Context") -> tuple[Array, Callable]:
        """Embedded tokens with positions added, (B, T, D); backward: dx -> gradients by name."""
        x, back = embedding(ids, self.parameters["embedding.weight"])
        if self.config.positional_encoding == "learned":
            x += self.parameters["positions.weight"][here]
        if self.config.positional_encoding == "sinusoidal":
            x += self.positions[here]
        x, drop_back = dropout(x, context.masks.get("embedding"))

        def backward(dx: Array) -> Grads:
            dx = drop_back(dx)
            grads = {"embedding.weight": back(dx)}
            if self.config.positional_encoding == "learned":  # each row was added to every sequence
                grads["positions.weight"] = np.zeros_like(self.parameters["positions.weight"])
                grads["positions.weight"][here] = dx.sum(axis=0)
            return grads

        return x, backward

    def _block(self, x: Array, layer: int, context: "Context") -> tuple[Array, Callable]:
        """Attention, then feed-forward: (B, T, D) -> (B, T, D), and backward: dy -> dx, gradients by name."""
        name = f"blocks.{layer}"
        weights = context.masks.get(f"{name}.attention.weights")
        remember = None if context.cache is None else functools.partial(context.cache.append, layer)

        def attend(x: Array) -> tuple[Array, Callable]:
            part = self.part(f"{name}.attention")
            return attention(x, part, self.config, context.hidden, context.rotary, weights, remember)

        def feed(x: Array) -> tuple[Array, Callable]:
            return feedforward(x, self.part(f"{name}.feedforward"), self.config)

        x, attention_back = self._sublayer(x, f"{name}.attention", attend, context)
        x, feedforward_back = self._sublayer(x, f"{name}.feedforward", feed, context)

        def backward(dx: Array) -> tuple[Array, Grads]:
            dx, grads = feedforward_back(dx)
            dx, more = attention_back(dx)
            return dx, grads | more

        return watched(name, (x, backward), context.trace)

    def _sublayer(self, x: Array, name: str, function: Callable, context: "Context") -> tuple[Array, Callable]:
        """x + f(norm(x)), or norm(x + f(x)) with norms placed after; f's result goes through dropout.

        The gradient at a sum goes to both summands as it is, so the stream hands dy past f unchanged: it is added to
        what comes back through f.
        """
        inner, inner_back = self._normalize(x, f"{name}_norm", context) if self.before else unchanged(x)
        f, function_back = watched(name, function(inner), context.trace)
        dropped, drop_back = dropout(f, context.masks.get(name))
        y = x + dropped
        y, outer_back = unchanged(y) if self.before else self._normalize(y, f"{name}_norm", context)

        def backward(dy: Array) -> tuple[Array, Grads]:
            dy, outer_grads = outer_back(dy)
            dx, grads = function_back(drop_back(dy))
            dx, inner_grads = inner_back(dx)
            return dx + dy, prefixed(name, grads) | inner_grads | outer_grads

        return y, backward

    def _normalize(self, x: Array, name: str, context: "Context") -> tuple[Array, Callable]:
        """The norm of a name; backward: dy -> dx, gradients by full name."""
        y, back = watched(name, norm(x, self.part(name), self.config), context.trace)

        def backward(dy: Array) -> tuple[Array, Grads]:
            dx, grads = back(dy)
            return dx, prefixed(name, grads)

        return y, backward

    def _check(self, length: int, documents: Array | None) -> None:
        if length > self.config.max_seq_len:
            raise ValueError(f"the context holds {self.config.max_seq_len} tokens, got {length}; shorten the input")
        if documents is not None and not self.config.document_mask:
            raise ValueError("documents were given, but document_mask is off in the model's config; turn it on")


@dataclass
class Context:
    """What all layers of one pass share; the meaning of each is `NumpyTransformerLM.hidden`'s."""

    hidden: Array | None
    rotary: Array | None
    masks: Masks
    trace: Trace | None
    cache: KVCache | None


def prefixed(name: str, grads: Grads) -> Grads:
    """Gradients of a part under the names that they have in the whole."""
    return {f"{name}.{key}": gradient for key, gradient in grads.items()}
