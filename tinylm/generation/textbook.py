"""The decoding loop in its simplest form: one text, token by token, with a plain key/value cache.

Everything else in this package makes this loop faster or serves several texts at once, and is tested against it. Left
out: texts longer than the context, separate documents (`document_mask`), sampling options, stop strings, and attention
plug-ins that store something else than keys and values (`cache_shape`).
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tinylm.model import KVCache, TransformerLM


def greedy(logits: Tensor) -> int:
    """The most likely token; logits are (V,)."""
    return int(logits.argmax())


def sample(logits: Tensor, temperature: float = 1.0) -> int:
    """A token drawn with probability softmax(logits / temperature); logits are (V,)."""
    return int(torch.multinomial((logits / temperature).softmax(dim=-1), 1))


@torch.no_grad()
def generate(
    model: TransformerLM,
    prompt: list[int],
    max_new_tokens: int,
    choose: Callable[[Tensor], int] = greedy,
    end: int | None = None,
) -> Iterator[int]:
    """Continues a prompt.

    Args:
        model: the model, in evaluation mode
        prompt: token ids, at least one
        max_new_tokens: most tokens to generate; with the prompt they must fit the context
        choose: picks the next token from its logits, (V,)
        end: id of the token that ends the text

    Yields:
        token ids, without `end`
    """
    weight, ids = model.embedding.weight, prompt
    cache = KVCache(model.config, batch_size=1, dtype=weight.dtype, device=weight.device)
    for _ in range(max_new_tokens):
        logits = model(torch.tensor([ids], device=weight.device), cache=cache)  # (1, T, V)
        token = choose(logits[0, -1])
        if token == end:
            return
        yield token
        ids = [token]
