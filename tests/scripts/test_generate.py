"""scripts/generate.py as a user meets it: text on stdout; one line on stderr and an exit code if something is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinylm.bundle import save_bundle
from tinylm.model import ModelConfig, TransformerLM
from tinylm.tokenizer import CharTokenizer

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "generate.py"
TOKENIZER = CharTokenizer("abcdefghé\n 😀")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=16, num_layers=1, num_heads=2, max_seq_len=16)
    folder = tmp_path_factory.mktemp("run") / "model"
    save_bundle(folder, TransformerLM(config), TOKENIZER)
    return folder


@pytest.fixture
def run(load):
    """run(*arguments) calls the script's main inside this process: exit code, stdout, stderr."""
    return load("generate")


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    return subprocess.Popen(command, cwd=folder, **pipes)


def only_line(err: str) -> str:
    assert err.startswith("tinylm: error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    return err


def test_from_any_folder_it_prints_the_prompt_and_a_continuation_or_fails_with_its_exit_code(model, tmp_path):
    good = start(tmp_path, "--model", model, "--prompt", "é😀", "--max_new_tokens", 9, "--seed", 1, "--device", "cpu")
    unseen = start(tmp_path, "--model", model, "--prompt", "abz")
    missing = start(tmp_path, "--model", tmp_path / "nowhere", "--prompt", "a")
    usage = start(tmp_path, "--prompt", "a")

    out, err = good.communicate(timeout=60)
    assert (good.returncode, err) == (0, "")
    assert out.startswith("é😀") and out.endswith("\n") and len(out) == 2 + 9 + 1
    assert set(out) <= set(TOKENIZER.characters)

    for process, code, problem in [
        (unseen, 65, "'z' (U+007A) at position 2"),
        (missing, 66, f"{tmp_path / 'nowhere'}: no such model"),
        (usage, 2, "--model"),
    ]:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (code, "")
        assert problem in only_line(err)


def test_options_of_several_words_are_written_either_way(model, run):
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
def test_a_device_that_is_not_there_is_one_line_and_exit_code_2(device, model, run):
    code, out, err = run("--model", model, "--prompt", "a", "--device", device)
    assert (code, out) == (2, "") and device in only_line(err)


def test_a_damaged_model_is_one_line_and_exit_code_65(model, run, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(b"no checkpoint")
    code, out, err = run("--model", tmp_path / "last.ckpt", "--prompt", "a")
    assert (code, out) == (65, "") and "last.ckpt: is " in only_line(err)
