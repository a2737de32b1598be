"""Options of `tinylm serve`; tests/serving tests the server."""

import pytest

from tinylm.commands.serve import find_models, read_key
from tinylm.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--rows", "0"], "--rows must be at least 1, got 0"),
        (["--max-waiting", "-1"], "--max-waiting must be at least 0, got -1"),
        (["--port", "65536"], "--port must be from 0 to 65535, got 65536"),
        (["--timeout", "0"], "--timeout must be positive, got 0.0"),
        (["--timeout", "nan"], "--timeout must be positive, got nan"),
        (["--grace", "inf"], "--grace must be 0 or positive, got inf"),
        (["--model", "=MODEL"], "the name is empty; write --model NAME=MODEL"),
        (["--model", "a=MODEL", "--model", "a=MODEL"], "two models are called a; write --model NAME=MODEL"),
        (["--model", "a=MODEL", "--host", "256.0.0.1", "--port", "0"], "--host 256.0.0.1 --port 0: "),
    ],
)
def test_invalid_options_are_refused_in_one_line(options, problem, model, load):
    code, out, err = load("serve")(*(option.replace("MODEL", str(model)) for option in options))
    assert code in (2, 73) and out == "" and err.count("\n") == 1 and problem.replace("MODEL", str(model)) in err, err


def test_models_are_called_by_their_runs_unless_they_are_named(model, tmp_path):
    odd = tmp_path / "lr=1"
    (tmp_path / "small").mkdir()
    for name in (odd, tmp_path / "small" / "model"):
        name.symlink_to(model)
    given = [str(tmp_path / "small"), f"two={model}", str(odd)]
    assert list(find_models(given)) == ["small", "two", "lr=1"]


@pytest.mark.parametrize("key", ["", " a", "a\nb", "é"])
def test_a_key_that_no_client_can_send_is_refused(key, monkeypatch):
    monkeypatch.setenv("TINYLM_API_KEY", key)
    with pytest.raises(ConfigError, match="TINYLM_API_KEY must be"):
        read_key()
    monkeypatch.delenv("TINYLM_API_KEY")
    assert read_key() == ""
