import math

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from torchmetrics.text import Perplexity

from tinylm.adapt import LoRAConfig
from tinylm.data import IGNORE, Batch, TextDataModule
from tinylm.errors import ConfigError, NumericError
from tinylm.model import ModelConfig
from tinylm.model.attention import documents_apart
from tinylm.optim.optimizer import make_optimizer as make
from tinylm.training import LitTransformerLM, OptimizerConfig, ScheduleConfig
from tinylm.training import module as module_file


@pytest.fixture
def fit(corpus, tmp_path):
    """Trains a tiny model by a plain Trainer, as a Python user would, and gives it back."""

    def call(*, corpus=corpus, steps=5, network=None, data=None, optimizer=None, callbacks=(), options=None, **trainer):
        data = {"cache_dir": str(tmp_path / "cache"), "max_seq_len": 16, "batch_size": 8, **(data or {})}
        datamodule = TextDataModule(str(corpus), **data)
        torch.manual_seed(0)
        config = {"d_model": 16, "num_layers": 2, "num_heads": 2, "max_seq_len": 16, **(network or {})}
        module = LitTransformerLM(
            ModelConfig(**{"vocab_size": datamodule.vocab_size, **config}),
            optimizer or OptimizerConfig(lr=0.01),
            ScheduleConfig(warmup_steps=0),
            **(options or {}),
        )
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
        options |= {"enable_model_summary": False, "max_steps": steps, "num_sanity_val_steps": 0}
        trainer = pl.Trainer(**options | trainer, callbacks=list(callbacks), default_root_dir=tmp_path)
        trainer.fit(module, datamodule=datamodule)
        return module

    return call


def weights(module: LitTransformerLM) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.net.parameters()])


def test_accumulated_micro_batches_equal_one_batch(fit):
    """In float64, where the order of sums does not matter at the tolerance."""
    options = {"precision": "64-true", "gradient_clip_val": 1.0, "limit_val_batches": 0}
    whole = fit(**options)
    parts = fit(data={"micro_batch_size": 2}, **options)
    assert parts.trainer.accumulate_grad_batches == 4
    assert parts.trainer.global_step == whole.trainer.global_step == 5
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-12, rtol=0)
    torch.testing.assert_close(parts.train_loss, whole.train_loss, atol=1e-12, rtol=0)


def test_every_target_counts_the_same_padded_or_not(fit):
    """Two micro-batches with 7 and 1 targets: the gradient is that of the mean over all 8."""
    module = fit(steps=1, limit_val_batches=0, precision="64-true")
    ids = torch.randint(0, module.network.vocab_size, (2, 9))
    targets = ids[:, 1:].clone()
    targets[0, 7:] = IGNORE
    targets[1, 1:] = IGNORE
    module.trainer.accumulate_grad_batches = 2
    module.zero_grad()
    for row in (0, 1):
        loss = module.training_step(Batch(ids[row : row + 1, :-1], targets[row : row + 1], 8), row)
        (loss / 2).backward()  # Lightning divides by the number of micro-batches
    found = [parameter.grad.clone() for parameter in module.net.parameters()]
    module.zero_grad()
    F.cross_entropy(module.net(ids[:, :-1]).flatten(0, 1), targets.flatten(), ignore_index=IGNORE).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in module.net.parameters()], atol=1e-12, rtol=0)


def test_validation_is_exact_over_the_whole_split(fit):
    """Against a loop over windows, each token once, and against torchmetrics' perplexity."""
    module = fit(steps=4, val_check_interval=4, check_val_every_n_epoch=None, precision="64-true")
    found = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    tokens = torch.from_numpy(module.trainer.datamodule.tokens["val"].astype("int64"))
    nats, correct, oracle = 0.0, 0, Perplexity()
    module.net.eval()
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = tokens[start : start + 17]
            logits = module.net(window[None, :-1])
            nats += F.cross_entropy(logits[0], window[1:], reduction="sum").item()
            correct += (logits[0].argmax(-1) == window[1:]).sum().item()
            oracle.update(logits, window[None, 1:])
    count = len(tokens) - 1
    text_bytes = len(module.tokenizer.decode(tokens[1:]).encode())
    assert found["val/loss"] == pytest.approx(nats / count, rel=1e-6)
    assert found["val/perplexity"] == pytest.approx(oracle.compute().item(), rel=1e-5)
    assert found["val/bpb"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)
    assert found["val/accuracy"] == pytest.approx(correct / count, rel=1e-6)


def test_clipping_and_gradient_norm(fit):
    """The logged norm is the one before clipping; the optimizer receives the clipped gradient."""
    seen = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            seen.append(torch.cat([p.grad.flatten() for p in module.net.parameters()]).norm().item())

        def on_train_batch_end(self, trainer, module, *_):
            seen.append(module.grad_norm.item())

    fit(steps=2, callbacks=[Look()], gradient_clip_val=0.01, limit_val_batches=0)
    unclipped, logged = seen[::2], seen[1::2]  # the hook comes before clipping
    assert unclipped == pytest.approx(logged, rel=1e-5)
    assert min(logged) > 0.01
    norms = []

    class After(pl.Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad.flatten() for p in module.net.parameters() if p.grad is not None]
            if gradients:
                norms.append(torch.cat(gradients).norm().item())

    fit(steps=2, callbacks=[After()], gradient_clip_val=0.01, limit_val_batches=0)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)
    assert norms


@pytest.mark.parametrize(("name", "precision", "algorithm"), [
    ("adamw", "bf16-mixed", "norm"), ("adamw", "16-mixed", "value"), ("adam", "bf16-mixed", "value"),
    ("adam", "16-mixed", "norm"),
])  # fmt: skip
def test_the_fused_optimizer_has_the_steps_of_the_unfused_one_in_mixed_precision(
    fit, monkeypatch, name, precision, algorithm
):
    """Clipping, of which Lightning refuses that of fused optimizers, sees gradients without the loss's scale."""
    trained = {}
    for fused in (True, False):
        monkeypatch.setattr(module_file, "make_optimizer", lambda *args, fused, wanted=fused: make(*args, fused=wanted))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if precision == "16-mixed" else None
        options = {"plugins": [MixedPrecision(precision, "cpu", scaler)], "limit_val_batches": 0}
        options |= {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
        trained[fused] = fit(steps=4, optimizer=OptimizerConfig(name=name, lr=0.01), **options)
        assert bool(trained[fused].optimizers().param_groups[0]["fused"]) == fused
    torch.testing.assert_close(weights(trained[True]), weights(trained[False]), atol=2e-4, rtol=0)
    torch.testing.assert_close(trained[True].grad_norm, trained[False].grad_norm, atol=0, rtol=1e-2)
    assert trained[True].grad_norm < 10  # 1,024 times as large before it is unscaled


def test_the_loss_scaler_skips_an_infinite_gradient_with_the_fused_optimizer(fit):
    before, moved = [], []

    class Spoil(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            before.append(weights(pl_module))
            if len(before) == 2:
                pl_module.net.head.weight.grad[0, 0] = math.inf

        def on_train_batch_end(self, trainer, pl_module, *_):
            moved.append(not torch.equal(weights(pl_module), before[-1]))

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
    fit(steps=3, plugins=plugins, callbacks=[Spoil()], gradient_clip_val=1.0, limit_val_batches=0)
    assert moved[:3] == [True, False, True]
    assert scaler.get_scale() == 512  # halved once


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_and_infinity_stop_the_run_before_the_weights_move(fit, value, where):
    kept = []

    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 2:
                kept.append(weights(module).clone())
                module.poison = where == "loss"

        def on_after_backward(self, trainer, module):
            if trainer.global_step == 2 and where == "gradient":
                module.net.head.weight.grad[0, 0] = value

    original = LitTransformerLM.training_step

    def step(self, batch, batch_idx):
        loss = original(self, batch, batch_idx)
        if getattr(self, "poison", False):
            self._step_losses["loss"] = self._step_losses["loss"] * value
            return loss * value
        return loss

    LitTransformerLM.training_step = step
    try:
        with pytest.raises(NumericError, match=f"step 3: the .* is {value}") as caught:
            fit(callbacks=[Poison()], limit_val_batches=0)
    finally:
        LitTransformerLM.training_step = original
    assert caught.value.exit_code == 70
    assert len(kept) == 1


def test_weights_are_untouched_by_the_step_that_failed(fit):
    modules, kept = [], []

    class Poison(pl.Callback):
        def on_after_backward(self, trainer, module):
            modules[:] = [module]
            if trainer.global_step == 2:
                kept.append(weights(module).clone())
                module.net.head.weight.grad[0, 0] = math.nan

    with pytest.raises(NumericError, match="the gradient norm is nan"):
        fit(callbacks=[Poison()], limit_val_batches=0)
    assert torch.equal(weights(modules[0]), kept[0])


def test_dropout_depends_on_the_step_and_not_on_what_was_drawn_before(fit):
    class Draw(pl.Callback):
        def on_train_batch_start(self, *_):
            torch.rand(7)

    options = {"network": {"dropout": 0.3}, "limit_val_batches": 0}
    assert torch.equal(weights(fit(**options)), weights(fit(**options, callbacks=[Draw()])))


def test_documents_are_numbered_by_their_separators(fit, corpus):
    (corpus.parent / "second.txt").write_text(corpus.read_text())
    module = fit(steps=1, network={"document_mask": True}, limit_val_batches=0)
    assert documents_apart(module.network, torch.tensor([[1, 2]]), None) is None  # one document: no separator
    end = module.network.vocab_size
    module.tokenizer.special_tokens["<|endoftext|>"] = end
    ids = torch.tensor([[5, end, 6, 7, end, end, 8], [end, 1, 2, 3, 4, 5, 6]])
    expected = torch.tensor([[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]])
    assert torch.equal(documents_apart(module.network, ids, module.tokenizer.end_of_text), expected)


@pytest.mark.parametrize(
    ("data", "trainer", "message"),
    [
        ({"batch_size": 8, "micro_batch_size": 3}, {}, "divisible by data.micro_batch_size, got 8 and 3"),
        ({"micro_batch_size": 4}, {"accumulate_grad_batches": 3}, "accumulate_grad_batches follows from"),
        ({"train_tokens": 1}, {}, r"data\.train_tokens: train has 1 tokens, needs at least 2; raise it"),
        ({"split": (0.9999, 0.0001)}, {}, "val has . tokens, needs at least 2"),
    ],
)
def test_batches_that_cannot_be_are_refused(fit, data, trainer, message):
    with pytest.raises(ValueError, match=message):
        fit(data=data, **trainer)


def test_epochs_are_whole_passes(fit):
    module = fit(steps=-1, max_epochs=2, limit_val_batches=0)
    windows = (len(module.trainer.datamodule.tokens["train"]) - 16) // 16
    assert module.trainer.global_step == 2 * (windows // 8)


def test_min_lr_above_lr_is_refused():
    with pytest.raises(ConfigError, match=r"min_lr must not exceed lr, got min_lr=0\.1 and lr=0\.01"):
        LitTransformerLM(ModelConfig(vocab_size=5), OptimizerConfig(lr=0.01), ScheduleConfig(min_lr=0.1))


def test_another_vocabulary_than_the_tokenizers_is_refused(fit):
    with pytest.raises(ConfigError, match=r"vocab_size: tokenizer \d+, model 999"):
        fit(network={"vocab_size": 999})


# --- the floor

DICE = """
story:
  - <hero=name> and <friend=name> rolled <number>, said <hero>.
name: [al, bo, cy]
number: {one: 3, two: 1}
"""


def test_floor_and_excess_are_the_sums_over_documents_under_the_grammar(fit, tmp_path):
    """Against the grammar's meaning by hand: names 1/3 and 1/2, numbers 3/4 and 1/4; each text from its start."""
    (tmp_path / "dice.grammar.yaml").write_text(DICE)
    spec = f"{tmp_path / 'dice.grammar.yaml'}:400"
    options = {"steps": 3, "val_check_interval": 3, "check_val_every_n_epoch": None, "precision": "64-true"}
    module = fit(corpus=spec, network={"max_seq_len": 48}, data={"max_seq_len": 48, "split": (0.5, 0.5)}, **options)
    data = module.trainer.datamodule
    texts = ["".join(document) for document in data.corpus.documents("val")]
    best = -sum(math.log(1 / 3 * 1 / 2 * (3 / 4 if "one" in text else 1 / 4)) for text in texts)
    nats, count = 0.0, 0
    module.net.eval()
    with torch.no_grad():
        for text in texts:
            end = data.tokenizer.end_of_text
            ids = torch.tensor([end, *data.tokenizer.encode(text), end])
            nats += F.cross_entropy(module.net(ids[None, :-1])[0], ids[1:], reduction="sum").item()
            count += len(ids) - 1
    found = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    assert found["val/loss"] == pytest.approx(nats / count, rel=1e-6)
    assert found["val/floor"] == pytest.approx(best / count, rel=1e-6)
    assert found["val/excess"] == pytest.approx(nats / best - 1, rel=1e-5)
    assert data.floors["val"].nats_per_token == pytest.approx(best / count, rel=1e-12)
    num_bytes = sum(len(text.encode()) for text in texts)
    assert data.floors["val"].bits_per_byte == pytest.approx(best / math.log(2) / num_bytes, rel=1e-12)


def test_a_part_of_the_validation_is_compared_with_its_own_floor(fit, tmp_path):
    (tmp_path / "dice.grammar.yaml").write_text(DICE)
    options = {"steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    module = fit(
        corpus=f"{tmp_path / 'dice.grammar.yaml'}:400", network={"max_seq_len": 48},
        data={"max_seq_len": 48, "split": (0.5, 0.5), "batch_size": 4}, **options,
    )  # fmt: skip
    data = module.trainer.datamodule
    texts = ["".join(document) for document in data.corpus.documents("val")][:4]
    best = -sum(data.corpus.log_prob(text) for text in texts)
    found = float(module.trainer.callback_metrics["val/floor"])
    assert found == pytest.approx(best / sum(len(text) + 1 for text in texts), rel=1e-6)


def test_a_trained_model_comes_close_to_the_floor_and_not_below(fit, tmp_path):
    """Many dice, so that texts rarely repeat: the remaining excess is within the noise of the validation texts."""
    many = DICE.replace("<number>", "<die><die><die><die><die>") + 'die: ["1", "2", "3", "4", "5", "6"]\n'
    (tmp_path / "dice.grammar.yaml").write_text(many)
    module = fit(
        corpus=f"{tmp_path / 'dice.grammar.yaml'}:2000", steps=250,
        val_check_interval=250, check_val_every_n_epoch=None,
        network={"d_model": 32, "num_heads": 4, "max_seq_len": 48}, data={"max_seq_len": 48, "split": (0.7, 0.3)},
        optimizer=OptimizerConfig(name="muon", lr=0.01), gradient_clip_val=1.0,
    )  # fmt: skip
    found = {name: float(value) for name, value in module.trainer.callback_metrics.items()}
    floor = module.trainer.datamodule.floors["val"]
    assert -3 * floor.standard_error < found["val/loss"] - found["val/floor"] < 0.15 * found["val/floor"]


def test_files_have_no_floor(fit):
    module = fit(steps=1, val_check_interval=1, check_val_every_n_epoch=None)
    assert "val/floor" not in module.trainer.callback_metrics and "val/loss" in module.trainer.callback_metrics
    assert module.trainer.datamodule.floors == {}


# --- the loss by rows, and a padded vocabulary


def test_training_by_rows_of_logits_has_the_weights_of_all_rows(fit):
    """Accumulated, clipped, with a tied and biased head and recomputed blocks."""
    shared = {"network": {"tie_embeddings": True, "head_bias": True, "activation_checkpointing": True}}
    shared |= {
        "data": {"micro_batch_size": 4},
        "precision": "64-true",
        "gradient_clip_val": 1.0,
        "limit_val_batches": 0,
    }
    whole, parts = fit(**shared), fit(**shared, options={"loss_rows": 10})
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-12, rtol=0)


def test_training_by_rows_with_a_loss_scaler_has_the_losses_of_all_rows(fit):
    losses = {}
    for rows in (None, 10):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)]
        module = fit(options={"loss_rows": rows}, plugins=plugins, gradient_clip_val=1.0, limit_val_batches=0)
        losses[rows] = module.train_loss
    torch.testing.assert_close(losses[10], losses[None], atol=2e-3, rtol=0)


def test_adapters_train_by_rows_but_not_those_of_the_head(fit):
    found = []
    for rows in (None, 10):
        options = {"loss_rows": rows, "lora": LoRAConfig(rank=2)}
        found.append(weights(fit(options=options, precision="64-true", limit_val_batches=0)))
    torch.testing.assert_close(found[1], found[0], atol=1e-12, rtol=0)
    untied = ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=1, max_seq_len=8, tie_embeddings=False)
    with pytest.raises(ConfigError, match=r"model.loss_rows: needs a head that is a plain Linear; .* lora.targets"):
        LitTransformerLM(untied, loss_rows=4, lora=LoRAConfig(targets=("head",)))


def test_a_subclass_with_a_forward_of_its_own_has_no_rows():
    class Own(LitTransformerLM):
        def forward(self, ids, documents=None):
            return super().forward(ids, documents)

    network = ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=1, max_seq_len=8)
    with pytest.raises(ConfigError, match=r"model.loss_rows: Own has a forward of its own; leave it out"):
        Own(network, loss_rows=4)


@pytest.mark.parametrize("name", ["loss_rows", "vocab_multiple"])
def test_sizes_must_be_positive(name):
    network = ModelConfig(vocab_size=9, d_model=8, num_layers=1, num_heads=1, max_seq_len=8)
    with pytest.raises(ConfigError, match=f"model.{name} must be at least 1, got 0"):
        LitTransformerLM(network, **{name: 0})


def test_a_vocabulary_is_padded_to_a_multiple(fit):
    module = fit(options={"vocab_multiple": 64}, steps=2, limit_val_batches=0)
    tokens = module.tokenizer.vocab_size
    assert tokens < 64 and module.network.vocab_size == 64 == len(module.net.head.weight)
    assert fit(options={"vocab_multiple": tokens}, steps=1).network.vocab_size == tokens


def test_gpt2_has_50304_rows():
    network = ModelConfig(vocab_size=50257, d_model=8, num_layers=1, num_heads=1, max_seq_len=8)
    assert LitTransformerLM(network, vocab_multiple=64).network.vocab_size == 50304
