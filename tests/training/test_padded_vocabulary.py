"""A run whose vocabulary has more rows than tokens (`model.vocab_multiple`), from its start to its export."""

import pytest
import torch

import tinylm
from tinylm.generation import Generator
from tinylm.interop import export_huggingface, load_huggingface

MULTIPLE = ["--model.vocab_multiple", "64"]


@pytest.fixture
def run(cli, tiny_yaml, tmp_path):
    result = cli("fit", "-c", tiny_yaml, *MULTIPLE, "--trainer.max_steps", "4")
    assert result.code == 0, result.err
    return tmp_path / "runs/mini", result


def test_the_rows_are_told_and_a_rerun_and_a_resumed_run_have_them(run, cli, tmp_path):
    folder, result = run
    model, tokenizer = tinylm.load(folder)
    assert tokenizer.vocab_size < model.config.vocab_size == 64
    assert f"{tokenizer.vocab_size} tokens in the vocabulary (padded to 64 rows)" in result.err
    assert f"model: {model.num_parameters():,} parameters" in result.err  # the further rows included
    again = cli("fit", "-c", folder / "config.yaml", "--run.name", "again", "--trainer.max_steps", "1")
    assert again.code == 0, again.err
    resumed = cli("fit", "-c", folder / "config.yaml", "--run.name", "mini", "--resume", "--trainer.max_steps", "6")
    assert resumed.code == 0 and "from step 4" in resumed.err, resumed.err


def test_further_rows_are_never_generated_even_if_they_are_the_likeliest(run):
    model, tokenizer = tinylm.load(run[0])
    assert len(model.head.weight) == 64
    with torch.no_grad():
        model.final_norm.weight[:] = 0  # logits are zero, but for those of the further rows
        model.head.bias = torch.nn.Parameter(torch.zeros(64))
        model.head.bias[tokenizer.vocab_size :] = 100.0
    generator = Generator(model, tokenizer)
    texts = [generator.generate("the ", max_new_tokens=20, seed=seed) for seed in range(3)]
    assert all(len(text) == 20 for text in texts)  # a character for each token, which the further rows lack


def test_an_export_has_the_rows_and_a_new_run_starts_from_it(run, cli, tiny_yaml, tmp_path):
    folder, _ = run
    model, tokenizer = tinylm.load(folder)
    export_huggingface(model, tokenizer, tmp_path / "hf")
    loaded, _ = load_huggingface(tmp_path / "hf")
    ids = torch.arange(10)[None]
    torch.testing.assert_close(loaded(ids), model(ids))
    assert loaded.config.vocab_size == 64
    tuned = cli("fit", "-c", tiny_yaml, "--run.name", "tuned", "--model.init_from", folder, "--trainer.max_steps", "1")
    assert tuned.code == 0 and tinylm.load(tmp_path / "runs/tuned")[0].config.vocab_size == 64, tuned.err
    refused = cli("fit", "-c", tiny_yaml, *MULTIPLE, "--run.name", "other", "--model.init_from", folder)
    assert refused.code == 2
    assert refused.error.endswith("model.vocab_multiple: a base model keeps its own rows; leave it out")
