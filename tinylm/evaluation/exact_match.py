"""How well a model answers: which of its greedy answers are right to the letter, and its loss on the right ones.

Prompts and answers arrive as tokens, for how turns become tokens is the data's affair (data/template.py): what is read
here is what training read. An answer ends with the end-of-text token; blanks around it do not matter.

Left out: answers that mean the same in other words.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from tinylm.errors import ConfigError, DataError
from tinylm.evaluation.score import Score
from tinylm.generation.generate import Generator
from tinylm.generation.sampling import SamplingConfig
from tinylm.generation.text import Text
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ExactMatch:
    """What a model answered.

    Attributes:
        answers: to each prompt, stripped of blanks
        expected: the right ones, stripped too
    """

    answers: list[str]
    expected: list[str]

    @property
    def right(self) -> list[bool]:
        """Which answers are the expected ones, letter for letter."""
        return [answer == expected for answer, expected in zip(self.answers, self.expected, strict=True)]

    @property
    def fraction(self) -> float:
        """Of answers that are right."""
        return sum(self.right) / len(self.right)


def exact_match(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> ExactMatch:
    """The likeliest answers to prompts, token by token, beside the right ones.

    Args:
        generator: of the model
        prompts: token ids, each with all that a text begins with
        expected: the right answers
        max_new_tokens: an answer that is longer is cut
        batch_size: how many prompts at a time

    Raises:
        ConfigError: for numbers below 1, or a prompt that is empty or longer than the context.
    """
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    context = generator.model.config.max_seq_len
    for number, prompt in enumerate(prompts, start=1):
        if not 1 <= len(prompt) <= context:
            raise ConfigError(f"prompt {number} has {len(prompt)} tokens, must have 1 to the context's {context}")
    texts = [Text(list(prompt)) for prompt in prompts]
    earlier, generator.conversation = generator.conversation, True  # a record is one document
    try:
        for _ in generator.decode(texts, config, batch_size):
            pass
    finally:
        generator.conversation = earlier
    answers = [generator.tokenizer.decode(text.ids).strip() for text in texts]
    return ExactMatch(answers, [each.strip() for each in expected])


@torch.inference_mode()
def score_answers(
    model: TransformerLM,
    tokenizer: Tokenizer,
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int = 16,
) -> Score:
    """What a model makes of the right answers.

    Args:
        model: the network, in evaluation mode
        tokenizer: of the model
        examples: ids (n,), at most one more than the context holds, and which of them are the answer's, bool (n,)
        batch_size: how many at once

    Raises:
        ConfigError: for a batch size below 1.
        DataError: if there is no token to predict.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    counted = [ids[1:][counts[1:]] for ids, counts in examples]
    if not sum(map(len, counted)):
        raise DataError("no answer has a token to predict; give longer ones")
    nats = [_batch_nats(model, examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]
    num_bytes = sum(int(tokenizer.byte_lengths[ids].sum()) for ids in counted)
    return Score(math.fsum(nats), sum(map(len, counted)), num_bytes)


def _batch_nats(model: TransformerLM, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """-log p of the answers' tokens; rows are filled up at the right end, where causality hides it."""
    width = max(len(ids) for ids, _ in examples)
    ids = np.stack([np.pad(ids, (0, width - len(ids))) for ids, _ in examples])  # (B, T + 1)
    counts = np.stack([np.pad(counts, (0, width - len(counts))) for _, counts in examples])
    rows = torch.from_numpy(ids).to(model.embedding.weight.device)
    log_probs = model(rows[:, :-1]).double().log_softmax(dim=-1)
    losses = F.nll_loss(log_probs.transpose(1, 2), rows[:, 1:], reduction="none").cpu()
    return float(losses[torch.from_numpy(counts[:, 1:])].sum())
