"""Lightning's own callbacks and options: each does what it says, or is refused by name."""

import pytest
import yaml

from tests import processes

OPTIONS = ("--trainer.val_check_interval", "2", "--run.sample_tokens", "0")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.1"], "no checkpoint holds its average; take"),
        (["GradientAccumulationScheduler", "--trainer.callbacks.scheduling", "{0: 1, 1: 2}"], "data.batch_schedule"),
        (["BatchSizeFinder"], "take tinylm estimate"),
        (["LearningRateFinder"], "by tinylm ablate"),
        (["OnExceptionCheckpoint", "--trainer.callbacks.dirpath", "saved"], "goes on by --resume"),
        (["BackboneFinetuning"], "derive from BaseFinetuning"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_callback_that_would_do_nothing_or_harm_is_refused(cli, tiny_yaml, tmp_path, words, reason):
    name = f"lightning.pytorch.callbacks.{words[0]}"
    result = cli("fit", "-c", tiny_yaml, "--trainer.callbacks+", name, *words[1:])
    assert result.code == 2 and reason in result.error
    assert result.error.startswith(f"trainer.callbacks: {words[0]} ")
    assert not (tmp_path / "runs/mini").exists()


def test_two_equal_callbacks_are_an_argument_error(cli, tiny_yaml):
    stop = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    result = cli("fit", "-c", tiny_yaml, *stop, *stop)
    assert result.code == 2 and "trainer: Found more than one stateful callback" in result.error


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_notebook", "ddp_fork_find_unused_parameters_true", "class"])
def test_strategies_that_copy_the_process_are_refused(cli, tiny_yaml, name):
    """They cannot copy the threads that watch over the ranks, and hand the weights back by a file of their own."""
    given = ["lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.start_method", "fork"]
    result = cli(
        "fit", "-c", tiny_yaml, "--trainer.devices", "2", "--trainer.strategy", *(given if name == "class" else [name])
    )
    name = "start_method fork" if name == "class" else name
    message = f"trainer.strategy: {name} is for a Trainer that a notebook makes; take ddp"
    assert (result.code, result.error) == (2, message)


@pytest.mark.parametrize("value", ["00:00:10:00", "often"])
def test_validations_after_a_time_are_refused(cli, tiny_yaml, value):
    result = cli("fit", "-c", tiny_yaml, "--trainer.val_check_interval", value)
    message = f"trainer.val_check_interval: counts steps, so that a resumed run is exact; got {value}"
    assert (result.code, result.error) == (2, message)


def test_a_run_says_what_ended_it_before_its_last_step(cli, tiny_yaml, tmp_path):
    """Lightning's Timer has a default that jsonargparse cannot write by itself: its unit, an enumeration."""
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": "00:00:00:00"}}
    (tmp_path / "timer.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [timer]}}))
    result = cli("fit", "-c", tiny_yaml, "-c", "timer.yaml", *OPTIONS, "--run.name", "timed")
    assert result.code == 0 and "tinylm: 0 of 12 steps in " in result.err
    assert "; stopped early: the time is up\n" in result.err
    [written] = yaml.safe_load((tmp_path / "runs/timed/config.yaml").read_text())["trainer"]["callbacks"]
    assert written["init_args"] == {"duration": "00:00:00:00", "interval": "step", "verbose": True}
    stops = ["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"]
    stops += ["--trainer.callbacks.min_delta", "10", "--trainer.callbacks.patience", "1"]
    result = cli("fit", "-c", tiny_yaml, *OPTIONS, *stops, "--run.name", "stopped")
    assert (
        "tinylm: 4 of 12 steps in " in result.err and "; stopped early: Monitored metric val/loss did not" in result.err
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--trainer.enable_model_summary", "true"], "Trainable params"),
        (["--trainer.callbacks+", "ModelSummary"], "Trainable params"),
        (["--trainer.profiler", "simple"], "FIT Profiler Report"),
    ],
)
def test_a_report_that_was_asked_for_is_printed(tiny_yaml, tmp_path, words, text):
    """In a process of its own, since pytest takes what is logged."""
    run = processes.tinylm(tmp_path, "fit", "-c", tiny_yaml, *OPTIONS, "--trainer.max_steps", "1", *words)
    out, err = run.communicate()
    assert run.returncode == 0 and text in out + err
    assert "GPU available" not in out + err
