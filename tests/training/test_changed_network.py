"""Training a network that its config does not describe: samples, speed, checkpoints and the end of a run."""

import lightning.pytorch as pl
import pytest
import torch

from tests.changes import gate, subclass
from tinylm.bundle import load, read_checkpoint
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError, DataError
from tinylm.model import ModelConfig, flops_per_token
from tinylm.optim.optimizer import OptimizerConfig
from tinylm.optim.schedule import ScheduleConfig
from tinylm.training import LastCheckpoint, LitTransformerLM
from tinylm.training.finish import FinishRun
from tinylm.training.samples import SampleText
from tinylm.training.throughput import training_flops


class Plainly(pl.Callback):
    """Samples of the network by the uncached loop, to compare with those of `SampleText`."""

    def __init__(self, prompt: str, count: int) -> None:
        self.prompt, self.count, self.said = prompt, count, []

    def on_validation_end(self, trainer, pl_module):
        ids = pl_module.tokenizer.encode(self.prompt)
        with torch.no_grad():
            for _ in range(self.count):
                ids.append(int(pl_module.net(torch.tensor([ids]))[0, -1].argmax()))
        self.said.append(pl_module.tokenizer.decode(ids))


@pytest.fixture
def run(corpus, tmp_path):
    def call(change, *callbacks, steps=4, **options):
        data = TextDataModule(str(corpus), cache_dir=str(tmp_path / "cache"), max_seq_len=32, batch_size=8)
        torch.manual_seed(0)
        shape = dict(d_model=16, num_layers=2, num_heads=2, max_seq_len=32, vocab_size=data.vocab_size)
        module = LitTransformerLM(ModelConfig(**shape), OptimizerConfig(lr=0.03), ScheduleConfig(warmup_steps=0))
        if change is not None:
            change(module.net)
        saves = any(isinstance(each, LastCheckpoint) for each in callbacks)
        quiet = dict(
            enable_checkpointing=saves, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0
        )
        trainer = pl.Trainer(
            logger=False, accelerator="cpu", max_steps=steps, val_check_interval=2, check_val_every_n_epoch=None,
            limit_val_batches=1, callbacks=list(callbacks), default_root_dir=tmp_path, **quiet,
        )  # fmt: skip
        trainer.fit(module, datamodule=data, **options)
        return module

    return call


@pytest.mark.parametrize("change", [gate, subclass])
def test_samples_are_what_the_changed_network_says(run, tmp_path, change, capfd):
    plainly = Plainly("the ", 12)
    run(change, plainly, SampleText(tmp_path, ("the ",), 12, temperature=0.0))
    samples = (tmp_path / "samples.txt").read_text().split("=== step ")[1:]
    assert [sample.partition("\n")[2].removesuffix("\n\n") for sample in samples] == plainly.said
    assert len(plainly.said) == 2
    assert capfd.readouterr().err.count("decoding without a cache") == 1  # at the first sample, not at each


def test_a_gate_counts_in_the_speed(run):
    """Six operations for each of its numbers, as for all that are multiplied."""
    module = run(gate, steps=1)
    assert training_flops(module) == flops_per_token(module.network) + 6 * 2 * (16 * 16 + 16)


def checkpoints(tmp_path) -> LastCheckpoint:
    callback = LastCheckpoint(2)
    callback.dirpath = str(tmp_path / "checkpoints")
    return callback


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_a_checkpoint_says_what_its_config_does_not_describe(run, tmp_path, capfd):
    """`load` refuses it; the run itself ends normally, and can be resumed with the same network."""
    reason = "blocks.0.feedforward is a SignedSwiGLU, not a SwiGLU"
    finish = FinishRun(tmp_path, "the ")
    module = run(subclass, checkpoints(tmp_path), finish)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert read_checkpoint(path)["tinylm"]["changed"] == reason
    with pytest.raises(DataError, match=r"its model is not standard \(blocks\.0\.feedforward is"):
        load(path)
    said = capfd.readouterr().err
    assert f"no model folder is written, since it could not describe this model: {reason}" in said
    assert "to try it" not in said
    assert not (tmp_path / "model").exists()
    again = run(subclass, checkpoints(tmp_path), ckpt_path=path, weights_only=True)
    for name, weight in again.net.state_dict().items():
        assert torch.equal(weight, module.net.state_dict()[name])
    with pytest.raises(ConfigError, match=r"modified parts of the network: checkpoint blocks\.0\..*; this network non"):
        run(None, checkpoints(tmp_path), ckpt_path=path, weights_only=True)


def test_a_hook_is_no_part_of_a_checkpoint_and_the_end_says_so(run, tmp_path, capfd):
    def watch(net):
        net.blocks[0].register_forward_hook(lambda module, inputs, output: None)

    module = run(watch, checkpoints(tmp_path), FinishRun(tmp_path, "the "))
    assert "warning: blocks.0 has a forward hook, which the saved model does not have" in capfd.readouterr().err
    loaded, _ = load(tmp_path / "checkpoints" / "last.ckpt")
    ids = torch.arange(8)[None]
    with torch.no_grad():  # with gradients the trained module uses its tuned norm
        assert torch.equal(loaded(ids), module.net.eval()(ids))
