"""Prompts of a batch, and completions that a network in training writes for them."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tinylm.checks import require
from tinylm.data import IGNORE, Batch
from tinylm.data.pair_batches import pad_rows
from tinylm.data.template import Example
from tinylm.evaluation.log_probs import evaluating
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.text import Text
from tinylm.tokenizer import Tokenizer


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
        ids: all token ids that the network reads
        text: its text, without the token that begins a text
        answer: the text of the expected response; None if there is none
    """

    ids: list[int]
    text: str
    answer: str | None = None


def prompts_of(network: Any, batch: Batch, num_tokens: int = 0) -> list[Prompt]:
    """The prompt of each row: that of a pair, or the beginning of the first document that begins in the row.

    A row in which no document begins has a prompt without tokens of a text.

    Args:
        network: the LitTransformerLM
        batch: rows of pairs or of a text
        num_tokens: of a text: tokens of the document in the prompt; fewer if it ends before
    """
    make = _prompt_of_pair if network.template is not None else partial(_prompt_of_text, num_tokens=num_tokens)
    rows = zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)
    found = [make(network.tokenizer, row, targets) for row, targets in rows]
    require(all(prompt.ids for prompt in found), "model.objective: prompt_tokens must be above 0 with this tokenizer")
    return found


def _prompt_of_pair(tokenizer: Tokenizer, row: list[int], targets: list[int]) -> Prompt:
    """The ids before the last response of a row."""
    counts = [target != IGNORE for target in targets]
    first = max(t for t, count in enumerate(counts) if count and (t == 0 or not counts[t - 1]))
    answer = [target for target in targets[first:] if target not in (IGNORE, tokenizer.end_of_text)]
    prompt = row[: first + 1]
    return Prompt(prompt, tokenizer.decode(prompt[len(tokenizer.opening) :]), tokenizer.decode(answer))


def _prompt_of_text(tokenizer: Tokenizer, row: list[int], targets: list[int], num_tokens: int) -> Prompt:
    """The beginning of the first document that begins in a row."""
    end = tokenizer.end_of_text
    begin = row.index(end) + 1 if end in row else len(row)
    ids = row[begin : begin + num_tokens]
    ids = ids[: ids.index(end)] if end in ids else ids
    return Prompt(tokenizer.opening + ids, tokenizer.decode(ids))


def completions(
    network: Any, prompts: list[list[int]], seeds: list[int], max_new_tokens: int | None = None
) -> tuple[list[Text], Batch]:
    """Samples one completion of each prompt, at temperature 1.

    Args:
        network: the LitTransformerLM
        prompts: token ids
        seeds: of each completion
        max_new_tokens: most tokens of a completion; fewer if the longest prompt leaves less of the context

    Returns:
        the completions, and the batch of prompts with completions, of which the tokens of the completions count
    """
    context, longest = network.network.max_seq_len, max(map(len, prompts))
    require(longest < context, f"model.objective: a prompt of {longest} tokens fills the context of {context}")
    room = context - longest
    texts = [Text(ids, seed) for ids, seed in zip(prompts, seeds, strict=True)]
    with evaluating(network.net), torch.autocast(network.device.type, enabled=False):
        generator = Generator(network.net, network.tokenizer)
        generator.conversation = network.template is not None
        config = SamplingConfig(max_new_tokens=min(room, max_new_tokens or room))
        for _ in generator.decode(texts, config, batch_size=len(texts)):
            pass
    end = network.tokenizer.end_of_text
    examples = []
    for text in texts:
        ids = [*text.prompt, *text.ids, *([end] if text.finished == "end" else [])]
        examples.append(Example(np.array(ids, dtype=np.int64), np.arange(len(ids)) >= len(text.prompt)))
    batch = pad_rows(examples, end).batch(range(len(examples)))
    parts = (batch.inputs, batch.targets, batch.documents)
    inputs, targets, documents = (None if each is None else each.to(network.device) for each in parts)
    if network.template is None:  # separators determine the documents, as in generation
        documents = None
    return texts, batch._replace(inputs=inputs, targets=targets, documents=documents)
