"""A Trainer of the user's own, as in a notebook: what Lightning's users expect of any LightningModule."""

import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch.nn.functional import cross_entropy

from tinylm.adapt import FreezeConfig, LoRAConfig
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.model import ModelConfig
from tinylm.plugins import Part, trust
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig
from tinylm.training.module_options import hooks
from tinylm.training.throughput import MetricsLog, Throughput

QUIET = dict(enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, accelerator="cpu")


@pytest.fixture
def data(corpus, tmp_path) -> TextDataModule:
    options = dict(max_seq_len=16, batch_size=8, micro_batch_size=4)
    return TextDataModule(str(corpus), cache_dir=str(tmp_path / "cache"), **options)


@pytest.fixture
def make(data):
    """make(kind, **options) is a tiny LitTransformerLM, or a subclass."""

    def call(kind=LitTransformerLM, **options) -> LitTransformerLM:
        torch.manual_seed(0)
        network = ModelConfig(vocab_size=data.vocab_size, d_model=16, num_layers=2, num_heads=2, max_seq_len=16)
        return kind(
            network, options.pop("optimizer", OptimizerConfig(lr=0.01)), ScheduleConfig(warmup_steps=3), **options
        )

    return call


@pytest.fixture
def trainer(tmp_path):
    """trainer(**options) is a Trainer that writes into a temporary folder and takes four steps."""

    def call(**options) -> pl.Trainer:
        return pl.Trainer(**{**QUIET, "max_steps": 4, "logger": False, "default_root_dir": tmp_path, **options})

    return call


class Watch(pl.Callback):
    """Records loss, gradient norm and learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_step > len(self.rows):
            self.rows.append([pl_module.train_loss.item(), pl_module.grad_norm.item(), pl_module.step_lr])


# --- load_from_checkpoint

KINDS = {
    "plain": {},
    "adapters": {"lora": LoRAConfig(rank=2, targets=("attention",))},
    "frozen": {"freeze": FreezeConfig(layers=(0,)), "optimizer": OptimizerConfig(name="muon", lr=0.01)},
    "padded": {"vocab_multiple": 64},
    "own optimizer": {"optimizer": Part.of(torch.optim.RAdam)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_is_loaded_from_a_checkpoint_evaluated_and_trained_on(kind, data, make, trainer, tmp_path):
    first = trainer()
    first.fit(module := make(**KINDS[kind]), datamodule=data)
    first.save_checkpoint(path := tmp_path / "four.ckpt")
    loaded = LitTransformerLM.load_from_checkpoint(path, weights_only=True)
    assert loaded.network == module.network and loaded.hparams == module.hparams
    assert loaded.state_dict().keys() == module.state_dict().keys()
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, module.state_dict()[name])
    found, expected = (trainer().validate(each, datamodule=data, verbose=False) for each in (loaded, module))
    assert found == expected
    longer = trainer(max_steps=6)
    longer.fit(loaded, datamodule=data, ckpt_path=path)
    again = trainer(max_steps=6)
    again.fit(make(**KINDS[kind]), datamodule=data, ckpt_path=path)
    for weight, same in zip(loaded.parameters(), again.lightning_module.parameters(), strict=True):
        assert torch.equal(weight, same) and weight.requires_grad == same.requires_grad


def test_a_trainer_on_the_processor_keeps_freed_memory(make, data, trainer, monkeypatch):
    calls = []
    monkeypatch.setattr("tinylm.training.module.keep_freed_memory", lambda: calls.append(1))
    trainer(max_steps=1).fit(make(), data)
    assert calls


def test_a_checkpoint_of_the_command_is_loaded(finished_run):
    path = finished_run / "checkpoints" / "last.ckpt"
    weights = torch.load(path, weights_only=True)["state_dict"]
    loaded = LitTransformerLM.load_from_checkpoint(path, weights_only=True).state_dict()
    assert weights.keys() == loaded.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)


def test_a_loaded_module_does_not_forget_its_objective(make, tmp_path):
    objective = Part("tinylm.training.DPO")
    module = make(objective=objective)
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(checkpoint | {"pytorch-lightning_version": pl.__version__}, path := tmp_path / "dpo.ckpt")
    with pytest.raises(ConfigError, match=r"objective tinylm\.training\.DPO.*: give it to load_from_checkpoint"):
        LitTransformerLM.load_from_checkpoint(path, weights_only=True)
    assert LitTransformerLM.load_from_checkpoint(path, weights_only=True, objective=None).objective is None
    loaded = LitTransformerLM.load_from_checkpoint(path, weights_only=True, objective=objective)
    assert type(loaded.objective).__name__ == "DPO"


# --- without a trainer


class Seen(pl.Callback):
    """The inputs of each micro-batch."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.inputs.append(batch.inputs)


@pytest.mark.parametrize("options", [{}, {"batch_schedule": {"2": 4}}], ids=["epochs", "growing batches"])
def test_batches_can_be_looked_at_before_there_is_a_trainer(options, make, trainer, corpus, tmp_path):
    settings = dict(max_seq_len=16, batch_size=8, micro_batch_size=4, cache_dir=str(tmp_path / "cache"), **options)
    data = TextDataModule(str(corpus), **settings)
    early = next(iter(data.train_dataloader())).inputs
    data.prepare_data()
    data.setup("fit")
    batches = iter(data.train_dataloader())
    looked = [next(batches).inputs for _ in range(6)]
    assert torch.equal(early, looked[0])
    tokens = len(data.tokens["val"])
    assert sum(int((each.targets >= 0).sum()) for each in data.val_dataloader()) == tokens - 1  # all but the first
    trainer(callbacks=[seen := Seen()], max_steps=3, limit_val_batches=0).fit(make(), datamodule=data)
    assert len(seen.inputs) == 6
    assert all(torch.equal(each, other) for each, other in zip(looked, seen.inputs, strict=True))


def test_logits_need_no_trainer(data, make, trainer, tmp_path):
    ids = torch.arange(16)[None] % 5
    module = make()
    assert torch.equal(module(ids), module.net(ids))
    first = trainer(max_steps=1)
    first.fit(module, datamodule=data)
    first.save_checkpoint(path := tmp_path / "one.ckpt")
    loaded = LitTransformerLM.load_from_checkpoint(path, weights_only=True)
    assert torch.equal(loaded(ids), module.net(ids))


def test_the_batch_size_finder_is_refused_by_name(data, make, trainer):
    with pytest.raises(ConfigError, match=r"Tuner\.scale_batch_size cannot change it: data\.micro_batch_size decides"):
        Tuner(trainer()).scale_batch_size(make(), datamodule=data, max_trials=1, steps_per_trial=1)


# --- what is logged


def logged(folder) -> list[dict[str, str]]:
    """The rows of training in the file of a CSVLogger."""
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["train/loss"]]


def test_a_plain_trainer_logs_each_step(data, make, trainer, tmp_path):
    runner = trainer(logger=(logger := CSVLogger(tmp_path)), callbacks=[watch := Watch()], log_every_n_steps=1)
    runner.fit(make(), datamodule=data)
    rows = logged(tmp_path / "lightning_logs" / f"version_{logger.version}")
    assert len(rows) == len(watch.rows) == 4
    for row, values in zip(rows, watch.rows, strict=True):
        assert [float(row[name]) for name in ("train/loss", "train/grad_norm", "lr")] == pytest.approx(values)
    assert runner.callback_metrics["train/loss"] == pytest.approx(watch.rows[-1][0])  # for callbacks that monitor it


def test_a_callback_that_logs_the_steps_is_the_only_one(data, make, trainer, tmp_path):
    throughput = Throughput()
    runner = trainer(logger=CSVLogger(tmp_path), callbacks=[throughput, MetricsLog(throughput)], log_every_n_steps=1)
    runner.fit(module := make(), datamodule=data)
    assert "train/loss" not in runner.callback_metrics
    assert len(logged(tmp_path / "lightning_logs" / "version_0")) == 4
    alone = trainer()
    alone.fit(module, datamodule=data)  # the module logs again
    assert "train/loss" in alone.callback_metrics


# --- the learning rate finder


@pytest.mark.parametrize("optimizer", [OptimizerConfig(lr=0.5), Part("torch.optim.RAdam", {"lr": 0.5})])
def test_the_learning_rate_that_was_found_is_used(optimizer, data, make, trainer):
    trust(["torch"])
    module, runner = make(optimizer=optimizer), trainer(max_steps=40)
    assert module.learning_rate == 0.5
    found = Tuner(runner).lr_find(module, datamodule=data, num_training=40).suggestion()
    assert found != 0.5 and module.learning_rate == found
    after = trainer(callbacks=[watch := Watch()])
    after.fit(module, datamodule=data)
    assert max(rate for _, _, rate in watch.rows) == found
    assert loaded_rate(module.hparams["optimizer"]) == found


def loaded_rate(options) -> float:
    """The learning rate in a checkpoint's hyperparameters."""
    return options.get("init_args", options)["lr"]


class Own(LitTransformerLM):
    """Its optimizer is its own."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_learning_rate_that_would_do_nothing_is_not_set(data, make, trainer):
    with pytest.raises(AttributeError, match=r"(?s)learning rate finder.*should have one of these fields"):
        Tuner(trainer()).lr_find(make(Own), datamodule=data)


# --- two optimizers


class Two(LitTransformerLM):
    """The embedding has an optimizer of its own, and both are stepped by hand."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.automatic_optimization = False

    def configure_optimizers(self):
        halves = self.net.embedding.parameters(), self.net.blocks.parameters()
        return [torch.optim.SGD(half, lr=0.1) for half in halves]

    def training_step(self, batch, batch_idx):
        self.batch = batch
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def test_two_optimizers_stepped_by_hand_move_their_weights(corpus, make, trainer, tmp_path):
    data = TextDataModule(str(corpus), max_seq_len=16, batch_size=8, cache_dir=str(tmp_path / "cache"))
    module = make(Two)
    before = {name: weight.clone() for name, weight in module.net.named_parameters()}
    runner = trainer(max_steps=2)  # of Lightning, which counts each optimizer: one batch
    runner.fit(module, datamodule=data)
    batch = module.batch
    plain = make()
    plain.net.load_state_dict(before, strict=False)  # the head is tied
    loss = plain.net(batch.inputs, targets=batch.targets) / batch.num_targets
    loss.backward()
    for name, weight in module.net.named_parameters():
        moves = name.startswith(("embedding", "blocks"))
        step = 0.1 * plain.net.get_parameter(name).grad if moves else torch.zeros(())
        torch.testing.assert_close(weight, before[name] - step, atol=1e-6, rtol=0)
    assert module.train_loss == pytest.approx(loss.item())


# --- hooks of a subclass


class Tuned(LitTransformerLM):
    """A loss of its own, and hooks that call those of tinylm; its methods that replace others may do so."""

    def training_step(self, batch, batch_idx):
        logits = self(batch.inputs, batch.documents)
        return cross_entropy(logits.flatten(0, 1), batch.targets.flatten())

    def on_before_optimizer_step(self, optimizer):
        super().on_before_optimizer_step(optimizer)

    def on_validation_epoch_end(self):
        LitTransformerLM.on_validation_epoch_end(self)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")


def test_a_training_step_of_its_own_has_its_loss_recorded(data, make, trainer):
    """Each micro-batch has as many targets, so the mean of their losses is the loss over all targets."""
    rows = []
    for kind in (Tuned, LitTransformerLM):
        runner = trainer(callbacks=[watch := Watch()], gradient_clip_val=1.0, precision="64-true")
        runner.fit(make(kind), datamodule=data)
        rows.append(watch.rows)
    assert rows[0] == [pytest.approx(row, abs=1e-10) for row in rows[1]] and len(rows[0]) == 4


@pytest.mark.parametrize("name", hooks(LitTransformerLM))
def test_a_hook_that_leaves_out_that_of_tinylm_is_refused(name, make):
    def hook(self, *arguments):
        return None

    with pytest.raises(ConfigError, match=rf"Mine\.{name}: tinylm has work to do there; call super\(\)\.{name}\("):
        make(type("Mine", (LitTransformerLM,), {name: hook}))
    with pytest.raises(ConfigError, match=rf"Below\.{name}: "):  # a subclass of one that calls it
        make(type("Below", (type("Above", (Tuned,), {}),), {name: hook}))
