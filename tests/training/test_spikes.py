"""LossSpikes: the score of OLMo 2 by hand, and in a run that is stopped and resumed."""

import numpy as np
import pytest

from tinylm.errors import ConfigError
from tinylm.runs.metrics import read_metrics
from tinylm.training import LossSpikes


def test_scores_are_numpys_over_the_losses_before():
    losses = 3 + np.random.default_rng(0).normal(size=60)
    losses[[30, 55]] = 40, -40  # two spikes of 44 scored losses; the second is beyond a window with the first
    spikes = LossSpikes(window=20)
    found = [spikes.score(loss) for loss in losses]
    assert found[:16] == [{}] * 16
    for number, scores in enumerate(found[16:], start=16):
        before = losses[max(number - 20, 0) : number]
        assert scores["train/loss_deviations"] == pytest.approx((losses[number] - before.mean()) / before.std())
    assert found[29]["train/spike_score"] == 0 and found[30]["train/spike_score"] == pytest.approx(100 / 15)
    assert found[-1]["train/spike_score"] == pytest.approx(100 * 2 / 44)


def test_equal_losses_have_no_score_and_a_window_is_not_too_short():
    spikes = LossSpikes()
    assert [spikes.score(2.0) for _ in range(20)] == [{}] * 20
    with pytest.raises(ConfigError, match="window must be at least 16, got 2"):
        LossSpikes(window=2)


def test_a_resumed_run_logs_the_scores_of_one_that_never_stopped(cli, tiny_yaml, tmp_path):
    options = ["-c", tiny_yaml, "--trainer.callbacks+=tinylm.training.LossSpikes", "--trainer.limit_val_batches", "0"]
    options += ["--model.schedule.name", "constant", "--run.sample_tokens", "0"]
    assert cli("fit", *options, "--run.name", "whole", "--trainer.max_steps", "24").code == 0
    assert cli("fit", *options, "--run.name", "half", "--trainer.max_steps", "20").code == 0
    more = cli("fit", *options, "--run.name", "half", "--trainer.max_steps", "24", "--resume")
    assert more.code == 0, more.err
    whole, half = (read_metrics(tmp_path / "runs" / name / "metrics.csv") for name in ("whole", "half"))
    for name in ("train/loss", "train/loss_deviations", "train/spike_score"):
        assert half[name] == whole[name]
    assert half["train/loss_deviations"][0] == list(range(17, 25))
