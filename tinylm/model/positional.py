"""Positional encodings, without which attention would ignore the order of the tokens.

- learned: one trained vector per position, added to the embeddings (GPT-2).
- sinusoidal: a fixed table of sines and cosines, added to the embeddings (Vaswani et al. 2017, section 3.5).
- rotary: queries and keys are rotated by angles proportional to their positions, so that their products depend only
  on the distance between them (Su et al. 2021). R dimensions of a head are rotated, all E or with `rotary_fraction`
  fewer, in pairs (i, i + R/2) as in Llama and Qwen. `RopeScaling` slows the rotation for longer contexts.

Tables are computed in float64 and cast when used: bfloat16 loses the phase of long positions.
"""

import contextlib
import math

import torch
from torch import Tensor, nn

from tinylm.model.config import RopeScaling


def _range(stop: int) -> Tensor:
    """0, 1, ... in float64, on the CPU even inside `with torch.device("meta")`: a table is computed, never loaded."""
    return torch.arange(stop, dtype=torch.float64, device="cpu")


def _frequencies(width: int, theta: float) -> Tensor:
    """Radians per position of each pair, theta^(-2i/width): (width/2,)."""
    return theta ** (-2 * _range(width // 2) / width)


def sinusoidal_table(num_positions: int, width: int) -> Tensor:
    """Sines in the even columns and cosines in the odd ones, in float64: (positions, width)."""
    angles = torch.outer(_range(num_positions), _frequencies(width, 10000.0))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(num_positions: int, width: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Cosines and sines of the angles of every position, in float64: (2, positions, width/2)."""
    frequencies, size = _frequencies(width, theta), 1.0
    if scaling is not None:
        kept = _kept_share(scaling, frequencies, theta, scaling.original_max_seq_len or num_positions)
        frequencies = kept * frequencies + (1 - kept) * frequencies / scaling.factor
        if scaling.kind == "yarn":
            size = scaling.attention_factor or 1 + math.log(scaling.factor) / 10
    angles = torch.outer(_range(num_positions), frequencies)  # (positions, width/2)
    return size * torch.stack((angles.cos(), angles.sin()))


def _kept_share(scaling: RopeScaling, frequencies: Tensor, theta: float, length: int) -> Tensor:
    """The share of each frequency that is not slowed, from 0 to 1: (width/2,); `length` is the original context."""
    if scaling.kind == "linear":
        return torch.zeros_like(frequencies)
    pairs = len(frequencies)
    if scaling.kind == "llama3":
        turns = length * frequencies / (2 * math.pi)  # in the original context
        share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        return share.clamp(0, 1)
    # yarn: the pairs that make beta_fast and beta_slow turns, as fractional indices
    first, last = (
        pairs * math.log(length / (2 * math.pi * turns)) / math.log(theta)
        for turns in (scaling.beta_fast, scaling.beta_slow)
    )
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    return 1 - ((_range(pairs) - first) / (last - first or 0.001)).clamp(0, 1)


class PositionTable(nn.Module):
    """A constant table, kept in float64 on the CPU and cast once per type and device.

    It is not a buffer: `model.to(torch.bfloat16)` would round it, and checkpoints need not store it.
    """

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self._exact = table
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def forward(self, like: Tensor) -> Tensor:
        """The table on `like`'s device: in float64 for a float64 model, else in float32."""
        key = (torch.float64 if like.dtype == torch.float64 else torch.float32, like.device)
        if key not in self._cast:
            # a tensor made in inference mode cannot take part in training; torch.compile does not know the mode
            with contextlib.nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
                self._cast[key] = self._exact.to(dtype=key[0], device=key[1])
        return self._cast[key]


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates each pair (x_i, x_{i+R/2}) of every head by the angle of its position.

    Args:
        x: (B, T, heads, E)
        table: the rows of `rotary_table` for these positions, (2, T, R/2) or (2, B, T, R/2), R at most E

    Returns:
        (B, T, heads, E), of x's type; the dimensions from R on are unchanged
    """
    cos, sin = table.unsqueeze(-2)  # (T, 1, R/2) each, or (B, T, 1, R/2)
    first, second, rest = x.tensor_split((cos.shape[-1], 2 * cos.shape[-1]), dim=-1)  # (..., R/2) twice, (..., E - R)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).type_as(x)
