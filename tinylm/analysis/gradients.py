"""What a network's weights are told: the size of their gradients, how it is distributed, and how much of it is signal.

The gradient of a batch is that of the whole text plus noise. Of the gradients g of N sequences, with mean G, follow
without bias (McCandlish et al. 2018, appendix A)

    noise  = tr Σ  = N / (N - 1) (mean |g|² - |G|²)        of a single sequence
    signal         = |G|² - noise / N

and noise / signal is the batch, in sequences, in which both are alike: the simple noise scale. A batch much smaller
wastes steps, a much larger one wastes text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tinylm.errors import ConfigError
from tinylm.evaluation.log_probs import evaluating
from tinylm.model import TransformerLM
from tinylm.model.quantized import quantized_layers

DECADES = (-12, 2)
"""The powers of ten that histograms reach from and to; what lies outside is counted in the last bin at that end."""
BINS = 4 * (DECADES[1] - DECADES[0])


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """The gradient of the mean loss of a text with respect to some weights."""

    part: str
    """embedding, positions, blocks.0.attention (with its norms), blocks.0.feedforward ..., final_norm, head."""
    weights: int
    """How many they are."""
    norm: float
    """Euclidean."""
    signal: float
    """Estimated squared norm of the gradient without noise; below 0 where the noise hides it."""
    noise: float
    """Variance of the gradient of a single sequence, summed over the weights."""
    zeros: int
    """Weights whose gradient is zero."""
    histogram: tuple[int, ...]
    """How many of the others have a size in each quarter of a decade."""

    @property
    def signal_to_noise(self) -> float:
        """Of the gradient of a single sequence; 0 where no signal is seen."""
        signal = max(self.signal, 0.0)
        return signal / self.noise if self.noise > 0 else float("inf") if signal > 0 else 0.0

    @property
    def noise_scale(self) -> float:
        """The batch, in sequences, in which noise and signal are alike."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def part_of(name: str) -> str:
    """What a weight belongs to.

    >>> part_of("blocks.0.attention_norm.weight"), part_of("head.weight")
    ('blocks.0.attention', 'head')
    """
    within = re.match(r"blocks\.\d+\.(attention|feedforward)", name)
    return within.group() if within else name.partition(".")[0]


def gradient_statistics(
    model: TransformerLM, ids: Tensor, targets: Tensor, documents: Tensor | None = None
) -> list[Gradients]:
    """The figures of every part. Nothing is added to the gradients that the weights hold.

    Args:
        model: the network, read in evaluation mode
        ids: token ids, (N, T), sequence by sequence
        targets: what follows each, (N, T)
        documents: as `TransformerLM.forward` takes them

    Raises:
        ConfigError: for a single sequence, which tells nothing of the noise, or weights that have no gradients.
    """
    if len(ids) < 2:
        raise ConfigError(
            f"signal and noise need at least 2 sequences, got {len(ids)}; give more rows, more text or a smaller length"
        )
    if any(True for _ in quantized_layers(model)):
        raise ConfigError("weights of 8 and 4 bits have no gradients; look at the model that they were made of")
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    sums = [torch.zeros_like(weight) for weight in learned.values()]
    squares = torch.zeros(len(sums), dtype=torch.float64)  # mean squared norm over sequences, of each weight
    for row in range(len(ids)):
        here = slice(row, row + 1)
        known = None if documents is None else documents[here]
        gradients = _gradients(model, list(learned.values()), ids[here], targets[here], known)
        for mean, gradient in zip(sums, gradients, strict=True):
            mean += gradient / len(ids)
        squares += torch.stack([_squared(gradient) for gradient in gradients]) / len(ids)
    parts: dict[str, list[int]] = {}
    for i, name in enumerate(learned):
        parts.setdefault(part_of(name), []).append(i)
    return [
        _describe(part, [sums[i] for i in places], float(squares[places].sum()), len(ids))
        for part, places in parts.items()
    ]


def _gradients(
    model: TransformerLM, weights: Sequence[Tensor], ids: Tensor, targets: Tensor, documents: Tensor | None
) -> Sequence[Tensor]:
    with evaluating(model), torch.enable_grad():
        loss = F.cross_entropy(model(ids, documents=documents).flatten(0, 1), targets.flatten())
        return torch.autograd.grad(loss, weights)


def _squared(tensor: Tensor) -> Tensor:
    return tensor.float().square().sum(dtype=torch.float64 if tensor.device.type != "mps" else None).double().cpu()


def _describe(part: str, means: Sequence[Tensor], mean_square: float, sequences: int) -> Gradients:
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
    """How many of the sizes that are not zero lie in each quarter of a decade, (BINS,)."""
    low, high = DECADES
    logs = sizes[sizes > 0].double().log10().clamp(low, high)
    return torch.histc(logs, BINS, low, high).long()


def gradient_norms(model: torch.nn.Module) -> dict[str, Tensor]:
    """The norm of the gradients that the weights hold, by part; sharded ones stay in pieces."""
    gradients: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            gradients.setdefault(part_of(name), []).append(weight.grad)
    return {part: torch.nn.utils.get_total_norm(tensors) for part, tensors in gradients.items()}
