"""Parts of training of one's own: each one file outside the package, named in lines of YAML."""

import csv
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
import yaml

import tinylm
from tests import processes
from tests.training.conftest import ROOT
from tinylm.bundle import read_checkpoint
from tinylm.data import IGNORE, Batch, TextDataModule
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.plugins import Part
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig

OWN = '''
import math
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from tinylm.data import IGNORE
from tinylm.training import LitTransformerLM

class Smoothed:
    """Cross-entropy with label smoothing, and the share of right guesses."""
    def __init__(self, smoothing: float = 0.1):
        self.smoothing = smoothing
    def __call__(self, network, batch):
        logits, targets = network(batch.inputs, batch.documents).flatten(0, 1), batch.targets.flatten()
        options = dict(ignore_index=IGNORE, reduction="sum")
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, **options)
        return {"loss": loss, "hits": (logits.argmax(-1) == targets).sum()}

def noisy(network, batch, scale=0.1):
    """A function, which draws random numbers."""
    logits = network(batch.inputs, batch.documents)
    logits = logits + scale * torch.randn_like(logits)
    return {"loss": F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")}

class Scaled(nn.Module):
    """With weights of its own: one that is trained, one that is frozen."""
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    def forward(self, network, batch):
        logits = network(batch.inputs, batch.documents) * self.log_scale.exp()
        return {"loss": F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")}

def wrong(network, batch):
    return {"nll": 1.0}

def root(step, total_steps, warmup=2):
    """Inverse square root."""
    return min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)

class Sign(torch.optim.Optimizer):
    """Sign descent."""
    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))
    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(p.grad.sign(), alpha=group["lr"])
        return loss

class Penalized(LitTransformerLM):
    """A whole module with an option of its own."""
    def __init__(self, penalty: float = 0.5, **options):
        """Creates the module.

        Args:
            penalty: Of squared logits
        """
        super().__init__(**options)
        self.penalty = penalty
    def summed_loss(self, batch):
        logits = self(batch.inputs, batch.documents)
        nll = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return nll + self.penalty * logits.square().mean(-1).sum()

class Without(LitTransformerLM):
    def __init__(self, width: int = 3):
        pass

class Norms(Callback):
    """Logs by Lightning's own self.log."""
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        module.log("train/head_norm", module.net.head.weight.norm())
'''
CASES = {
    "objective": "model: {objective: {class_path: own.Smoothed, init_args: {smoothing: 0.2}}}",
    "noisy": "model: {objective: {class_path: own.noisy}}",
    "weights": "model: {objective: own.Scaled}",
    "schedule": "model: {schedule: {class_path: own.root, init_args: {warmup: 3}}}",
    "scheduler": "model: {schedule: {class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 2}}}",
    "optimizer": "model: {optimizer: {class_path: own.Sign, init_args: {lr: 0.01, weight_decay: 0.1}}}",
    "torch": "model: {optimizer: {class_path: torch.optim.RAdam, init_args: {lr: 0.01}}, schedule: own.root}",
    "module": "model: {class_path: own.Penalized, init_args: {penalty: 0.25}, network: {dropout: 0.2}}",
    "callback": "trainer: {callbacks+: [{class_path: own.Norms}]}",
}
SHORT = ("--model.network.max_seq_len", "16", "--model.network.num_layers", "1", "--run.sample_tokens", "0")


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch) -> Path:
    """A folder of one file, whose import is forgotten after each test."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.setattr(Part, "_given", {})
    monkeypatch.setattr("tinylm.plugins._trusted", set())
    return tmp_path


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """The training rows of metrics.csv, without times, by step."""
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines()):
        figures = {name: value for name, value in row.items() if name.startswith(("train/", "lr")) and value}
        found.setdefault(row["step"], {}).update(figures)
    return found


def figures(folder: Path, name: str = "train/loss") -> list[float]:
    return [float(row[name]) for row in rows(folder).values() if name in row]


STOP = """
from lightning.pytorch.callbacks import Callback
class Stop(Callback):
    def on_train_batch_end(self, trainer, module, *others):
        if trainer.global_step == 4:
            raise RuntimeError("stopped")
"""


QUICK = ("weights", "module")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else [pytest.mark.slow]) for case in CASES]
)
def test_one_file_and_a_line_of_yaml_trains_resumes_to_the_bit_and_is_loaded_without_it(case, cli, tiny_yaml, own):
    (own / "part.yaml").write_text(CASES[case])
    (own / "own_stop.py").write_text(STOP)
    common = ["fit", "-c", tiny_yaml, "-c", own / "part.yaml", *SHORT, "--trainer.max_steps", "6", "--run.name"]
    if case not in ("scheduler", "callback"):  # PyTorch's; jsonargparse's, for which see test_trust.py
        refused = cli(*common, "whole")
        assert refused.code == 2 and "own." in refused.error and "--trust own" in refused.error
    assert cli(*common, "whole", "--trust", "own").code == 0
    assert cli(*common, "half", "--trust", "own", "--trainer.callbacks+", "own_stop.Stop").code == 70
    (own / "own.py").write_text(f"{OWN}\n# changed")
    resumed = cli(*common, "half", "--resume", "--trust", "own")
    assert resumed.code == 0 and "from step 3" in resumed.err, resumed.err
    assert ("has changed since" in resumed.err) == (case not in ("scheduler", "callback"))
    assert rows(Path("runs/half")) == rows(Path("runs/whole"))
    assert cli("validate", "-c", "runs/whole/config.yaml", "--trust", "own").code == 0
    model, tokenizer = tinylm.load("runs/half")  # whose code no longer matters
    assert type(model).__name__ == "TransformerLM" and tokenizer.vocab_size == model.config.vocab_size


@pytest.mark.slow
def test_a_killed_run_with_an_objective_schedule_and_optimizer_resumes_to_the_bit(tiny_yaml, own):
    """By SIGKILL, of the process of a whole command line."""
    (own / "part.yaml").write_text(yaml.safe_dump({"model": {
        "objective": {"class_path": "own.noisy"}, "schedule": {"class_path": "own.root"},
        "optimizer": {"class_path": "own.Sign", "init_args": {"lr": 0.01}},
    }}))  # fmt: skip
    kill = "__import__('os').kill(__import__('os').getpid(), 9)"
    (own / "killer.py").write_text(STOP.replace('raise RuntimeError("stopped")', kill))
    common = ["fit", "-c", tiny_yaml, "-c", "part.yaml", *SHORT, "--trust", "own"]
    common += ["--trainer.max_steps", "6", "--run.name"]
    for words, code in (
        (["whole"], 0), (["half", "--trainer.callbacks+", "killer.Stop"], -signal.SIGKILL), (["half", "--resume"], 0),
    ):  # fmt: skip
        _, err = (run := processes.tinylm(own, *common, *words)).communicate()
        assert run.returncode == code, err
    assert rows(own / "runs/half") == rows(own / "runs/whole")


REFUSED = {
    "no loss": ("model: {objective: own.wrong}", "model.objective: own.wrong must return a dict with loss, got a dict"),
    "no class": ("model: {objective: own.Smooth}", "own has no class or function Smooth, did you mean 'Smoothed'?"),
    "an argument": (
        "model: {schedule: {class_path: own.root, init_args: {warm: 3}}}", "unexpected keyword argument 'warm'"),
    "plateau": (
        "model: {schedule: torch.optim.lr_scheduler.ReduceLROnPlateau}", "ReduceLROnPlateau: waits for a metric"),
    "no lr": ("model: {optimizer: {class_path: torch.optim.Adafactor, init_args: {lr: -1}}}", "model.optimizer: "),
    "no optimizer": ("model: {optimizer: own.Smoothed}", "model.optimizer: own.Smoothed: "),
    "groups": ("model: {optimizer: torch.optim.LBFGS}", "LBFGS doesn't support per-parameter options"),
    "another module": ("model: {class_path: own.Norms}", "own.Norms is not a subclass of tinylm.training.module.Lit"),
    "no options": ("model: {class_path: own.Without}", "own.Without has no argument network; take **options and hand"),
    "twice": (
        "model: {class_path: own.Penalized, penalty: 1, init_args: {penalty: 2}}", "model.penalty is given twice"),
    "two losses": (
        "model: {class_path: own.Penalized, objective: own.Smoothed}", "Penalized has a summed_loss of its own; leave"),
    "rows": ("model: {objective: own.Smoothed, loss_rows: 8}", "model.loss_rows: model.objective computes the loss"),
    "no path": ("model: {objective: Smoothed}", "must be an import path such as my_layers.Gated"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused_by_name(case, cli, tiny_yaml, own):
    text, message = REFUSED[case]
    (own / "part.yaml").write_text(text)
    result = cli("fit", "-c", tiny_yaml, "-c", own / "part.yaml", *SHORT, "--trust", "own", "--trainer.max_steps", "1")
    assert result.code == 2, result.err
    assert message in result.error


def test_options_of_the_standard_parts_do_not_reach_a_class(cli, tiny_yaml, own):
    """tiny_yaml gives Muon and its warm-up; a later class replaces the group, a later group the class."""
    (own / "part.yaml").write_text("model: {optimizer: {class_path: own.Sign}, schedule: own.root}")
    (own / "back.yaml").write_text("model: {optimizer: {name: sgd}, schedule: {name: constant}}")
    trust = ["--trust", "own", "--trainer.max_steps", "1", *SHORT]
    result = cli("fit", "-c", tiny_yaml, "-c", own / "part.yaml", *trust, "--model.optimizer.lr", "0.1")
    assert result.code == 2 and "model.optimizer.lr: model.optimizer is a class here; give model.opt" in result.error
    typed = ["--model.optimizer", "own.Sign", "--model.optimizer.init_args.lr", "0.5", "--trainer.max_steps", "1"]
    assert cli("fit", "-c", tiny_yaml, *typed, *SHORT, "--run.name", "typed").code == 0  # typed, so trusted
    assert figures(Path("runs/typed"), "lr") == [pytest.approx(0.5 / 3, rel=1e-6)]
    assert cli("fit", "-c", tiny_yaml, "-c", own / "part.yaml", "-c", own / "back.yaml", *trust).code == 0
    config = yaml.safe_load(Path("runs/mini/config.yaml").read_text())["model"]
    assert (config["optimizer"]["name"], config["schedule"]["name"]) == ("sgd", "constant")


# --- against hand calculations, from Python


@pytest.fixture
def fit(corpus, tmp_path):
    def call(*, steps=1, data=None, options=None, net=None, **trainer):
        data = {"cache_dir": str(tmp_path / "cache"), "max_seq_len": 16, "batch_size": 8, **(data or {})}
        datamodule = TextDataModule(str(corpus), **data)
        torch.manual_seed(0)
        config = ModelConfig(
            vocab_size=datamodule.vocab_size, d_model=16, num_layers=2, num_heads=2, max_seq_len=16, **(net or {})
        )
        options = {"optimizer": OptimizerConfig(lr=0.01), "schedule": ScheduleConfig(warmup_steps=0), **(options or {})}
        module = LitTransformerLM(config, **options)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        quiet |= {"enable_model_summary": False, "max_steps": steps, "limit_val_batches": 0, "precision": "64-true"}
        trainer = pl.Trainer(**quiet | trainer, default_root_dir=tmp_path)
        trainer.fit(module, datamodule=datamodule)
        return module

    return call


def weights(module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.net.parameters()])


def halved(network, batch):
    """Half the cross-entropy, and the number of targets."""
    logits, counts = network(batch.inputs, batch.documents), batch.targets != IGNORE
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return {"loss": loss / 2, "ones": counts.sum()}


def test_sums_over_targets_do_not_depend_on_micro_batches(fit):
    """In float64: half the cross-entropy with twice the rate of SGD is the cross-entropy; every target counts one."""
    sgd = {"optimizer": OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)}
    twice = {"optimizer": OptimizerConfig(name="sgd", lr=0.2, momentum=0.0, weight_decay=0.0), "objective": halved}
    plain = fit(steps=3, options=sgd)
    for data in ({}, {"micro_batch_size": 2}):
        module = fit(steps=3, options=twice, data=data)
        torch.testing.assert_close(weights(module), weights(plain), atol=1e-12, rtol=0)
        torch.testing.assert_close(2 * module.train_loss, plain.train_loss, atol=1e-12, rtol=0)
        assert module.other_losses["ones"] == 1


def test_parameters_of_an_objective_are_trained_and_frozen_ones_are_not_saved(cli, tiny_yaml, own):
    (own / "part.yaml").write_text(CASES["weights"])
    words = ["--trust", "own", "--trainer.max_steps", "2", *SHORT]
    assert cli("fit", "-c", tiny_yaml, "-c", own / "part.yaml", *words).code == 0
    state = read_checkpoint(next(Path("runs").glob("*/checkpoints/last.ckpt")))["state_dict"]
    assert state["objective.log_scale"] != 0 and "objective.frozen" not in state


class Penalty(torch.nn.Linear):
    """A linear layer whose mean squared output per token is an auxiliary loss."""

    auxiliary_loss = None

    def forward(self, x):
        y = super().forward(x)
        if self.training:
            self.auxiliary_loss = y.square().sum(-1).mean()
        return y


def penalized(module: LitTransformerLM) -> LitTransformerLM:
    for block in module.net.blocks:
        block.attention.output.__class__ = Penalty
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
def test_auxiliary_losses_of_modules_are_added_by_their_share_of_the_targets(fit, checkpointing):
    """The gradient of two micro-batches with 7 and 1 targets against a sum written by hand."""
    module = penalized(fit(net={"activation_checkpointing": checkpointing}))
    module._auxiliary = type(module._auxiliary)(module.net)
    module.trainer.accumulate_grad_batches = 2
    ids = torch.randint(0, module.network.vocab_size, (2, 9))
    targets = ids[:, 1:].clone()
    targets[0, 7:], targets[1, 1:] = IGNORE, IGNORE
    module.zero_grad()
    for row in (0, 1):
        loss = module.training_step(Batch(ids[row : row + 1, :-1], targets[row : row + 1], 8), row)
        (loss / 2).backward()  # Lightning divides by the number of micro-batches
    found = [parameter.grad.clone() for parameter in module.net.parameters()]
    logged = module._step_losses
    module.zero_grad()
    expected, penalty = 0.0, 0.0
    for row, count in ((0, 7), (1, 1)):
        outputs = []
        hooks = [
            block.attention.output.register_forward_hook(lambda *each, outputs=outputs: outputs.append(each[2]))
            for block in module.net.blocks
        ]
        logits = module.net(ids[row : row + 1, :-1])
        for hook in hooks:
            hook.remove()
        expected = expected + F.cross_entropy(logits[0], targets[row], ignore_index=IGNORE, reduction="sum") / 8
        penalty = penalty + sum(each.square().sum(-1).mean() for each in outputs[:2]) * count / 8
    (expected + penalty).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in module.net.parameters()], atol=1e-12, rtol=0)
    torch.testing.assert_close(logged["loss"], expected.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(logged["auxiliary_loss"], penalty.detach(), atol=1e-12, rtol=0)


def test_an_auxiliary_loss_that_is_not_declared_is_refused(fit):
    module = fit()
    module.net.blocks[1].attention.auxiliary_loss = torch.zeros(())
    batch = Batch(torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long), 8)
    module._auxiliary._checked = False
    with pytest.raises(ConfigError, match=r"blocks\.1\.attention: sets auxiliary_loss in forward; declare it"):
        module.training_step(batch, 0)


# --- distillation


def test_distillation_is_the_hand_calculation(fit, finished_run, monkeypatch):
    """share T² Σ p log(p / q) at temperature T and the cross-entropy for the rest, over the targets that count."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "examples"))
    from distill import Distillation

    module = fit()
    objective = Distillation(str(finished_run), temperature=2.0, share=0.75).double()
    ids = torch.randint(0, module.network.vocab_size, (2, 9))
    targets = ids[:, 1:].clone()
    targets[0, 5:] = IGNORE
    found = objective(module, Batch(ids[:, :-1], targets, 11))
    teacher, student = objective.teacher(ids[:, :-1]), module.net(ids[:, :-1])
    divergence, nll = 0.0, 0.0
    for row, place in (targets != IGNORE).nonzero().tolist():
        p, q = (logits[row, place].div(2).softmax(-1) for logits in (teacher, student))
        divergence += (p * (p / q).log()).sum()
        nll -= student[row, place].log_softmax(-1)[targets[row, place]]
    expected = {"loss": 0.75 * 4 * divergence + 0.25 * nll, "divergence": divergence, "nll": nll}
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    assert not any(parameter.requires_grad for parameter in objective.parameters())


def test_a_student_learns_from_a_teacher_by_lines_of_yaml(cli, tiny_yaml, finished_run, monkeypatch):
    """With a teacher of its own architecture, whose divergence falls; val/loss stays the cross-entropy."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "examples"))
    objective = {"class_path": "distill.Distillation", "init_args": {"teacher": str(finished_run)}}
    Path("distill.yaml").write_text(yaml.safe_dump({"model": {"objective": objective}}))
    words = ["--trust", "distill", "--trainer.max_steps", "8", "--run.sample_tokens", "0"]
    result = cli("fit", "-c", tiny_yaml, "-c", "distill.yaml", *words, "--model.network.dropout", "0")
    assert result.code == 0, result.err
    divergences = figures(next(Path("runs").iterdir()), "train/divergence")
    assert divergences[-1] < 0.5 * divergences[0]
    other = cli("fit", "-c", tiny_yaml, "-c", "distill.yaml", *words, "--data.tokenizer", "byte")
    assert other.code == 2 and "the teacher has another tokenizer" in other.error
