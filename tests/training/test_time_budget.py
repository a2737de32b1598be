"""run.seconds: a run has as many steps as fit, by a clock that the tests advance."""

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest

from tests import processes
from tinylm.bundle import read_checkpoint
from tinylm.commands import run_command
from tinylm.runs.compare import read_run
from tinylm.runs.metrics import read_metrics
from tinylm.training import time_budget
from tinylm.training.cli import TinyLMCLI


@dataclass
class Clock(pl.Callback):
    """A clock that each micro-batch and each validation advances: two micro-batches are a step."""

    now: float = 0.0
    micro_batch: float = 1.0
    validation: float = 0.0
    later: tuple[int, float] = (10**9, 0.0)  # step from which a micro-batch takes so many seconds
    stop_at: int = -1  # step at which the user presses Ctrl-C

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        self.now += self.later[1] if trainer.global_step >= self.later[0] else self.micro_batch
        if trainer.global_step == self.stop_at:
            pl_module.stop_wanted = (True, False)

    def on_validation_start(self, trainer, *_) -> None:
        self.now += 0 if trainer.sanity_checking else self.validation


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found, callbacks = Clock(), TinyLMCLI._callbacks
    monkeypatch.setattr(TinyLMCLI, "_callbacks", lambda *given: [*callbacks(*given), found])
    monkeypatch.setattr(time_budget, "seconds_since_start", lambda: found.now)
    monkeypatch.setattr(time_budget, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


@pytest.fixture
def fit(cli, tiny_yaml, tmp_path):
    """Runs `fit` without validations for 100 seconds, unless other options are given; returns its steps and output."""

    def call(*words: str, code: int = 0, name: str = "mini", validate: bool = False) -> tuple[int, str]:
        without = [] if validate else ["--trainer.limit_val_batches", "0"]
        result = cli("fit", "-c", tiny_yaml, "--run.seconds", "100", "--run.name", name, *without, *words)
        assert result.code == code, result.err
        return read_checkpoint(tmp_path / f"runs/{name}/checkpoints/last.ckpt")["global_step"], result.err

    return call


def test_the_steps_that_fit_are_trained_and_the_schedule_ends_with_them(fit, clock, tmp_path, capfd):
    """Steps of 2 s: (100 - 2) / 2 = 49, where 12 were planned; a cosine from step 2 on, from 0.01 to 0.001."""
    steps, said = fit()
    assert steps == 49 and "tinylm: 49 steps fit into 1 min 40 s, not 12, at this speed" in said
    assert re.search(r"tinylm: 49 steps in .*\n", said)
    rate = 0.001 + 0.009 * (1 + math.cos(math.pi * (48 - 2) / (49 - 2))) / 2
    logged, rates = read_metrics(tmp_path / "runs/mini/metrics.csv")["lr"]
    assert logged[-1] == 49 and rates[-1] == pytest.approx(rate, rel=1e-6)
    row = read_run(tmp_path / "runs/mini")
    assert (row.steps, row.planned, row.finished) == (49, None, True)
    assert run_command("reproduce", [str(tmp_path / "runs/mini"), "--run"]) == 2
    assert "--run: the steps of the run followed the clock (run.seconds)" in capfd.readouterr().err


def test_validations_count(fit, clock):
    """41 steps and the validations at 20, 40 and 41: 82 + 15 + 2 = 99 s; one step more would be 101."""
    clock.validation = 5.0
    steps, _ = fit("--trainer.val_check_interval", "20", validate=True)
    assert (steps, clock.now) == (41, 41 * 2 + 3 * 5)


@pytest.mark.parametrize(
    ("before", "after", "steps"),
    [
        (1.0, 2.0, 20 + 14),  # 40 s, then 58 s for steps of 4 s
        (2.0, 0.5, 20 + 18),  # 80 s, then 18 s for steps of 1 s
    ],
)
def test_the_steps_follow_a_machine_that_changes_its_speed(fit, clock, before, after, steps):
    clock.micro_batch, clock.later = before, (20, after)
    assert fit()[0] == steps


def test_a_resumed_run_goes_on_with_its_steps_and_the_time_that_is_left(fit, clock):
    """11 steps, 22 s; then 7 s until the first step: (100 - 22 - 7 - 2) / 2 = 34 more."""
    clock.stop_at = 10
    assert fit(code=130)[0] == 11
    clock.now, clock.stop_at = 7.0, -1
    steps, said = fit("--resume")
    assert steps == 11 + 34 and "step 12/" not in said.replace("step 12/49", "")
    clock.now = 0.0
    assert fit("--resume")[0] == 45  # it has ended
    clock.now = 0.0
    assert "the run has 22 steps: there is nothing left to train" in fit("--resume", "--run.seconds", "50")[1]
    clock.now = 0.0
    assert fit("--resume", "--run.seconds", "200")[0] == 45 + 50  # 97 s are used: (200 - 97 - 2) / 2


def test_a_run_that_begins_from_a_checkpoint_has_its_own_time(fit, clock, tmp_path):
    fit()
    clock.now = 0.0
    origin = str(tmp_path / "runs/mini/checkpoints/last.ckpt")
    assert fit("--ckpt_path", origin, "--trainer.max_steps", "60", name="next")[0] == 49 + 49


def test_a_function_of_the_users_follows_and_a_growing_batch_too(fit, clock, tmp_path, monkeypatch):
    (tmp_path / "straight_line.py").write_text("def straight(step, total_steps):\n    return 1 - step / total_steps\n")
    monkeypatch.syspath_prepend(tmp_path)
    schedule = ["--model.schedule", "straight_line.straight", "--trust", "straight_line"]
    steps, _ = fit(*schedule, "--data.batch_schedule", "{5: 4}")  # in one micro-batch each until step 5
    assert steps == 49
    rates = read_metrics(tmp_path / "runs/mini/metrics.csv")["lr"][1]
    assert rates[-1] == pytest.approx(0.01 * (1 - 48 / 49), rel=1e-6)


@pytest.mark.slow
def test_all_ranks_stop_at_the_step_that_the_first_has_chosen(tiny_yaml, tmp_path):
    words = ["fit", "-c", tiny_yaml, "-c", "ddp", "--trainer.devices", "2", "--run.seconds", "20"]
    started = processes.torchrun(tmp_path, *words, tasks=2)
    assert [process.wait() for process in started] == [0, 0]
    said = started[0].communicate()[1]
    assert re.search(r"[\d,]+ steps fit into 20 s, not 12, at this speed", said)
    [steps] = re.findall(r"tinylm: ([\d,]+) steps in ", said)  # without "of ..., stopped early"
    assert int(steps.replace(",", "")) > 12


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--run.seconds 0", "run.seconds must be positive, got 0"),
        ("--run.seconds soon", "run.seconds must be"),
        (
            "--run.seconds 60 --trainer.max_epochs 2",
            "run.seconds: needs trainer.max_steps, the first guess, and no trainer.max_epochs",
        ),
        (
            "--run.seconds 60 --model.schedule torch.optim.lr_scheduler.ConstantLR",
            "run.seconds: model.schedule torch.optim.lr_scheduler.ConstantLR has a length of its own; use a function",
        ),
    ],
)
def test_what_cannot_follow_the_clock_is_refused(cli, tiny_yaml, words, problem):
    result = cli("fit", "-c", tiny_yaml, *words.split())
    assert result.code == 2 and problem in result.error


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("validate -c {} --run.seconds 9", "--run.seconds: does not work with validate; leave it out"),
        ("train-numpy -c {} --run.seconds 9", "run.seconds: not available in the NumPy twin"),
        ("fit -c auto --budget 1min --run.seconds 9", "run.seconds: -c auto chooses it by --budget"),
    ],
)
def test_commands_that_have_no_such_time_refuse_it(tiny_yaml, capfd, monkeypatch, tmp_path, words, problem):
    monkeypatch.chdir(tmp_path)
    command, *others = words.format(tiny_yaml).split()
    assert run_command(command, others) == 2
    assert problem in capfd.readouterr().err
