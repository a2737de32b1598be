"""Positional encodings, without which attention would ignore the order of the tokens.

- learned: one trained vector per position, added to the embeddings (GPT-2).
- sinusoidal: a fixed table of sines and cosines, added to the embeddings (Vaswani et al. 2017, section 3.5).
- rotary: queries and keys are rotated by angles proportional to their positions, so that their products depend only
  on the distance between them (Su et al. 2021). Pairs are (i, i + E/2), as in Llama and Qwen.

Tables are computed in float64 and cast when used: bfloat16 loses the phase of long positions.
"""

import contextlib

import torch
from torch import Tensor, nn


def _angles(num_positions: int, width: int, theta: float) -> Tensor:
    """position * theta^(-2i/width) in float64: (positions, width/2)."""
    # on the CPU even inside `with torch.device("meta")`: a table is computed, never loaded
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    return torch.outer(torch.arange(num_positions, dtype=torch.float64, device="cpu"), frequencies)


def sinusoidal_table(num_positions: int, width: int) -> Tensor:
    """Sines in the even columns and cosines in the odd ones, in float64: (positions, width)."""
    angles = _angles(num_positions, width, 10000.0)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_table(num_positions: int, width: int, theta: float) -> Tensor:
    """Cosines and sines of the angles of every position, in float64: (2, positions, width/2)."""
    angles = _angles(num_positions, width, theta)
    return torch.stack((angles.cos(), angles.sin()))


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
    """Rotates each pair (x_i, x_{i+E/2}) of every head by the angle of its position.

    Args:
        x: (B, T, heads, E)
        table: the rows of `rotary_table` for these positions, (2, T, E/2) or (2, B, T, E/2)

    Returns:
        (B, T, heads, E), of x's type
    """
    cos, sin = table.unsqueeze(-2)  # (T, 1, E/2) each, or (B, T, 1, E/2)
    first, second = x.chunk(2, dim=-1)  # (B, T, heads, E/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)
