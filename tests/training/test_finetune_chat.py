"""A public model is finetuned with its own chat template, which stays with it all the way."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

import tinylm
from tests.data.test_chat_template import CHATML, SPECIAL, messages
from tests.training.test_finetune import losses
from tinylm.bundle import load_bundle
from tinylm.commands import run_command
from tinylm.data import Turn
from tinylm.data.grammar.stories import stories
from tinylm.interop import export_huggingface, load_huggingface
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import BPETokenizer, Chat

STEPS = ("--trainer.max_steps", "20", "--trainer.val_check_interval", "10", "--model.schedule.warmup_steps", "0")
CHATS = (*STEPS, "--data.template", "chat", "--data.batch_size", "4", "--trainer.accelerator", "cpu")


@pytest.fixture
def public(tmp_path) -> Path:
    """A folder as of a public model with a chat template, and a file of chats."""
    text = "".join(stories(seed=5, count=40))
    tokenizer = BPETokenizer.train_from_texts([text], vocab_size=400, special_tokens=SPECIAL)
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=400, d_model=32, num_layers=1, num_heads=2, max_seq_len=96)
    chat = Chat(CHATML, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, {})
    export_huggingface(TransformerLM(config).eval(), tokenizer.with_chat(chat), tmp_path / "public")
    names = ("Tom", "Lily", "Ben", "Mia", "Sue", "Max", "Anna", "Tim") * 5
    records = [
        {"messages": messages([Turn("user", f"Who is {name}?"), Turn("assistant", f"{name} is a cat.")])}
        for name in names
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, records)))
    return tmp_path / "public"


@pytest.mark.slow
def test_a_public_model_is_finetuned_with_its_own_template(public, cli, capfd, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers itself")
    start = (
        "fit",
        "-c",
        "finetune",
        "--model.init_from",
        "public",
        "--data.pairs",
        "chats.jsonl",
        "--run.name",
        "tuned",
    )
    assert cli(*start, *CHATS, "--trainer.max_steps", "10").code == 0
    result = cli(*start, *CHATS, "--resume")
    assert result.code == 0, result.err
    assert "--chat" in result.err.splitlines()[-1]  # the command to try it

    base, (model, tokenizer) = load_huggingface("public"), tinylm.load("runs/tuned")
    assert model.config.vocab_size == base[0].config.vocab_size  # no token of ours
    assert tokenizer.chat == base[1].chat
    assert tokenizer.special_tokens["<|im_end|>"] in tokenizer.marks.stops
    assert load_bundle("runs/tuned/checkpoints/last.ckpt").tokenizer == tokenizer
    first, *_, last = map(float, losses(Path("runs/tuned"), "train/loss"))
    assert last < first

    theirs = transformers.AutoTokenizer.from_pretrained(public)
    asked = theirs.apply_chat_template(messages([Turn("user", "Who is Tom?")]), add_generation_prompt=True)["input_ids"]
    for options, typed in ((["--prompt", "Who is Tom?"], ""), (["--interactive"], "Who is Tom?\n")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        capfd.readouterr()
        common = ["--model", "runs/tuned", "--chat", "--temperature", "0", "--max-new-tokens", "6"]
        assert run_command("generate", [*common, *options]) == 0
        ids = list(asked)
        for _ in range(6):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert capfd.readouterr().out.strip() == tokenizer.decode(ids[len(asked) :]).strip()

    assert run_command("score", ["--model", "runs/tuned", "--pairs", "chats.jsonl", "--template", "chat"]) == 0
    assert "40 pairs, " in capfd.readouterr().out
    assert run_command("export", ["--model", "runs/tuned", "--to", "hf", "--out", "out"]) == 0
    assert transformers.AutoTokenizer.from_pretrained("out").chat_template == CHATML


def test_a_record_that_the_template_refuses_is_named(public, cli):
    assert run_command("export", ["--model", "public", "--to", "tinylm", "--out", "base"]) == 0
    strict = CHATML.replace(
        "{%- if loop.first",
        "{%- if message.content == 'odd' %}{{ raise_exception('No!') }}{% endif %}{%- if loop.first",
    )
    model, tokenizer = tinylm.load("base")
    export_huggingface(model, tokenizer.with_chat(Chat(strict, {}, {})), "strict")
    assert run_command("export", ["--model", "strict", "--to", "tinylm", "--out", "base2"]) == 0
    with Path("chats.jsonl").open("a") as file:
        file.write('\n{"prompt": "odd", "response": "x"}\n')
    result = cli("fit", "-c", "finetune", "--model.init_from", "base2", "--data.pairs", "chats.jsonl", *CHATS)
    assert result.code == 65
    assert result.error == "chats.jsonl: record 41: the model's chat template refuses this conversation: No!"
