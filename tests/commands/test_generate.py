"""`tinylm generate` from the command line: text on stdout; errors as one line on stderr and an exit code."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tinylm
from tinylm.bundle import save_bundle
from tinylm.data import CHAT, Turn, prompt_ids
from tinylm.generation import Generator, SamplingConfig
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, CharTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"
TOKENIZER = CharTokenizer("abcdefghé\n 😀")  # the model's, in conftest.py


@pytest.fixture
def run(load):
    """run(*arguments) runs the command inside this process: exit code, stdout, stderr."""
    return load("generate")


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    return subprocess.Popen(command, cwd=folder, **pipes)


def only_line(err: str) -> str:
    err = re.sub(r"\Atinylm: loading .*\n", "", err)
    assert err.startswith("tinylm: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def test_from_any_folder_it_prints_prompt_and_completion_or_fails_with_an_exit_code(model, tmp_path):
    good = start(tmp_path, "--model", model, "--prompt", "é😀", "--max_new_tokens", 9, "--seed", 1, "--device", "cpu")
    unseen = start(tmp_path, "--model", model, "--prompt", "abz")
    missing = start(tmp_path, "--model", tmp_path / "nowhere", "--prompt", "a")
    usage = start(tmp_path, "--prompt", "a")

    out, err = good.communicate(timeout=60)
    assert (good.returncode, err) == (0, f"tinylm: loading {model}\n")
    assert out.startswith("é😀") and out.endswith("\n") and len(out) == 2 + 9 + 1
    assert set(out) <= set(TOKENIZER.characters)

    for process, code, problem in [
        (unseen, 65, "'z' (U+007A) at position 2"),
        (missing, 66, f"{tmp_path / 'nowhere'}: no such model"),
        (usage, 66, "--model"),
    ]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, "")
        assert problem in only_line(err)


def test_option_names_take_dashes_or_underscores(model, run):
    words = ["--model", model, "--prompt", "ab_--c".replace("_", " ").replace("-", ""), "--seed", 3]
    dashed = run(*words, "--max-new-tokens", 8, "--top-k=3", "--top-p", 0.9, "--min-p=0.01")
    lined = run(*words, "--max_new_tokens", 8, "--top_k=3", "--top_p", 0.9, "--min_p=0.01")
    assert dashed == lined
    assert dashed[0] == 0 and len(dashed[1]) == len("ab c") + 8 + 1


def test_the_values_of_options_keep_their_underscores(run):
    _, _, err = run("--model=no_such_model")
    assert "no_such_model: no such model" in err


def test_a_long_prompt_is_refused_or_cut(model, run):
    words = ["--model", model, "--prompt", "a" * 20, "--max-new-tokens", 1]
    code, out, err = run(*words)
    assert (code, out) == (2, "") and "has 20 tokens, the context holds 16" in only_line(err)
    code, out, err = run(*words, "--truncate", "left")
    assert code == 0 and len(out) == 22 and "only the last 16 are read" in err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--temperature", "nan"], "temperature must be 0 (greedy) or positive, got nan"),
        (["--temperature", "warm"], "--temperature: invalid float value: 'warm'"),
        (["--top-p", "0"], "top_p must be in (0, 1], got 0.0"),
        (["--top_k=0"], "top_k must be at least 1, got 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--max-new-token", "5"], "--max-new-token: no such option, did you mean '--max-new-tokens'?"),
        (["--xyz"], "--xyz: no such option; --help lists all"),
        (["stray"], "stray: no such option"),
        (["--truncate", "right"], "--truncate: invalid choice: 'right'"),
        (["--prompt", ""], "the prompt is empty"),
        (["--model", "https://example.com/model"], "models are loaded from files only"),
        (["--seed", str(1 << 70)], "seed"),
        (["--device", "nonsense"], "device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(arguments, problem, model, run):
    code, out, err = run("--model", model, "--prompt", "a", *arguments)
    assert (code, out) == (2, "")
    assert problem in only_line(err)


@pytest.mark.parametrize("device", ["cuda:99", "cpu:x"])
def test_a_missing_device_is_one_line_and_exit_code_2(device, model, run):
    code, out, err = run("--model", model, "--prompt", "a", "--device", device)
    assert (code, out) == (2, "") and device in only_line(err)


def test_a_damaged_model_is_one_line_and_exit_code_65(model, run, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    code, out, err = run("--model", tmp_path / "last.ckpt", "--prompt", "a")
    assert (code, out) == (65, "") and "last.ckpt: is " in only_line(err)


# --- many texts, files, figures


@pytest.fixture
def prompts(tmp_path) -> Path:
    (tmp_path / "prompts.txt").write_text("ab\n\ncab\n", encoding="utf-8")
    return tmp_path / "prompts.txt"


def test_prompts_in_a_file_give_the_same_texts_as_alone(model, run, prompts):
    """Two samples per prompt, with consecutive seeds, separated by a line."""
    words = ["--model", model, "--max-new-tokens", 20, "--top-p", 0.9]
    code, out, _ = run(*words, "--prompts-file", prompts, "--num-samples", 2, "--seed", 5)
    alone = [run(*words, "--prompt", p, "--seed", seed)[1][:-1] for p in ("ab", "cab") for seed in (5, 6)]
    assert code == 0
    assert out == "\n---\n".join(alone) + "\n"


def test_out_writes_the_texts_or_objects_with_log_probabilities(model, run, prompts, tmp_path):
    words = ["--model", model, "--max-new-tokens", 6, "--seed", 5, "--prompts-file", prompts]
    _, out, _ = run(*words, "--out", tmp_path / "texts.txt")
    assert (tmp_path / "texts.txt").read_text(encoding="utf-8") == out
    run(*words, "--out", tmp_path / "texts.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()]
    network, tokenizer = tinylm.load(model)
    assert [row["prompt"] + row["text"] for row in rows] == out[:-1].split("\n---\n")
    for row in rows:
        assert tokenizer.decode(row["ids"]) == row["text"]
        assert row["finished"] == "length"
        assert len(row["tokens"]) == len(row["log_probs"]) == 6
        ids = torch.tensor([tokenizer.encode(row["prompt"]) + row["ids"]])
        expected = network(ids)[0].log_softmax(-1)[range(-7, -1), row["ids"]]
        assert row["log_probs"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_one_streamed_text_is_written_as_well(model, run, tmp_path):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 6, "--seed", 5]
    _, out, _ = run(*words, "--out", tmp_path / "one.jsonl")
    row = json.loads((tmp_path / "one.jsonl").read_text(encoding="utf-8"))
    assert row["prompt"] + row["text"] + "\n" == out == run(*words, "--no-stream")[1]
    assert len(row["log_probs"]) == 6


def test_probabilities_follow_tokens_and_statistics_go_to_stderr(model, run):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 4, "--temperature", 0]
    _, plain, _ = run(*words)
    code, out, err = run(*words, "--show-probs", "--stats", "--threads", 1)
    assert code == 0
    assert re.sub(r"\[\d+%\]", "", out.splitlines()[1]) == plain[:-1].replace("\n", "\\n")
    assert out.count("%]") == 4
    assert re.search(r"prompts: 1 tokens, [\d,]+ tokens/s; text: 4 tokens, [\d,]+ tokens/s; cache 0.0 MB; 1 CPU", err)


@pytest.mark.parametrize("way", [["--lookup"], ["--draft"]])
def test_speculative_decoding_gives_the_same_greedy_text(model, run, way):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 30, "--temperature", 0]
    assert run(*words, *way, *([model] if way == ["--draft"] else []))[1] == run(*words)[1]


def test_beam_search_finds_a_text_at_least_as_probable_as_greedy_decoding(model, run, tmp_path):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 6]
    run(*words, "--temperature", 0, "--out", tmp_path / "greedy.jsonl")
    run(*words, "--num-beams", 4, "--num-samples", 2, "--out", tmp_path / "beams.jsonl")
    sums = {}
    for name in ("greedy", "beams"):
        lines = (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        sums[name] = [sum(json.loads(line)["log_probs"]) for line in lines]
    assert len(sums["beams"]) == 2
    assert sums["beams"][0] >= max(sums["greedy"][0], sums["beams"][1])


def test_text_is_generated_with_an_8_bit_cache(model, run):
    words = ["--prompt", "ab", "--temperature", 0, "--max-new-tokens", 5, "--kv-cache", "int8"]
    code, out, _ = run("--model", model, *words)
    assert code == 0 and out.startswith("ab") and len(out) == 2 + 5 + 1


def test_chat_prints_the_answer_alone_to_a_prompt_formatted_as_in_training(run, tmp_path):
    chat = CharTokenizer("abc", [END_OF_TEXT, "<|system|>", "<|user|>", "<|assistant|>"])
    network = TransformerLM(ModelConfig(vocab_size=7, d_model=8, num_layers=1, num_heads=1, max_seq_len=32)).eval()
    save_bundle(tmp_path / "chat", network, chat)
    words = ["--model", tmp_path / "chat", "--chat", "--temperature", 0, "--max-new-tokens", 9]
    asked = prompt_ids(chat, (Turn("user", "ab"), Turn("assistant", "")), CHAT)
    config = SamplingConfig(temperature=0, max_new_tokens=9)
    answer = chat.decode(list(Generator(network, chat).stream_ids(asked, config)))
    for found in (run(*words, "--prompt", "ab"), run(*words, "--prompt", "ab", "--no-stream")):
        assert found == (0, answer + "\n", "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--chat", "--prompt", "a"], 2, "needs <|endoftext|>, <|system|>, <|user|>, <|assistant|>, which the tok"),
        (["--compile", "--kv-cache", "int8"], 2, "compiled decoding does not support an 8-bit cache"),
        (["--prompts-file", "nowhere.txt"], 66, "nowhere.txt"),
        (["--prompts-file", "EMPTY"], 65, "has no prompt; write one on each line"),
        (["--prompts-file", "BAD.jsonl"], 65, "line 1: must be an object with a prompt"),
        (["--prompt", "a", "--num-samples", "0"], 2, "num_samples must be at least 1, got 0"),
        (["--prompt", "a", "--threads", "0"], 2, "threads must be at least 1, got 0"),
        (["--prompt", "a", "--num-beams", "2", "--num-samples", "3"], 2, "num_return must be at most num_beams, 2"),
        (["--prompt", "a", "--banned-tokens", "99"], 2, "banned_tokens must be of ids below"),
        (["--prompt", "a", "--draft", "OTHER"], 2, "has another tokenizer than"),
    ],
)
def test_an_invalid_combination_is_one_line_and_an_exit_code(model, run, tmp_path, words, code, message):
    (tmp_path / "EMPTY").write_text("\n \n")
    (tmp_path / "BAD.jsonl").write_text('"abc"\n')
    other = CharTokenizer("ab")
    shape = dict(vocab_size=other.vocab_size, d_model=4, num_layers=1, num_heads=1, max_seq_len=4)
    save_bundle(tmp_path / "OTHER", TransformerLM(ModelConfig(**shape)), other)
    words = [str(tmp_path / word) if (tmp_path / word).exists() else word for word in words]
    found, out, err = run("--model", model, *words)
    assert (found, out) == (code, "")
    assert message in only_line(err)


@pytest.mark.parametrize("way", [["--num-samples", "1"], ["--num-samples", "3"], ["--num-beams", "2"], ["--lookup"]])
def test_ctrl_c_ends_the_program_with_130_within_a_token(way, run, model, monkeypatch):
    read, steps = Decoder.step, []

    def step(self, ids, cache):
        steps.append(ids)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return read(self, ids, cache)

    monkeypatch.setattr(Decoder, "step", step)
    code, _, err = run(
        "--model", model, "--prompt", "a", "--max-new-tokens", 9, "--device", "cpu", "--threads", 1, *way
    )
    assert (code, len(steps)) == (130, 3)
    assert err == "tinylm: interrupted\n"  # no error
