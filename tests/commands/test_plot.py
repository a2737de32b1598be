"""`tinylm plot` as a user meets it."""

from xml.etree import ElementTree

import pytest

from tests.runs.test_compare import make_run


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    """run(*arguments) calls the script's main in a folder with two runs: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/one")
    make_run(tmp_path / "runs/two", model__optimizer={"lr": 0.02})
    return load("plot")


def test_runs_are_drawn_in_both_formats(run, tmp_path):
    code, out, err = run("runs/*", "--out", "a.png", "b.svg", "--x", "time", "--smooth", 0.5, "--log", "x")
    assert (code, out, err) == (0, "2 runs: a.png, b.svg\n", "")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(tmp_path / "b.svg").getroot().tag.endswith("svg")


def test_without_options_it_draws_the_folder_runs(run, tmp_path):
    assert run() == (0, "2 runs: curves.png\n", "")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


DAMAGED = {"no step": "loss\n1\n", "no number": "step,lr\n1,x\n", "a cell more": "step,lr\n1,2,3\n"}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_damaged_metrics_are_one_line(run, tmp_path, text):
    (tmp_path / "runs/one/metrics.csv").write_text(text)
    code, out, err = run("--panels", "lr")
    assert (code, out) == (65, "")
    assert "runs/one: is damaged" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--out", "a.pdf"], 2, "--out a.pdf: must end in .png or .svg"),
        (["--smooth", "1"], 2, "--smooth must be in [0, 1), got 1.0"),
        (["--panels", "los"], 2, "--panels los: no such panel, did you mean 'loss'?"),
        (["--panels", "accuracy"], 65, "--panels accuracy: no run has this metric; available: loss, bpb, throughput"),
        (["--each_sed"], 2, "--each-sed: no such option, did you mean '--each-seed'?"),
        (["--out", "a.png", "runs/one"], 2, "runs/one: must end in .png or .svg (runs come before the options)"),
        (["nowhere"], 66, "nowhere: not a run"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(run, words, code, message):
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert message in err and err.count("\n") == 1
