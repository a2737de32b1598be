"""The storyteller that comes with tinylm: its card, its stories, and the commands that use it without a run."""

import math
import re
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tinylm
from tests.commands.conftest import save_model
from tinylm.commands import main
from tinylm.data.grammar.stories import log_prob
from tinylm.data.held_out import held_out_stories
from tinylm.errors import DataError
from tinylm.generation import Generator
from tinylm.locate import CONFIGS, STORYTELLER, command, find_model, newest_run
from tinylm.model import parameter_count
from tinylm.safe_yaml import read_yaml

CARD = (STORYTELLER / "README.md").read_text(encoding="utf-8")
TRAIN = command("fit", "-c", "small")
ANNOUNCED = f"tinylm: loading the built-in storyteller (runs/ has no trained run); {TRAIN} trains your own\n"


@pytest.fixture(scope="module")
def generator() -> Generator:
    """The storyteller's generator."""
    return Generator(*tinylm.load("storyteller"))


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """run(*words) is `tinylm WORDS` in an empty folder without a network: exit code, stdout, stderr."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("the network is used")

    def run(*words: str) -> tuple[int, str, str]:
        code = main([*words])
        return code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return run


# --- the model and its card


def number(text: str) -> float:
    """The value of `1,486`."""
    return float(text.replace(",", ""))


def test_the_card_has_the_size_of_the_model(generator):
    parameters, vocabulary = re.search(r"([\d,]+) parameters .*?([\d,]+) tokens of byte pair", CARD, re.DOTALL).groups()
    assert number(parameters) == parameter_count(generator.model.config)
    assert number(vocabulary) == generator.tokenizer.vocab_size
    megabytes = sum(path.stat().st_size for path in STORYTELLER.iterdir()) / 1e6
    assert number(re.search(r"\| size \| ([\d.]+) MB", CARD)[1]) == pytest.approx(megabytes, abs=0.01)
    assert megabytes < 2


@torch.inference_mode()
def test_the_card_has_the_loss_on_held_out_stories(generator):
    stories, end = held_out_stories(STORYTELLER, 1000), generator.tokenizer.end_of_text
    nats, tokens = 0.0, 0
    for story in stories:
        ids = torch.tensor([end, *generator.tokenizer.encode(story), end])
        nats += F.cross_entropy(generator.model(ids[None, :-1])[0], ids[1:], reduction="sum").item()
        tokens += len(ids) - 1
    floor = -math.fsum(map(log_prob, stories))
    row = re.search(r"^\| validation \| (.*) \|$", CARD, re.MULTILINE)[1].split(" | ")
    assert [number(each) for each in row[:2]] == [len(stories), tokens]
    assert number(row[3]) == pytest.approx(nats / tokens, abs=2e-4)
    assert number(row[4]) == pytest.approx(floor / tokens, abs=1e-4)
    assert number(row[5].rstrip("%")) == pytest.approx(100 * (nats / floor - 1), abs=0.1)
    assert nats < 1.06 * floor


def test_many_of_its_stories_derive_from_the_grammar_from_the_first_word_to_the_last(generator):
    stories = generator.complete(["Once upon a time"], num_samples=48, seed=0, temperature=0.8)
    assert all(each.finished == "end" for each in stories)
    assert len({each.text for each in stories}) == 48
    derived = [log_prob(f"Once upon a time{each.text}") for each in stories]
    assert sum(each > -math.inf for each in derived) >= 12  # of a model 20% above the floor: none


def leaves(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The full names of the options in a config, and their values."""
    for name, value in options.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_it_was_trained_as_readme_says():
    trained = dict(leaves(read_yaml(STORYTELLER / "config.yaml")))
    for name, value in leaves(read_yaml(CONFIGS / "small.yaml")):
        assert trained[name] == value, name


def test_a_damaged_copy_is_refused(tmp_path):
    copy = shutil.copytree(STORYTELLER, tmp_path / "copy")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1000] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match=r"model\.safetensors: is damaged"):
        tinylm.load(copy)


# --- the commands


def test_without_a_run_the_storyteller_continues_its_prompt_and_is_named(run, generator):
    code, out, err = run("generate", "--seed", "1")
    assert (code, err) == (0, ANNOUNCED)
    prompt = "Once upon a time"
    assert out == prompt + generator.generate(prompt, seed=1, temperature=0.8) + "\n"
    assert run("generate", "--model", "storyteller", "--seed", "1") == (
        0, out, "tinylm: loading the built-in storyteller\n"
    )  # fmt: skip


def test_with_a_run_the_storyteller_is_not_used(run, tmp_path):
    save_model(tmp_path / "runs" / "mine" / "model", prompt="ab")
    assert newest_run().name == "mine"
    _, out, err = run("generate", "--max-new-tokens", "3")
    assert out.startswith("ab") and "storyteller" not in err


def test_a_path_goes_before_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("storyteller") == STORYTELLER
    save_model(tmp_path / "storyteller")
    assert find_model("storyteller").resolve() == tmp_path / "storyteller"


def test_a_model_that_does_not_exist_remains_an_error(run):
    code, out, err = run("generate", "--model", "runs/nowhere")
    assert (code, out) == (66, "") and err.startswith("tinylm: error: runs/nowhere: no such model")


@pytest.mark.parametrize("words", [[], ["--model", "storyteller"]])
def test_it_is_scored_and_analyzed(run, tmp_path, words):
    (tmp_path / "story.txt").write_text(held_out_stories(STORYTELLER, 1)[0], encoding="utf-8")
    code, out, err = run("score", "--text", "story.txt", *words)
    assert code == 0 and "loading the built-in storyteller" in err
    assert 0.5 < float(re.search(r"loss ([\d.]+) nats", out)[1]) < 1.5  # of stories, 0.88 on average
    code, out, err = run("analyze", "tokens", *words)  # on its own held-out stories
    assert code == 0 and re.search(r"text: \d+ validation stories of the run", err)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["quantize", "--out", "small"], "the model is already quantized (21 layers); quantize the original instead"),
        (["compare-numpy"], "the twin supports plain linear layers only"),
    ],
)
def test_what_needs_unquantized_weights_refuses_it(run, words, problem):
    code, out, err = run(*words, "--model", "storyteller")
    assert (code, out) == (2, "") and problem in err.splitlines()[-1]


def test_an_exported_copy_has_a_card_without_invented_figures(run, tmp_path):
    assert run("export", "--model", str(STORYTELLER), "--to", "hf", "--out", "hf")[0] == 0
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "| data | stories |" in card and "Repeat the run" in card and "| steps |" not in card
