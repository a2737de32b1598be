"""nanoGPT's checkpoints: logits equal to the bit, texts and characters equal, and everything else refused by name."""

import io
import json
import pickle
import re
from pathlib import Path

import pytest
import torch

from tests.interop.nanogpt_reference import Reference, nanogpt_module, random_weights
from tinylm.bundle import load
from tinylm.commands import main
from tinylm.data.pretrained import VOCABULARIES
from tinylm.errors import DataError, MissingInputError
from tinylm.generation import Generator
from tinylm.interop import find_meta, load_nanogpt, read_meta
from tinylm.locate import command
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer, write_tiktoken

GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data"
TEXT = "".join(sorted(set("First Citizen: Before we proceed any further, hear me speak.\nAll: Speak!")))
ARGUMENTS = dict(n_layer=3, n_head=4, n_embd=32, block_size=24, bias=False, vocab_size=len(TEXT), dropout=0.2)
META = {"vocab_size": len(TEXT), "itos": dict(enumerate(TEXT)), "stoi": {c: i for i, c in enumerate(TEXT)}}


def save(path, arguments=ARGUMENTS, weights=None, prefix="", **entries):
    weights = random_weights(ARGUMENTS | arguments) if weights is None else weights
    content = {
        "model": {prefix + name: weight for name, weight in weights.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "model_args": arguments,
        "iter_num": 5,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "out_dir": "out", "dropout": 0.2},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content | entries, path)
    return weights


def write_meta(path, meta=META):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(meta))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """nanoGPT's folder with a run and its data."""
    weights = save(tmp_path / "out-shakespeare-char/ckpt.pt", prefix="_orig_mod.")
    write_meta(tmp_path / "data/shakespeare_char/meta.pkl")
    monkeypatch.chdir(tmp_path)
    return weights


def theirs(arguments, weights):
    """nanoGPT's own module if there is a clone of it, else the same computation."""
    module = nanogpt_module()
    if module is None:
        return Reference(arguments, weights)
    network = module.GPT(module.GPTConfig(**arguments)).eval()
    network.load_state_dict(weights)
    return lambda ids: network(ids, targets=ids)[0]  # with targets it gives the logits of all positions


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("changes", [{}, dict(bias=True, n_head=2), dict(vocab_size=192)])
@torch.no_grad()
def test_logits_equal_those_of_nanogpt_to_the_bit(changes, prefix, tmp_path):
    arguments = ARGUMENTS | changes
    weights = save(tmp_path / "ckpt.pt", arguments, prefix=prefix)
    model, dataset = load_nanogpt(tmp_path / "ckpt.pt")
    ids = torch.randint(arguments["vocab_size"], (3, 24), generator=torch.Generator().manual_seed(1))
    expected = theirs(arguments, weights)(ids)
    assert expected.std() > 0.3 and torch.equal(model(ids), expected)
    assert dataset == "shakespeare_char" and model.config.dropout == 0.2


@torch.no_grad()
def test_greedy_texts_equal_those_of_nanogpt(project):
    assert main(["export", "--model", "out-shakespeare-char/ckpt.pt", "--to", "tinylm", "--out", "m"]) == 0
    model, tokenizer = load("m")
    network, prompt = theirs(ARGUMENTS, project), "First"
    ids = [META["stoi"][c] for c in prompt]
    for _ in range(19):
        ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    expected = "".join(META["itos"][i] for i in ids[len(prompt) :])
    assert Generator(model, tokenizer).generate(prompt, max_new_tokens=19, temperature=0) == expected


@pytest.mark.slow
def test_a_converted_model_is_scored_generated_from_and_finetuned(project, tmp_path, capsys):
    assert main(["export", "--model", "out-shakespeare-char/ckpt.pt", "--to", "tinylm", "--out", "m"]) == 0
    (tmp_path / "t.txt").write_text("First Citizen: Speak!\n" * 40)
    assert main(["generate", "--model", "m", "--prompt", "First", "--max-new-tokens", "5"]) == 0
    assert main(["score", "--model", "m", "--text", "t.txt"]) == 0
    pairs = [{"prompt": "All: ", "response": "Speak!"}, {"prompt": "First: ", "response": "hear me"}] * 20
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    line = [
        "fit",
        "-c",
        "finetune",
        "--model.init_from",
        "m",
        "--data.pairs",
        "train.jsonl",
        "--trainer.max_steps",
        "2",
    ]
    assert main(line) == 0
    assert load("runs/finetune")[1] == CharTokenizer(TEXT, [END_OF_TEXT])


def test_buffers_and_missing_fields_of_older_checkpoints_are_read(tmp_path):
    arguments = {name: value for name, value in ARGUMENTS.items() if name not in ("bias", "dropout")}
    weights = random_weights(ARGUMENTS | {"bias": True})
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 24, 24) for i in range(3)}
    save(tmp_path / "ckpt.pt", arguments, weights | masks, config=None)
    model, dataset = load_nanogpt(tmp_path / "ckpt.pt")
    assert model.config.bias and model.config.dropout == 0.0 and dataset is None


# --- the tokenizer


@pytest.mark.parametrize("folder", ["out", "data/shakespeare_char", "out/data/shakespeare_char"])
def test_the_characters_are_found_beside_the_checkpoint_and_in_the_data_folder(folder, tmp_path):
    write_meta(tmp_path / folder / "meta.pkl")
    found = find_meta(tmp_path / "out/ckpt.pt", "shakespeare_char")
    assert found is not None and found.resolve() == (tmp_path / folder / "meta.pkl").resolve()
    assert read_meta(found) == CharTokenizer(TEXT)


@pytest.mark.parametrize("dataset", ["../../etc", "/etc", "a/b", "..", "", None, 7])
def test_the_name_of_a_data_set_does_not_lead_out_of_its_folder(dataset, tmp_path):
    for folder in ("etc", "out/etc", "data/a/b", "data"):
        write_meta(tmp_path / folder / "meta.pkl")
    assert find_meta(tmp_path / "out/ckpt.pt", dataset) is None


def test_a_tokenizer_may_be_given(project, tmp_path, capsys):
    write_meta(tmp_path / "elsewhere.pkl")
    line = ["export", "--model", "out-shakespeare-char/ckpt.pt", "--to", "tinylm", "--out", "m"]
    assert main([*line, "--tokenizer", "elsewhere.pkl"]) == 0
    CharTokenizer(TEXT).save("t.json")
    assert main([*line, "--tokenizer", "t.json", "--overwrite"]) == 0
    assert load("m")[1] == CharTokenizer(TEXT)


def test_missing_characters_are_asked_for(tmp_path, monkeypatch, capsys):
    save(tmp_path / "out/ckpt.pt")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--model", "out/ckpt.pt", "--to", "tinylm", "--out", "m"]) == 66
    expected = "its characters are in meta.pkl in nanoGPT's data/shakespeare_char; give it with --tokenizer"
    assert expected in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not GPT2.is_dir(), reason="shared/data, with GPT-2's vocabulary, is not beside the project")
def test_a_padded_vocabulary_without_characters_has_the_tokenizer_of_gpt2(tmp_path, monkeypatch):
    """nanoGPT rounds 50,257 tokens to 50,304 rows; the rows beyond the tokens are never generated."""
    arguments = ARGUMENTS | dict(vocab_size=50304)
    weights = random_weights(arguments)
    weights["transformer.wte.weight"][50257:] = (
        3.0 * weights["transformer.wte.weight"][:47]
    )  # likely, if it were allowed
    save(tmp_path / "out/ckpt.pt", arguments, weights, config={"dataset": "openwebtext"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYLM_CACHE", str(tmp_path / "cache"))
    tokenizer = BPETokenizer.from_gpt2(GPT2 / "gpt2_vocab.json", GPT2 / "gpt2_merges.txt")
    place = VOCABULARIES["gpt2"].ranks.path(tmp_path / "cache")
    place.parent.mkdir(parents=True)
    write_tiktoken(tokenizer, place)
    assert main(["export", "--model", "out/ckpt.pt", "--to", "tinylm", "--out", "m"]) == 0
    model, found = load("m")
    text = "Hello, world: naïve 123"
    assert found.encode(text) == tokenizer.encode(text) and found.end_of_text == 50256
    assert model.config.vocab_size == 50304 and found.vocab_size == 50257
    assert found.marks == (None, 50256, (50256,))
    ids = found.encode(text)
    completion = Generator(model, found.with_marks(None, 50256, [])).complete([text], max_new_tokens=10, temperature=0)[
        0
    ]
    for token in completion.ids:
        logits = theirs(arguments, weights)(torch.tensor([ids]))[0, -1]
        ids.append(int(logits[:50257].argmax()))
        assert token == ids[-1]


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def persistent() -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.persistent_id = lambda value: "outside" if value is META["itos"] else None
    pickler.dump(META)
    return buffer.getvalue()


METAS = {
    "code": (pickle.dumps(META | {"stoi": Evil()}), r"is not read: contains builtins\.print; only numbers"),
    "a class": (pickle.dumps(META | {"stoi": CharTokenizer("a")}), r"contains tinylm\.tokenizer\.char\.CharTokenizer"),
    "a reference": (persistent(), "refers to an object outside of it, 'outside'"),
    "a huge memo": (b"\x80\x04}r\xff\xff\xff\x7f.", "memo index 2147483647 is larger than the file"),
    "another field": (pickle.dumps(META | {"lower": True}), "lower: tinylm does not support this field"),
    "no ids": (pickle.dumps({"itos": META["itos"], "vocab_size": 3}), "stoi is missing"),
    "a list": (pickle.dumps([1]), "must be a dictionary"),
    "words": (pickle.dumps({"vocab_size": 1, "itos": {0: "word"}, "stoi": {"word": 0}}), "'word', which is not a char"),
    "a hole": (pickle.dumps({"vocab_size": 1, "itos": {1: "a"}, "stoi": {"a": 1}}), "itos must have the ids 0 to 0"),
    "another size": (pickle.dumps(META | {"vocab_size": 9}), "vocab_size is 9, itos has"),
    "no inverse": (pickle.dumps({"vocab_size": 2, "itos": {0: "a", 1: "b"}, "stoi": {"a": 1, "b": 0}}), "inverse"),
    "a cut": (pickle.dumps(META)[:50], "is damaged, or not a pickle|is not read"),
    "text": (b"abc", "is damaged, or not a pickle|is not read"),
    "nothing": (b"", "is damaged, or not a pickle|is not read"),
}


@pytest.mark.parametrize("name", METAS)
def test_a_meta_file_of_anything_but_characters_is_refused_without_running_it(name, tmp_path, capsys):
    data, problem = METAS[name]
    (tmp_path / "meta.pkl").write_bytes(data)
    with pytest.raises(DataError, match=problem) as raised:
        read_meta(tmp_path / "meta.pkl")
    assert "meta.pkl" in str(raised.value) and "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


# --- refusals

WEIGHTS = random_weights(ARGUMENTS)
CHECKPOINTS = {
    "an unknown field": (
        dict(arguments=ARGUMENTS | {"rope": True}),
        "model_args: rope is True; tinylm does not support",
    ),
    "a missing field": (dict(arguments={"n_layer": 2}), "model_args: n_head is missing"),
    "a wrong type": (dict(arguments=ARGUMENTS | {"n_layer": "3"}), "num_layers must be int"),
    "uneven heads": (dict(arguments=ARGUMENTS | {"n_head": 5}), "d_model must be divisible by num_heads"),
    "llama2.c": (dict(arguments={"dim": 8}, weights={}), r"is a checkpoint of llama2\.c; write its \.bin there"),
    "an untied head": (
        dict(weights=WEIGHTS | {"lm_head.weight": WEIGHTS["lm_head.weight"] + 1}),
        r"lm_head\.weight differs from transformer\.wte\.weight",
    ),
    "a missing weight": (
        dict(weights={name: weight for name, weight in WEIGHTS.items() if name != "transformer.h.1.mlp.c_fc.weight"}),
        r"weights missing: transformer\.h\.1\.mlp\.c_fc\.weight",
    ),
    "an unknown weight": (dict(weights=WEIGHTS | {"value_head": torch.ones(3)}), "weights unknown: value_head"),
    "another shape": (
        dict(weights=WEIGHTS | {"transformer.wpe.weight": torch.ones(9, 32)}),
        r"transformer\.wpe\.weight: has shape \(9, 32\), the config says \(24, 32\)",
    ),
    "integers": (
        dict(weights=WEIGHTS | {"transformer.ln_f.weight": torch.ones(32, dtype=torch.int8)}),
        r"ln_f\.weight: has dtype int8",
    ),
    "a huge config": (dict(arguments=ARGUMENTS | {"n_layer": 10**6}), "the config has 1,000,000 layers"),
    "no weights": (dict(model=None), "must have model_args and model"),
    "code": (dict(config=Evil()), "is not read: it contains print, and only tensors and plain values are"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_any_other_checkpoint_is_refused_by_name(name, tmp_path, capsys):
    changes, problem = CHECKPOINTS[name]
    save(tmp_path / "ckpt.pt", **({"weights": WEIGHTS} | changes))
    with pytest.raises(DataError, match=problem) as raised:
        load_nanogpt(tmp_path / "ckpt.pt")
    assert "ckpt.pt" in str(raised.value) and "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_or_missing_file_is_named(tmp_path):
    save(tmp_path / "ckpt.pt")
    data = (tmp_path / "ckpt.pt").read_bytes()
    place = data.index(WEIGHTS["transformer.wpe.weight"].numpy().tobytes())
    (tmp_path / "ckpt.pt").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(DataError, match=r"ckpt\.pt: is damaged \(CRC"):
        load_nanogpt(tmp_path / "ckpt.pt")
    with pytest.raises(MissingInputError, match=r"none\.pt: no such file"):
        load_nanogpt(tmp_path / "none.pt")


def test_other_commands_name_the_one_that_converts(project, tmp_path):
    path = tmp_path / "out-shakespeare-char/ckpt.pt"
    line = command("export", "--model", path, "--to", "tinylm", "--out", "ckpt-tinylm")
    with pytest.raises(DataError, match=re.escape(f"ckpt.pt: is a checkpoint of nanoGPT; convert it first: {line}")):
        load(path)
