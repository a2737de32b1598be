# ruff: noqa: E501 (records and messages in tables are whole)
"""DPO: the loss of trl, and preferences through the pipeline of pairs."""

import csv
import json
import math
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests import processes
from tests.training import ranks
from tests.training.test_finetune import second  # noqa: F401 (a fixture)
from tinylm.bundle import read_checkpoint
from tinylm.data import CHAT, IGNORE, PAIRS, TextDataModule
from tinylm.data.preferences import encode_preferences, read_preferences
from tinylm.errors import ConfigError, DataError
from tinylm.interop import export_huggingface
from tinylm.model import ModelConfig, preset
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, Tokenizer
from tinylm.training import DPO, LitTransformerLM
from tinylm.training.preferences import joined

TOKENIZER = CharTokenizer("abcdef", [END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>"])
TEXTS = {"prompt": "ab", "chosen": "cd", "rejected": "cef"}


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


FORMS = [
    TEXTS,
    {"prompt": [message("user", "ab")], "chosen": [message("assistant", "cd")], "rejected": [message("assistant", "cef")]},
    {"chosen": [message("user", "ab"), message("assistant", "cd")], "rejected": [message("user", "ab"), message("assistant", "cef")]},
    {"prompt": "ab", "chosen": [message("user", "ab"), message("assistant", "cd")], "rejected": [message("user", "ab"), message("assistant", "cef")]},
    {"prompt": [message("user", "ab")], "chosen": "cd", "rejected": "cef"},
]  # fmt: skip


def write(path: Path, records: list) -> str:
    path.write_text("\n".join(map(json.dumps, records)))
    return str(path)


@pytest.mark.parametrize("template", [PAIRS, CHAT], ids=lambda template: template.name)
def test_every_form_of_trl_gives_the_same_tokens_of_which_the_responses_count(tmp_path, template):
    preferences = read_preferences(write(tmp_path / "p.jsonl", FORMS))
    encoded = encode_preferences(TOKENIZER, preferences, template, 12)
    for each in encoded:
        for ids, counts, response in ((*each, "cd"), (*each.rejected, "cef")):
            assert TOKENIZER.decode(ids[counts]) == response + END_OF_TEXT
            assert (
                TOKENIZER.decode(ids[~counts]).replace("<|user|>", "").replace("<|assistant|>", "")
                == f"{END_OF_TEXT}ab"
            )
            assert ids.tolist() == (encoded[0].ids if response == "cd" else encoded[0].rejected.ids).tolist()


def test_only_the_turns_in_which_two_conversations_differ_count(tmp_path):
    turns = [message("user", "a"), message("assistant", "b"), message("user", "c")]
    record = {"prompt": turns, "chosen": [message("assistant", "d")], "rejected": [message("assistant", "e")]}
    [preference] = read_preferences(write(tmp_path / "p.jsonl", [record]))
    [example] = encode_preferences(TOKENIZER, [preference], CHAT, 16)
    assert [turn.content for turn in preference.prompt] == ["a", "b", "c"]
    assert TOKENIZER.decode(example.ids[example.counts]) == f"d{END_OF_TEXT}"


MALFORMED = {
    "no rejected": ({"prompt": "a", "chosen": "b"}, "has no rejected; every record of preferences has"),
    "equal": ({"prompt": "a", "chosen": "b", "rejected": "b"}, "has the same response as chosen and as rejected"),
    "no prompt": ({"chosen": "b", "rejected": "c"}, "prompt must be a text or a list of messages, got null"),
    "other prompts": (
        {"chosen": [message("user", "a"), message("assistant", "b")], "rejected": [message("user", "c"), message("assistant", "d")]},
        "has different prompts before chosen and rejected"),
    "another prompt": (
        {**FORMS[2], "prompt": "ef"}, "chosen has turns before the response, and prompt is not one of them"),
    "a number": ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen must be a text or a list of messages, got 3"),
    "empty": ({"prompt": "a", "chosen": " ", "rejected": "b"}, "has an empty response"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_preference_is_named_by_its_line(case, tmp_path):
    record, problem = MALFORMED[case]
    with pytest.raises(DataError, match=rf"p\.jsonl: .*2: .*{problem}"):
        read_preferences(write(tmp_path / "p.jsonl", [TEXTS, record]))


def test_a_preference_that_is_too_long_is_dropped_whole_and_never_cut(tmp_path):
    preferences = read_preferences(write(tmp_path / "p.jsonl", [TEXTS, {**TEXTS, "rejected": "cdefabcdef"}]))
    assert len(encode_preferences(TOKENIZER, preferences, PAIRS, 8, "drop")) == 1
    with pytest.raises(DataError, match="1 of 2 records have more than the 8 tokens"):
        encode_preferences(TOKENIZER, preferences, PAIRS, 8)
    with pytest.raises(ConfigError, match="truncate would cut the same prompt at two places"):
        encode_preferences(TOKENIZER, preferences, PAIRS, 8, "truncate")


# --- the loss


LETTERS = [
    {"prompt": p + q, "chosen": chosen, "rejected": rejected}
    for p in "abc" for q in "def" for chosen, rejected in pairwise(["cd", "cef", "f", "abc", "ddd", "eb"])
]  # fmt: skip
SENTENCES = [
    {"prompt": "the cat", "chosen": " sat on", "rejected": " ran"},
    {"prompt": "the dog", "chosen": " ran to the cat", "rejected": " sat"},
    {"prompt": "the mat and", "chosen": " ran", "rejected": " the dog sat on the mat"},
    {"prompt": "a dog", "chosen": " and a cat", "rejected": " or a mat"},
]


def preference_data(tmp_path: Path, tokenizer: Tokenizer, records: list, **options) -> TextDataModule:
    options = dict(max_seq_len=64, batch_size=4, split=(0.8, 0.2), cache_dir=str(tmp_path)) | options
    data = TextDataModule(pairs=write(tmp_path / "p.jsonl", records), **options)
    data.use_tokenizer(tokenizer)
    return data


def bare_module(config: ModelConfig, beta: float) -> LitTransformerLM:
    torch.manual_seed(0)
    module = LitTransformerLM(config, objective=DPO(beta=beta))  # type: ignore[arg-type]
    module.start = SimpleNamespace(path="base")  # type: ignore[assignment]
    return module


def prepare(module: LitTransformerLM, data: TextDataModule) -> None:
    """Keeps the reference, and moves the network away from it."""
    fields = dict(datamodule=data, accumulate_grad_batches=1, world_size=1, global_rank=0, strategy=None)
    module._trainer = SimpleNamespace(**fields)  # type: ignore[assignment]
    module.objective.prepare(module)
    with torch.no_grad():
        for weight in module.net.parameters():
            weight += 0.05 * torch.randn_like(weight)


def prepared(tmp_path: Path, beta: float = 0.1):
    """A module in float64 whose network has moved away from its reference, and a batch of preferences."""
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=16, num_layers=2, num_heads=2, max_seq_len=16)
    module, data = bare_module(config, beta).double(), preference_data(tmp_path, TOKENIZER, LETTERS)
    prepare(module, data)
    return module, data.content._rows.batch(range(8))  # type: ignore[attr-defined]


def test_the_loss_is_log_two_where_network_and_reference_are_equal(tmp_path):
    module, batch = prepared(tmp_path)
    module.net.load_state_dict(module.objective.reference.state_dict())
    found = module.objective(module, batch)
    assert found["loss"].item() / batch.num_targets == pytest.approx(math.log(2), abs=1e-12)
    assert float(found["reward_margin"]) == pytest.approx(0, abs=1e-12)


def test_dpo_against_a_hand_calculation(tmp_path):
    """Equation 7 of Rafailov et al. 2023, token by token, with its gradient."""
    module, batch = prepared(tmp_path, beta=0.3)
    found = module.objective(module, batch)
    found["loss"].backward()
    gradient = module.net.head.weight.grad.clone()
    module.net.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in range(8):
        rewards = []
        for each in (batch, batch.rejected):
            reward = torch.zeros((), dtype=torch.float64)
            for net, sign in ((module.net, 1), (module.objective.reference, -1)):
                logs = net(each.inputs[row : row + 1])[0].log_softmax(-1)
                for place, target in enumerate(each.targets[row].tolist()):
                    reward = reward + (sign * 0.3 * logs[place, target] if target != IGNORE else 0)
            rewards.append(reward)
        total = total - torch.log(1 / (1 + torch.exp(rewards[1] - rewards[0])))
    (total / 8).backward()
    scale = batch.num_targets
    assert found["loss"].item() / scale == pytest.approx(total.item() / 8, abs=1e-12)
    torch.testing.assert_close(gradient / scale, module.net.head.weight.grad, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_dpo_against_trl(tmp_path):
    """The tokens, the loss, the rewards and the gradient of trl's DPOTrainer, for the same records and weights."""
    trl = pytest.importorskip("trl", reason="trl, the oracle, is not installed")
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    tokenizer = BPETokenizer.train_from_texts(
        ["the cat sat on the mat " * 9], vocab_size=270, special_tokens=[END_OF_TEXT]
    )
    module = bare_module(preset("small", vocab_size=tokenizer.vocab_size, d_model=32, num_layers=2, num_heads=2), 0.3)
    data = preference_data(tmp_path, tokenizer, SENTENCES, split=(1.0,))
    prepare(module, data)
    batch = data.content._rows.batch(range(4))  # type: ignore[attr-defined]
    found = {name: value.item() / batch.num_targets for name, value in module.objective(module, batch).items()}
    (module.objective(module, batch)["loss"] / batch.num_targets).backward()
    for name, net in (("policy", module.net), ("reference", module.objective.reference)):
        export_huggingface(net, tokenizer, tmp_path / name, {"run": "r"})
    records = [{**record, "prompt": END_OF_TEXT + record["prompt"]} for record in SENTENCES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load = transformers.AutoModelForCausalLM.from_pretrained
        policy, reference = (load(tmp_path / name, dtype=torch.float32) for name in ("policy", "reference"))
        trainer = trl.DPOTrainer(
            policy, ref_model=reference, train_dataset=datasets.Dataset.from_list(records),
            processing_class=transformers.AutoTokenizer.from_pretrained(tmp_path / "policy"),
            args=trl.DPOConfig(
                output_dir=str(tmp_path / "trl"), beta=0.3, use_cpu=True, bf16=False, report_to=[], max_length=64,
                per_device_train_batch_size=4, gradient_checkpointing=False, disable_tqdm=True,
            ),
        )  # fmt: skip
        [theirs] = [trainer.data_collator([trainer.train_dataset[i] for i in range(4)])]
        loss = trainer.compute_loss(policy, theirs)
        loss.backward()
    ours = joined(batch)
    counts = theirs["completion_mask"][:, 1:].bool()
    assert torch.equal(ours.targets[ours.targets != IGNORE], theirs["input_ids"][:, 1:][counts])
    assert torch.equal(ours.targets != IGNORE, counts)
    assert loss.item() == pytest.approx(found["loss"], abs=1e-6)
    metrics = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    for name, other in (("reward_chosen", "chosen"), ("reward_rejected", "rejected"), ("reward_margin", "margins")):
        assert metrics[f"rewards/{other}"] == pytest.approx(found[name], abs=1e-5)
    assert metrics["rewards/accuracies"] == found["reward_accuracy"]
    gradient = module.net.embedding.weight.grad
    torch.testing.assert_close(policy.get_input_embeddings().weight.grad, gradient, atol=1e-6, rtol=1e-4)


# --- runs


@pytest.fixture
def words(second, tmp_path):  # noqa: F811
    """A command line that learns preferences from the finished run; without trust, since the class is ours."""
    config = yaml.safe_load(Path(tmp_path / second).read_text())
    config["data"] = {"pairs": "p.jsonl", "batch_size": 8, "micro_batch_size": 4, "split": [0.8, 0.2]}
    config["run"] = {"sample_tokens": 0}
    config["model"]["objective"] = {"class_path": "tinylm.training.DPO", "init_args": {"beta": 0.5}}
    config["trainer"]["val_check_interval"] = 3
    (tmp_path / "dpo.yaml").write_text(yaml.safe_dump(config))
    records = [{"prompt": f"the {n} ", "chosen": f"fox {n}", "rejected": f"dog {n} {n}"} for n in range(60)]
    write(tmp_path / "p.jsonl", records)
    return ["fit", "-c", "dpo.yaml"]


def columns(run: str) -> list[dict[str, str]]:
    with Path("runs", run, "metrics.csv").open(newline="") as file:
        return [{name: row[name] for name in row if not name.startswith("perf/")} for row in csv.DictReader(file)]


STOP = """
from lightning.pytorch.callbacks import Callback
class Stop(Callback):
    def on_train_batch_end(self, trainer, module, *others):
        if trainer.global_step == 4:
            raise RuntimeError("stopped")
"""


@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_learns_the_preference_and_resumes_to_the_bit(cli, words, lora, tmp_path, monkeypatch):
    """The reference is the start: copied, or the network without its adapters, and in no checkpoint."""
    (tmp_path / "stop.py").write_text(STOP)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    words += ["--model.lora.rank", "4"] if lora else []
    whole = cli(*words, "--run.name", "whole")
    assert whole.code == 0, whole.err
    assert cli(*words, "--run.name", "half", "--trainer.callbacks+", "stop.Stop").code == 70
    assert cli(*words, "--run.name", "half", "--resume").code == 0
    rows = columns("whole")
    assert rows == columns("half")
    first, last = rows[0], rows[-1]
    assert float(first["train/loss"]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(first["train/reward_margin"]) == pytest.approx(0, abs=1e-6)
    assert float(last["val/dpo_loss"]) < 0.6 and float(last["val/reward_margin"]) > 0
    assert float(last["val/reward_accuracy"]) > 0.9 and float(last["val/loss"]) > 0
    state = read_checkpoint("runs/whole/checkpoints/last.ckpt")["state_dict"]
    assert state and not any(name.startswith("objective") for name in state)
    assert cli("validate", "-c", "runs/whole/config.yaml").code == 0


@pytest.mark.slow
def test_two_ranks_and_any_micro_batch_have_the_losses_of_one_batch(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = [*words, "--model.network.dropout", "0", "--model.optimizer.name", "adamw"]
    layouts = {"whole": (1, "8"), "parts": (1, "2"), "ranks": (2, "2")}
    losses = {}
    for name, (size, micro) in layouts.items():
        arguments = [*common, "--run.name", name, "--data.micro_batch_size", micro]
        arguments += ["-c", "ddp", "--trainer.devices", "2"] if size > 1 else []
        losses[name] = torch.tensor(
            processes.run_ranks(size, ranks.record, arguments, str(tmp_path), out=tmp_path)[0]["losses"]
        )
    assert len(losses["whole"]) == 6
    for name in ("parts", "ranks"):
        torch.testing.assert_close(losses[name], losses["whole"], atol=1e-5, rtol=0)
    ours, theirs = (columns(name)[-1] for name in ("ranks", "whole"))
    for name in ("val/dpo_loss", "val/reward_margin", "val/reward_accuracy", "val/loss"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), abs=1e-4)


REFUSED = {
    "a text": (["--data.pairs", "null", "--data.corpus", "CORPUS"], "model.objective: DPO learns from preferences; give a file whose records have prompt"),
    "no objective": (["--model.objective", "null"], "p.jsonl holds preferences; set model.objective to tinylm.training.DPO"),
    "fields": (["--data.fields", "[prompt,chosen]"], "model.objective: DPO learns from preferences"),
    "packing": (["--data.packing", "true", "--model.network.document_mask", "true"], "data.packing: does not work with preferences"),
    "streaming": (["--data.streaming", "true"], "data.streaming: does not work with data.pairs"),
    "truncation": (["--data.too_long", "truncate"], "data.too_long: truncate would cut the same prompt at two places"),
    "beta": (["--model.objective.init_args.beta", "0"], "beta must be above 0, got 0"),
    "rows": (["--model.loss_rows", "8"], "model.loss_rows: model.objective computes the loss"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_from_is_refused_by_name(case, cli, words, corpus):
    options, problem = REFUSED[case]
    options = [option.replace("CORPUS", str(corpus)) for option in options]
    result = cli(*words, *options)
    assert result.code == 2 and problem in result.error, result.err


def test_a_run_without_a_start_or_reference_is_refused(tmp_path):
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=16, num_layers=1, num_heads=2)
    module = bare_module(config, 0.1)
    module.start = None
    with pytest.raises(ConfigError, match="compares with a trained model; set model"):
        prepare(module, preference_data(tmp_path, TOKENIZER, LETTERS))


def test_preferences_as_a_text_are_named(cli, words):
    result = cli(*words, "--data.pairs", "null", "--data.corpus", "p.jsonl")
    assert "p.jsonl: holds preferences, not plain text; give it as data.pairs=p.jsonl" in result.error
