"""Running trials in processes of their own."""

import pytest

from tinylm.errors import CannotCreateError, TinyLMError
from tinylm.experiments.results import read_results
from tinylm.experiments.runner import only_writer, raise_failures, run_trials
from tinylm.experiments.trials import Trial


@pytest.fixture(scope="module")
def trials(mini) -> list[Trial]:
    good = [Trial(name=f"seed {seed}", configs=[mini], options={"seed_everything": seed}) for seed in (0, 1)]
    return [good[0], Trial(name="odd", configs=[mini], options={"model.network.num_heads": 3}), good[1]]


@pytest.fixture(scope="module")
def finished(trials, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trials")
    lines = []
    return folder, run_trials(trials, folder, report=lines.append), lines


def test_a_failed_trial_is_named_and_does_not_stop_the_others(finished):
    folder, outcomes, lines = finished
    problem = "d_model must be divisible by num_heads, got d_model=16 and num_heads=3"
    assert [(each.trial.name, each.code, each.problem) for each in outcomes] == [
        ("seed 0", 0, ""), ("odd", 2, problem), ("seed 1", 0, ""),
    ]  # fmt: skip
    assert lines[0].startswith("1 of 3: seed 0: validation loss ") and ", 6 steps, " in lines[0]
    assert lines[1].startswith("odd failed after ") and lines[1].endswith(problem)
    with pytest.raises(TinyLMError, match=r"1 of 3 trials failed: odd \(exit code 2\): d_model .* tries them again"):
        raise_failures(outcomes)
    raise_failures([outcomes[0], outcomes[2]])
    assert "validation loss" in (folder / "logs/seed 0.log").read_text()


def test_a_second_call_runs_the_failed_trial_alone(finished, trials):
    folder, *_ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("seed*/*") if path.is_file()}
    lines = []
    outcomes = run_trials(trials, folder, jobs=2, report=lines.append)
    assert lines[0] == f"2 trials of 3 already finished in {folder}" and len(lines) == 2
    assert [each.code for each in outcomes] == [0, 2, 0]
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("seed*/*") if path.is_file()}


def test_results_are_those_of_the_runs(finished, trials):
    folder, *_ = finished
    results = read_results(trials, folder)
    assert [*results] == ["seed 0", "seed 1"]
    result = results["seed 0"]
    assert result.row.steps == 6 and result.row.tokens == 6 * 4 * 16 and result.floor is None
    assert result.tokens_per_second == pytest.approx(result.row.tokens / result.row.seconds)
    assert result.row.val_loss != results["seed 1"].row.val_loss
    # 6 operations per parameter, and 12 for each of 2 heads of width 8 over 16 visible tokens
    assert result.flops == result.row.tokens * (6 * result.row.parameters + 12 * 2 * 8 * 16)


def test_two_processes_do_not_run_trials_in_one_folder(trials, tmp_path):
    with only_writer(tmp_path), pytest.raises(CannotCreateError, match="another process is running trials here"):
        run_trials(trials, tmp_path)
