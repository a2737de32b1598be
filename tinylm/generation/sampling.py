"""Sampling: from logits to one token, by pure functions.

`adjusted` applies penalties and biases, `filtered` the temperature and the filters, and `choose` draws a token. Each
filter maps logits (..., V) to logits in which excluded tokens are -inf, so filters compose in any order; the usual one
is temperature, top-k, top-p, min-p, typical.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tinylm.errors import NumericError
from tinylm.generation.options import SamplingConfig

EXCLUDED = float("-inf")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest logits, and any that equal the k-th."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, EXCLUDED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most likely tokens whose total probability is at least p (Holtzman et al. 2020)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    return _first_of(logits, order, ordered.softmax(dim=-1), p)


def _first_of(logits: Tensor, order: Tensor, probabilities: Tensor, p: float) -> Tensor:
    """Keeps the first tokens of an order, up to total probability p; `probabilities` are in that order."""
    before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the first token, which is always kept
    excluded = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(excluded, EXCLUDED)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keeps tokens whose probability is at least p times the largest one."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(p), EXCLUDED)


def typical(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most typical tokens whose total probability is at least p (Meister et al. 2023).

    A token is typical if its information, -log q, is close to the entropy.
    """
    probabilities = logits.softmax(dim=-1)
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    _, order = (-logits.log_softmax(dim=-1) - entropy).abs().sort(dim=-1, stable=True)
    return _first_of(logits, order, probabilities.gather(-1, order), p)


def adjusted(logits: Tensor, prompt: Tensor, generated: Tensor, config: SamplingConfig) -> Tensor:
    """Applies penalties, biases and bans: (B, V) -> (B, V).

    `prompt` and `generated` count each token in the prompt and in the generated text of each row, int64 (B, V).
    """
    if config.repetition_penalty != 1:  # Keskar et al. 2019: a positive logit is divided, a negative one multiplied
        penalized = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(prompt + generated > 0, penalized, logits)
    times = generated.to(logits.dtype)
    logits = logits - config.presence_penalty * times.clamp(max=1) - config.frequency_penalty * times
    if config.logit_bias:
        logits[:, list(config.logit_bias)] += logits.new_tensor(list(config.logit_bias.values()))
    logits[:, list(config.banned_tokens)] = EXCLUDED
    return logits


def filtered(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Applies the temperature, which must not be 0, and then the filters."""
    # shifted to at most 0, so that a tiny temperature cannot overflow
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / config.temperature
    if config.top_k is not None:
        logits = top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = min_p(logits, config.min_p)
    if config.typical_p is not None:
        logits = typical(logits, config.typical_p)
    return logits


def probabilities(logits: Tensor, config: SamplingConfig) -> Tensor:
    """The probability of drawing each token: (..., V) -> (..., V). At temperature 0 the most likely one has 1.

    They are float64 on the CPU, so that a seed gives the same text on every device. Errors as in `check_numbers`.
    """
    check_numbers(logits)
    logits = logits.cpu().double()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
    return filtered(logits, config).softmax(dim=-1)


def random_times(vocab_size: int, random: torch.Generator) -> Tensor:
    """The random numbers of one draw: exponentially distributed, float64 (V,)."""
    return torch.empty(vocab_size, dtype=torch.float64).exponential_(generator=random)


def draw(probabilities: Tensor, times: Tensor) -> int:
    """Draws a token with the given probabilities, (V,), by the random numbers of `random_times`, (V,).

    Token i happens at the time `times[i] / probabilities[i]`, and the first one is drawn. The first of independent
    exponential times is the i-th with probability proportional to its rate. As the random numbers do not depend on the
    probabilities, similar distributions mostly give the same token.
    """
    return int((probabilities / times).argmax())


def choose(logits: Tensor, config: SamplingConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draws one token for each row of logits: (B, V) -> int64 (B,). Errors as in `check_numbers`.

    `generators` are the random number generators of the rows, on the CPU.
    """
    if config.temperature == 0:
        check_numbers(logits)
        return logits.argmax(dim=-1)
    rows = probabilities(logits, config)
    drawn = [draw(row, random_times(len(row), each)) for row, each in zip(rows, generators, strict=True)]
    return torch.tensor(drawn, device=logits.device)


def is_possible(logits: Tensor) -> bool:
    """Whether each row of logits (..., V) has a finite maximum: neither NaN nor infinity, and not -inf alone."""
    return bool(logits.amax(dim=-1).isfinite().all())


def check_numbers(logits: Tensor) -> None:
    """Raises NumericError if a logit is NaN or infinity, or a row has none but -inf."""
    if not is_possible(logits):
        raise NumericError("the model's logits are not finite: its weights are corrupt; use another checkpoint")
