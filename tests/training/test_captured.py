import json
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint

from tests.training.graphs import Tape, TapedGraphs
from tinylm.adapt import FreezeConfig, LoRAConfig
from tinylm.data import TextDataModule
from tinylm.errors import NumericError
from tinylm.model import ModelConfig
from tinylm.optim import late
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer
from tinylm.training import GradientNorms, LitTransformerLM, OptimizerConfig, ScheduleConfig, captured
from tinylm.training.captured import MAX_GRAPHS, WARMUP, CapturedSteps
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.throughput import MetricsLog, Throughput


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
        datamodule = TextDataModule(str(corpus), **data) if "pairs" not in data else TextDataModule(**data)
        if "pairs" in data:
            datamodule.use_tokenizer(CharTokenizer("abq", [END_OF_TEXT]))
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
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        options |= {"enable_model_summary": False, "max_steps": steps, "num_sanity_val_steps": 0}
        options |= {"limit_val_batches": 0, "gradient_clip_val": 1.0}
        trainer = pl.Trainer(**options | trainer, callbacks=list(callbacks), default_root_dir=tmp_path)
        with monkeypatch.context() as patch:
            if not captured:
                patch.setattr("tinylm.training.module.late_check", lambda *_: None)
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
    assert one.step_lr == other.step_lr
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


NORMUON = OptimizerConfig(name="muon", lr=0.01, neuron_beta=0.9)
STEPS = [
    pytest.param("adamw", "32-true", {"steps": 200}, marks=pytest.mark.slow),
    pytest.param("muon", "64-true", {"steps": 200}, marks=pytest.mark.slow),
    ("muon", "bf16-mixed", {"data": {"micro_batch_size": 2}, "gradient_clip_val": 0.05}),
    pytest.param(
        "adamw", "64-true", {"data": {"micro_batch_size": 2}, "gradient_clip_val": 0.05}, marks=pytest.mark.slow
    ),
    ("adam", "bf16-mixed", {"gradient_clip_val": None, "steps": -1, "max_epochs": 2, "data": {"batch_size": 24}}),
    pytest.param(
        "muon",
        "32-true",
        {"gradient_clip_val": None, "steps": -1, "max_epochs": 2, "data": {"batch_size": 24}},
        marks=pytest.mark.slow,
    ),
    ("muon", "32-true", {"network": {"document_mask": True, "norm": "layernorm", "mup_base_width": 4}}),
    ("muon", "64-true", {"optimizer": NORMUON, "data": {"micro_batch_size": 2}}),
    ("adamw", "bf16-true", {"gradient_clip_algorithm": "value"}),
    ("muon", "32-true", {"module": {"lora": LoRAConfig(rank=2)}, "network": {"mup_base_width": 4}}),
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


class At(pl.Callback):
    """Calls a function after an optimizer step, as a user's callback may."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            self.function(trainer, module)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of resuming without the callbacks of the command line
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_resumed_in_the_middle_is_the_whole_run_bit_for_bit(fit, graphs, tmp_path, accumulate):
    """With dropout where there is one micro-batch; validations release the gradients."""
    options = {"optimizer": OptimizerConfig(name="muon", lr=0.01), "data": {"micro_batch_size": 6 // accumulate}}
    options |= {"network": {"dropout": 0.2 if accumulate == 1 else 0.0}, "limit_val_batches": 2}
    options |= {"val_check_interval": 4, "check_val_every_n_epoch": None}
    whole = fit(captured=False, **options)
    saves = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=7, save_top_k=-1)
    assert_same(fit(callbacks=[saves], enable_checkpointing=True, **options), whole)
    captures = graphs.captures
    resumed = fit(ckpt_path=tmp_path / "kept" / "step=7.ckpt", **options)
    assert graphs.captures == captures + 1
    assert resumed.trainer.global_step == whole.trainer.global_step == 20
    for ours, theirs in zip(state(resumed), state(whole), strict=True):
        assert torch.equal(ours, theirs)


def test_sequences_of_many_lengths_get_a_few_graphs_and_the_rest_runs_without(fit, graphs, tmp_path, capsys):
    """Padding differs from step to step, and with it the number of targets."""
    rows = [{"prompt": "q", "response": "ab" * (1 + n % 7)} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"pairs": str(tmp_path / "pairs.jsonl"), "pairs_val": str(tmp_path / "pairs.jsonl"), "batch_size": 2}
    options = {"data": data, "steps": 60, "optimizer": OptimizerConfig(name="muon", lr=0.01)}
    module = fit(**options)
    assert graphs.captures == MAX_GRAPHS
    assert graphs.replays > 20
    assert capsys.readouterr().err.count("without a CUDA graph: the batches have more than 4 shapes") == 1
    assert_same(module, fit(captured=False, **options))


def decay(trainer, module):
    for group in trainer.optimizers[0].param_groups:
        group["weight_decay"] *= 2


def move(trainer, module):
    for parameter in module.net.parameters():
        parameter.data = parameter.data.clone()


def freeze(trainer, module):
    module.net.embedding.weight.requires_grad = False


@pytest.mark.parametrize("change", [decay, move, freeze])
def test_a_change_of_settings_or_memory_gets_a_graph_of_its_own(fit, graphs, change):
    module = fit(callbacks=[At(8, change)])
    assert graphs.captures == 2
    assert_same(module, fit(captured=False, callbacks=[At(8, change)]))


def test_hooks_that_come_later_end_the_graphs(fit, graphs, capsys):
    calls = []

    def register(trainer, module):
        module.net.final_norm.register_forward_hook(lambda *_: calls.append(1))

    module = fit(callbacks=[At(8, register)])
    assert len(calls) == 12
    assert capsys.readouterr().err.count("without a CUDA graph: there are hooks on the network") == 1
    assert graphs.replays == 8 - WARMUP - 1
    assert_same(module, fit(captured=False, callbacks=[At(8, register)]))


def test_a_capture_that_fails_is_told_and_changes_nothing(fit, graphs, monkeypatch, capsys):
    def capture(function):
        with Tape():
            torch.ones(2)[0].item()

    monkeypatch.setattr(graphs, "capture", capture)
    module = fit()
    message = "training steps run without a CUDA graph: operation not permitted when stream is capturing"
    assert capsys.readouterr().err.count(message) == 1
    assert graphs.runs == 20
    assert_same(module, fit(captured=False))


def test_callbacks_see_losses_and_requests_to_stop_as_ever(fit, graphs):
    runs = []
    for captured_run in (True, False):
        seen = []

        class Look(pl.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx, seen=seen):
                seen.append((outputs["loss"], module.train_loss.item(), module.step_lr, module.stop_agreed))
                module.stop_wanted = (trainer.global_step >= 8, False)

        fit(captured=captured_run, callbacks=[Look()])
        runs.append(seen)
    assert runs[0] == runs[1]
    assert [seen[3][0] for seen in runs[0]] == [False] * 8 + [True] * 12


class Other(LitTransformerLM):
    def on_after_backward(self):
        pass


class Reader(pl.Callback):
    def on_after_backward(self, trainer, module):
        pass


class Curriculum(pl.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        pass


PARTS = {"data": {"micro_batch_size": 2}}
REASONS = {
    "scaler": ({}, "trainer.precision is 16-mixed"),
    "sgd": ({"optimizer": OptimizerConfig(name="sgd")}, "the optimizer is SGD, without a fused step"),
    "subclass": ({"kind": Other}, "Other has its own on_after_backward"),
    "callback": ({"callbacks": [Reader()]}, "Reader.on_after_backward runs within a step"),
    "ours": ({"callbacks": [GradientNorms()]}, "GradientNorms.on_before_optimizer_step runs within a step"),
    "lambda": (
        {"callbacks": [LambdaCallback(on_before_zero_grad=lambda *_: None)]},
        "LambdaCallback.on_before_zero_grad runs within a step",
    ),
    "between": ({"callbacks": [Curriculum()]}, "Curriculum.on_train_batch_start runs within a step"),
    "micro-batches": ({"callbacks": [At(1, print)], **PARTS}, "At.on_train_batch_end runs within a step"),
    "profiler": ({"profiler": "simple"}, "trainer.profiler measures within a step"),
    "anomalies": ({"detect_anomaly": True}, "trainer.detect_anomaly reads every result"),
    "dropout": ({"network": {"dropout": 0.1}, **PARTS}, "dropout differs between micro-batches"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REASONS)
def test_what_cannot_be_captured_says_why_in_one_line(fit, graphs, name, capsys, monkeypatch):
    options, reason = REASONS[name]
    if name == "scaler":  # which Lightning replaces on a CPU
        monkeypatch.setattr(pl.Trainer, "precision", property(lambda _: "16-mixed"))
    module = fit(**options, steps=2)
    assert capsys.readouterr().err.count(f"tinylm: training steps run without a CUDA graph: {reason}") == 1
    assert type(module.trainer.fit_loop.epoch_loop.automatic_optimization) is not CapturedSteps
    assert graphs.runs == graphs.captures == 0


def test_a_cpu_has_no_graphs_and_checks_every_step_at_once(fit):
    module = fit(steps=1)
    assert captured.make_graphs(torch.device("cpu")) is None
    assert module._late is None
    assert type(module.trainer.fit_loop.epoch_loop.automatic_optimization) is not CapturedSteps


# --- a step that is not finite


class Poison(torch.nn.Module):
    """Leaves its input as it is, but multiplies its loss or gradient by a number in memory."""

    def __init__(self, where):
        super().__init__()
        self.where, self.factor = where, torch.zeros(())

    def forward(self, x):
        return x + self.factor * (x if self.where == "loss" else x - x.detach())


class Dose(pl.Callback):
    """Poisons one step, and keeps the state before it."""

    def __init__(self, where, step, value):
        self.poison, self.step, self.value = Poison(where), step, value
        self.kept = []

    def on_train_start(self, trainer, module):
        self.module = module
        module.net.final_norm.append(self.poison)

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step - 1:
            self.kept = [each.clone() for each in state(module)[:-3]]
        self.poison.factor.fill_(self.value if trainer.global_step == self.step - 1 else 0.0)


@pytest.fixture
def poisoned(fit):
    def call(where, value, *, step=8, **options):
        dose = Dose(where, step, value)

        class Open(LitTransformerLM):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                self.net.final_norm = torch.nn.Sequential(self.net.final_norm)

        callbacks = [dose, *options.pop("callbacks", [])]
        with pytest.raises(NumericError) as caught:
            fit(kind=Open, callbacks=callbacks, **options)
        return dose, str(caught.value)

    return call


@pytest.mark.parametrize(("compiled", "name", "where"), [
    (True, "muon", "loss"), (True, "adamw", "gradient"), (False, "muon", "gradient"), (False, "adamw", "loss"),
])  # fmt: skip
def test_a_step_that_is_not_finite_is_told_a_step_late_and_leaves_weights_and_state(
    poisoned, fit, graphs, monkeypatch, compiled, name, where
):
    """The step after it would be finite, and must not move the weights either."""
    if not compiled:
        monkeypatch.setattr(captured, "make_graphs", lambda device: None)
    value, what = {"loss": (math.nan, "loss is nan"), "gradient": (1e30, "gradient norm is inf")}[where]
    optimizer = NORMUON if name == "muon" else OptimizerConfig(lr=0.01)
    dose, found = poisoned(where, value, captured=True, optimizer=optimizer)
    assert found.startswith(f"step 8: the {what}; the weights are unchanged by this step. Try a lower lr")
    assert dose.module.trainer.global_step == 9  # it was read after the next step had been launched
    assert len(dose.kept) > 20
    for ours, before in zip(state(dose.module)[:-3], dose.kept, strict=True):
        assert torch.equal(ours, before)
    assert graphs.replays == (9 - WARMUP - 1 if compiled else 0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_step_may_be_the_one_that_is_not_finite(poisoned, graphs, name):
    class First(pl.Callback):
        def on_train_start(self, trainer, module):
            self.before = [parameter.detach().clone() for parameter in module.net.parameters()]
            module.net.final_norm[1].factor.fill_(math.nan)

    first = First()
    dose, found = poisoned("loss", 0.0, step=99, callbacks=[first], optimizer=OptimizerConfig(name=name, lr=0.01))
    assert found.startswith("step 1: the loss is nan")
    for ours, before in zip(dose.module.net.parameters(), first.before, strict=True):
        assert torch.equal(ours, before)


def test_no_checkpoint_counts_a_step_that_was_not_finite(poisoned, graphs, tmp_path):
    saves = ModelCheckpoint(tmp_path / "kept", "{step}", every_n_train_steps=1, save_top_k=-1)
    _, found = poisoned("loss", math.inf, callbacks=[saves], enable_checkpointing=True)
    assert found.startswith("step 8: the loss is")
    assert sorted(path.stem for path in (tmp_path / "kept").iterdir()) == [f"step={step}" for step in range(1, 8)]


@pytest.mark.parametrize("options", [{"steps": 8}, {"limit_val_batches": 1, "val_check_interval": 8}])
def test_a_validation_and_the_end_of_a_run_wait_for_the_last_step(poisoned, graphs, options):
    dose, found = poisoned("loss", math.nan, check_val_every_n_epoch=None, **options)
    assert found.startswith("step 8: the loss is nan")
    assert dose.module.trainer.global_step == 8


def test_no_row_of_metrics_is_written_for_a_step_that_was_not_finite(poisoned, graphs, tmp_path):
    options = {"callbacks": [MetricsLog(Throughput(1e12))], "log_every_n_steps": 1, "logger": MetricsCSV(tmp_path)}
    poisoned("loss", math.nan, **options)
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", *map(str, range(1, 8))]


# --- a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("accumulate", "dropout"), [(1, 0.0), (3, 0.0), (1, 0.2)])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_on_a_gpu_a_captured_run_is_the_run_without_graphs(fit, monkeypatch, name, accumulate, dropout):
    """Bit for bit; and within rounding of the run by Lightning's own loop, whose learning rates are Python's."""
    options = {"optimizer": OptimizerConfig(name=name, lr=0.01), "network": {"dropout": dropout}, "steps": 60}
    options |= {"accelerator": "cuda", "devices": 1, "precision": "bf16-mixed"}
    options |= {"data": {"micro_batch_size": 6 // accumulate}}
    module = fit(**options)
    loop = module.trainer.fit_loop.epoch_loop.automatic_optimization
    assert isinstance(loop, CapturedSteps)
    assert len(loop._captured) == 1
    monkeypatch.setattr(captured, "WARMUP", 1000)
    assert_same(module, fit(**options))
    plain = fit(captured=False, **options)
    torch.testing.assert_close(module.train_loss, plain.train_loss, atol=2e-2, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_on_a_gpu_a_step_that_is_not_finite_leaves_weights_and_state(poisoned, name):
    options = {"accelerator": "cuda", "devices": 1, "optimizer": OptimizerConfig(name=name, lr=0.01)}
    dose, found = poisoned("loss", math.nan, **options)
    assert found.startswith("step 8: the loss is nan")
    for ours, before in zip(state(dose.module)[:-3], dose.kept, strict=True):
        assert torch.equal(ours, before)
