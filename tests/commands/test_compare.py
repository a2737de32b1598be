"""`tinylm compare` as a user meets it."""

import csv
import io

import pytest

from tinylm.locate import command

CONFIG = """seed_everything: {seed}
trainer: {{max_steps: 1200}}
model: {{network: {{max_seq_len: 128, vocab_size: 20}}}}
data: {{batch_size: 32}}
"""
METRICS = """step,train/loss,perf/step_seconds,val/loss,val/bpb,val/excess
{steps},2.5,0.2048,,,
{steps},,,{loss},3.25,0.125
"""


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) calls the script's main in a folder with three runs: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name, seed, loss in (("one", 1, 2.5), ("two", 2, 1.5), ("half", 3, 3.5)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(CONFIG.format(seed=seed))
        (folder / "metrics.csv").write_text(METRICS.format(steps=600 if name == "half" else 1200, loss=loss))
        if name != "half":
            (folder / "model").mkdir()
            (folder / "model/tinylm.json").write_text("{}")
            header = b'{"weight":{"dtype":"F32","shape":[1000,1200],"data_offsets":[0,4800000]}}'
            (folder / "model/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (tmp_path / "runs/half/config.yaml").write_text(
        CONFIG.format(seed=3).replace(", vocab_size: 20", "")
    )  # an older run
    return load("compare")


EXPECTED = """\
run              parameters  tokens  steps         val loss        bits/byte        excess              time
two               1,200,000   4.92M  1,200           1.5000           3.2500         12.5%        4 min 06 s
one               1,200,000   4.92M  1,200           2.5000           3.2500         12.5%        4 min 06 s
half                      -   2.46M    600           3.5000           3.2500         12.5%        2 min 03 s  unfinished, 1,200 steps planned
one (mean of 2)   1,200,000   4.92M  1,200  2.0000 ± 0.7071  3.2500 ± 0.0000  12.5% ± 0.0%  4 min 06 s ± 0 s
"""  # noqa: E501


def test_the_table(run):
    code, out, err = run("runs/one", "runs/two", "runs/half")
    alone = "tinylm: runs/half: is unfinished; not averaged with the other runs of its settings\n"
    assert (code, err) == (0, alone)
    assert out == EXPECTED
    assert run() == run("runs/*") == run("runs")


def test_csv_has_plain_numbers(run):
    code, out, _ = run("--csv", "--sort", "name", "runs")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert [row["name"] for row in rows] == ["half", "one", "two", "one (mean of 2)"]
    assert [row["runs"] for row in rows] == ["1", "1", "1", "2"]
    assert [row["finished"] for row in rows] == ["0", "1", "1", "1"]
    assert float(rows[1]["tokens"]) == 1200 * 32 * 128
    assert float(rows[1]["seconds"]) == pytest.approx(1200 * 0.2048)
    assert float(rows[3]["val_loss"]) == 2.0 and float(rows[3]["val_loss_sd"]) == pytest.approx(0.5**0.5)
    assert rows[0]["parameters"] == rows[1]["val_loss_sd"] == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 66, f"nowhere: not a run (a run folder has a config.yaml); train one with {command('fit')}"),
        (["--sort", "time"], 2, "--sort time: no such column, did you mean 'seconds'?"),
        (["--sort", "x"], 2, "--sort x: no such column; it is one of name, parameters, tokens, steps, val_loss, bpb, "),
        (["--nope"], 2, "--nope: no such option"),
    ],
)
def test_mistakes_are_one_line(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"tinylm: error: {message}") and err.count("\n") == 1
