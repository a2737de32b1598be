"""One seed for the text, one for its order, one for the weights: runs of several seeds can be compared."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml

from tinylm.bundle import read_checkpoint
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.runs.metrics import read_metrics
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer
from tinylm.training.checkpoint import AtomicCheckpointIO

GRAMMAR = "text: [the <animal> sleeps on the <animal>.]\nanimal: [fox, dog, cat, cow, hen, pig]\n"
KINDS = ("stories:60", "grammar", "mixture", "val", "pairs")


@pytest.fixture
def open_data(tmp_path):
    """open_data(kind, **options) opens data whose text depends on a seed."""
    (tmp_path / "my.grammar.yaml").write_text(GRAMMAR)
    (tmp_path / "my.txt").write_text("the quick brown fox\n" * 40)
    (tmp_path / "pairs.csv").write_text("prompt,response\n" + "".join(f"{n}+1=,{n + 1}\n" for n in range(40)))
    CharTokenizer("0123456789+=", [END_OF_TEXT]).save(tmp_path / "tokenizer.json")
    given = {
        "grammar": dict(corpus=f"{tmp_path}/my.grammar.yaml:40"),
        "mixture": dict(corpus={"a": "stories:30", "b": "stories:40"}),
        "val": dict(corpus=f"{tmp_path}/my.txt", val="stories:9"),
        "pairs": dict(pairs=str(tmp_path / "pairs.csv"), tokenizer=str(tmp_path / "tokenizer.json")),
    }

    def open_kind(kind: str, **options) -> TextDataModule:
        plain = dict(corpus=kind, max_seq_len=16, batch_size=4, cache_dir=str(tmp_path / "cache"))
        return TextDataModule(**plain | given.get(kind, {}) | options)

    return open_kind


def first_inputs(data: TextDataModule) -> list:
    return data.content.training(1, 1, 0)[0].inputs.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_of_the_run_changes_the_order_and_the_text_seed_the_text(open_data, kind):
    runs = []
    for seed in (0, 1, 2):
        pl.seed_everything(seed, verbose=False)
        runs.append(open_data(kind))
    assert len({data.fingerprint for data in runs}) == 1
    assert len({tuple(data.tokenizer.token_bytes) for data in runs}) == 1
    assert len({str(data.floors) for data in runs}) == 1
    assert len({str(first_inputs(data)) for data in runs}) == 3
    assert first_inputs(open_data(kind, seed=1)) == first_inputs(runs[1])  # the seed given has precedence
    assert open_data(kind, text_seed=1).fingerprint != runs[0].fingerprint


def test_a_text_seed_without_a_text_to_draw_is_refused(open_data, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.text_seed: is for generated texts and pairs, not for .*my\.txt"):
        open_data(str(tmp_path / "my.txt"), text_seed=1)
    with pytest.raises(ConfigError, match=r"data\.text_seed must not be negative, got -1"):
        open_data("stories:60", text_seed=-1)


SHORT = (
    "--data.corpus", "stories:60", "--model.schedule.name", "constant", "--trainer.val_check_interval", "100",
    "--run.sample_tokens", "0",
)  # fmt: skip


def checkpoint(run: str) -> dict:
    return read_checkpoint(Path("runs", run, "checkpoints/last.ckpt"))


@pytest.mark.slow
def test_runs_of_several_seeds_share_the_text_and_the_vocabulary_but_not_the_weights(cli, tiny_yaml):
    options = (*SHORT, "--trainer.max_steps", "1", "--data.tokenizer", "bpe:300")
    for seed in (0, 1, 2):
        result = cli("fit", "-c", tiny_yaml, *options, "--run.name", seed, "--seed_everything", seed)
        assert result.code == 0, result.err
    found = [checkpoint(str(seed)) for seed in (0, 1, 2)]
    assert len({each["tinylm_data"]["fingerprint"] for each in found}) == 1
    assert len({each["tinylm"]["tokenizer"]["sha256"] for each in found}) == 1
    assert len({str(each["state_dict"]["net.head.weight"]) for each in found}) == 3
    assert {yaml.safe_load(Path(f"runs/{seed}/config.yaml").read_text())["data"]["seed"] for seed in (0, 1, 2)} == {
        None
    }


def as_of_an_earlier_version(run: str, seed: int) -> None:
    """Turns a run into one of a version that had `data.seed` alone."""
    folder = Path("runs", run)
    saved = {path: read_checkpoint(path) for path in folder.glob("checkpoints/*.ckpt")}
    values = yaml.safe_load((folder / "config.yaml").read_text())
    for config in (values, *(each["tinylm_config"] for each in saved.values())):
        del config["data"]["text_seed"]
        config["data"]["seed"] = seed
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    for path, each in saved.items():
        AtomicCheckpointIO().save_checkpoint(each, path)


def losses(run: str) -> tuple:
    return read_metrics(f"runs/{run}/metrics.csv")["train/loss"]


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_order(cli, tiny_yaml):
    options = ("fit", "-c", tiny_yaml, *SHORT, "--seed_everything", "5", "--run.name")
    assert cli(*options, "whole", "--data.seed", "0", "--trainer.max_steps", "4").code == 0
    assert cli(*options, "part", "--data.seed", "0", "--trainer.max_steps", "2").code == 0
    as_of_an_earlier_version("part", seed=0)
    for steps in ("3", "4"):  # the second resume reads the config that the first has written
        result = cli(*options, "part", "--trainer.max_steps", steps, "--resume")
        assert result.code == 0, result.err
    assert losses("part") == losses("whole")
    weights = [checkpoint(run)["state_dict"] for run in ("part", "whole")]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_text_that_an_earlier_version_drew_by_the_seed_is_refused_with_the_remedy(cli, tiny_yaml):
    options = ("fit", "-c", tiny_yaml, *SHORT, "--data.seed", "3", "--run.name", "old")
    assert cli(*options, "--data.text_seed", "3", "--trainer.max_steps", "2").code == 0
    as_of_an_earlier_version("old", seed=3)
    result = cli("fit", "-c", "runs/old/config.yaml", "--run.name", "old", "--trainer.max_steps", "4", "--resume")
    problem = "data: stories:60 is not the text that the checkpoint was trained on"
    remedy = "an earlier version generated it from data.seed; add --data.text_seed 3"
    assert (result.code, result.error) == (2, f"{problem}; {remedy}")
    result = cli("validate", "-c", "runs/old/config.yaml")
    assert f"{problem.removeprefix('data: ')}; {remedy}" in result.err
    result = cli(*options, "--trainer.max_steps", "4", "--resume", "--data.text_seed", "3")
    assert result.code == 0 and "changed since the checkpoint: trainer.max_steps 2 -> 4" in result.err
