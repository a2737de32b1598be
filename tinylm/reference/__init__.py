"""The twin of `tinylm.model`: the same network in NumPy alone, every gradient written by hand.

The same configuration, the same parameters under the same names, the same numbers; and nothing between the reader and
the mathematics. It shares no code with the rest of tinylm, or it would prove nothing about it.

Every part is one function that computes forward and returns two things: its result, and `backward`, a function that
takes the gradient of the loss with respect to that result and gives those with respect to the part's inputs. What
backward needs it finds in the names of forward: no tape, no graph. Whoever wants no gradients drops it. In names and
formulas `dy` is the gradient of the loss with respect to y, an array of y's shape. Backward leaves what it is given as
it was, and is called once: it may write over what forward kept.

Axes, as in `tinylm.model`:

    B batch                 H query heads           F feed-forward width
    T query position        K key/value heads       V vocabulary
    S key position          E head width            D model width (H * E)
    N = B * T               G query heads that share a key/value head (H / K)

Read in this order: config, functions, normalization, positional, attention, feedforward, dropout, parameters,
transformer, cache, generate, files; then optim, train, checkpoint. memory and trace are helpers.
"""

from tinylm.reference.config import Config
from tinylm.reference.trace import Trace
from tinylm.reference.transformer import NumpyTransformerLM

__all__ = ["Config", "NumpyTransformerLM", "Trace"]
