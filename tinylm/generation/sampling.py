"""Sampling: from logits to one token, by pure functions.

`adjusted` applies penalties and biases, `filtered` the temperature and the filters, and `choose` draws a token. Each
filter maps logits (..., V) to logits in which excluded tokens are -inf, so filters compose in any order; the usual one
is temperature, top-k, top-p, min-p, typical.

The random numbers are a function of the text's seed, the token's position and the token alone (`random_times`). So
they are the same on every device, for every decoder and whatever else is in the batch, and a GPU computes its own.
"""

import math
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tinylm.errors import NumericError
from tinylm.generation.options import SamplingConfig

EXCLUDED = float("-inf")
CORRUPT = "the model's logits are not finite: its weights are corrupt; use another checkpoint"
NO_TOKEN = "bans, biases and penalties leave no token to choose from; lower or remove some of them"
_GAMMA, _FACTORS = 0x9E3779B97F4A7C15 - 2**64, (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)  # SplitMix64
_BLOCK = 1 << 14  # random numbers computed at a time, for small vocabularies


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keeps the k largest logits, and any that equal the k-th."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, EXCLUDED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the fewest most likely tokens whose total probability is at least p (Holtzman et al. 2020).

    Among tokens as likely as the last one kept, those with the lowest ids are kept.
    """
    probabilities = logits.softmax(dim=-1)
    ordered = _sorted(probabilities)
    count = (ordered.cumsum(dim=-1) - ordered < p).sum(dim=-1, keepdim=True).clamp(min=1)
    least = ordered.gather(-1, count - 1)
    equal = probabilities == least
    room = count - (probabilities > least).sum(dim=-1, keepdim=True)
    return logits.masked_fill((probabilities < least) | (equal & (equal.cumsum(dim=-1) > room)), EXCLUDED)


def _sorted(probabilities: Tensor) -> Tensor:
    """Probabilities in descending order; NumPy sorts a vocabulary three times as fast as PyTorch on a CPU."""
    if probabilities.device.type != "cpu":
        return probabilities.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(probabilities.detach().numpy())).flip(-1)


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


def penalized(logits: Tensor, prompt: Tensor, generated: Tensor, config: SamplingConfig) -> Tensor:
    """Applies the penalties: (B, V) -> (B, V). The arguments are those of `adjusted`."""
    if config.repetition_penalty != 1:  # Keskar et al. 2019: a positive logit is divided, a negative one multiplied
        divided = torch.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
        logits = torch.where(prompt + generated > 0, divided, logits)
    times = generated.to(logits.dtype)
    return logits - config.presence_penalty * times.clamp(max=1) - config.frequency_penalty * times


def token_counts(lists: Sequence[list[int]], logits: Tensor) -> Tensor:
    """Counts each token in each list: int64 (B, V), for logits (B, V)."""
    rows, vocab_size = logits.shape
    ids = torch.tensor([row * vocab_size + i for row, each in enumerate(lists) for i in each], dtype=torch.long)
    return torch.bincount(ids, minlength=rows * vocab_size).view(rows, vocab_size).to(logits.device)


def adjusted(logits: Tensor, prompt: Tensor, generated: Tensor, config: SamplingConfig) -> Tensor:
    """Applies penalties, biases and bans: (B, V) -> (B, V).

    `prompt` and `generated` count each token in the prompt and in the generated text of each row, int64 (B, V); they
    are read only if the config `penalizes`.
    """
    logits = penalized(logits, prompt, generated, config) if config.penalizes else logits.clone()
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
    if config.top_p is not None and config.top_p < 1:
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


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function, in place: int64 -> int64, bits in, bits out (Steele et al. 2014)."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(factor)  # the shift repeats the sign
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def random_times(keys: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """The random numbers of one draw in each row: exponentially distributed, float64 (B, N).

    They are the outputs of a SplitMix64 generator that begins at a state mixed from key and position.

    Args:
        keys: of the rows' texts, int64 (B,) (`Random.key`)
        positions: number of tokens generated before the drawn one, int64 (B,)
        tokens: ids of the tokens to choose from, int64 (N,) or (B, N)
    """
    states = _mixed(_mixed(keys.clone()) + positions * _GAMMA)
    z = _mixed((tokens + 1).mul_(_GAMMA) + states[:, None])
    uniform = (z >> 12).bitwise_and_((1 << 52) - 1).double().add_(0.5).mul_(2.0**-52)  # above 0 and below 1
    return uniform.log_().neg_()


class Random:
    """The random numbers of a text.

    Args:
        seed: any integer, taken modulo 2**64. None: from the system

    Attributes:
        key: the seed as a signed 64-bit integer
    """

    def __init__(self, seed: int | None = None) -> None:
        self.key = ((secrets.randbits(64) if seed is None else seed) + 2**63) % 2**64 - 2**63
        self._computed: tuple[int, int] | None = None  # number of the block and V

    def times(self, position: int, vocab_size: int) -> Tensor:
        """The random numbers for the token at a position of the generated text, from 0: float64 (V,), on the CPU."""
        rows = max(_BLOCK // vocab_size, 1)  # one call costs more than a hundred numbers
        if self._computed != (position // rows, vocab_size):
            positions = torch.arange(rows) + position // rows * rows
            self._block = random_times(torch.full((rows,), self.key), positions, torch.arange(vocab_size))
            self._computed = position // rows, vocab_size
        return self._block[position % rows]


def draw(probabilities: Tensor, times: Tensor) -> Tensor:
    """Draws tokens with the given probabilities, (..., V), by the numbers of `random_times`, (..., V): int64 (...).

    Token i happens at the time `times[i] / probabilities[i]`, and the first one is drawn. The first of independent
    exponential times is the i-th with probability proportional to its rate. As the random numbers do not depend on the
    probabilities, similar distributions mostly give the same token.
    """
    return (probabilities / times).argmax(dim=-1)


def choose(logits: Tensor, config: SamplingConfig, randoms: Sequence[Random], positions: Sequence[int]) -> Tensor:
    """Draws one token for each row of logits: (B, V) -> int64 (B,). Errors as in `check_numbers`.

    Args:
        logits: (B, V)
        config: temperature and filters
        randoms: random numbers of the rows' texts; unused at temperature 0
        positions: number of tokens generated so far in each row
    """
    if config.temperature == 0:
        check_numbers(logits)
        return logits.argmax(dim=-1)
    return _drawn(probabilities(logits, config), randoms, positions).to(logits.device)


def _drawn(p: Tensor, randoms: Sequence[Random], positions: Sequence[int]) -> Tensor:
    """Draws one token of each row with given probabilities, (B, V), on the CPU: int64 (B,)."""
    vocab_size = p.shape[-1]
    if p.numel() <= _BLOCK:  # numbers of several positions are computed at once
        times = [random.times(position, vocab_size) for random, position in zip(randoms, positions, strict=True)]
        return draw(p, torch.stack(times))
    tokens = torch.arange(vocab_size)
    kept = int((p > 0).sum(dim=-1).max())
    if few := kept <= vocab_size // 8:
        p, tokens = p.topk(kept, dim=-1)
    times = random_times(torch.tensor([random.key for random in randoms]), torch.tensor(positions), tokens)
    drawn = draw(p, times)
    return tokens.gather(1, drawn[:, None])[:, 0] if few else drawn


def is_possible(logits: Tensor) -> bool:
    """Whether each row of logits (..., V) has a finite maximum: no NaN, no infinity, and not only -inf."""
    return bool(logits.amax(dim=-1).isfinite().all())


def check_numbers(logits: Tensor) -> None:
    """Raises NumericError if a logit is NaN or infinity, or a row has only -inf."""
    if not is_possible(logits):
        raise NumericError(CORRUPT)
