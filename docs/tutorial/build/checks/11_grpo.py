"""Properties of the losses GRPO and DPO."""

import math

import torch
import torch.nn.functional as F


def properties(mine):
    """Yields (sentence, expected, how to find it, hint)."""
    rewards = torch.randn(5, 8)
    logits = torch.randn(4, 6, 9)
    ids = torch.randint(9, (4, 6))
    counts = torch.arange(6) < torch.tensor([6, 2, 4, 1])[:, None]
    advantage = torch.tensor([1.0, -0.5, 2.0, -1.5])
    log_p = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    log_start = log_p + torch.randn(4, 6) / 4
    chosen, rejected = torch.randn(2, 7) * 20

    def by_hand(beta):
        """The loss, completion by completion."""
        total = 0.0
        for row, length in enumerate((6, 2, 4, 1)):
            ours, theirs = log_p[row, :length].double(), log_start[row, :length].double()
            kl = torch.expm1(theirs - ours) - (theirs - ours)
            total -= ((advantage[row] * ours - beta * kl).sum() / length).item() / 4
        return total

    def padded():
        """The loss with nonsense in the tokens that do not count."""
        noise = torch.where(counts, log_p, -1e4)
        return mine.grpo_loss(noise, torch.where(counts, log_start, 0.0), counts, advantage, 0.5)

    def slope():
        """The gradient of the loss by log p, for the first completion."""
        given = log_p.clone().requires_grad_()
        mine.grpo_loss(given, log_p, counts, advantage, 0.5).backward()
        return given.grad[0]

    yield (
        "the rewards (1, 0, 0, 1) have the advantages (1, -1, -1, 1)",
        torch.tensor([[1.0, -1.0, -1.0, 1.0]]),
        lambda: mine.advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])),
        "the mean is 1/2 and the deviation, divided by G, is 1/2: `std(correction=0)`",
    )
    yield (
        "a group of equal rewards has advantages of 0",
        torch.zeros(1, 4),
        lambda: mine.advantages(torch.ones(1, 4)),
        "0 / 0 is not a number: `torch.where` can choose 0 there",
    )
    yield (
        "each of five groups then has the mean 0 and the deviation 1, as PyTorch's layer norm makes it",
        F.layer_norm(rewards, (8,), eps=0.0),
        lambda: mine.advantages(rewards),
        "each row is a group: dim=1, keepdim=True",
    )
    yield (
        "the divergence of log p = -1 and log q = -2 is 1/e",
        torch.tensor([math.exp(-1)]),
        lambda: mine.divergence(torch.tensor([-1.0]), torch.tensor([-2.0])),
        "log(q/p) = log q - log p = -1",
    )
    yield (
        "the mean divergence over all tokens, by their probabilities, is KL(p || q)",
        F.kl_div(logits[1].log_softmax(-1), logits[0].log_softmax(-1), reduction="none", log_target=True).sum(-1),
        lambda: (logits[0].softmax(-1) * mine.divergence(logits[0].log_softmax(-1), logits[1].log_softmax(-1))).sum(-1),
        "q/p - log(q/p) - 1, not p/q",
    )
    yield (
        "log p = -1 and -3 with A = 2 and beta = 0 have the loss 4",
        4.0,
        lambda: mine.grpo_loss(
            torch.tensor([[-1.0, -3.0]]), torch.zeros(1, 2), torch.ones(1, 2) > 0, torch.tensor([2.0]), 0.0
        ),
        "the loss is what is minimized, so it is minus the gain",
    )
    yield (
        "completions of 6, 2, 4 and 1 tokens count the same",
        by_hand(0.0),
        lambda: mine.grpo_loss(log_p, log_start, counts, advantage, 0.0),
        "the mean over the tokens of each completion first, then the mean over completions",
    )
    yield (
        "beta times the divergence is added to the loss",
        by_hand(0.5),
        lambda: mine.grpo_loss(log_p, log_start, counts, advantage, 0.5),
        "the divergence is subtracted from the gain, of which the loss is the negative",
    )
    yield (
        "what stands beyond the end of a completion does not matter",
        by_hand(0.5),
        padded,
        "`torch.where(counts, gains, 0.0)`: multiplying by 0 would make infinity times 0, which is not a number",
    )
    yield (
        "where the model is still the start, the gradient by each log p is -A / (length n)",
        torch.full((6,), -1.0 / 24),
        slope,
        "the divergence has no slope there; a positive advantage raises log p when the loss falls",
    )
    yield (
        "DPO of two log ratios of 0 is log 2",
        math.log(2),
        lambda: mine.dpo_loss(torch.zeros(3), torch.zeros(3), 0.1),
        "sigmoid(0) is 1/2",
    )
    yield (
        "DPO of 5 and -5 with beta 0.1 is 0.3133, as in the chapter",
        math.log(1 + math.exp(-1)),
        lambda: mine.dpo_loss(torch.tensor([5.0]), torch.tensor([-5.0]), 0.1),
        "chosen minus rejected, times beta",
    )
    yield (
        "DPO is the binary cross-entropy of the preference, the mean over answers",
        F.binary_cross_entropy_with_logits(0.3 * (chosen - rejected), torch.ones(7)).item(),
        lambda: mine.dpo_loss(chosen, rejected, 0.3),
        "the mean, not the sum",
    )
    yield (
        "a margin of -10,000 has a finite loss, 1,000",
        1000.0,
        lambda: mine.dpo_loss(torch.tensor([-5000.0]), torch.tensor([5000.0]), 0.1),
        "sigmoid(-1000) is 0, whose logarithm is -inf: use torch.nn.functional.logsigmoid",
    )
