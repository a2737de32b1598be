"""GRPO: learning from rewards that a program checks (Shao et al. 2024, arXiv:2402.03300, section 4).

For each prompt the network writes a group of completions. A completion is good if its reward is above the group's mean:

    A_i = (r_i - mean r) / std r
    loss = -mean over i of (1 / length_i) * sum over t of (A_i log p_it - beta KL_it)
    KL_it = q_it / p_it - log(q_it / p_it) - 1              p: the network, q: the frozen reference

The variant `dr_grpo` (Liu et al. 2025, arXiv:2503.20783) leaves out the two divisions that bias the gradient: by std r,
and by the length of each completion, in place of which stands the constant `max_new_tokens`.

With `credit: mistake` each token has an advantage of its own, by its distance to the mistake; with `credit: expected`
the gradient is the exact one over all next tokens (credit.py, verdicts.py).

Every group is used for one step. So the policy that has written it is the network itself, the ratio of the two is 1,
and there is nothing to clip. Left out: several steps on a group, and sampling under another temperature.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinylm.checks import require
from tinylm.data import IGNORE, Batch
from tinylm.data.loader_batches import seed_of
from tinylm.evaluation.log_probs import token_nats
from tinylm.training.frozen_start import FrozenStart, log_probs
from tinylm.training.objective import FIELD, per_sequence
from tinylm.training.rewards import OPTION, named_reward, own_reward
from tinylm.training.rollout import Prompt, completions, prompts_of
from tinylm.training.verdicts import CREDITS, Verdict, Whole, rewards_of

VARIANTS = ("grpo", "dr_grpo")
REWARDED = ("prompt", "completion", "answer")  # the arguments of a reward


class GRPO(FrozenStart):
    """Group relative policy optimization: prompts of the batch, completions of the network, rewards of a function.

    A prompt is the beginning of a document of the corpus, or the prompt of a pair. A completion that has not ended
    within `max_new_tokens` gets the reward 0.

    Args:
        reward: `parse` (1 if the grammar of the corpus can generate the text), `exact` (1 if a completion is the
            response of the pair), or a function of your own (prompt, completion, answer) -> float, by its class path
        group: completions per prompt
        prompt_tokens: of a text: tokens of each document in its prompt. 0: the token that begins a text alone
        max_new_tokens: most tokens of a completion. None: as many as the context holds
        beta: how strongly the network is held to the reference
        pretraining: weight of the cross-entropy of the batch's own texts or responses, in nats per token, which also
            holds the network to its language (Ouyang et al. 2022)
        variant: `grpo` or `dr_grpo`
        credit: `whole`: the reward counts for every token of a completion; `mistake`: a reward that names the place of
            the mistake counts for the tokens up to it; `expected`: a reward that knows all possible tokens teaches each
            place up to the mistake by all of them. With the last two the reward is 1 without a mistake, else 0
        discount: with credit `mistake`: weight of the blame, per token back from the mistake. None: 0.9
        reference: a run, model folder or checkpoint with the same tokenizer. None: the start of the run
    """

    monitor = ("val/reward", "max")

    def __init__(
        self,
        reward: Any = "parse",
        group: int = 8,
        prompt_tokens: int = 0,
        max_new_tokens: int | None = None,
        beta: float = 0.04,
        pretraining: float = 0.0,
        variant: str = "grpo",
        credit: str = "whole",
        discount: float | None = None,
        reference: str | None = None,
    ) -> None:
        super().__init__(reference)
        require(group >= 2, f"group must be at least 2, got {group}: a reward is compared with those of the group")
        require(prompt_tokens >= 0, f"prompt_tokens must not be negative, got {prompt_tokens}")
        require(max_new_tokens is None or max_new_tokens >= 1, f"max_new_tokens must be at least 1: {max_new_tokens}")
        require(beta >= 0, f"beta must not be negative, got {beta}")
        require(pretraining >= 0, f"pretraining must not be negative, got {pretraining}")
        require(variant in VARIANTS, f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        require(credit in CREDITS, f"credit must be one of {', '.join(CREDITS)}, got {credit!r}")
        blamed = credit == "mistake" or discount is None
        require(blamed, f"discount: credit: {credit} has none; leave it out, or set credit to mistake")
        require(discount is None or 0 <= discount <= 1, f"discount must be from 0 to 1, got {discount}")
        self.credit = credit
        options = {} if discount is None else {"discount": discount}
        self._credit = CREDITS[credit](group, variant == "grpo", **options)
        self.group, self.prompt_tokens, self.max_new_tokens = group, prompt_tokens, max_new_tokens
        self.beta, self.pretraining, self.variant, self._tokens = beta, pretraining, variant, 0
        part = own_reward(reward)
        self._name = reward if part is None else part.class_path
        self.plugins = [] if part is None else [part]
        self.reward: Any = reward if part is None else part.make_function(*REWARDED, field=OPTION)

    def prepare(self, network: Any) -> None:
        """Finds the reward, and refuses what cannot be sampled from or rewarded."""
        data, end = network.trainer.datamodule, network.tokenizer.end_of_text
        require(not network.has_dropout, f"{FIELD}: GRPO samples without dropout; set dropout to 0, that of LoRA too")
        require(
            not data.packing, "data.packing: does not work with GRPO, which takes one prompt of a row; leave it out"
        )
        ends = end is not None and network.tokenizer.marks.stops == (end,)
        require(ends, f"{FIELD}: GRPO needs a tokenizer with one token that ends a text, and no others that stop it")
        pairs = network.template is not None
        require(not (pairs and self.prompt_tokens), f"{FIELD}: prompt_tokens: pairs have prompts; leave it out")
        if isinstance(self.reward, str):
            self.reward = named_reward(self.reward, network)
        knows = callable(getattr(self.reward, self._credit.needs, None))
        remedy = f"set credit to whole, or give a reward with a method {self._credit.needs}"
        require(knows, f"{OPTION}: {self._name} does not know what credit: {self.credit} needs; {remedy}")
        super().prepare(network)

    def forward(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """The loss, and what the completions are like, for a micro-batch; each prompt counts the same."""
        prompts = [prompt for prompt in prompts_of(network, batch, self.prompt_tokens) for _ in range(self.group)]
        seeds = torch.randint(2**62, (len(prompts),)).tolist()  # by PyTorch's generator, a function of the step
        written, verdicts = self.graded(network, prompts, seeds, self._credit.judge)
        counts = written.targets != IGNORE
        self._tokens = written.inputs.numel()
        logits, theirs = network(written.inputs, written.documents), self.reference_log_probs(network, written)
        ours = -token_nats(logits, written.targets)  # (n, T)
        kl = torch.where(counts, (theirs - ours).exp() - (theirs - ours) - 1, 0.0)
        gains, silent = self._credit.gains(verdicts, counts, logits, ours)
        losses = (self.beta * kl - gains).sum(1)  # (n,)
        lengths = counts.sum(1)
        divisor = lengths if self.variant == "grpo" else self.max_new_tokens or network.network.max_seq_len
        values = {"loss": losses / divisor, "reward": rewards_of(verdicts, losses.device)}
        values |= {"kl": kl.sum(1), "entropy": -ours.sum(1), "length": lengths}
        values["silent"] = silent.repeat_interleave(self.group)
        found = per_sequence(network, batch, {name: each.sum() / self.group for name, each in values.items()})
        if self.pretraining:
            self._tokens += batch.inputs.numel()
            found["text"] = token_nats(network(batch.inputs, batch.documents), batch.targets).sum()
            found["loss"] = found["loss"] + self.pretraining * found["text"]
        return found

    def evaluate(self, network: Any, batch: Batch) -> dict[str, Tensor]:
        """Values of one completion of each row's prompt, (n,). The seed depends on the row alone.

        Whatever the credit, the reward itself is measured.
        """
        counts = (batch.targets != IGNORE).any(1)
        if not counts.any():
            return {name: torch.zeros(0) for name in ("reward", "length", "entropy")}
        rows = batch._replace(inputs=batch.inputs[counts], targets=batch.targets[counts])
        prompts = prompts_of(network, rows, self.prompt_tokens)
        seeds = [seed_of(row[row != IGNORE].tolist()) for row in rows.targets]
        written, verdicts = self.graded(network, prompts, seeds, Whole.judge)
        return {
            "reward": rewards_of(verdicts, written.inputs.device),
            "length": (written.targets != IGNORE).sum(1),
            "entropy": -log_probs(network, written).sum(1),
        }

    def graded(
        self, network: Any, prompts: list[Prompt], seeds: list[int], judge: Callable[..., Verdict]
    ) -> tuple[Batch, list[Verdict]]:
        """Writes a completion of each prompt, and has it judged.

        Returns:
            the batch of prompts and completions, of which the tokens of the completions count, and the verdicts
        """
        texts, written = completions(network, [prompt.ids for prompt in prompts], seeds, self.max_new_tokens)
        pairs = zip(prompts, texts, strict=True)
        return written, [judge(self.reward, network.tokenizer, *pair) for pair in pairs]

    def num_tokens(self, batch: Batch) -> int:
        """Tokens of the last micro-batch of completions."""
        return self._tokens
