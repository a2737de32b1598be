"""`tinylm ablate` without training: the table of finished runs, exports and refusals."""

from pathlib import Path

import pytest
import yaml

from tinylm.commands import run_command
from tinylm.experiments.ablation import read_ablation
from tinylm.experiments.lengths import plan_lengths
from tinylm.experiments.runner import only_writer
from tinylm.experiments.trials import nested, planned_options

FILE = """
base: BASE
variants: [{name: base}, {name: slow, model.optimizer.lr: 0.001}]
seeds: 2
budget: {steps: 5}
"""


@pytest.fixture
def ablate(tmp_path, mini, monkeypatch, capfd):
    """ablate(*words) is `tinylm ablate two.yaml WORDS`: exit code, stdout and the last line of stderr."""
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(FILE.replace("BASE", mini))

    def call(*words: str) -> tuple[int, str, str]:
        code = run_command("ablate", ["two.yaml", *words])
        out, err = capfd.readouterr()
        return code, out, (err.strip().splitlines() or [""])[-1].removeprefix("tinylm: ")

    return call


def finish_runs(folder: Path) -> None:
    """Writes what the runs of the file leave, with losses of our own."""
    ablation = read_ablation(Path("two.yaml"))
    for place, trial in enumerate(ablation.trials(plan_lengths(ablation, folder))):
        run = folder / trial.name
        (run / "model").mkdir(parents=True)
        (run / "model/tinylm.json").write_text("{}")
        (run / "config.yaml").write_text(yaml.safe_dump(nested(planned_options(trial))))
        (run / "metrics.csv").write_text(f"step,train/loss,val/loss,perf/step_seconds\n5,2.5,{2 + place / 10},0.5\n")


def test_the_table_of_finished_runs_is_written_again_without_training(ablate):
    finish_runs(Path("runs/two"))
    code, out, err = ablate("--table")
    assert code == 0 and "+0.1000" in out and "ablation.svg" in err
    page = Path("runs/two/table.md").read_text()
    code, out, _ = ablate()  # there is nothing to train
    assert code == 0 and Path("runs/two/table.md").read_text() == page
    Path("two.yaml").write_text(Path("two.yaml").read_text().replace("lr: 0.001", "lr: 0.002"))
    for words in ((), ("--table",)):
        code, _, err = ablate(*words)
        assert code == 73 and "slow-0: is not the planned run: model.optimizer.lr is 0.001 there" in err


@pytest.mark.parametrize("kind", ["wandb", "slurm", "ray"])
def test_an_export_replaces_nothing_but_its_own(ablate, kind):
    code, out, _ = ablate("--export", kind, "--out", "o")
    assert code == 0
    path = Path(out.partition(":")[0])
    text = path.read_text()
    assert ablate("--export", kind, "--out", "o")[0] == 73
    assert ablate("--export", kind, "--out", "o", "--overwrite")[0] == 0 and path.read_text() == text
    path.write_text("mine")
    assert ablate("--export", kind, "--out", "o", "--overwrite")[0] == 73 and path.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (("--table",), 65, "runs/two: has no finished run of two.yaml"),
        (("--trial", "9"), 2, "--trial 9: no such run; numbers go from 0 to 3, names are base-0, slow-0"),
        (("--export", "slurm", "--jobs", "2"), 2, "--jobs: does not work with --export; leave it out"),
        (("--table", "--trial", "1"), 2, "--trial: does not work with --table; leave it out"),
        (("--overwrite",), 2, "--overwrite: does not work without --export; leave it out"),
        (("--jobs", "0"), 2, "--jobs must be at least 1, got 0"),
        (("-c", "nowhere"), 66, "nowhere: no such config file"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(ablate, words, code, problem):
    found, _, err = ablate(*words)
    assert found == code and err.startswith(f"error: {problem}")
    assert not Path("runs").exists()


def test_the_folder_of_a_run_or_of_another_ablation_is_left_alone(ablate):
    Path("taken").mkdir()
    Path("taken/config.yaml").touch()
    assert ablate("--out", "taken")[::2] == (2, "error: --out taken: is the folder of a run; choose another")
    Path("busy").mkdir()
    with only_writer(Path("busy")):
        code, _, err = ablate("--out", "busy")
    assert code == 73 and err.startswith("error: busy: another process is running trials here; wait for it")
