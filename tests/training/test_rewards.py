"""GRPO: the policy gradient by hand, rewards, and runs."""

import functools
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests import processes
from tests.training import ranks
from tests.training.test_preferences import STOP, columns
from tinylm.bundle import read_checkpoint
from tinylm.data import IGNORE, Batch
from tinylm.data.grammar.parse import Grammar
from tinylm.generation.text import Text
from tinylm.tokenizer import END_OF_TEXT, ByteTokenizer, CharTokenizer
from tinylm.training import GRPO
from tinylm.training.credit import log_chances, returns, token_advantages, token_of
from tinylm.training.rewards import Parse
from tinylm.training.rollout import Prompt, prompts_of
from tinylm.training.verdicts import Expected, Mistake, Verdict, Whole

NAMES = ["al", "bo", "cy", "di"]

# --- by hand


class Bandit:
    """A network whose next token has the same logits everywhere, in place of a LitTransformerLM."""

    network = SimpleNamespace(max_seq_len=4)
    trainer = SimpleNamespace(accumulate_grad_batches=1, world_size=1, global_rank=0)
    tokenizer = CharTokenizer("ab", [END_OF_TEXT])
    template = None
    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits.requires_grad_()

    def __call__(self, ids, documents=None):
        return self.logits.expand(*ids.shape, len(self.logits))


def gradient_of(
    objective: GRPO, bandit: Bandit, written: list[list[int]], verdicts: Sequence[Verdict | float]
) -> torch.Tensor:
    """The gradient of the loss if a batch of one prompt gets these completions."""
    width = max(map(len, written))
    targets = torch.tensor([[*ids, *[IGNORE] * (width - len(ids))] for ids in written])
    each = [value if isinstance(value, Verdict) else Verdict(value) for value in verdicts]
    found = Batch(targets.clamp(min=0), targets, 0), each
    objective.graded = lambda *_: found  # type: ignore[method-assign]
    objective.reference_log_probs = lambda network, batch: (  # type: ignore[method-assign]
        torch.where(batch.targets == IGNORE, 0.0, REFERENCE.log_softmax(0)[batch.targets.clamp(min=0)])
    )
    bandit.logits.grad = None
    ids = torch.zeros(1, 3, dtype=torch.long)
    (objective(bandit, Batch(ids, ids, 7))["loss"] / 7).backward()
    assert bandit.logits.grad is not None
    return bandit.logits.grad.clone()


REFERENCE = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def test_the_expected_gradient_is_the_exact_policy_gradient_of_a_bandit():
    """Over all groups of 3 that a bandit with two arms can give: (1 - 1/G) grad E[r], since the baseline has own r."""
    bandit, size = Bandit(torch.tensor([0.4, -0.3], dtype=torch.float64)), 3
    p, payoff = bandit.logits.detach().softmax(0), torch.tensor([1.0, 0.25], dtype=torch.float64)
    objective = GRPO(group=size, beta=0, variant="dr_grpo", max_new_tokens=1)
    expected = torch.zeros(2, dtype=torch.float64)
    for arms in itertools.product((0, 1), repeat=size):
        chance = p[list(arms)].prod()
        expected += chance * gradient_of(objective, bandit, [[arm] for arm in arms], payoff[list(arms)].tolist())
    exact = p * (payoff - (p * payoff).sum())  # of E[r] by the logits
    torch.testing.assert_close(expected, -(1 - 1 / size) * exact, atol=1e-14, rtol=0)


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo"])
def test_the_gradient_against_the_formula_token_by_token(variant):
    """Two completions of different lengths, with the divergence from the reference, in float64."""
    bandit = Bandit(torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64))
    written, rewards, beta = [[0, 1, 2], [1, 2]], [1.0, 0.0], 0.3
    found = gradient_of(GRPO(group=2, beta=beta, variant=variant, max_new_tokens=5), bandit, written, rewards)
    logits = bandit.logits.detach().clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for ids, reward in zip(written, rewards, strict=True):
        advantage = (reward - 0.5) / (0.5 if variant == "grpo" else 1.0)
        for i in ids:
            log_p, log_q = logits.log_softmax(0)[i], REFERENCE.log_softmax(0)[i]
            kl = (log_q - log_p).exp() - (log_q - log_p) - 1
            loss = loss - (advantage * log_p - beta * kl) / (len(ids) if variant == "grpo" else 5) / 2
    loss.backward()
    torch.testing.assert_close(found, logits.grad, atol=1e-14, rtol=0)


def test_a_group_with_equal_rewards_gives_no_gradient_and_is_counted():
    verdicts, counts = [Verdict(1), Verdict(1), Verdict(0), Verdict(1)], torch.ones(4, 1, dtype=torch.bool)
    advantages, silent = Whole(2, True).gains(verdicts, counts, torch.zeros(4, 1, 2), torch.ones(4, 1))
    assert advantages.tolist() == [[0], [0], [-1], [1]] and silent.tolist() == [1, 0]


def test_the_advantages_of_three_stories_with_a_mistake_by_hand():
    """Three tokens each: no mistake; the second token is wrong, and what follows is left out; the third is wrong."""
    counts = torch.tensor([[False, True, True, True]] * 3)  # behind a prompt
    values, judged = returns([None, 1, 2], counts, 0.5)
    assert values[:, 1:].tolist() == [[0, 0, 0], [-0.5, -1, 0], [-0.25, -0.5, -1]]
    assert judged[:, 1:].tolist() == [[True] * 3, [True, True, False], [True] * 3]
    plain, silent = token_advantages(values, judged, 3, scaled=False)  # the means of the places are -1/4, -1/2, -1/2
    by_hand = [[0.25, 0.5, 0.5], [-0.25, -0.5, 0], [0, 0, -0.5]]
    assert plain[:, 1:].tolist() == by_hand and silent.tolist() == [0]
    twice, silent = token_advantages(values.repeat(2, 1), judged.repeat(2, 1), 3, scaled=True)
    scaled = torch.tensor(by_hand) / math.sqrt(1.125 / 8)  # eight tokens are judged
    torch.testing.assert_close(twice[:, 1:], scaled.repeat(2, 1))  # each group for itself
    equal, silent = token_advantages(*returns([1, 1, 1], counts, 0.9), 3, scaled=True)
    assert not equal.any() and silent.tolist() == [1]


def test_the_gradient_of_credit_up_to_the_mistake_token_by_token():
    """Returns (0, 0, 0) and (-1/2, -1): differences of 1/4, 1/2 and 0 from the means, over five tokens."""
    bandit, written = Bandit(torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64)), [[0, 1, 2], [1, 2]]
    objective = GRPO(group=2, beta=0, credit="mistake", discount=0.5)
    found = gradient_of(objective, bandit, written, [Verdict(1), Verdict(0, mistake=1)])
    log_p = (logits := bandit.logits.detach().clone().requires_grad_()).log_softmax(0)
    first, second = 0.25 * log_p[0] + 0.5 * log_p[1], -0.25 * log_p[1] - 0.5 * log_p[2]
    (-(first / 3 + second / 2) / math.sqrt(0.625 / 5) / 2).backward()
    torch.testing.assert_close(found, logits.grad, atol=1e-6, rtol=0)  # returns are float32


def test_the_gradient_of_all_possible_tokens_is_the_expected_policy_gradient():
    """Of log P, P the chance of a possible token: sum over a of p(a) (r(a) - P) grad log p(a), divided by P."""
    bandit = Bandit(torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64))
    possible = [[[0, 2], [1]], [[0, 1]]]  # the second completion is wrong at its first token, so the rest is left out
    verdicts = [Verdict(1, possible=possible[0]), Verdict(0, possible=possible[1])]
    found = gradient_of(GRPO(group=2, beta=0, credit="expected"), bandit, [[2, 1], [2, 0, 1]], verdicts)
    p, exact = bandit.logits.detach().softmax(0), torch.zeros(3, dtype=torch.float64)
    for sets, length in zip(possible, (2, 3), strict=True):
        for ids in sets:
            chance = p[ids].sum()
            for token in range(3):
                above = float(token in ids) - chance
                exact -= p[token] * above * (torch.eye(3, dtype=torch.float64)[token] - p) / chance / length / 2
    torch.testing.assert_close(found, exact, atol=1e-14, rtol=0)
    nothing = log_chances(torch.zeros(1, 3, 2), [[[], [0]]], torch.tensor([[False, True, True]]))
    assert nothing[0].tolist() == pytest.approx(
        [0, 0, -math.log(2)], abs=1e-6
    )  # no token is possible: nothing to learn


@pytest.mark.parametrize(
    ("text", "finished", "reward", "sets"),
    [
        ("al hit bo.", "end", 1, ["abcd", "l", " ", "hf", "i", "t", " ", "bcd", "o", ".", "$"]),
        ("al hit al", "end", 0, ["abcd", "l", " ", "hf", "i", "t", " ", "bcd"]),  # up to the mistake
        ("al hi", "length", 0, ["abcd", "l", " ", "hf", "i"]),
        ("al hit bo", "end", 0, ["abcd", "l", " ", "hf", "i", "t", " ", "bcd", "o", "."]),  # ends too early
    ],
)
def test_the_possible_tokens_of_a_completion_by_hand(text, finished, reward, sets):
    grammar = Grammar({"story": ["<hero=name> <deed> <friend=name>."], "name": NAMES, "deed": ["hit", "fed"]})
    tokenizer = CharTokenizer("abcdefhiloty .", [END_OF_TEXT])
    spelled = {**{tokenizer.decode([i]): i for i in range(14)}, "$": 14}
    written = Text([14], ids=[spelled[each] for each in text], finished=finished)
    given = Parse(grammar), tokenizer, Prompt([14], ""), written
    found = Expected.judge(*given)
    assert found.reward == Whole.judge(*given).reward == Mistake.judge(*given).reward == reward
    names = {number: each for each, number in spelled.items()}
    assert ["".join(sorted(names[i] for i in ids)) for ids in found.possible] == [
        "".join(sorted(each)) for each in sets
    ]


def test_the_cross_entropy_of_the_texts_is_added_with_its_weight():
    """Equal rewards give no gradient, so the whole gradient is 0.3 of the cross-entropy of the batch's three zeros."""
    bandit = Bandit(torch.tensor([0.4, -0.3, 0.2], dtype=torch.float64))
    found = gradient_of(GRPO(group=2, beta=0, pretraining=0.3), bandit, [[1], [2]], [1.0, 1.0])
    exact = 3 * (bandit.logits.detach().softmax(0) - torch.tensor([1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(found, 0.3 * exact / 7, atol=1e-14, rtol=0)  # gradient_of says: seven targets in all


def test_the_token_that_holds_a_character():
    ids = (tokenizer := ByteTokenizer()).encode("aéb")  # four bytes
    assert [token_of(ids, character, tokenizer) for character in range(4)] == [0, 1, 3, 4]


class Quiet:
    """A reward that names the place of the first b."""

    def __call__(self, prompt: str, completion: str, answer: str | None) -> float:
        return float("b" not in completion)

    def mistake(self, prompt: str, completion: str, answer: str | None) -> int | None:
        return None if "b" not in completion else completion.index("b")


@pytest.mark.parametrize(
    ("ids", "finished", "reward", "wrong"),
    [([0, 0], "end", 1, None), ([0, 1, 0], "end", 0, 1), ([0, 1, 0], "length", 0, 1), ([0, 0], "length", 0, 1)],
    ids=["right", "wrong", "wrong and cut off", "cut off: its last token"],
)
def test_a_reward_of_ones_own_names_the_wrong_token(ids, finished, reward, wrong, monkeypatch):
    text = Text([2], ids=ids, finished=finished)
    monkeypatch.setattr("tinylm.training.grpo.completions", lambda *_: ([text], "written"))
    objective = GRPO(reward=Quiet, credit="mistake")
    _, found = objective.graded(Bandit(torch.zeros(3)), [Prompt([2], "")], [0], Mistake.judge)
    assert found == [Verdict(reward, mistake=wrong)]


def test_the_prompts_of_documents_and_of_pairs():
    network, end = Bandit(torch.zeros(3)), 2
    row = torch.tensor([[0, end, 0, 1, 0, end, 1], [0, 1, 0, 1, 0, 1, 1]])
    text = prompts_of(network, Batch(row, row, 1), 2)
    assert [(prompt.ids, prompt.text) for prompt in text] == [([end, 0, 1], "ab"), ([end], "")]
    assert prompts_of(network, Batch(row, row, 1), 9)[0].ids == [end, 0, 1, 0]  # up to the end of the document
    network.template = "pairs"  # type: ignore[assignment]
    targets = torch.tensor([[IGNORE, IGNORE, 1, 0, end, IGNORE, IGNORE]])
    [pair] = prompts_of(network, Batch(torch.tensor([[end, 0, 1, 1, 0, 0, 0]]), targets, 3))
    assert pair == ([end, 0, 1], "ab", "ba")


# --- runs

GRAMMAR = """
story: ["<hero=name> met <friend=name>. <Hero> <deed> <friend>."]
name: [al, bo, cy, di]
deed: [hit, fed]
"""
TEXTS = ["--model.objective.init_args.pretraining", "0.1"]
BASE = """
model:
  network: {d_model: 32, num_layers: 1, num_heads: 2, max_seq_len: 32}
  optimizer: {name: muon, lr: 0.02}
data: {corpus: "my.grammar.yaml:400", tokenizer: char, batch_size: 16, split: [0.9, 0.1], cache_dir: cache}
run: {sample_tokens: 0, peak_flops: 1.0e+12}
trainer: {accelerator: cpu, max_steps: 120, limit_val_batches: 0}
"""
LEARN = """
model:
  init_from: START
  objective: {class_path: tinylm.training.GRPO, init_args: {reward: parse, group: 4, prompt_tokens: 1}}
  optimizer: {name: adamw, lr: 0.003}
data:
  {corpus: "my.grammar.yaml:400", batch_size: 4, micro_batch_size: 2, split: [0.9, 0.1], cache_dir: cache}
run: {sample_tokens: 0, peak_flops: 1.0e+12}
trainer:
  accelerator: cpu
  max_steps: 6
  val_check_interval: 3
  limit_val_batches: 2
  log_every_n_steps: 1
  callbacks: [{class_path: tinylm.training.LastCheckpoint, init_args: {every_n_train_steps: 3}}]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A run that has learned a small grammar in part."""
    from tinylm.training.cli import main

    folder = tmp_path_factory.mktemp("base")
    (folder / "my.grammar.yaml").write_text(GRAMMAR)
    (folder / "base.yaml").write_text(BASE)
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["train.py", "fit", "-c", "base.yaml"])
    assert main() == 0
    patch.undo()
    return folder


@pytest.fixture
def words(base, tmp_path, monkeypatch) -> list[str]:
    (tmp_path / "my.grammar.yaml").write_text(GRAMMAR)
    (tmp_path / "learn.yaml").write_text(LEARN.replace("START", str(base / "runs" / "base")))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return ["fit", "-c", "learn.yaml"]


MISTAKE, EXPECTED = (["--model.objective.init_args.credit", credit] for credit in ("mistake", "expected"))


@pytest.mark.parametrize(
    "options", [[], ["--model.lora.rank", "4", *EXPECTED, *TEXTS]], ids=["whole", "lora, expected"]
)
def test_a_run_measures_the_rewards_and_resumes_to_the_bit(cli, words, options, tmp_path):
    (tmp_path / "stop.py").write_text(STOP)
    words += options
    whole = cli(*words, "--run.name", "whole")
    assert whole.code == 0, whole.err
    assert cli(*words, "--run.name", "half", "--trainer.callbacks+", "stop.Stop").code == 70
    assert cli(*words, "--run.name", "half", "--resume").code == 0
    rows = columns("whole")
    assert rows == columns("half")
    for name in ("reward", "kl", "entropy", "length", "silent"):
        assert all(row[f"train/{name}"] for row in rows)
    assert float(rows[0]["train/kl"]) == pytest.approx(0, abs=1e-5) and float(rows[-1]["train/kl"]) > 1e-4
    assert 0 <= float(rows[-1]["val/reward"]) <= 1 and float(rows[-1]["val/excess"]) > 0
    state = read_checkpoint("runs/whole/checkpoints/last.ckpt")["state_dict"]
    assert not any(name.startswith("objective") for name in state)
    assert (Path("runs/whole/checkpoints/best.ckpt")).is_file()
    info = json.loads(Path("runs/whole/model/tinylm.json").read_text())["info"]
    assert info["val/reward"] == max(float(row["val/reward"]) for row in rows if row["val/reward"])


@pytest.mark.slow
def test_two_ranks_write_different_groups_and_agree_on_the_loss(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [*words, *MISTAKE, "-c", "ddp", "--trainer.devices", "2", "--trainer.precision", "bf16-mixed"]
    first, second = processes.run_ranks(2, ranks.record, arguments, str(tmp_path), out=tmp_path)
    assert len(first["losses"]) == 6 and first["losses"] == second["losses"]
    assert columns("learn")[-1]["val/reward"]


def test_the_share_of_texts_that_parse_rises(cli, words):
    more = ["--trainer.max_steps", "20", "--trainer.val_check_interval", "20", "--data.batch_size", "16"]
    assert cli(*words, *more, "--data.micro_batch_size", "16", "--trainer.limit_val_batches", "0").code == 0
    rewards = [float(row["train/reward"]) for row in columns("learn")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.15


def test_a_reward_of_ones_own_needs_trust_and_is_recorded(cli, words, tmp_path):
    (tmp_path / "brief.py").write_text(
        "def short(prompt, completion, answer=None):\n    return 1 / (1 + len(completion))\n"
    )
    option = ["--model.objective.init_args.reward", "brief.short"]
    refused = cli(*words, *option)
    assert refused.code == 2 and "brief.short: importing it runs code" in refused.error
    assert cli(*words, *option, "--trust", "brief", "--trainer.max_steps", "1").code == 0
    parts = [part["class_path"] for part in read_checkpoint("runs/learn/checkpoints/last.ckpt")["tinylm_plugins"]]
    assert parts == ["tinylm.training.GRPO", "brief.short"]
    for credit, method in ((MISTAKE, "mistake"), (EXPECTED, "possible_tokens")):
        lacking = cli(*words, *option, "--trust", "brief", *credit)
        assert lacking.code == 2 and f"give a reward with a method {method}" in lacking.error


def test_the_exact_answer_of_pairs(cli, words, tmp_path):
    lines = [json.dumps({"prompt": f"al met {name}.", "response": f" Al fed {name}."}) for name in ("bo", "cy", "di")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines * 8))
    config = yaml.safe_load((tmp_path / "learn.yaml").read_text())
    config["data"] = {"pairs": "p.jsonl", "pairs_val": "p.jsonl", "batch_size": 6}
    config["model"]["objective"]["init_args"] = {"reward": "exact", "group": 8}
    (tmp_path / "exact.yaml").write_text(yaml.safe_dump(config))
    assert cli("fit", "-c", "exact.yaml").code == 0
    found = columns("exact")
    assert 0.1 < float(found[0]["train/reward"]) < 0.9 and found[-1]["val/reward"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("name", ["GRPO", "DPO"])
def test_a_compiled_run_has_the_losses_of_an_eager_one(name, cli, words, tmp_path, monkeypatch):
    """By a compiler that generates no code."""
    config = yaml.safe_load((tmp_path / "learn.yaml").read_text())
    if name == "DPO":
        records = [{"prompt": "al met bo.", "chosen": f" Al {deed} bo.", "rejected": " bo"} for deed in ("hit", "fed")]
        (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, records * 8)))
        config["data"] = {"pairs": "p.jsonl", "pairs_val": "p.jsonl", "batch_size": 4}
        config["model"]["objective"] = {"class_path": "tinylm.training.DPO"}
    (tmp_path / "eager.yaml").write_text(yaml.safe_dump(config))
    programs = []

    def backend(program, inputs):
        programs.append(program)
        return program.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    short = ["-c", "eager.yaml", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    for run, compiled in (("eager", "false"), ("compiled", "true")):
        assert cli("fit", *short, "--run.name", run, "--model.compile", compiled).code == 0
    eager, compiled = ([float(row["train/loss"]) for row in columns(run)] for run in ("eager", "compiled"))
    assert programs and eager == pytest.approx(compiled, abs=1e-5)


NEEDS = {
    "no reward": (["reward", "parsed"], "reward: no reward 'parsed', did you mean 'parse'?"),
    "one": (["group", "1"], "group must be at least 2, got 1"),
    "pretraining": (["pretraining", "-1"], "pretraining must not be negative, got -1"),
    "variant": (["variant", "ppo"], "variant must be one of grpo, dr_grpo, got 'ppo'"),
    "credit": (["credit", "story"], "credit must be one of whole, mistake, expected, got 'story'"),
    "no discount": (["discount", "0.5"], "discount: credit: whole has none; leave it out"),
    "no answers": (["reward", "exact"], "reward: exact compares with the responses of data.pairs"),
}


@pytest.mark.parametrize("case", NEEDS)
def test_options_of_the_objective_are_refused_by_name(case, cli, words):
    (name, value), problem = NEEDS[case]
    result = cli(*words, f"--model.objective.init_args.{name}", value)
    assert result.code == 2 and problem in result.error, result.err


REFUSED = {
    "dropout": (["--model.network.dropout", "0.1"], "GRPO samples without dropout; set dropout to 0"),
    "adapter": (["--model.lora.rank", "2", "--model.lora.dropout", "0.1"], "GRPO samples without dropout"),
    "shards": (["-c", "fsdp.yaml"], "GRPO needs whole weights, not shards; take ddp"),
    "no grammar": (["--data.corpus", "al.txt"], "parse needs a corpus that a grammar generates"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_sampled_from_or_rewarded_is_refused_by_name(case, cli, words, tmp_path):
    options, problem = REFUSED[case]
    (tmp_path / "al.txt").write_text("al met bo. Al fed bo." * 50)
    (tmp_path / "fsdp.yaml").write_text("trainer: {strategy: {class_path: tinylm.training.ShardedStrategy}}")
    result = cli(*words, *options)
    assert result.code == 2 and problem in result.error, result.err
