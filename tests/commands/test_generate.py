"""`tinylm generate` from the command line: text on stdout; errors as one line on stderr and an exit code."""

import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tinylm
from tinylm.bundle import save_bundle
from tinylm.commands import run_command
from tinylm.commands.output import read_prompts, show_probabilities
from tinylm.data import CHAT, Turn, prompt_ids
from tinylm.generation import Completion, Generator, SamplingConfig
from tinylm.generation.fast.decoder import Decoder
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import END_OF_TEXT, BPETokenizer, CharTokenizer

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


def test_from_any_folder_it_prints_prompt_and_completion_or_fails_with_an_exit_code(model, tmp_path, run):
    good = start(tmp_path, "--model", model, "--prompt", "é😀", "--max_new_tokens", 9, "--seed", 1, "--device", "cpu")
    out, err = good.communicate(timeout=60)
    assert (good.returncode, err) == (0, f"tinylm: loading {model}\n")
    assert out.startswith("é😀") and out.endswith("\n") and len(out) == 2 + 9 + 1
    assert set(out) <= set(TOKENIZER.characters)

    unseen = start(tmp_path, "--model", model, "--prompt", "abz")
    out, err = unseen.communicate(timeout=60)
    assert (unseen.returncode, out) == (65, "") and "'z' (U+007A) at position 2" in only_line(err)
    for words, code, problem in [
        (["--model", tmp_path / "nowhere", "--prompt", "a"], 66, f"{tmp_path / 'nowhere'}: no such model"),
        (["--prompt", "a", "--modle", model], 2, "--modle: no such option, did you mean '--model'?"),
    ]:
        found, out, err = run(*words)
        assert (found, out) == (code, "")
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
        (["--temperature", "warm"], "--temperature: must be a number, such as 0.8, got 'warm'"),
        (["--temperature", "0,8"], "--temperature: must be a number, such as 0.8, got '0,8'"),
        (["--num-samples", "1e3"], "--num-samples: must be a whole number, such as 8, got '1e3'"),
        (["--top-p", "0"], "top_p must be in (0, 1], got 0.0"),
        (["--top_k=0"], "top_k must be at least 1, got 0"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1, got 0"),
        (["--max-new-token", "5"], "--max-new-token: no such option, did you mean '--max-new-tokens'?"),
        (["--xyz"], "--xyz: no such option; --help lists all"),
        (["stray"], "stray: not expected here"),
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


@pytest.mark.parametrize(
    "words",
    ["--temperature nan", "--top-p 0", "--max-new-tokens 0", "--num-beams 0", "--num-samples 0", "--min-new-tokens 501",
     "--prompts-file nowhere", "--draft nowhere", "--out exists.txt", "--seed 1 --num-beams 2", "--prompt="],
)  # fmt: skip
def test_mistakes_seen_without_the_model_are_told_before_it_is_loaded(words, model, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exists.txt").touch()
    assert run_command("generate", ["--model", str(model), *words.split()]) in (2, 66, 73)
    err = capfd.readouterr().err
    assert err.startswith("tinylm: error: ") and err.count("\n") == 1


# --- prompts of several words, and files of prompts


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("--prompt The king", 'king: not expected here; quote the text: --prompt "The king"'),
        ("--prompt The king of --seed 3", 'king: not expected here; quote the text: --prompt "The king of"'),
        ("--out my texts.txt --seed 1", 'texts.txt: not expected here; quote the text: --out "my texts.txt"'),
        ("--seed 1 2", "2: not expected here; --seed takes one value"),
        ("--chat Hello there", "Hello: not expected here; quote a text of several words, or see --help"),
        ("Once upon a time", "Once: not expected here; quote a text of several words, or see --help"),
        ("--prompt", "--prompt: needs a value; one that begins with a dash is written --prompt=VALUE"),
        ("--prompt -x", "--prompt: needs a value; one that begins with a dash is written --prompt=VALUE"),
    ],
)
def test_an_unquoted_text_is_shown_in_quotes(words, answer, model, run):
    assert run("--model", model, *words.split()) == (2, "", f"tinylm: error: {answer}\n")


PROMPTS = {
    "bom.jsonl": ('\ufeff{"prompt": "ab"}\r\n', ["ab"]),
    "bom.txt": ("\ufeffab\r\ncd\r\n", ["ab", "cd"]),
    "nel.txt": ("a\u0085b\nc\u000cd\ne\u2028f\n", ["a\u0085b", "c\u000cd", "e\u2028f"]),
    "u2028.jsonl": ('{"prompt": "a\u2028b"}\n{"prompt": "cd"}\n', ["a\u2028b", "cd"]),
    "spaces.txt": (" a \n\n \nb", [" a ", "b"]),
    "LINES.JSONL": ('{"prompt": "ab"}\n', ["ab"]),
    "lines.ndjson": ('{"prompt": "ab"}\n', ["ab"]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_file_of_prompts_is_split_at_line_feeds_alone(name, tmp_path):
    text, expected = PROMPTS[name]
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == expected


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
SHARED = {
    "prompts_bom.jsonl": ["Once upon a time"],
    "prompts_bom.txt": ["Once upon a time", "On Monday"],
    "prompts_nel.txt": ["Once\u0085upon", "On\u000cMonday", "A\u2028B"],
    "prompts_u2028.jsonl": ["Once upon a\u2028time", "On Monday"],
}


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not beside the project")
@pytest.mark.parametrize("name", SHARED)
def test_the_shared_files_of_prompts_are_read_as_written(name):
    assert read_prompts(CASES / name) == SHARED[name]


@pytest.mark.parametrize("name", ["p.json", "p.CSV"])
def test_prompts_in_another_format_are_not_taken_for_text(name, model, run, tmp_path):
    (tmp_path / name).write_text('[{"prompt": "a"}]')
    code, out, err = run("--model", model, "--prompts-file", tmp_path / name)
    assert (code, out) == (65, "") and "prompts are read from lines of text, or from a .jsonl file" in only_line(err)


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
    assert re.search(r"prompts: 1 token, [\d,]+ tokens/s; text: 4 tokens, [\d,]+ tokens/s; cache 0.0 MB; 1 CPU", err)


@pytest.mark.parametrize("stop", ["a", "b", "fg", "gc", "é", "zzz"])
@pytest.mark.parametrize("beams", [[], ["--num-beams", 3]])
def test_probabilities_are_shown_up_to_the_stop_string(model, run, stop, beams):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 9, "--stop", stop, *(beams or ["--seed", 4])]
    text = run(*words, "--no-stream")[1].removeprefix("ab").removesuffix("\n")
    shown = run(*words, "--show-probs")[1].splitlines()[1]
    assert re.sub(r"\[\d+%\]", "", shown) == "ab" + text.replace("\n", "\\n")
    assert stop not in text


def test_a_token_that_a_stop_string_cuts_is_shown_up_to_there():
    tokenizer = BPETokenizer([(64, 65), (256, 66)])  # ab, abc
    completion = Completion("", "dab", [67, 257], [math.log(0.5), math.log(0.25)], "stop")
    assert show_probabilities(completion, tokenizer, color=False) == "d[50%]ab[25%]"
    assert show_probabilities(replace(completion, text="d"), tokenizer, color=False) == "d[50%]"
    assert show_probabilities(replace(completion, text=""), tokenizer, color=False) == ""


@pytest.mark.parametrize("way", [["--lookup"], ["--draft"]])
@pytest.mark.parametrize("sampling", [["--temperature", 0], ["--seed", 3], ["--seed", 4, "--num-samples", 3]])
def test_speculative_decoding_gives_the_same_text(model, run, way, sampling):
    words = ["--model", model, "--prompt", "ab", "--max-new-tokens", 30, *sampling]
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
    assert sums["beams"][0] >= max(sums["greedy"][0], sums["beams"][1]) - 1e-5  # batches round differently


def test_beams_fill_the_context_unless_a_length_is_given(model, run):
    """The context is 16, the tokens are characters."""
    for prompt, count in (("ab", 14), ("abcdefgh", 8), ("a" * 15, 1)):
        code, out, err = run("--model", model, "--prompt", prompt, "--num-beams", 2)
        assert (code, len(out), err) == (0, len(prompt) + count + 1, "")
    code, out, err = run("--model", model, "--prompt", "a" * 16, "--num-beams", 2)
    assert (code, out) == (2, "") and "must fit the context of 16 tokens, got 16 and 8" in only_line(err)
    code, out, err = run("--model", model, "--prompt", "a" * 16, "--num-beams", 2, "--truncate", "left")
    assert (code, len(out)) == (0, 16 + 8 + 1) and "only the last 8 are read" in err


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
        (["--compile", "--kv-cache", "int8"], 2, "--kv-cache: does not work with --compile; leave it out"),
        (["--prompts-file", "nowhere.txt"], 66, "nowhere.txt"),
        (["--prompts-file", "EMPTY"], 65, "has no prompt; write one on each line"),
        (["--prompts-file", "BAD.jsonl"], 65, "line 1: must be an object with a prompt"),
        (["--prompt", "a", "--num-samples", "0"], 2, "--num-samples must be at least 1, got 0"),
        (["--prompt", "a", "--threads", "0"], 2, "threads must be at least 1, got 0"),
        (
            ["--prompt", "a", "--num-beams", "2", "--num-samples", "3"],
            2,
            "--num-samples must be at most --num-beams, 2, got 3",
        ),
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
