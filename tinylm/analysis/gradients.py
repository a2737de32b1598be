"""Gradient norms, histograms and signal-to-noise ratio, for each part of a network.

The gradient of a batch is the gradient of the whole text plus noise. From the gradients g of N sequences, with mean G,
unbiased estimates are (McCandlish et al. 2018, appendix A)

    noise  = tr Σ  = N / (N - 1) (mean |g|² - |G|²)        of a single sequence
    signal         = |G|² - noise / N

and noise / signal is the simple noise scale: the batch size, in sequences, at which both are equal. A much smaller
batch wastes steps, a much larger one wastes text.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from tinylm.checks import require
from tinylm.evaluation.log_probs import double, evaluating, token_nats
from tinylm.model import TransformerLM
from tinylm.model.quantized import quantized_layers

DECADES = (-12, 2)  # range of the histograms, in powers of ten; sizes outside count in the first or last bin
BINS = 4 * (DECADES[1] - DECADES[0])


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradient of the mean loss with respect to the weights of one part."""

    part: str  # embedding, positions, blocks.0.attention (with its norms), blocks.0.feedforward, ..., final_norm, head
    weights: int  # number of weights
    norm: float  # Euclidean norm
    signal: float  # estimated squared norm of the gradient without noise; negative where noise hides it
    noise: float  # variance of a single sequence's gradient, summed over the weights
    zeros: int  # number of weights whose gradient is zero
    histogram: tuple[int, ...]  # number of other weights by the size of their gradient, in quarters of a decade

    @property
    def signal_to_noise(self) -> float:
        """Signal-to-noise ratio of a single sequence's gradient; 0 if no signal is detected."""
        signal = max(self.signal, 0.0)
        return signal / self.noise if self.noise > 0 else float("inf") if signal > 0 else 0.0

    @property
    def noise_scale(self) -> float:
        """The batch size, in sequences, at which noise and signal are equal."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def part_of(name: str) -> str:
    """The part that a weight belongs to.

    >>> part_of("blocks.0.attention_norm.weight"), part_of("head.weight")
    ('blocks.0.attention', 'head')
    """
    within = re.match(r"blocks\.\d+\.(attention|feedforward)", name)
    return within.group() if within else name.partition(".")[0]


def gradient_statistics(
    model: TransformerLM, ids: Tensor, targets: Tensor, documents: Tensor | None = None
) -> list[Gradients]:
    """The statistics of every part from N sequences; targets are the tokens that follow, (N, T).

    Gradients stored in the weights are not touched.

    Raises:
        ConfigError: for a single sequence, which has no noise to measure, or quantized weights.
    """
    N, remedy = len(ids), "give more rows, more text or a smaller length"
    require(N >= 2, f"signal and noise need at least 2 sequences, got {N}; {remedy}")
    quantized = any(True for _ in quantized_layers(model))
    require(not quantized, "weights of 8 and 4 bits have no gradients; analyze the unquantized model")
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    means = [torch.zeros_like(weight) for weight in weights.values()]
    squares = torch.zeros(len(means), dtype=torch.float64)  # mean squared norm over sequences, of each weight
    for row in range(N):
        one = slice(row, row + 1)
        with evaluating(model), torch.enable_grad():
            logits = model(ids[one], documents=None if documents is None else documents[one])
            gradients = torch.autograd.grad(token_nats(logits, targets[one]).mean(), list(weights.values()))
        for mean, gradient in zip(means, gradients, strict=True):
            mean += gradient / N
        squares += torch.stack([_squared(gradient) for gradient in gradients]) / N
    parts: dict[str, list[int]] = {}
    for i, name in enumerate(weights):
        parts.setdefault(part_of(name), []).append(i)
    members = parts.items()
    return [_describe(part, [means[i] for i in which], float(squares[which].sum()), N) for part, which in members]


def _squared(tensor: Tensor) -> Tensor:
    return double(tensor).square().sum().cpu().double()


def _describe(part: str, means: list[Tensor], mean_square: float, sequences: int) -> Gradients:
    square = float(sum(_squared(mean) for mean in means))
    noise = max(sequences / (sequences - 1) * (mean_square - square), 0.0)
    sizes = torch.cat([mean.detach().abs().flatten().float().cpu() for mean in means])
    return Gradients(
        part=part,
        weights=len(sizes),
        norm=square**0.5,
        signal=square - noise / sequences,
        noise=noise,
        zeros=int((sizes == 0).sum()),
        histogram=tuple(size_histogram(sizes).tolist()),
    )


def size_histogram(sizes: Tensor) -> Tensor:
    """Counts the nonzero sizes in each quarter of a decade, (BINS,)."""
    low, high = DECADES
    return torch.histc(sizes[sizes > 0].double().log10().clamp(low, high), BINS, low, high).long()


def gradient_norms(model: torch.nn.Module) -> dict[str, Tensor]:
    """The norm of the gradients stored in the weights of each part; norms of sharded weights are still sharded."""
    gradients: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            gradients.setdefault(part_of(name), []).append(weight.grad)
    return {part: torch.nn.utils.get_total_norm(tensors) for part, tensors in gradients.items()}
