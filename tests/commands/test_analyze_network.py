"""`tinylm analyze network` from the command line."""

from pathlib import Path

import pytest

from tinylm.model import flops_per_token, parameter_count, preset


@pytest.fixture
def run(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: load("analyze")("network", *words)


def test_a_config_and_a_model_are_drawn(run, model):
    code, out, err = run("-c", "small", "--vocab-size", 1486, "--out", "n.svg")
    assert code == 0, err
    config = preset("small", vocab_size=1486)
    numbers = f"{parameter_count(config):,} parameters, {flops_per_token(config):,} FLOPs per token of training"
    assert out == f"small: {numbers}\nn.svg\n"
    assert "<title>The network small</title>" in Path("n.svg").read_text()
    code, out, err = run("--model", model)
    assert code == 0 and out.splitlines()[-1] == "analysis/network.svg", err
    assert "small" not in Path("analysis/network.svg").read_text()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-c", "smal"], 66, "smal: no such config file, did you mean 'small'?"),
        (["-c", "small", "--out", "n.jpg"], 2, "--out must end in one of .svg, .png, .pdf, got n.jpg"),
        (["-c", "small", "--model", "m"], 2, "-c: does not work with --model; leave it out"),
        (["--model", "m", "--model.network.d_model", "8"], 2, "--model.network.d_model: does not work with --model"),
        (["-c", "small", "--theme", "dark"], 2, "--theme: does not work with an SVG, which has both themes; leave it"),
        (["-c", "small", "--trust-code"], 2, "--trust-code: does not work without --model"),
        (["-c", "small", "--vocab-size", "0"], 2, "--vocab-size must be at least 1, got 0"),
        (["-c", "small", "--model.network.d_modell=3"], 2, "no such option, did you mean 'model.network.d_model'?"),
        (["-c", "small", "--out", "mine.svg"], 73, "mine.svg: exists and is not a picture of tinylm"),
    ],
)
def test_errors_are_one_line(words, code, message, run):
    Path("mine.svg").write_text("<svg/>")
    found, out, err = run(*words)
    assert (found, out) == (code, "") and message in err.splitlines()[-1]
