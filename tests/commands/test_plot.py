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


def test_runs_are_drawn_in_three_formats_which_are_reproducible_and_replaced_only_if_ours(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tinylm.runs.plots.DOTS_PER_INCH", 20)  # saves time
    command = ("runs/*", "--out", "a.png", "b.svg", "c.pdf", "--x", "time", "--smooth", 0.5, "--log", "x")
    assert run(*command) == (0, "2 runs: a.png, b.svg, c.pdf\n", "")
    files = [tmp_path / name for name in ("a.png", "b.svg", "c.pdf")]
    first = [path.read_bytes() for path in files]
    assert first[0].startswith(b"\x89PNG") and first[2].startswith(b"%PDF-")
    assert ElementTree.parse(files[1]).getroot().tag.endswith("svg")
    code, _, err = run(*command)
    assert code == 73 and "a.png: exists; choose another path, or replace it with --overwrite" in err
    assert run(*command, "--overwrite")[0] == 0
    assert [path.read_bytes() for path in files] == first  # no date
    files[2].write_bytes(first[2].replace(b"(tinylm)", b"(others)"))
    code, _, err = run("--out", "c.pdf", "--overwrite")
    assert code == 73 and "c.pdf: exists and is not a picture of tinylm" in err


def test_a_metric_against_settings_and_columns_as_panels(run, tmp_path):
    make_run(tmp_path / "runs/three", loss=2.0, seed_everything=1)
    make_run(tmp_path / "runs/half", model__optimizer={"lr": 0.04}, finished=False)
    left = "tinylm: runs/half: is unfinished; left out\n"
    assert run("--x", "model.optimizer.lr", "--out", "lr.png") == (0, "4 runs: lr.png\n", left)
    make_run(tmp_path / "runs/wide", model__network__d_model=32)
    assert run("--x", "lr", "width", "--y", "val/bpb", "--take", "last", "--out", "map.svg")[0] == 0
    texts = (tmp_path / "map.svg").read_text()
    assert "lowest" not in texts and "last val/bpb" in texts.replace("<!-- ", "").replace(" -->", "")
    assert run("--panels", "perf/step_seconds", "loss", "--each-seed") == (0, "5 runs: curves.png\n", "")


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
        (["--out", "a.gif"], 2, "--out a.gif: must end in .png, .svg or .pdf"),
        (["--x", "lr", "--smooth", "0.5"], 2, "--smooth: does not work with a config entry as --x; leave it out"),
        (["--y", "val/bpb"], 2, "--y: does not work with an axis of curves as --x; leave it out"),
        (["--x", "lr", "width", "--log", "x"], 2, "--log: does not work with two entries as --x; leave it out"),
        (["--x", "lr", "tokens"], 2, "--x lr tokens: must be one of steps, tokens, flops, time, or one or two config"),
        (["--x", "lrr"], 2, "--x lrr: no run has this entry in its config; the runs differ in model.optimizer.lr"),
        (["--x", "width"], 2, "--x model.network.d_model: all 2 runs have 16; they differ in model.optimizer.lr"),
        (["--x", "lr", "--y", "val/los"], 65, "--y val/los: no finished run has this metric, did you mean 'val/loss'?"),
        (["--log", "x", "none"], 2, "--log none: means that no axis is logarithmic; leave out the others"),
        (["--smooth", "1"], 2, "--smooth must be in [0, 1), got 1.0"),
        (["--panels", "los"], 2, "--panels los: no such panel, did you mean 'loss'?"),
        (["--panels", "accuracy"], 65, "--panels accuracy: no run has this metric; available: loss, bpb, throughput"),
        (["--each_sed"], 2, "--each-sed: no such option, did you mean '--each-seed'?"),
        (["--out", "a.png", "runs/one"], 2, "runs/one: must end in .png, .svg or .pdf (runs come before the options)"),
        (["nowhere"], 66, "nowhere: not a run"),
    ],
)
def test_what_cannot_be_is_one_line_and_an_exit_code(run, words, code, message):
    found, out, err = run(*words)
    assert (found, out) == (code, "")
    assert message in err and err.count("\n") == 1
