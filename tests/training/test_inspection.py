"""Inspection callbacks: their logs against the network itself, and no effect on the run."""

import math
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

import tinylm.training.inspection
import tinylm.training.module
from tests import processes
from tinylm.analysis.attention import attention_maps, entropy
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.runs.metrics import read_metrics
from tinylm.training import (
    ActivationStatistics,
    AttentionEntropy,
    DropoutAnnealing,
    GradientNorms,
    LitTransformerLM,
    OptimizerConfig,
)
from tinylm.training.metrics_csv import MetricsCSV

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ROOT / "configs/overlays"
SHAPE = dict(d_model=32, num_layers=2, num_heads=2, max_seq_len=16, dropout=0.1)

OF_THE_MODULE = ("train/loss", "train/grad_norm", "lr")


@pytest.fixture
def fit(corpus, tmp_path):
    """fit(callbacks) trains six steps of two micro-batches: the module, and the columns that callbacks have logged."""

    def call(*callbacks, steps=6, compile=False, **network):
        pl.seed_everything(0)
        data = TextDataModule(
            str(corpus), max_seq_len=16, batch_size=8, micro_batch_size=4, cache_dir=str(tmp_path / "cache")
        )
        config = ModelConfig(vocab_size=data.vocab_size, **SHAPE | network)
        module = LitTransformerLM(config, OptimizerConfig(lr=0.01), compile=compile)
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        folder.mkdir()
        options = dict(max_steps=steps, accumulate_grad_batches=2, gradient_clip_val=0.01, log_every_n_steps=1)
        quiet = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
        quiet |= dict(limit_val_batches=0, accelerator="cpu", default_root_dir=tmp_path)
        trainer = pl.Trainer(**options, **quiet, callbacks=[*callbacks], logger=MetricsCSV(folder))
        trainer.fit(module, datamodule=data)
        columns = read_metrics(folder / "metrics.csv")
        return module, {name: column for name, column in columns.items() if name not in OF_THE_MODULE}

    return call


class Watch(pl.Callback):
    """Keeps what a test compares with."""

    def __init__(self):
        self.norms, self.inputs, self.dropouts, self.weights = [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.inputs.append(batch.inputs)
        self.norms.append(float(pl_module.grad_norm))
        self.dropouts.append({pl_module.net.dropout.p, *(block.attention.dropout for block in pl_module.net.blocks)})
        self.dropouts[-1] |= {block.dropout.p for block in pl_module.net.blocks}
        self.weights.append({name: weight.clone() for name, weight in pl_module.net.state_dict().items()})


def test_norms_of_the_parts_make_up_the_norm_of_the_whole_before_clipping(fit):
    watch = Watch()
    _, columns = fit(GradientNorms(every_n_steps=2), watch)
    parts = [f"blocks.{layer}.{kind}" for layer in range(2) for kind in ("attention", "feedforward")]
    assert columns.keys() == {f"gradients/{part}" for part in ["embedding", *parts, "final_norm"]}
    assert all(steps == [2, 4, 6] for steps, _ in columns.values())
    for row, step in enumerate((2, 4, 6)):
        whole = math.sqrt(sum(values[row] ** 2 for _, values in columns.values()))
        assert whole == pytest.approx(watch.norms[2 * step - 1], rel=1e-5)
        assert whole > 0.01  # where it would be after clipping


@pytest.mark.slow
def test_norms_of_sharded_gradients_are_those_of_whole_ones(tiny_yaml, tmp_path):
    (tmp_path / "norms.yaml").write_text(
        "model: {network: {dropout: 0.0}, optimizer: {name: adamw}}\ntrainer:\n  max_steps: 4\n"
        "  callbacks+: [{class_path: tinylm.training.GradientNorms, init_args: {every_n_steps: 2}}]\n"
    )
    columns = []
    for name, overlays in (("whole", []), ("sharded", ["-c", "fsdp", "--trainer.devices", "2"])):
        options = [*overlays, "-c", "norms.yaml", "--run.name", name]
        assert processes.tinylm(tmp_path, "fit", "-c", tiny_yaml, *options).wait() == 0
        read = read_metrics(tmp_path / "runs" / name / "metrics.csv")
        columns.append({name: column for name, column in read.items() if name.startswith("gradients/")})
    assert columns[0].keys() == columns[1].keys() and len(columns[0]) == 6
    for name, (steps, norms) in columns[0].items():
        assert columns[1][name] == (steps, pytest.approx(norms, rel=1e-4))


def test_looks_that_need_whole_weights_are_refused_where_they_are_in_pieces(fit, monkeypatch):
    monkeypatch.setattr("tinylm.training.inspection.FSDPModule", torch.nn.Module)
    for look in (AttentionEntropy(), ActivationStatistics()):
        name = type(look).__name__
        with pytest.raises(ConfigError, match=f"^{name}: needs whole weights, and fsdp shards them; leave it out$"):
            fit(look)


def test_entropies_are_those_of_the_steps_batch_under_its_weights(fit):
    watch = Watch()
    module, columns = fit(AttentionEntropy(every_n_steps=3, rows=2), watch)
    assert columns.keys() == {f"attention/blocks.{n}.{kind}" for n in range(2) for kind in ("entropy", "sharpest")}
    for row, step in enumerate((3, 6)):
        module.net.load_state_dict(watch.weights[2 * step - 1])
        maps = attention_maps(module.net, watch.inputs[2 * step - 1][:2])
        entropies = entropy(maps).mean(dim=(1, 3))  # (layers, heads)
        for layer in range(2):
            name = f"attention/blocks.{layer}"
            assert columns[f"{name}.entropy"][1][row] == pytest.approx(entropies[layer].mean().item(), rel=1e-5)
            assert columns[f"{name}.sharpest"][1][row] == pytest.approx(entropies[layer].min().item(), rel=1e-5)


def test_the_standard_deviation_of_the_embedding_is_that_of_its_rows(fit):
    watch = Watch()
    _, columns = fit(ActivationStatistics(every_n_steps=6, rows=1), watch)
    kinds = [f"{place}.std" for place in ("attention", "feedforward", "units", "stream")]
    kinds += ["stream.largest", "units.dead"]
    names = {f"activations/blocks.{layer}.{kind}" for layer in range(2) for kind in kinds}
    assert columns.keys() == names | {"activations/embedding.std"}
    rows = watch.weights[-1]["embedding.weight"][watch.inputs[-1][0]]
    assert columns["activations/embedding.std"] == ([6], [pytest.approx(rows.std(correction=0).item(), rel=1e-5)])


def test_a_run_that_is_looked_into_ends_with_the_same_weights(fit):
    """With dropout, whose masks a look must not use up; and in training mode again."""
    looks = (GradientNorms(1), AttentionEntropy(1), ActivationStatistics(1))
    with_looks, _ = fit(*looks)
    without, _ = fit()
    for (name, one), (_, two) in zip(
        with_looks.net.state_dict().items(), without.net.state_dict().items(), strict=True
    ):
        assert torch.equal(one, two), name
    assert with_looks.net.training == without.net.training


def test_documents_stay_apart(fit, monkeypatch):
    """The corpus by character has no separators, so the test supplies document numbers."""
    numbers = torch.arange(16).div(4, rounding_mode="floor")[None]
    for module in (tinylm.training.module, tinylm.training.inspection):
        monkeypatch.setattr(module, "documents_apart", lambda config, ids, *known: numbers.expand(len(ids), 16))
    _, columns = fit(AttentionEntropy(every_n_steps=6), document_mask=True)
    largest = (math.log(2) + math.log(3) + math.log(4)) / 4  # of queries that see 1, 2, 3 and 4 keys
    assert all(0 < values[0] <= largest + 1e-6 for _, values in columns.values())


# --- dropout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(), [0.1, 0.08, 0.06, 0.04, 0.02]),
        (dict(final=0.2), [0.1, 0.12, 0.14, 0.16, 0.18]),
        (dict(begin=0.2, end=0.6), [0.1, 0.1, 0.05, 0.0, 0.0]),
    ],
    ids=str,
)
def test_dropout_goes_in_a_straight_line_and_is_logged(fit, options, expected):
    watch = Watch()
    module, columns = fit(DropoutAnnealing(**options), watch, steps=5)
    assert all(len(found) == 1 for found in watch.dropouts)  # every layer has the same
    found = [value for (value,) in watch.dropouts]
    assert found[::2] == found[1::2] == pytest.approx(expected, abs=1e-12)
    assert columns["dropout"] == ([1, 2, 3, 4, 5], pytest.approx(expected, abs=1e-9))
    assert module.network.dropout == 0.1


def test_dropout_that_stays_is_the_configs(fit):
    constant, _ = fit(DropoutAnnealing(final=0.1))
    plain, _ = fit()
    assert all(
        torch.equal(one, two) for one, two in zip(constant.net.parameters(), plain.net.parameters(), strict=True)
    )
    fading, _ = fit(DropoutAnnealing())
    assert not torch.equal(fading.net.embedding.weight, plain.net.embedding.weight)


@pytest.mark.slow
def test_a_resumed_run_has_the_dropout_of_one_that_was_not_stopped(cli, tiny_yaml, tmp_path, monkeypatch):
    (tmp_path / "dropout_stopper.py").write_text(
        "import lightning.pytorch as pl\n\nclass Stop(pl.Callback):\n    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_step == 7:\n            raise RuntimeError('pulled the plug')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    options = ["fit", "-c", tiny_yaml, "-c", OVERLAYS / "dropout_annealing.yaml"]
    assert cli(*options, "--run.name", "whole").code == 0
    assert cli(*options, "--trainer.callbacks+=dropout_stopper.Stop").code == 70
    resumed = cli(*options, "--resume")
    assert resumed.code == 0, resumed.err
    ours, whole = (read_metrics(tmp_path / "runs" / name / "metrics.csv") for name in ("mini", "whole"))
    assert ours["dropout"] == (list(range(1, 13)), pytest.approx([0.1 * (12 - step) / 12 for step in range(12)]))
    assert (ours["dropout"], ours["train/loss"]) == (whole["dropout"], whole["train/loss"])


# --- from the command line


def test_the_overlay_logs_all_of_it_beside_the_metrics_of_every_run(cli, tiny_yaml, tmp_path):
    text = (OVERLAYS / "inspect.yaml").read_text()
    assert "every_n_steps: 50" in text and "every_n_steps: 100" in text
    (tmp_path / "inspect.yaml").write_text(text.replace("steps: 50", "steps: 3").replace("steps: 100", "steps: 6"))
    result = cli("fit", "-c", tiny_yaml, "-c", "inspect.yaml")
    assert result.code == 0, result.err
    columns = read_metrics(tmp_path / "runs/mini/metrics.csv")
    assert columns["train/loss"][0] == list(range(1, 13))
    assert columns["gradients/blocks.1.attention"][0] == [3, 6, 9, 12]
    assert columns["attention/blocks.1.sharpest"][0] == columns["activations/blocks.0.units.dead"][0] == [6, 12]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (GradientNorms, dict(every_n_steps=0), "every_n_steps must be at least 1, got 0"),
        (AttentionEntropy, dict(rows=0), "rows must be at least 1, got 0"),
        (DropoutAnnealing, dict(final=1.0), "final must be in [0, 1), got 1.0"),
        (DropoutAnnealing, dict(begin=0.5, end=0.5), "begin and end must be in order and in [0, 1], got 0.5 and 0.5"),
    ],
)
def test_mistakes_are_refused(kind, options, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        kind(**options)


def test_dropout_that_cannot_fade_is_refused(fit, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    with pytest.raises(ConfigError, match=r"DropoutAnnealing: model\.network\.dropout is 0; set the initial dropout"):
        fit(DropoutAnnealing(), dropout=0.0)
    with pytest.raises(ConfigError, match=r"DropoutAnnealing: would recompile every step; set model\.compile=false"):
        fit(DropoutAnnealing(), compile=True)
