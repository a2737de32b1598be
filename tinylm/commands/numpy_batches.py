"""Batches of the data module for the NumPy twin, and its evaluation and samples."""

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import numpy as np

from tinylm.data import IGNORE, Turn
from tinylm.data.chat_template import ChatTemplate
from tinylm.data.template import Template, question_frame
from tinylm.model import ModelConfig
from tinylm.model.attention import documents_apart
from tinylm.reference.generate import generate
from tinylm.reference.train import Batch, Score, evaluate
from tinylm.reference.transformer import NumpyTransformerLM
from tinylm.tokenizer import Tokenizer


def in_numpy(batch: Any, network: ModelConfig, tokenizer: Tokenizer) -> Batch:
    """A batch of the data module as arrays, with document numbers where the network separates documents."""
    documents = documents_apart(network, batch.inputs, tokenizer.end_of_text, batch.documents)
    documents = None if documents is None else documents.numpy()
    return Batch(batch.inputs.numpy(), batch.targets.numpy(), batch.num_targets, documents)


def measure(
    model: NumpyTransformerLM, batches: Iterable[Any], network: ModelConfig, tokenizer: Tokenizer
) -> dict[str, float]:
    """`val/loss`, `val/perplexity` and the other metrics of `tinylm fit` on the batches of a split."""
    lengths, num_bytes, floor = tokenizer.byte_lengths, 0, 0.0

    def counted(batches: Iterable[Any]) -> Iterator[Batch]:
        nonlocal num_bytes, floor
        for batch in batches:
            num_bytes += int(lengths[batch.targets[batch.targets != IGNORE].numpy()].sum())
            floor -= math.nan if batch.log_prob is None else batch.log_prob  # nats
            yield in_numpy(batch, network, tokenizer)

    by_source = {name: evaluate(model, counted(some)) for name, some in groupby(batches, lambda batch: batch.source)}
    score = Score(*map(sum, zip(*by_source.values(), strict=True)))
    found = {"val/loss": score.loss, "val/perplexity": score.perplexity}
    found |= {"val/bpb": score.nats / math.log(2) / max(num_bytes, 1), "val/accuracy": score.accuracy}
    if math.isfinite(floor):
        found |= {"val/floor": floor / score.tokens, "val/excess": score.nats / floor - 1}
    return found | {f"val/loss_{name}": part.loss for name, part in by_source.items() if name is not None}


def sample(
    model: NumpyTransformerLM,
    tokenizer: Tokenizer,
    template: Template | ChatTemplate | None,
    prompt: str,
    max_new_tokens: int,
    seed: int,
) -> str:
    """A prompt and the model's continuation.

    Raises:
        DataError: if the prompt has characters that the tokenizer lacks.
    """
    if isinstance(template, ChatTemplate):
        ids = template.prompt(tokenizer, [Turn("user", prompt)])
    else:
        before, after = ([], []) if template is None else question_frame(tokenizer, template)
        ids = [*tokenizer.opening, *before, *tokenizer.encode(prompt), *after]
    context = model.config.max_seq_len
    ids = ids[-context:] or [0]
    length = min(max_new_tokens, max(1, context - len(ids)))
    separator = tokenizer.end_of_text if template is None else None  # a prompt and its response are one document
    new = generate(model, np.array([ids]), length, temperature=0.8, seed=seed, separator=separator)[0].tolist()
    return prompt + tokenizer.decode(tokenizer.until_stop(new), continues=True)
