"""Properties of gradients written by hand."""

import math

import numpy as np
import torch
import torch.nn.functional as F


def gradients(function, *arrays):
    """PyTorch's value and gradients of a scalar function of arrays."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    value = function(*tensors)
    value.backward()
    return value.item(), [tensor.grad.numpy() for tensor in tensors]


def slopes(function, array, step=1e-5):
    """The slope of a function of an array in each of its numbers, by small changes."""
    found = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        change = np.zeros_like(array)
        change[index] = step
        found[index] = (function(array + change) - function(array - change)) / (2 * step)
    return found


def descent(weight, x, targets, rate, steps):
    """The weight and the losses of gradient descent with PyTorch's gradients."""
    losses = []
    for _ in range(steps):
        loss, (gradient,) = gradients(lambda w: F.cross_entropy(torch.tensor(x) @ w.T, torch.tensor(targets)), weight)
        weight = weight - rate * gradient
        losses.append(loss)
    return weight, np.array(losses)


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    random = np.random.default_rng(0)
    x, weight, dy = random.normal(size=(5, 3)), random.normal(size=(4, 3)), random.normal(size=(5, 4))
    logits, targets = random.normal(size=(5, 4)), np.array([2, 0, 3, 3, 1])
    _, linear = gradients(lambda a, b: (a @ b.T * torch.tensor(dy)).sum(), x, weight)
    loss, (dlogits,) = gradients(lambda each: F.cross_entropy(each, torch.tensor(targets)), logits)
    start = np.zeros((4, 3))
    end, losses = descent(start, x, targets, 0.5, 20)

    def unchanged():
        given = logits.copy(), start.copy()
        mine.cross_entropy(given[0], targets)
        mine.descend(given[1], x, targets, 0.5, 3)
        return np.concatenate(given, axis=None)

    def numpy(pair):
        return tuple(np.asarray(each).tolist() for each in pair)

    yield (
        "for x = (1, 2), W = (3, 4) and dy = 10, dx = (30, 40) and dW = (10, 20)",
        ([[30.0, 40.0]], [[10.0, 20.0]]),
        lambda: numpy(mine.linear_backward(np.array([[10.0]]), np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]))),
        "dx = dy W and dW = dyᵀ x; return dx first",
    )
    yield (
        "the gradient of the input is PyTorch's",
        linear[0],
        lambda: mine.linear_backward(dy, x, weight)[0],
        "(N, O) times (O, I) gives (N, I)",
    )
    yield (
        "the gradient of the weight is PyTorch's",
        linear[1],
        lambda: mine.linear_backward(dy, x, weight)[1],
        "(O, N) times (N, I) gives (O, I), and adds up all rows",
    )
    yield (
        "equal logits of 9 tokens have the loss log 9",
        math.log(9),
        lambda: mine.cross_entropy(np.zeros((2, 9)), np.array([4, 0]))[0],
        "minus the logarithm of the target's probability, and the mean over the rows",
    )
    yield (
        "the loss is PyTorch's",
        loss,
        lambda: mine.cross_entropy(logits.copy(), targets)[0],
        "the mean over the rows, not the sum",
    )
    yield (
        "logits of 1000 do not overflow",
        1000.0,
        lambda: mine.cross_entropy(np.array([[1000.0, 0.0]]), np.array([1]))[0],
        "subtract the largest logit of each row first, and take logarithms of sums, not of tiny probabilities",
    )
    yield (
        "the gradient of the logits (0, 0) for the target 0 is (-1/2, 1/2)",
        np.array([[-0.5, 0.5]]),
        lambda: mine.cross_entropy(np.zeros((1, 2)), np.array([0]))[1],
        "p, minus 1 at the target",
    )
    yield (
        "the gradient of the logits is the slope of the loss, measured by small changes",
        slopes(lambda each: F.cross_entropy(torch.tensor(each), torch.tensor(targets)).item(), logits),
        lambda: mine.cross_entropy(logits.copy(), targets)[1],
        "the loss is a mean over N rows, so the gradient is divided by N",
    )
    yield (
        "and PyTorch's",
        dlogits,
        lambda: mine.cross_entropy(logits.copy(), targets)[1],
        "rows, targets: dlogits[np.arange(N), targets] -= 1 changes one number of each row",
    )
    yield (
        "descent reports the loss before each of 20 steps, as with PyTorch's gradients",
        losses,
        lambda: np.array(mine.descend(start.copy(), x, targets, 0.5, 20)[1]),
        "subtract rate times the gradient: uphill, the loss would rise",
    )
    yield (
        "it ends with the same weight",
        end,
        lambda: mine.descend(start.copy(), x, targets, 0.5, 20)[0],
        "the gradients of a step are those at the weight of this step",
    )
    yield (
        "logits and weight that were given are not changed",
        np.concatenate((logits, start), axis=None),
        unchanged,
        "`weight -= ...` changes the caller's array; `weight = weight - ...` makes a new one",
    )
