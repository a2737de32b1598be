"""The fields of a request to OpenAI's API: those that are accepted, those that are refused, and their checks.

No field is silently ignored: an unknown field is refused by name, as is a field of the API that tinylm does not
support, unless its value has no effect.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from tinylm.errors import ConfigError, did_you_mean
from tinylm.generation.options import SamplingConfig
from tinylm.serving.guard import Refused

SAMPLING = {  # field: option of `SamplingConfig`
    "temperature": "temperature", "top_p": "top_p", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "seed": "seed", "stop": "stop", "logit_bias": "logit_bias",
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "min_tokens": "min_new_tokens",
}  # fmt: skip
OFF = {"top_k": (-1, 0), "top_p": (1,), "min_p": (0,), "stop": ("",)}  # values that mean: all tokens, no string
UNSUPPORTED: dict[str, tuple[Any, ...]] = {  # field: values without effect, besides null and empty ones
    "best_of": (1,), "suffix": (), "tools": (), "tool_choice": ("none", "auto"), "functions": (),
    "function_call": ("none", "auto"), "parallel_tool_calls": (True, False), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "reasoning_effort": ("none",),
    "verbosity": ("medium",), "service_tier": ("auto", "default"), "store": (False,), "metadata": (),
    "prompt_cache_key": (), "prompt_cache_retention": (), "safety_identifier": (), "moderation": (),
}  # fmt: skip
COMPLETION_DEFAULT = 16  # tokens, of OpenAI's completions
MOST_STOPS, MOST_CHOICES = 64, 128
MOST_ALTERNATIVES = 20


@dataclass(frozen=True)
class Limits:
    """Limits of a server on each request.

    Attributes:
        max_tokens: most tokens of one text
        timeout: seconds for the whole answer
        max_body: bytes of a request
    """

    max_tokens: int = 2048
    timeout: float = 600.0
    max_body: int = 1 << 20


@dataclass(frozen=True)
class Asked:
    """A checked request, without its prompt.

    Attributes:
        config: the options of each text; the seed is the first text's
        count: texts for each prompt
        generates: false if no token is to be generated
        alternatives: number of most likely tokens to report. None: no log probabilities
        stream: whether tokens are sent as they are made
        usage: whether a stream ends with the counts of tokens
        echo: whether the prompt precedes the text
        user: the user whom the request serves
    """

    config: SamplingConfig
    count: int
    generates: bool
    alternatives: int | None
    stream: bool
    usage: bool
    echo: bool = False
    user: str = ""

    def configs(self) -> list[SamplingConfig]:
        """The options of the texts of one prompt: text i, from 0, is drawn with the seed + i."""
        first = self.config.seed
        if first is None:
            return [self.config] * self.count
        seeds = [(first + i) % (1 << 64) if first >= 0 else first + i for i in range(self.count)]
        return [replace(self.config, seed=seed) for seed in seeds]


class Fields:
    """The fields of a request, which are taken one by one; a null is an absent field."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = {name: value for name, value in values.items() if value is not None}
        self.known = set(SAMPLING)

    def take(self, name: str, kind: type, default: Any) -> Any:
        """A field, refused if it has another type."""
        self.known.add(name)
        value = self.values.pop(name, default)
        if value is not default and type(value) is not kind:
            words = {int: "an integer", bool: "true or false", str: "a string", dict: "an object", list: "a list"}
            raise Refused(400, f"{name} must be {words[kind]}, got {_shown(value)}", param=name)
        return value

    def number(self, name: str, default: int | None, least: int, most: int) -> Any:
        """An integer in a range."""
        value = self.take(name, int, default)
        if value is not None and not least <= value <= most:
            raise Refused(400, f"{name} must be from {least} to {most}, got {_shown(value)}", param=name)
        return value

    def sampling(self, max_tokens: int) -> SamplingConfig:
        """The options of a text of at most `max_tokens` tokens."""
        given = {name: self.values.pop(name) for name in SAMPLING if name in self.values}
        given = {name: value for name, value in given.items() if not _is_off(name, value)}
        if "stop" in given:
            given["stop"] = _stops(given["stop"])
        if "logit_bias" in given:
            given["logit_bias"] = _biases(given["logit_bias"])
        options = {SAMPLING[name]: value for name, value in given.items()}
        try:
            return SamplingConfig(max_new_tokens=max_tokens, **options)
        except OverflowError:
            raise Refused(400, "a number is too large") from None
        except ConfigError as error:
            names = {option: name for name, option in SAMPLING.items()} | {"max_new_tokens": "max_tokens"}
            message = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(error))
            raise Refused(400, message, param=message.split()[0]) from None

    def finish(self) -> None:
        """Refuses the fields that were not taken."""
        for name, value in self.values.items():
            if name not in UNSUPPORTED:
                known = sorted(self.known | UNSUPPORTED.keys())
                raise Refused(400, f"unknown field {name!r}{did_you_mean(name, known)}", param=name)
            if value and value not in UNSUPPORTED[name]:
                raise Refused(400, f"{name} is not supported by this server; leave it out", param=name)


def read_completion(fields: Fields, limits: Limits) -> Asked:
    """The request of `/v1/completions`."""
    alternatives = fields.number("logprobs", None, 0, MOST_ALTERNATIVES)
    max_tokens = fields.number("max_tokens", min(COMPLETION_DEFAULT, limits.max_tokens), 0, limits.max_tokens)
    echo = fields.take("echo", bool, False)
    if fields.values.get("best_of") == fields.values.get("n", 1):
        fields.values.pop("best_of", None)
    return _read(fields, max_tokens, alternatives, echo)


def read_chat(fields: Fields, limits: Limits) -> Asked:
    """The request of `/v1/chat/completions`, without the messages."""
    wanted = fields.take("logprobs", bool, False)
    top = fields.number("top_logprobs", None, 0, MOST_ALTERNATIVES)
    if top is not None and not wanted:
        raise Refused(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    older = fields.number("max_tokens", None, 1, limits.max_tokens)
    newer = fields.number("max_completion_tokens", None, 1, limits.max_tokens)
    if older is not None and newer is not None:
        raise Refused(400, "max_tokens and max_completion_tokens exclude each other", param="max_tokens")
    return _read(fields, older or newer or limits.max_tokens, (top or 0) if wanted else None)


def _read(fields: Fields, max_tokens: int, alternatives: int | None, echo: bool = False) -> Asked:
    stream = fields.take("stream", bool, False)
    if not stream and "stream_options" in fields.values:
        raise Refused(400, "stream_options needs stream to be true", param="stream_options")
    options = Fields(fields.take("stream_options", dict, {}))
    usage = options.take("include_usage", bool, False)
    options.take("include_obfuscation", bool, False)  # asks for padding against eavesdroppers; there is no padding here
    options.finish()
    asked = Asked(
        config=fields.sampling(max(max_tokens, 1)),
        count=fields.number("n", 1, 1, MOST_CHOICES),
        generates=max_tokens > 0,
        alternatives=alternatives,
        stream=stream,
        usage=usage,
        echo=echo,
        user=fields.take("user", str, ""),
    )
    fields.finish()
    return asked


def _is_off(name: str, value: Any) -> bool:
    """Whether a value of a field has the same effect as leaving it out."""
    return type(value) is not bool and not isinstance(value, list | dict) and value in OFF.get(name, ())


def _stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or len(texts) > MOST_STOPS:
        rule = f"a string or a list of at most {MOST_STOPS} strings"
        raise Refused(400, f"stop must be {rule}, got {_shown(value)}", param="stop")
    return texts


def _biases(value: Any) -> dict[int, float]:
    """The biases by token id, whose keys are strings in JSON."""
    numbers = isinstance(value, dict) and all(
        key.isascii() and key.isdigit() and len(key) < 10 and type(bias) in (int, float) and -100 <= bias <= 100
        for key, bias in value.items()
    )
    if not numbers:
        rule = "an object from token ids to numbers from -100 to 100"
        raise Refused(400, f"logit_bias must be {rule}, got {_shown(value)}", param="logit_bias")
    return {int(key): bias for key, bias in value.items()}


def _shown(value: Any) -> str:
    """A value in a message, shortened."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
