"""`tinylm analyze coordinates` from the command line."""

import re


def test_the_command_prints_slopes_and_draws_them(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinylm.runs.plots.DOTS_PER_INCH", 20)
    network = ["--model.network.num_layers=1", "--model.network.d_model", "16", "--model.network.num_heads=2"]
    words = ["coordinates", "-c", "tiny", "--steps", "2", *network, "--model.network.max_seq_len=16"]
    words += ["--data.tokenizer=char", "--data.corpus=stories:60", "--model.optimizer.name", "adamw"]
    run = load("analyze")
    code, out, err = run(*words)
    assert code == 0, err
    verdicts = dict(re.findall(r"^(\w+): (passes|fails): ", out, re.M))  # so narrow, muP need not pass
    assert [*verdicts] == ["muP", "standard"] and verdicts["standard"] == "fails"
    assert "width 16  width 32  width 64  slope" in out
    assert out.splitlines()[-2:] == ["analysis/coordinates.png", "analysis/coordinates.svg"]
    assert sorted(path.name for path in (tmp_path / "analysis").iterdir()) == ["coordinates.png", "coordinates.svg"]
    for more, message in (
        (["--widths", "32"], "--widths: needs at least two different widths, got 32"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (
            ["--model.network.d_modell=3"],
            "model.network.d_modell: no such option, did you mean 'model.network.d_model'?",
        ),
        (["--model.optimizer.name=sgd"], "mup_base_width: there is no rule for the optimizer sgd; take adam or adamw"),
        (["--model.init_from=runs/x"], "model.init_from: has no effect on the coordinate check; leave it out"),
        (["--model", "runs/x"], "--model: no such option"),
    ):
        code, _, err = run(*words, *more)
        assert code == 2 and message in err, err
