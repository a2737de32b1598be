# ruff: noqa: E501 (messages in tables are whole)
"""Runs that begin with another run's model: whole, by LoRA, with frozen layers, with more tokens."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml

import tinylm
from tests import processes
from tests.training.conftest import TINY
from tinylm.adapt import grow_vocabulary, load_adapter, lora_layers, merge_lora, quantize
from tinylm.bundle import read_checkpoint, save_bundle
from tinylm.model import RopeScaling
from tinylm.tokenizer import load_tokenizer

SECOND = Path("second.yaml")  # in the folder in which `cli` works


@pytest.fixture
def second(finished_run, corpus, tmp_path) -> Path:
    """A config that finetunes the finished run's model on the same text."""
    config = yaml.safe_load(TINY.replace("CORPUS", str(corpus)).replace("CACHE", str(corpus.parent / "cache")))
    del config["model"]["network"], config["data"]["tokenizer"]
    config["model"] |= {"init_from": str(finished_run), "optimizer": {"lr": 0.01}}
    config["trainer"]["max_steps"] = 6
    (tmp_path / SECOND).write_text(yaml.safe_dump(config))
    return SECOND


def losses(folder: Path, name: str) -> list[str]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file) if row.get(name)]


def test_a_run_begins_where_the_other_ended(second, finished_run, cli):
    """The learning rate is too small to change the float32 loss, so the base model is validated."""
    result = cli("fit", "-c", second, "--model.optimizer.lr", "1e-12", "--model.schedule.min_lr", "0")
    assert result.code == 0
    assert f"base model: {finished_run / 'model'}" in result.err
    assert float(losses(Path("runs/second"), "val/loss")[0]) == pytest.approx(
        float(losses(finished_run, "val/loss")[-1]), rel=1e-6
    )
    config = tinylm.load(finished_run)[0].config  # dropout is the run's own choice
    assert tinylm.load("runs/second")[0].config == dataclasses.replace(config, dropout=0.0)


def test_a_lora_run_leaves_its_base_alone_and_an_adapter(second, finished_run, cli):
    result = cli("fit", "-c", second, "--model.lora.rank", "2", "--model.lora.targets", '["attention"]')
    assert result.code == 0, result.err
    # blocks, rank, and of query and output 32+32, of key and value 32+16
    assert f"trainable: {2 * 2 * (2 * 64 + 2 * 48):,} of" in result.err
    base, (model, _) = tinylm.load(finished_run)[0], tinylm.load("runs/second")
    weights = read_checkpoint("runs/second/checkpoints/last.ckpt")["state_dict"]
    for name, weight in base.named_parameters():
        assert torch.equal(weights[f"net.{name}"], weight), name
    assert {type(module).__name__ for module in model.modules()} == {type(module).__name__ for module in base.modules()}
    load_adapter("runs/second/adapter", base)
    assert len(lora_layers(base)) == 8
    assert any(layer.lora_b["default"].any() for layer in lora_layers(base).values())
    merge_lora(base)
    ids = torch.arange(20).remainder(9)[None]
    torch.testing.assert_close(base(ids), model(ids), rtol=0, atol=1e-6)


def test_a_resumed_lora_run_equals_one_that_was_never_stopped(second, cli):
    lora = ("--model.lora.rank", "2", "--model.lora.dropout", "0.2")
    lora += ("--model.schedule.warmup_steps", "0", "--model.schedule.min_lr", "0.01")  # the same rate however long
    assert cli("fit", "-c", second, *lora).code == 0
    assert cli("fit", "-c", second, *lora, "--run.name", "cut", "--trainer.max_steps", "3").code == 0
    assert cli("fit", "-c", second, *lora, "--run.name", "cut", "--resume", "--trainer.max_steps", "6").code == 0
    whole, cut = losses(Path("runs/second"), "train/loss"), losses(Path("runs/cut"), "train/loss")
    assert len(cut) == 6
    assert whole == cut


@pytest.mark.slow
def test_a_sharded_lora_run_leaves_the_adapter_of_one_that_was_not(second, finished_run, cli, tmp_path):
    """Two devices of one machine; the other process is Lightning's."""
    words = ["fit", "-c", str(second), "--model.optimizer.name", "adamw", "--model.lora.rank", "2"]
    assert cli(*words, "--run.name", "alone").code == 0
    words += ["-c", "overlays/fsdp.yaml", "--run.name", "sharded", "--trainer.accelerator", "cpu"]
    _, err = (run := processes.tinylm(tmp_path, *words, "--trainer.devices", "2")).communicate()
    assert run.returncode == 0 and "2 x CPU" in err, err
    base, other = tinylm.load(finished_run)[0], tinylm.load(finished_run)[0]
    load_adapter("runs/sharded/adapter", base)
    load_adapter("runs/alone/adapter", other)
    torch.testing.assert_close(base.state_dict(), other.state_dict(), atol=1e-4, rtol=0)


def test_frozen_weights_come_out_as_they_went_in(second, finished_run, cli):
    result = cli("fit", "-c", second, "--model.freeze.all_but_last", "1")
    assert result.code == 0, result.err
    before, after = tinylm.load(finished_run)[0].state_dict(), tinylm.load("runs/second")[0].state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("blocks.1.", "final_norm."))}


def test_a_larger_tokenizer_grows_the_vocabulary(second, finished_run, cli):
    old = load_tokenizer(finished_run / "model")
    new = old.with_special_tokens(["<|user|>", "<|assistant|>"])
    new.save("new.json")
    result = cli("fit", "-c", second, "--data.tokenizer", "new.json", "--trainer.max_steps", "4")
    assert result.code == 0, result.err
    model, tokenizer = tinylm.load("runs/second")
    assert tokenizer == new
    assert model.config.vocab_size == old.vocab_size + 2 == len(model.embedding.weight)


PAIRS = ("--data.split", "[0.8, 0.2]", "--data.pairs", "pairs.jsonl")


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Forty prompts and responses of the corpus's characters, of unequal length."""
    records = [{"prompt": f"fox {n}. ", "response": f"fox {n}" + " over" * (n % 3)} for n in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_pairs_are_learned_and_roles_grow_the_vocabulary(second, finished_run, pairs, cli):
    """The corpus has no separator: <|endoftext|> is as new as the roles."""
    result = cli("fit", "-c", second, *PAIRS, "--data.template", "chat")
    assert result.code == 0, result.err
    old, (model, tokenizer) = load_tokenizer(finished_run / "model"), tinylm.load("runs/second")
    roles = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>"]
    assert list(tokenizer.special_tokens) == [*old.special_tokens, *roles]
    assert model.config.vocab_size == old.vocab_size + 4
    first, *_, last = map(float, losses(Path("runs/second"), "train/loss"))
    assert last < first


def test_the_preset_holds_out_a_tenth_of_ones_own_pairs(finished_run, pairs, cli):
    steps = ("--trainer.max_steps", "1", "--trainer.val_check_interval", "1", "--model.schedule.warmup_steps", "0")
    command = ("fit", "-c", "finetune", "--model.init_from", finished_run, "--run.sample_tokens", "0", *steps)
    result = cli(*command, "--data.pairs", "pairs.jsonl")
    assert result.code == 0, result.err
    assert yaml.safe_load(Path("runs/finetune/config.yaml").read_text())["data"]["pairs_val"] is None
    result = cli(*command)
    assert result.code == 66 and result.error.startswith(
        "data.pairs: questions/train.jsonl: no such file; to write it: "
    )


def test_the_loss_of_a_step_is_that_of_its_responses_alone(second, finished_run, pairs, cli):
    """The whole file in one batch: the first loss is the mean over all response tokens of the model one begins with."""
    result = cli(
        "fit", "-c", second, *PAIRS, "--data.split", "[0.999, 0.001]", "--data.pairs_val", "pairs.jsonl",
        "--data.batch_size", "40", "--data.micro_batch_size", "10", "--trainer.max_steps", "1",
        "--model.network.dropout", "0.0", "--trainer.val_check_interval", "1",
    )  # fmt: skip
    assert result.code == 0, result.err
    model, tokenizer = tinylm.load(finished_run)
    model = grow_vocabulary(model, tokenizer.vocab_size + 1)
    end = tokenizer.vocab_size
    nats, count = 0.0, 0
    for line in pairs.read_text().splitlines():
        record = json.loads(line)
        prompt, response = tokenizer.encode(record["prompt"]), [*tokenizer.encode(record["response"]), end]
        ids = torch.tensor([end, *prompt, *response])
        log_probs = model(ids[None, :-1])[0].log_softmax(dim=-1)[len(prompt) :]
        nats -= log_probs.gather(1, ids[len(prompt) + 1 :, None]).sum().item()
        count += len(response)
    assert float(losses(Path("runs/second"), "train/loss")[0]) == pytest.approx(nats / count, rel=1e-5)


def test_a_quantized_model_is_no_start(second, finished_run, cli, tmp_path):
    model, tokenizer = tinylm.load(finished_run)
    save_bundle(tmp_path / "eight", quantize(model, bits=8), tokenizer)
    result = cli("fit", "-c", second, "--model.init_from", "eight")
    assert result.error == "model.init_from: eight is quantized and not trainable; use the original"


def test_packing_needs_documents_kept_apart(second, pairs, cli):
    result = cli("fit", "-c", second, *PAIRS, "--data.packing", "true")
    assert result.error == "data.packing: needs model.network.document_mask to keep pairs apart"
    assert result.code == 2
    result = cli("fit", "-c", second, *PAIRS, "--data.packing", "true", "--model.network.document_mask", "true")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model.network.d_model", "64"], 2, "model.network.d_model: {run}/model has 32, got 64; leave it out"),
        (["--data.tokenizer", "byte"], 2, "data.tokenizer: {run}/model was trained with another tokenizer; leave data"),
        (["--model.init_from", "nowhere"], 66, "nowhere: no such model"),
        (["--model.lora.targets", '["attn"]'], 2, "lora.targets: no linear layer is named attn, did you mean 'attention'?"),
        (["--model.lora.rank", "2", "--model.freeze.all_but_last", "1"], 2, "model.lora: freezes all weights but the adapters"),
        (["--model.freeze.layers", "[5]"], 2, "freeze.layers: the model has blocks 0 to 1, got 5"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(arguments, code, message, second, finished_run, cli):
    result = cli("fit", "-c", second, *arguments)
    assert result.error.startswith(message.format(run=finished_run))
    assert result.code == code
    assert not Path("runs/second").exists()


AXES = """
model:
  network:
    num_heads: 3
    num_kv_heads: null
    d_head: 8
    residual: sequential
    norm_placement: output
    qk_norm_width: all
    qkv_bias: true
    head_bias: true
    rope_scaling: {kind: yarn, factor: 2, original_max_seq_len: 16}
    rotary_fraction: 0.5
    tie_embeddings: false
    sliding_window: 9
    layer_pattern: SN
    attention_scale: 0.5
    mup_base_width: 4
"""


def test_a_network_with_every_axis_trains_resumes_and_is_a_base(tiny_yaml, second, cli):
    Path("axes.yaml").write_text(AXES)
    words = ("fit", "-c", tiny_yaml, "-c", "axes.yaml", "--run.name", "axes")
    result = cli(*words, "--trainer.max_steps", "4", "--model.schedule.warmup_steps", "0")
    assert result.code == 0, result.err
    result = cli(*words, "--resume", "--trainer.max_steps", "8", "--model.schedule.warmup_steps", "0")
    assert result.code == 0, result.err
    config = tinylm.load("runs/axes")[0].config
    assert config.rope_scaling == RopeScaling(kind="yarn", factor=2.0, original_max_seq_len=16)
    assert (config.d_head, config.layer_pattern, config.head_bias) == (8, "SN", True)
    first, *_, last = map(float, losses(Path("runs/axes"), "train/loss"))
    assert last < first
    result = cli(*words, "--resume", "--model.network.attention_scale", "0.25")
    assert result.error.startswith("attention_scale: checkpoint 0.5, config 0.25")
    lora = ("--model.lora.rank", "2", "--model.lora.targets", '["attention", "head"]')
    for more in ((), lora):
        result = cli("fit", "-c", second, "--model.init_from", "runs/axes", "--run.name", f"next{len(more)}", *more)
        assert result.code == 0, result.err
        assert dataclasses.replace(tinylm.load(f"runs/next{len(more)}")[0].config, dropout=config.dropout) == config
    result = cli(
        "fit", "-c", second, "--model.init_from", "runs/axes", "--model.network.rope_scaling.kind", "linear",
        "--model.network.rope_scaling.factor", "2",
    )  # fmt: skip
    assert result.code == 2 and result.error.startswith("model.network.rope_scaling: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["rope_scaling.kind=ntk", "rope_scaling.factor=2"],
            "model.network.rope_scaling.kind must be one of linear, llama3, yarn, got ntk",
        ),
        (
            ["rope_scaling.kind=linear", "rope_scaling.factr=2"],
            "model.network.rope_scaling.factr: no such option, did you mean 'factor'?",
        ),
        (["rope_scaling.kind=linear"], "model.network.rope_scaling: lacks factor; give it"),
        (["rope_scaling=linear"], "model.network.rope_scaling must be options or null, got linear"),
        (["layer_pattern=LS"], "layer_pattern 'LS' has an S; set sliding_window"),
        (
            ["residual=paralel"],
            "model.network.residual must be one of sequential, parallel, parallel_one_norm, got paralel",
        ),
    ],
)
def test_an_invalid_axis_is_refused_in_one_line(words, message, tiny_yaml, cli):
    result = cli("fit", "-c", tiny_yaml, *(f"--model.network.{word}" for word in words))
    assert (result.code, result.error) == (2, message)
