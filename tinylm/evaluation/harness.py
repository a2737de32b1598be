"""Models for lm_eval, EleutherAI's evaluation harness, so that any of its tasks measures a model of tinylm.

`make_harness_model` gives an object for `lm_eval.simple_evaluate`. It reads texts as in training, after
the token that begins a text. A text longer than the context is read as by lm_eval's own models, in windows that predict
each token once; `tinylm score --stride CONTEXT` uses the same windows.

Left out: chat templates, and tasks that need an API or a logits processor.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tinylm.checks import require_package
from tinylm.errors import ConfigError, DataError
from tinylm.evaluation.log_probs import Predictions, token_log_probs
from tinylm.generation.generate import Generator
from tinylm.generation.options import SamplingConfig
from tinylm.model import TransformerLM
from tinylm.tokenizer import Tokenizer

LONGEST_ANSWER = 256  # tokens, the harness's default
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one option


def make_harness_model(model: TransformerLM, tokenizer: Tokenizer, **options: Any) -> Any:
    """A model for lm_eval.

    Args:
        model: the network, in evaluation mode
        tokenizer: the model's
        options: of `HarnessModel`

    Raises:
        ConfigError: if lm_eval is not installed, or the tokenizer has no token to begin a text with.
    """
    require_package("lm_eval")
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]

    kind = type("TinyLM", (HarnessModel, TemplateLM), {})
    found = kind(model, tokenizer, **options)
    TemplateLM.__init__(found)
    return found


class HarnessModel:
    """The part of a model for lm_eval that tinylm provides; lm_eval's `TemplateLM` has the rest.

    Args:
        model: the network, in evaluation mode
        tokenizer: the model's
        stride: tokens between windows of a long text, as for `score_text`. Default: the context
        batch_size: sequences read at once
    """

    def __init__(
        self, model: TransformerLM, tokenizer: Tokenizer, *, stride: int | None = None, batch_size: int = 8
    ) -> None:
        self.model, self.own_tokenizer, self.batch_size = model, tokenizer, batch_size
        self.stride, self.max_length = stride or model.config.max_seq_len, model.config.max_seq_len
        marks = tokenizer.marks
        first = marks.end if marks.begin is None else marks.begin
        if first is None:
            raise ConfigError("the tokenizer has no token that begins or ends a text, so no first token can be scored")
        self.begin = [] if marks.begin is None else [marks.begin]
        self._first, self._end = first, first if marks.end is None else marks.end

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a context."""
        return self._first

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self._end

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, after the token that begins a text unless `add_special_tokens` is false."""
        ids = self.own_tokenizer.encode(string)
        return ids if add_special_tokens is False else [*self.begin, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """The log probability of each continuation in nats, and whether greedy decoding gives it.

        Args:
            requests: (anything, ids of the context, ids of the continuation)
        """
        rows = []
        for _request, context, continuation in requests:
            if not context or not continuation:
                raise DataError("a task has an empty continuation, which has no probability; repair its choices")
            kept = max(self.max_length, len(continuation)) + 1
            rows.append(np.array([*context, *continuation][-kept:], dtype=np.int64))
        found = []
        predictions = self._predictions(rows)
        for (_request, _context, continuation), each in zip(requests, predictions, strict=True):
            count = len(continuation)
            greedy = each.likeliest[-count:].tolist() == continuation
            found.append((float(each.log_probs[-count:].sum()), greedy))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log probability of each whole text in nats."""
        rows = [[self.prefix_token_id, *self.tok_encode(request.args[0], False)] for request in requests]
        found = iter(self._predictions([np.array(ids, dtype=np.int64) for ids in rows if len(ids) > 1]))
        return [float(next(found).log_probs.sum()) if len(ids) > 1 else 0.0 for ids in rows]

    def _predictions(self, rows: list[np.ndarray]) -> list[Predictions]:
        end = self.own_tokenizer.end_of_text
        return token_log_probs(self.model, rows, separator=end, stride=self.stride, batch_size=self.batch_size)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to a stop string.

        Raises:
            ConfigError: for an option that tinylm does not have.
        """
        answers: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        half = max(self.max_length // 2, 1)
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            options = sampling_options(requests[numbers[0]].args[1])
            generator = Generator(self.model, self.own_tokenizer)
            generator.encode_prompt = partial(self._prompt, max(self.max_length - options["max_new_tokens"], half))
            prompts = [requests[number].args[0] for number in numbers]
            completions = generator.complete(prompts, batch_size=self.batch_size, **options)
            for number, completion in zip(numbers, completions, strict=True):
                answers[number] = completion.text
        return answers

    def _prompt(self, most: int, context: str) -> list[int]:
        """The last ids of a context, so that there is room for the answer."""
        return (self.tok_encode(context) or [self.prefix_token_id])[-most:]


def sampling_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of `Generator.generate` from those of a task: greedy unless it samples.

    Raises:
        ConfigError: for an option that tinylm does not have.
    """
    given = {name: value for name, value in given.items() if value is not None}
    until = given.pop("until", [])
    options: dict[str, Any] = {"stop": [text for text in ([until] if isinstance(until, str) else until) if text]}
    lengths = [int(given.pop(name)) for name in LENGTHS if name in given]
    options["max_new_tokens"] = lengths[0] if lengths else LONGEST_ANSWER
    temperature = given.pop("temperature", 1.0 if given.get("do_sample") else 0.0)
    options["temperature"] = float(temperature) if given.pop("do_sample", temperature > 0) else 0.0
    for name in [name for name in given if name not in SamplingConfig.__dataclass_fields__]:
        raise ConfigError(f"generation_kwargs: {name} is {given[name]!r}, which tinylm does not have; leave it out")
    return options | given
