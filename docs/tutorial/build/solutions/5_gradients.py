"""Gradients by hand: a linear layer, its loss, and descent, in NumPy (chapter 5)."""

import numpy as np

Array = np.ndarray


def linear_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """The gradients of a linear layer y = x Wᵀ: dx = dy W and dW = dyᵀ x.

    Args:
        dy: gradient of the loss with respect to y, (N, O)
        x: input of the layer, (N, I)
        weight: W, (O, I)

    Returns:
        dx, (N, I), and dW, (O, I)

    Example: for x = (1, 2), W = (3, 4) and dy = 10, each a matrix of one row, dx = (30, 40) and dW = (10, 20).
    """
    return dy @ weight, dy.T @ x


def cross_entropy(logits: Array, targets: Array) -> tuple[float, Array]:
    """The mean over the rows of -log p(target), where p = softmax(logits), and its gradient.

    The gradient of one row's loss is p, minus 1 at the target. Of the mean it is that divided by N.
    Subtract the largest logit of each row first: this changes no p, and no exponential overflows.

    Args:
        logits: (N, V)
        targets: ids of the right tokens, (N,)

    Returns:
        the loss in nats and the gradient with respect to the logits, (N, V)

    Example: for the logits (0, 0) and the target 0 they are log 2 and (-1/2, 1/2).
    """
    rows = np.arange(len(targets))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))  # (N, V)
    dlogits = np.exp(log_p)
    dlogits[rows, targets] -= 1
    return float(-log_p[rows, targets].mean()), dlogits / len(targets)


def descend(weight: Array, x: Array, targets: Array, rate: float, steps: int) -> tuple[Array, list[float]]:
    """Gradient descent of a model whose logits are x Wᵀ.

    Args:
        weight: W at the start, (V, D); it is left as it is
        x: inputs, (N, D)
        targets: (N,)
        rate: learning rate: a step subtracts rate times the gradient
        steps: number of steps

    Returns:
        W at the end, (V, D), and the loss before each step
    """
    losses = []
    for _ in range(steps):
        loss, dlogits = cross_entropy(x @ weight.T, targets)
        losses.append(loss)
        _, dweight = linear_backward(dlogits, x, weight)
        weight = weight - rate * dweight
    return weight, losses
