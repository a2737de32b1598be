"""Properties of a training loop."""

import copy
import math

import numpy as np
import torch
from torch import nn

from tinylm.reference.optim import learning_rate


def scheduled(step, total_steps, lr, warmup_steps):
    """The learning rate of tinylm's linear schedule."""
    return learning_rate(step, total_steps, lr=lr, name="linear", warmup_steps=warmup_steps)


def trained(model, batches, lr, warmup_steps, max_norm):
    """The losses and the final parameters, with PyTorch's gradients and clipping and tinylm's schedule."""
    losses = []
    for step, (inputs, targets) in enumerate(batches):
        loss = nn.functional.cross_entropy(model(inputs).transpose(1, 2), targets)
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        rate = scheduled(step, len(batches), lr, warmup_steps)
        for parameter in model.parameters():
            parameter.data -= rate * parameter.grad
    return np.array(losses), nn.utils.parameters_to_vector(model.parameters()).detach()


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    model = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 7))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    ids = torch.randint(7, (12, 3, 5))
    batches = [(each[:, :-1], each[:, 1:]) for each in ids]
    losses, end = trained(copy.deepcopy(model), batches, 2.0, 4, 0.1)

    def train(**options):
        trainee = copy.deepcopy(model)
        given = dict(batches=batches, lr=2.0, warmup_steps=4, max_norm=0.1) | options
        return trainee, mine.train(trainee, **given)

    def clipped(values, max_norm):
        gradients = [torch.tensor([value]) for value in values]
        norm = float(mine.clip(gradients, max_norm))
        return np.array([norm, *(gradient.item() for gradient in gradients)])

    yield (
        "with lr 8 and 3 steps of warmup the rates begin 2, 4, 6, 8",
        np.array([2.0, 4.0, 6.0, 8.0]),
        lambda: np.array([mine.learning_rate(step, 13, 8.0, 3) for step in range(4)]),
        "lr (step + 1) / (warmup_steps + 1): with step / warmup_steps the first step would do nothing",
    )
    yield (
        "halfway between the warmup and the end, at step 8 of 13, the rate is 4",
        4.0,
        lambda: mine.learning_rate(8, 13, 8.0, 3),
        "the decay begins after the warmup: it takes total_steps - warmup_steps steps",
    )
    yield (
        "the rates of a whole run are those of tinylm's schedule",
        np.array([scheduled(step, 30, 0.01, 4) for step in range(31)]) * 1000,
        lambda: np.array([mine.learning_rate(step, 30, 0.01, 4) for step in range(31)]) * 1000,
        "(here times 1000) the rate is 0 at step = total_steps, which is never taken",
    )
    yield (
        "without warmup the first rate is lr",
        8.0,
        lambda: mine.learning_rate(0, 10, 8.0, 0),
        "no step is less than warmup_steps = 0",
    )
    yield (
        "clip scales (3) and (4), of norm 5, to (0.6) and (0.8)",
        np.array([5.0, 0.6, 0.8]),
        lambda: clipped([3.0, 4.0], 1.0),
        "one factor, max_norm / norm, for all gradients, in place: `gradient *= factor`; return the norm",
    )
    yield (
        "clip leaves smaller gradients as they are",
        np.array([0.5, 0.3, 0.4]),
        lambda: clipped([0.3, 0.4], 1.0),
        "scale only if the norm is above max_norm",
    )
    yield (
        "the first loss of a model that knows nothing of 7 tokens is log 7",
        math.log(7),
        lambda: float(train()[1][0]),
        "the mean cross-entropy over all targets, measured before the step",
    )
    yield (
        "there is a loss for each of 12 batches, as with PyTorch's gradients and clipping",
        losses,
        lambda: np.array([float(loss) for loss in train()[1]]),
        "zero the gradients in every step, since backward() adds to them; clip before the step; warm up",
    )
    yield (
        "the parameters at the end are the same",
        end,
        lambda: nn.utils.parameters_to_vector(train()[0].parameters()).detach(),
        "change the parameters in place, under torch.no_grad(), after the last batch, too",
    )
    yield (
        "a hundred steps on one batch learn it: its loss falls below 1",
        True,
        lambda: float(train(batches=batches[:1] * 100, max_norm=1.0)[1][-1]) < 1,
        "",
    )
