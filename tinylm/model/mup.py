"""muP, the maximal update parametrization (Yang et al. 2022, table 8): one learning rate for every width.

With a fixed learning rate a step changes the output of a wide layer more than that of a narrow one: each output sums
the changes of `d_model` weights, all correlated with the input. muP divides that out, so that every layer's output
changes equally at any width and the best learning rate is the same. With m = d_model / mup_base_width:

    parameters               initial values   lr of adam, adamw   lr of muon
    matrices of the blocks   std / √m         1/m                 1/√m
    weight of the last norm  1/m              1/m                 1/m
    all others               unchanged        1                   1

- The effect of a matrix update is measured by its spectral norm, which must not depend on the width if rows and
  columns grow together (Yang, Simon, Bernstein 2023). Adam moves every entry by about lr, in a common direction, so the
  norm of a d x d step is lr d. Muon's step has the norm 0.2 lr √d: it is 0.2 lr √d times an orthogonal matrix
  (optim/muon.py).
- Table 8 multiplies the logits by 1/m. Here the weight of the norm before the head starts at 1/m and is trained with
  lr / m. This is the same function and, under Adam, the same training, and no other code needs a multiplier.
- LoRA's A reads the stream and is scaled like the last norm; B writes to the stream, like the embedding.
- Weight decay is divided by the factor of lr, so that lr times decay, the share by which a step shrinks a weight, is
  the same.

The feed-forward width must grow as `d_model`, and heads keep their dimension. If heads grow instead, to dimension E,
set `attention_scale` to √E_base / E under Adam: its steps correlate queries and keys, so their products grow as E.
Under Muon they do not (docs/mup.md).
"""

import math

from torch import nn

from tinylm.checks import require
from tinylm.model.config import ModelConfig
from tinylm.model.lora import A, B

MATRIX = {"adam": 1.0, "adamw": 1.0, "muon": 0.5}  # exponent of 1/m in the learning rate


def width_ratio(config: ModelConfig) -> float:
    """m, which is 1 at the base width and without muP."""
    return 1.0 if config.mup_base_width is None else config.d_model / config.mup_base_width


def matrix_std(config: ModelConfig, name: str, std: float) -> float:
    """The initial standard deviation of a layer's matrix that would be `std` at the base width."""
    return std / math.sqrt(width_ratio(config)) if name.startswith("blocks.") else std


def last_norm(config: ModelConfig) -> str:
    """The name of the norm that the head reads."""
    post = config.norm_placement == "post"
    return f"blocks.{config.num_layers - 1}.feedforward_norm" if post else "final_norm"


def rate_factor(config: ModelConfig, name: str, parameter: nn.Parameter, optimizer: str) -> float:
    """Factor of the learning rate of the parameter of this name.

    Raises:
        ConfigError: with muP, for an optimizer whose rule is not known.
    """
    if config.mup_base_width is None:
        return 1.0
    problem = f"mup_base_width: there is no rule for the optimizer {optimizer}; take {' or '.join(MATRIX)}"
    require(optimizer in MATRIX, problem)
    block = name.startswith("blocks.")
    if name.startswith(f"{last_norm(config)}.") or (block and A in name):
        exponent = 1.0
    else:
        exponent = MATRIX[optimizer] if block and parameter.ndim > 1 and B not in name else 0.0
    return width_ratio(config) ** -exponent
