"""The three credits of GRPO: each judges completions and defines the quantity that is maximized at each token."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinylm.generation.text import Text
from tinylm.training.credit import log_chances, returns, token_advantages, token_of
from tinylm.training.rollout import Prompt


class Verdict(NamedTuple):
    """The judgment of a completion.

    Attributes:
        reward: of the completion as a whole
        mistake: with credit `mistake`: index of the wrong token; None: no mistake
        possible: with credit `expected`: for each token up to the first wrong one, the ids that are no mistake there
    """

    reward: float
    mistake: int | None = None
    possible: Sequence[Sequence[int]] = ()


Verdicts = Sequence[Verdict]  # of the completions of a batch; those of a group follow each other


def rewards_of(verdicts: Verdicts, device: torch.device) -> Tensor:
    """The rewards of completions, (n,)."""
    return torch.tensor([each.reward for each in verdicts], device=device)


class Whole:
    """Credit `whole`: the reward counts for every token of a completion.

    Args:
        group: completions per prompt
        scaled: whether advantages are divided by their standard deviation in the group
    """

    needs = "__call__"  # the method that a reward must have

    def __init__(self, group: int, scaled: bool) -> None:
        self.group, self.scaled = group, scaled

    @staticmethod
    def judge(reward: Any, tokenizer: Any, prompt: Prompt, text: Text) -> Verdict:
        """Judges a completion; one that was cut off has the reward 0."""
        ended = text.finished == "end"
        return Verdict(float(reward(prompt.text, tokenizer.decode(text.ids), prompt.answer)) if ended else 0.0)

    def returns(self, verdicts: Verdicts, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The return of each token, and which tokens have one; (n, 1) if those of a completion are equal.

        Args:
            verdicts: of each completion
            counts: which tokens belong to the completions, bool (n, T)
        """
        rewards = rewards_of(verdicts, counts.device)[:, None]
        return rewards, torch.ones_like(rewards, dtype=torch.bool)

    def gains(self, verdicts: Verdicts, counts: Tensor, logits: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """The quantity maximized at each token, (n, T), and 1 for each group without a difference, (B,).

        Args:
            verdicts: of each completion
            counts: which tokens belong to the completions, bool (n, T)
            logits: of the network, (n, T, V)
            log_probs: of each token, (n, T)
        """
        advantages, silent = token_advantages(*self.returns(verdicts, counts), self.group, self.scaled)
        return advantages * log_probs, silent


class Mistake(Whole):
    """Credit `mistake`: a reward that names the place of the mistake counts for the tokens up to it.

    Args:
        group: completions per prompt
        scaled: whether advantages are divided by their standard deviation in the group
        discount: weight of the blame, per token back from the mistake
    """

    needs = "mistake"

    def __init__(self, group: int, scaled: bool, discount: float = 0.9) -> None:
        super().__init__(group, scaled)
        self.discount = discount

    @staticmethod
    def judge(reward: Any, tokenizer: Any, prompt: Prompt, text: Text) -> Verdict:
        """Judges a completion; the last token of one that was cut off is a mistake."""
        place = reward.mistake(prompt.text, tokenizer.decode(text.ids), prompt.answer)
        wrong = [] if place is None else [token_of(text.ids, place, tokenizer)]
        if text.finished != "end":
            wrong.append(len(text.ids) - 1)
        return Verdict(float(not wrong), mistake=min(wrong, default=None))

    def returns(self, verdicts: Verdicts, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The return of each token, by its distance to the mistake, and which tokens have one, (n, T)."""
        return returns([each.mistake for each in verdicts], counts, self.discount)


class Expected(Whole):
    """Credit `expected`: each place up to the mistake learns from all tokens that the reward calls possible there."""

    needs = "possible_tokens"

    @staticmethod
    def judge(reward: Any, tokenizer: Any, prompt: Prompt, text: Text) -> Verdict:
        """Judges a completion: right if each of its tokens, up to the one that ends the text, is possible."""
        ended = text.finished == "end"
        ids = [*text.ids, tokenizer.end_of_text] if ended else text.ids
        possible = reward.possible_tokens(prompt.text, ids, tokenizer)
        right = ended and len(possible) == len(ids) and ids[-1] in possible[-1]
        return Verdict(float(right), possible=possible)

    def gains(self, verdicts: Verdicts, counts: Tensor, logits: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """The log probability of all possible tokens together, (n, T); no group is compared."""
        chances = log_chances(logits, [each.possible for each in verdicts], counts)
        return chances, chances.new_zeros(len(chances) // self.group)


CREDITS: dict[str, type[Whole]] = {"whole": Whole, "mistake": Mistake, "expected": Expected}
