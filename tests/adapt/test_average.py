"""The mean of several models' weights."""

from dataclasses import replace

import pytest
import torch

import tinylm
from tests.commands.conftest import save_model
from tinylm.adapt import quantize
from tinylm.adapt.average import average, last_checkpoints
from tinylm.bundle import save_bundle
from tinylm.commands import run_command
from tinylm.errors import ConfigError, MissingInputError
from tinylm.model import TransformerLM
from tinylm.tokenizer import ByteTokenizer


@pytest.fixture
def models(tmp_path):
    """Three folders of one architecture with other weights."""
    save_model(tmp_path / "0")
    first, tokenizer = tinylm.load(tmp_path / "0")
    for seed in (1, 2):
        torch.manual_seed(seed)
        save_bundle(tmp_path / str(seed), TransformerLM(first.config).eval(), tokenizer)
    return [tmp_path / name for name in "012"]


def test_weights_are_the_mean_in_float64(models):
    mean, *parts = (average(models).model, *(tinylm.load(path)[0] for path in models))
    for name, weight in mean.state_dict().items():
        expected = torch.stack([part.state_dict()[name].double() for part in parts]).mean(0)
        torch.testing.assert_close(weight, expected.to(weight.dtype), atol=1e-9, rtol=0)
    assert average(models[:1] * 3).model.state_dict().keys() == mean.state_dict().keys()


def test_only_alike_models_are_averaged(models, tmp_path):
    model, tokenizer = tinylm.load(models[0])
    save_bundle(tmp_path / "deep", TransformerLM(replace(model.config, num_layers=3)).eval(), tokenizer)
    with pytest.raises(ConfigError, match=r"num_layers: .*0 \d+, .*deep 3; only alike models"):
        average([models[0], tmp_path / "deep"])
    save_bundle(tmp_path / "int8", quantize(model, bits=8), tokenizer)
    with pytest.raises(ConfigError, match="int8: is quantized; average the originals"):
        average([models[0], tmp_path / "int8"])
    other = ByteTokenizer(special_tokens=["<|a|>"])
    wide = replace(model.config, vocab_size=max(model.config.vocab_size, other.vocab_size))
    for name, each in (("a", ByteTokenizer()), ("b", other)):
        save_bundle(tmp_path / name, TransformerLM(wide).eval(), each)
    with pytest.raises(ConfigError, match=r"tokenizer: .*a and .*b have different ones"):
        average([tmp_path / "a", tmp_path / "b"])


def test_the_command_writes_a_model_and_prints_every_loss(models, tmp_path, capsys):
    _, tokenizer = tinylm.load(models[0])
    (tmp_path / "t.txt").write_text(tokenizer.decode(range(10)))
    words = [*map(str, models), "--out", str(tmp_path / "out"), "--text", str(tmp_path / "t.txt")]
    assert run_command("average", words) == 0
    found = capsys.readouterr()
    assert len(found.out.splitlines()) == 5 and "average of 3 models" in found.err
    assert run_command("average", words) == 73  # exists
    assert run_command("average", [str(models[0]), "--out", str(tmp_path / "new")]) == 2
    assert "is one model; give several, or --last" in capsys.readouterr().err
    assert run_command("average", [*words[:3], "--out", str(models[1]), "--overwrite"]) == 2


def test_a_run_without_so_many_checkpoints_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="has checkpoints of 0 steps, --last 2 needs 2"):
        last_checkpoints(tmp_path, 2)
