"""`tinylm ablate`, killed, interrupted and resumed, has the table of one that was never stopped."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.experiments.conftest import start
from tests.processes import wait_for
from tinylm.commands import run_command
from tinylm.runs.losses import compare_losses

FILE = """
base: BASE
variants:
  - {name: one head, model.network.num_heads: 1}
  - {name: base}
  - {name: layernorm, model.network.norm: layernorm}
seeds: 2
budget: {steps: 24}
"""
STEPS = 24
NAMES = [f"{variant}-{seed}" for seed in range(2) for variant in ("one head", "base", "layernorm")]
FILES = ("table.md", "table.csv", "ablation.png", "ablation.svg", "plan.json")


@pytest.fixture
def file(tmp_path, mini, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "three.yaml"
    path.write_text(FILE.replace("BASE", mini))
    (tmp_path / "wide.yaml").write_text("model: {network: {d_model: 64, max_seq_len: 64}}\ndata: {batch_size: 16}\n")
    return path


def words(file: Path, out: str) -> list[str]:
    return ["ablate", str(file), "-c", "wide.yaml", "--out", out, "--no-times"]


def in_the_middle(run: Path) -> bool:
    """Whether a run has taken some steps, but not the last ones."""
    path = run / "metrics.csv"
    steps = path.read_bytes().count(b"\n") - 1 if path.is_file() else 0
    return 3 <= steps < STEPS - 3 and any((run / "checkpoints").glob("*.ckpt"))


def writer(run: Path) -> int:
    """The process that writes a run."""
    return json.loads((run / ".writer").read_text())["process"]


@pytest.mark.slow  # 12 runs of a second, and three processes
def test_a_killed_and_resumed_ablation_has_the_table_of_one_never_stopped(file, capfd):
    assert run_command("ablate", words(file, "whole")[1:]) == 0
    table = capfd.readouterr().out

    killed = start("-m", "tinylm", *words(file, "stopped"), cwd=file.parent)
    assert wait_for(lambda: in_the_middle(Path("stopped", NAMES[1])))
    child = writer(Path("stopped", NAMES[1]))
    os.kill(child, signal.SIGSTOP)  # it cannot save when it sees that its parent is gone
    killed.kill()
    os.kill(child, signal.SIGKILL)
    killed.communicate(timeout=60)

    stopped = start("-m", "tinylm", *words(file, "stopped"), cwd=file.parent)
    assert wait_for(lambda: in_the_middle(Path("stopped", NAMES[4])))
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    last = err.strip().splitlines()[-1]
    assert last == "tinylm: stopped; 4 of 6 trials finished; the same command continues"
    assert "1 trial of 6 already finished in stopped" in err

    assert run_command("ablate", words(file, "stopped")[1:]) == 0
    out, err = capfd.readouterr()
    assert out == table and "4 trials of 6 already finished" in err
    for name in FILES:
        assert Path("whole", name).read_bytes() == Path("stopped", name).read_bytes(), name
    for name in NAMES:
        found = compare_losses(Path("whole", name), Path("stopped", name))
        assert found.equal == found.rows >= STEPS, (name, found.first)
    starts = [json.loads(Path("stopped", name, "run.json").read_text())["starts"] for name in NAMES]
    assert [len(each) for each in starts] == [1, 2, 1, 1, 2, 1]
    assert starts[1][1]["step"] > 0 and starts[4][1]["step"] > 0  # they went on from a checkpoint


@pytest.mark.slow  # a process that is started anew
def test_the_run_of_a_killed_ablation_saves_and_ends(file):
    killed = start("-m", "tinylm", *words(file, "out"), cwd=file.parent)
    run = Path("out", NAMES[0])
    assert wait_for(lambda: in_the_middle(run))
    child = writer(run)
    killed.kill()
    killed.communicate(timeout=60)
    assert wait_for(lambda: not (run / ".writer").exists()) and not Path(f"/proc/{child}/cwd").exists()
    log = Path("out", "logs", f"{NAMES[0]}.log").read_text()
    assert "which is saved; to resume" in log.splitlines()[-1]
