"""The NumPy twin of `tinylm.model`: the same network in NumPy alone, with every gradient derived by hand.

It has the same configuration, parameters, names and numbers, and shares no code with the rest of tinylm: an oracle that
shared code with the network it checks would prove nothing.

Every part is one function that computes forward and returns two things: its result, and `backward`, a function that
takes the gradient of the loss with respect to that result and returns the gradients with respect to the inputs and the
parameters. `backward` is a closure over the variables of forward: no tape, no graph. In names and formulas `dy` is the
gradient of the loss with respect to y, an array of y's shape. A backward never changes its argument.

Parameters are one flat dictionary, by the names of PyTorch's state dict. A part is given the dictionary and its own
name, and returns its gradients under their full names.

Axes, as in `tinylm.model`:

    B batch                 H query heads           F feed-forward width
    T query position        K key/value heads       V vocabulary
    S key position          E head_dim              D model width (H * E by default)
                            N = B * T

Read in this order: config, functions, normalization, positional, attention, feedforward, parameters, transformer,
cache, generate, files; then optim, train, checkpoint. `fast` is the same network tuned for speed, and can be left out;
`trace` records intermediate results.
"""

from tinylm.reference.config import Config
from tinylm.reference.transformer import NumpyTransformerLM

__all__ = ["Config", "NumpyTransformerLM"]
