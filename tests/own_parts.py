"""Parts of a network as a user would write them, in a file outside the package.

The fixture `own_parts` of tests/conftest.py copies this file to `own_parts.py` in an empty folder. Importing it leaves
the file `imported`.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tinylm.model.attention import Attention

Path("imported").touch()


class GatedAttention(Attention):
    """Multiplies the output by a learned gate."""

    supports_cache = True

    def __init__(self, config, layer, power=1.0):
        super().__init__(config, layer)
        self.gate = nn.Linear(config.d_model, config.d_model)
        self.power = power

    def forward(self, x, visible, rotary, cache):
        return super().forward(x, visible, rotary, cache) * 2 * torch.sigmoid(self.gate(x)) ** self.power


class NarrowAttention(nn.Module):
    """One head whose keys have 3 dimensions and whose values have 5, without rotary positions."""

    supports_cache = True

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.query, self.key = nn.Linear(config.d_model, 3), nn.Linear(config.d_model, 3)
        self.value, self.output = nn.Linear(config.d_model, 5), nn.Linear(5, config.d_model)

    @staticmethod
    def cache_shape(config):
        return 1, 3, 5

    def score_flops(self, visible):
        return 2 * (3 + 5) * visible

    def forward(self, x, visible, rotary, cache):
        query, key, value = (part(x)[:, None] for part in (self.query, self.key, self.value))  # (B, 1, T, dim)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        causal = visible is None and query.shape[2] > 1
        return self.output(F.scaled_dot_product_attention(query, key, value, visible, is_causal=causal)[:, 0])


class ForgetfulAttention(GatedAttention):
    """Ignores the cache, in spite of its promise."""

    def forward(self, x, visible, rotary, cache):
        return super().forward(x, None, rotary, None)


class Bilinear(nn.Module):
    """output(a(x) * b(x))"""

    supports_cache = True

    def __init__(self, config, width=24):
        super().__init__()
        self.a, self.b = nn.Linear(config.d_model, width), nn.Linear(config.d_model, width)
        self.output = nn.Linear(width, config.d_model)

    def forward(self, x):
        return self.output(self.a(x) * self.b(x))


class Shifted(Bilinear):
    """Reads the previous token too, so no cache can be right, and promises none."""

    supports_cache = False

    def forward(self, x):
        return super().forward(x + F.pad(x, (0, 0, 1, 0))[:, :-1])


class Sparse(Bilinear):
    """Says that a token uses 7 of its parameters."""

    active_parameters = 7


class Signed(nn.Module):
    """A norm: the sign of each coordinate, times a weight."""

    supports_cache = True

    def __init__(self, width, scale=1.0):
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.ones(width)), scale

    def forward(self, x):
        return torch.tanh(4 * x) * self.weight * self.scale


def cubed(x, factor=1.0):
    return factor * x.relu() ** 3


cubed.supports_cache = True


class Sines(nn.Module):
    """Positions added to the embeddings, with a learned size."""

    supports_cache = True

    def __init__(self, config, period=7.0):
        super().__init__()
        self.size = nn.Parameter(torch.ones(config.d_model))
        self.period = period

    def forward(self, x, positions):
        angles = positions[..., None] * (2 * math.pi / self.period) + torch.arange(x.shape[-1], device=x.device)
        return x + (angles.sin() * self.size).type_as(x), None


class Kept(nn.Module):
    """A feed-forward layer whose weights the model must not initialize."""

    own_initialization = True

    def __init__(self, config):
        super().__init__()
        self.output = nn.Linear(config.d_model, config.d_model)
        nn.init.constant_(self.output.weight, 0.25)
        nn.init.constant_(self.output.bias, 0.5)

    def forward(self, x):
        return self.output(x)
