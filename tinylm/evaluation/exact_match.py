"""Exact match: the share of greedy answers that equal the expected ones, and the loss on the expected answers.

Prompts and answers arrive as tokens, encoded as for training (data/template.py). An answer ends with the end-of-text
token; white space around it is ignored. Left out: paraphrases of the expected answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinylm.checks import require
from tinylm.errors import DataError
from tinylm.evaluation.log_probs import token_log_probs
from tinylm.evaluation.score import Score, total_score
from tinylm.generation.generate import Generator
from tinylm.generation.options import SamplingConfig
from tinylm.generation.text import Text
from tinylm.model import TransformerLM
from tinylm.progress import ProgressBar
from tinylm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ExactMatch:
    """A model's answers and the expected ones, both without surrounding white space."""

    answers: list[str]
    expected: list[str]

    @property
    def right(self) -> list[bool]:
        """Whether each answer equals the expected one, character by character."""
        return [answer == expected for answer, expected in zip(self.answers, self.expected, strict=True)]

    @property
    def fraction(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


def exact_match(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    expected: Sequence[str],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> ExactMatch:
    """Answers prompts by greedy decoding.

    Args:
        generator: the model's
        prompts: token ids, with all special tokens that open the text
        expected: the right answers
        max_new_tokens: longer answers are cut
        batch_size: prompts answered at once

    Raises:
        ConfigError: for numbers below 1, or a prompt that is empty or longer than the context.
    """
    config = SamplingConfig(max_new_tokens=max_new_tokens, temperature=0.0)
    require(batch_size >= 1, f"batch_size must be at least 1, got {batch_size}")
    context = generator.model.config.max_seq_len
    for number, prompt in enumerate(prompts, start=1):
        fits = 1 <= len(prompt) <= context
        require(fits, f"prompt {number} has {len(prompt)} tokens, must have 1 to the context's {context}")
    texts = [Text(list(prompt)) for prompt in prompts]
    earlier, generator.conversation = generator.conversation, True  # each record is one document
    try:
        with ProgressBar("answering", len(texts), "prompts") as bar:
            for text in generator.decode(texts, config, batch_size):
                bar.update(bool(text.finished))
    finally:
        generator.conversation = earlier
    answers = [generator.tokenizer.decode(text.ids).strip() for text in texts]
    return ExactMatch(answers, [each.strip() for each in expected])


def score_answers(
    model: TransformerLM,
    tokenizer: Tokenizer,
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int = 16,
) -> Score:
    """The score of the right answers, each predicted from its prompt.

    Args:
        model: the network
        tokenizer: the model's
        examples: token ids of prompt and answer, (n,), and a mask of the answer's ids, bool (n,)
        batch_size: examples read at once

    Raises:
        ConfigError: for a batch size below 1.
        DataError: if there is no token to predict.
    """
    found = token_log_probs(model, [ids for ids, _ in examples], batch_size=batch_size)
    ids = [ids[1:][answer[1:]] for ids, answer in examples]
    if not any(map(len, ids)):
        raise DataError("no answer has a token to predict; give longer ones")
    log_probs = [each.log_probs[answer[1:]] for each, (_, answer) in zip(found, examples, strict=True)]
    return total_score(tokenizer, ids, log_probs)
