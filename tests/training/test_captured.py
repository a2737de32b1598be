import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback

from tests.training.graphs import Tape, TapedGraphs
from tinylm.adapt import FreezeConfig, LoRAConfig
from tinylm.data import TextDataModule
from tinylm.errors import NumericError
from tinylm.model import ModelConfig
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig, captured, late
from tinylm.training.captured import WARMUP, CapturedSteps


@pytest.fixture
def graphs(monkeypatch):
    """Lets runs on the CPU capture their steps on tapes, and check them late."""
    made = TapedGraphs()
    monkeypatch.setattr(captured, "make_graphs", lambda device: made)
    monkeypatch.setattr(captured, "RATE", torch.float64)  # the plain run's rates are Python's
    monkeypatch.setattr(
        late, "late_check", lambda *args: late.LateCheck(*args) if late.reads_found_inf(args[0]) else None
    )
    monkeypatch.setattr("tinylm.training.module.late_check", late.late_check)
    return made


@pytest.fixture
def fit(corpus, tmp_path, monkeypatch):
    """Trains a tiny model; `captured` as a compiled one is, without a compiler."""

    def call(*, captured=True, steps=20, network=None, data=None, optimizer=None, callbacks=(), kind=LitTransformerLM,
             module=None, ckpt_path=None, **trainer):  # fmt: skip
        data = {"cache_dir": str(tmp_path / "cache"), "max_seq_len": 16, "batch_size": 6, **(data or {})}
        datamodule = TextDataModule(str(corpus), **data)
        torch.manual_seed(0)
        config = {"d_model": 16, "num_layers": 2, "num_heads": 2, "max_seq_len": 16, **(network or {})}
        lit = kind(
            ModelConfig(**{"vocab_size": datamodule.vocab_size, **config}),
            optimizer or OptimizerConfig(lr=0.01),
            ScheduleConfig(warmup_steps=5),
            **(module or {}),
        )
        if captured:
            lit._compiled = lit.net.forward
        else:
            monkeypatch.setattr("tinylm.training.module.late_check", lambda *_: None)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        options |= {"enable_model_summary": False, "max_steps": steps, "num_sanity_val_steps": 0}
        options |= {"limit_val_batches": 0, "gradient_clip_val": 1.0}
        trainer = pl.Trainer(**options | trainer, callbacks=list(callbacks), default_root_dir=tmp_path)
        trainer.fit(lit, datamodule=datamodule, ckpt_path=ckpt_path)
        return lit

    return call


def state(module: LitTransformerLM) -> list[torch.Tensor]:
    """Weights, optimizer state, and the loss and norm of the last step."""
    optimizer = module.trainer.optimizers[0].state_dict()
    found = [parameter.detach() for parameter in module.net.parameters()]
    found += [each for one in optimizer["state"].values() for each in one.values() if torch.is_tensor(each)]
    return [*found, module.train_loss, module.grad_norm, torch.tensor([g["lr"] for g in optimizer["param_groups"]])]


def assert_same(one: LitTransformerLM, other: LitTransformerLM) -> None:
    for ours, theirs in zip(state(one), state(other), strict=True):
        assert torch.equal(ours, theirs)
    assert one.lr == other.lr
    assert one.trainer.fit_loop.state_dict() == other.trainer.fit_loop.state_dict()


def test_the_tape_fixes_numbers_and_memory_as_a_graph_does():
    """x <- 2x + s: the tensor s is read at each replay, the number 2 was fixed, and the result keeps its place."""
    x, s, number = torch.ones(2), torch.zeros(2), [2.0]
    with Tape() as tape:
        result = x.mul(number[0]).add_(s)
        x.copy_(result)
    s.fill_(1.0)
    number[0] = 100.0
    tape.replay()
    assert x.tolist() == result.tolist() == [5.0, 5.0]
    with pytest.raises(RuntimeError, match="not permitted"), Tape():
        x[0].item()


STEPS = [
    ("adamw", "32-true", {"steps": 200}),
    ("muon", "64-true", {"steps": 200}),
    ("muon", "bf16-mixed", {"data": {"micro_batch_size": 2}, "gradient_clip_val": 0.05}),
    ("adamw", "64-true", {"data": {"micro_batch_size": 2}, "gradient_clip_val": 0.05}),
    ("adam", "bf16-mixed", {"gradient_clip_val": None, "steps": -1, "max_epochs": 2, "data": {"batch_size": 24}}),
    ("muon", "32-true", {"gradient_clip_val": None, "steps": -1, "max_epochs": 2, "data": {"batch_size": 24}}),
    ("muon", "32-true", {"network": {"document_mask": True, "tie_embeddings": True, "norm": "layernorm"}}),
    ("adamw", "bf16-true", {"gradient_clip_algorithm": "value"}),
    ("muon", "32-true", {"module": {"lora": LoRAConfig(rank=2)}}),
    ("adamw", "bf16-mixed", {"module": {"freeze": FreezeConfig(layers=(0,))}}),
]


@pytest.mark.parametrize(("name", "precision", "options"), STEPS)
def test_a_captured_run_is_the_run_without_graphs_bit_for_bit(fit, graphs, name, precision, options):
    options = {"optimizer": OptimizerConfig(name=name, lr=0.01), "precision": precision, **options}
    module = fit(**options)
    total = module.trainer.global_step
    first = WARMUP + 1  # the first step makes the optimizer state
    assert (graphs.runs, graphs.captures, graphs.replays) == (first, 1, total - first)
    assert_same(module, fit(captured=False, **options))
