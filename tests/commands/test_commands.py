"""The `tinylm` command: its overview and help, start-up without PyTorch, and the commands that it prints."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.commands.conftest import save_model
from tinylm.commands import COMMANDS, main
from tinylm.commands.fit_help import IMPORTED, LARGE, MUON, READING, SECTIONS, help_text, read_options
from tinylm.console import exit_code
from tinylm.errors import ConfigError
from tinylm.locate import CONFIGS, command, newest_run

ROOT = Path(__file__).resolve().parents[2]


def tinylm(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tinylm", *words], cwd=folder, capture_output=True, text=True, timeout=100,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


# --- the list, and mistakes


def test_without_arguments_every_command_is_listed_on_one_screen(capfd):
    assert main([]) == 0
    alone = capfd.readouterr().out
    assert main(["--help"]) == 0
    assert capfd.readouterr().out == alone
    assert len(alone.splitlines()) <= 40 and max(map(len, alone.splitlines())) <= 90
    places = [alone.index(f"\n    {name} ") for name in COMMANDS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["generat"], 2, "generat: no such command, did you mean 'generate'?"),
        (["xyzzy"], 2, "xyzzy: no such command; tinylm --help lists them"),
        (["fit", "-c", "smal"], 66, "smal: no such config file, did you mean 'small'?"),
        (["train-numpy", "--config=tinyy"], 66, "tinyy: no such config file, did you mean 'tiny'?"),
        (["generate", "--temprature", "1"], 2, "--temprature: no such option, did you mean '--temperature'?"),
        (["configs", "tinny"], 66, "tinny: no such config file, did you mean 'tiny'?"),
        (["validate"], 2, "-c: missing; give the config of the run, as in -c small or -c runs/small/config.yaml"),
        (["fit", "-csmal"], 66, "smal: no such config file, did you mean 'small'?"),
        (["score"], 2, "give either --text or --pairs"),
        (["quantize"], 2, "required: --model, --out; tinylm quantize --help explains them"),
        (["configs", "--out", "x.yaml"], 2, "--out: which config? Give its name"),
    ],
)
def test_an_invalid_command_line_is_one_line(words, code, problem, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("tinylm: error: ") and err.count("\n") == 1
    assert problem in err


def test_help_command_prints_a_commands_help(capfd):
    assert main(["help", "fit"]) == 0
    asked = capfd.readouterr().out
    assert main(["fit", "--help"]) == 0
    assert capfd.readouterr().out == asked


@pytest.mark.skipif(os.name != "posix", reason="the pipe is a shell's")
def test_a_closed_pipe_is_no_error():
    run = subprocess.run(
        f"{shlex.quote(sys.executable)} -u -m tinylm | true", shell=True, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stderr == ""


def test_values_keep_their_underscores_and_dashes(tmp_path, load):
    save_model(tmp_path)
    code, _, err = load("generate")("--model", tmp_path, "--max_new_tokens", 1, "--prompt=--a_b")
    assert code == 65 and "'-' (U+002D) at position 0" in err
    code, _, err = load("generate")("--model", tmp_path, "--prompt", "_a _b")
    assert code == 65 and "'_' (U+005F) at position 0" in err
    code, _, err = load("tokenizer")("inspect", tmp_path / "tokenizer.tinylm.json", "--", "--_b")
    assert code == 65 and "'-' (U+002D) at position 0" in err


def test_an_unexpected_exception_is_one_line_too(monkeypatch, capfd):
    monkeypatch.setattr("tinylm.commands.configs.listing", lambda: 1 / 0)
    assert main(["configs"]) == 70
    assert capfd.readouterr().err == "tinylm: error: ZeroDivisionError: division by zero; --debug shows where\n"
    assert main(["configs", "--debug"]) == 70
    assert "in <lambda>" in capfd.readouterr().err


def test_errors_may_be_reported_otherwise(capfd):
    def fail(arguments):
        raise ConfigError("the rule; the remedy")

    assert exit_code(fail, [], lambda message, code: code + len(message)) == 2 + 20
    assert capfd.readouterr() == ("", "")


# --- help without PyTorch

MISTAKES = ["--temperature -1", "--top-p 90", "--max-new-tokens 0", "--prompt The king", "--num-beams 2 --seed 1"]
HELP = [["--help"], ["configs"], *([name, "--help"] for name in COMMANDS), ["fit", "-c", "nowhere"]]
HELP += [["generate", "--model", "nowhere"]]
HELP += [
    ["fit", "--trainer.max_stepz", "5"],
    ["fit", "-c", "typo.yaml"],
    ["fit", "--model.compile", "maybe"],
    ["fit", "x"],
]
HELP += [["predict", "-c", "tiny", "--dat.text", "x"], ["train-numpy", "-c", "tiny", "--trainer.max_stepz", "5"]]
HELP += [["generate", "--model", "README.md", *words.split()] for words in ["", *MISTAKES, "--prompts-file nowhere"]]
HEAVY = {
    "torch", "lightning", "jsonargparse", "matplotlib", "prompt_toolkit", "torchmetrics", "transformers", "sympy",
    "wandb", "fsspec", "requests", "jinja2",
}  # fmt: skip
WATCH = """
import contextlib, io, sys
from tinylm.commands import main
for words in {words!r}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(words)
    print(*words, *({heavy} & {{*sys.modules}}))
"""


def test_help_and_errors_do_not_import_pytorch(tmp_path):
    (tmp_path / "README.md").write_text("A text.")
    (tmp_path / "typo.yaml").write_text("trainer: {max_stepz: 5}\n")
    code = WATCH.format(words=HELP, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert run.stdout.splitlines() == [" ".join(words) for words in HELP], run.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("fit", "validate", "test", "predict")])
def test_a_commands_help_begins_with_its_usage(name, capfd):
    try:
        code = main([name, "--help"])
    except SystemExit as end:
        code = end.code
    out = capfd.readouterr().out
    assert code == 0 and out.startswith(f"usage: tinylm {name}")


# --- fit --help


def parsers_options() -> dict:
    """Our options as jsonargparse has them: name -> action."""
    from tinylm.training.parser import make_parser

    ours = ("data.", "run.", "model.")
    actions = {}
    parser = make_parser("")
    for action in parser._actions:
        typed = getattr(action, "_typehint", None)
        if action.dest.startswith(ours) and typed is not None and not action.dest.endswith(".help"):
            actions[action.dest] = action
    return actions


def test_fit_help_describes_every_tinylm_option():
    actions = parsers_options()
    found = {option.name: option for section in SECTIONS for option in read_options(section)}
    nested = {name for name in found if name.startswith(("model.lora.", "model.freeze."))}
    assert found.keys() - nested == actions.keys() - {"model.network", "model.optimizer", "model.schedule", "run"}
    assert len(found) > 60 and len(nested) == 7
    for name, option in found.items():
        assert len(option.text.split()) >= 3, name
    for name, action in actions.items():
        if name in found:
            assert eval(found[name].default or "None") == action.default, name
            for choice in getattr(action._typehint, "__args__", ()):
                if isinstance(choice, str) and name.rpartition(".")[2] not in (*IMPORTED, *MUON):
                    assert choice in help_text("fit"), name


def test_fields_that_the_help_only_names_are_settable_and_explained_in_the_architecture_page():
    page, options = (ROOT / "docs/architecture.md").read_text(encoding="utf-8"), parsers_options()
    for name in IMPORTED:
        assert f"model.network.{name}" in options
        assert f"| `{name}` |" in page
        assert name in help_text("fit")


def test_further_options_that_the_help_only_names_are_settable():
    options = parsers_options()
    for name in READING:
        assert f"data.{name}" in options and name in help_text("fit")
    for name in MUON:
        assert f"model.optimizer.{name}" in options and name in help_text("fit")
    for name in LARGE:
        assert f"model.{name}" in options and name in help_text("fit")


def test_jsonargparse_help_has_the_same_descriptions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tinylm", "fit", "--trainer.help"])
    helps = {name: action.help for name, action in parsers_options().items()}
    assert helps["model.network.d_model"].startswith("Width of the residual stream.")
    assert helps["run.sample_tokens"].startswith("Length of each sample")


def test_fit_help_shows_tinylm_options_within_130_lines_at_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_text("fit").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("Lightning's Trainer"))
    assert first < 130
    assert max(map(len, lines)) <= 86


def test_the_trainers_help_lists_its_options(capfd):
    assert main(["fit", "--trainer.help"]) == 0
    out = capfd.readouterr().out
    assert "--trainer.max_steps MAX_STEPS" in out and "--trainer.callbacks.help" in out and "--data." not in out


# --- configs


def test_configs_are_listed_shown_and_copied(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(["configs"]) == 0
    listed = capfd.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed} == {
        path.relative_to(CONFIGS).with_suffix("").as_posix()
        for path in CONFIGS.rglob("*.yaml")
        if path.parent.name not in ("sweeps", "ablations")
    }
    assert all(re.search(r"[.)]$| --config \S+|--logdir runs$", line) for line in listed), listed  # whole sentences
    text = (CONFIGS / "small.yaml").read_text(encoding="utf-8")
    assert main(["configs", "small"]) == 0
    assert capfd.readouterr().out == f"# {CONFIGS / 'small.yaml'}\n{text}"
    assert main(["configs", "small", "--out", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text(encoding="utf-8") == text
    assert capfd.readouterr().out.splitlines()[-1] == f"to train with it: {command('fit', '-c', 'mine.yaml')}"
    assert main(["configs", "tiny", "--out", "mine.yaml"]) == 73
    assert Path("mine.yaml").read_text(encoding="utf-8") == text


# --- what is printed to be typed


def test_printed_commands_begin_with_a_program_that_the_shell_finds(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    python = bin_folder / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    assert command("fit", "-c", "my file.yaml") == f"{python} -m tinylm fit -c 'my file.yaml'"
    monkeypatch.setenv("PATH", str(bin_folder))
    for name in ("python", "tinylm"):
        (bin_folder / name).touch(mode=0o755)
        assert command("fit") == {"python": "python -m tinylm fit", "tinylm": "tinylm fit"}[name]
    other = tmp_path / "other"
    other.mkdir()
    (other / "tinylm").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other))  # another environment's
    assert command("fit") == f"{python} -m tinylm fit"


def test_without_options_the_newest_run_is_continued_from_its_prompt(tmp_path, monkeypatch, load):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("old", "new", "older")):
        save_model(tmp_path / "runs" / name / "model", prompt=f"ab{'abc'[age]}")
        os.utime(tmp_path / "runs" / name / "model", (1e9 - age % 2 * -100 - age, 1e9 - age % 2 * -100 - age))
    (tmp_path / "runs" / "empty").mkdir()
    assert newest_run() == Path("runs/new")
    code, out, _ = load("generate")("--max-new-tokens", 3)
    assert code == 0 and out.startswith("abb") and len(out) == 3 + 3 + 1
    code, out, _ = load("generate")("--max-new-tokens", 3, "--prompt", "c d")
    assert out.startswith("c d")


def test_the_model_is_announced_before_it_is_loaded(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "runs" / "it" / "model")
    main(["generate", "--prompt", "a", "--max-new-tokens", "1"])
    assert capfd.readouterr().err == f"tinylm: loading {Path('runs/it/model')}, the newest run; --model takes another\n"
    main(["generate", "--model", "runs/it", "--prompt", "a", "--max-new-tokens", "1"])
    assert capfd.readouterr().err == f"tinylm: loading {Path('runs/it/model')}\n"


def test_a_npz_archive_is_continued_without_pytorch(tmp_path):
    from tinylm.reference import files

    save_model(tmp_path / "model", prompt="ab")
    files.save(files.load(tmp_path / "model"), tmp_path / "model" / "it.npz")
    code = "import sys; from tinylm.commands import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    words = ["generate", "--model", "it.npz", "--prompt", "a b", "--max-new-tokens", "5", "--num-samples", "2"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path / "model", capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.returncode == 0 and run.stderr == "tinylm: loading it.npz, in NumPy\n", run.stderr
    first, second = run.stdout.removesuffix("\n").split("\n---\n")
    assert first.startswith("a b") and second.startswith("a b") and len(first) == len(second) == 3 + 5


def test_sample_i_of_a_npz_archive_is_drawn_with_the_seed_plus_i(tmp_path, load):
    from tinylm.reference import files

    save_model(tmp_path)
    files.save(files.load(tmp_path), tmp_path / "it.npz")
    words = ["--model", tmp_path / "it.npz", "--prompt", "ab", "--max-new-tokens", 9]
    for seed, following in ((4, 5), (-1, 0), (2**64 - 1, 0)):
        code, both, _ = load("generate")(*words, "--seed", seed, "--num-samples", 2)
        alone = [load("generate")(*words, "--seed", each)[1][:-1] for each in (seed, following)]
        assert code == 0 and both[:-1].split("\n---\n") == alone


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["--stop", "a"], 2, "--stop: does not work with a .npz archive; leave it out"),
        (["--temperature", "-1"], 2, "temperature must be 0 (greedy) or positive, got -1.0"),
        (["--top-p", "2"], 2, "top_p must be in (0, 1], got 2.0"),
        (["--prompt", "x"], 65, "'x' (U+0078)"),
    ],
)
def test_options_without_a_numpy_version_are_refused_by_name(words, code, problem, tmp_path, load):
    from tinylm.reference import files

    save_model(tmp_path)
    files.save(files.load(tmp_path), tmp_path / "it.npz")
    found, out, err = load("generate")("--model", tmp_path / "it.npz", *words)
    assert (found, out) == (code, "") and problem in err


@pytest.mark.parametrize("prompt", ["--- a", "a b", "'", "x" * 61])
def test_the_printed_prompt_is_parsed_unchanged(prompt):
    from tinylm.commands.generate import make_parser
    from tinylm.training.finish import generate_command

    words = shlex.split(generate_command(Path("runs/it"), prompt))
    options = make_parser().parse(words[words.index("generate") + 1 :])
    assert options.prompt == (prompt if len(prompt) <= 60 else None)


@pytest.mark.slow
def test_printed_commands_run_as_printed(tmp_path):
    """Starts runs in an empty folder, then executes the commands in their output, split by a shell."""
    short = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--run.sample_tokens", "4"]
    short += ["--trainer.limit_val_batches", "2"]
    printed = []

    def run(*words: str) -> None:
        out, err = (process := processes.tinylm(tmp_path, *words)).communicate()
        assert process.returncode == 0, err
        lines = (out + err).splitlines()
        printed.extend(line.split(": ", 2)[-1] for line in lines if re.search(r"(?:^|: )(?:to |or )[^:]*: ", line))

    run("fit", "-c", "small", *short)
    run("fit", "-c", "small", *short)  # small exists; this run is small-2
    run("train-numpy", "-c", "tiny", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    run("prepare", "questions", "--out", "questions", "--train", "40", "--val", "4", "--test", "4")
    run("fit", "-c", "finetune", *short)
    chats = ["--data.template", "chat", "--run.name", "chat"]
    run("fit", "-c", "finetune", *short, *chats)
    run("quantize", "--model", "runs/small", "--out", "small-8bit")
    run("export", "--model", "runs/small", "--to", "hf", "--out", "hf")
    run("export", "--model", "hf", "--to", "tinylm", "--out", "back")
    run("configs", "tiny", "--out", "mine.yaml")
    assert len(printed) >= 9, printed
    split = "import json, sys; print(json.dumps(sys.argv[1:]))"
    for line in printed:
        if "from_pretrained" in line:
            continue  # Python, run by tests/interop
        words = shlex.split(line)
        assert "tinylm" in (Path(words[0]).name, words[2]) and shutil.which(words[0]), line
        shell = subprocess.run(f"{shlex.quote(sys.executable)} -c '{split}' {line}", shell=True, capture_output=True)
        assert json.loads(shell.stdout) == words, line  # as the shell splits it
        words = words[1:] if Path(words[0]).name == "tinylm" else words[3:]  # python -m tinylm
        words += ["--max-new-tokens", "4"] if "generate" in words else short if "fit" in words else []
        _, err = (process := processes.tinylm(tmp_path, *words)).communicate()
        assert process.returncode == 0, (line, err)


# --- scripts


def test_scripts_are_the_commands():
    names = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"command"}
    assert names == {
        "train", "generate", "score", "evaluate", "analyze", "quantize", "export", "compare", "plot", "prepare",
        "train_tokenizer", "train_numpy", "compare_numpy", "reproduce", "average", "scaling", "estimate", "ablate",
    }  # fmt: skip
    for name in names:
        lines = (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").splitlines()
        assert lines[1:5] == ["", "from command import run", "", 'if __name__ == "__main__":'], name


def test_a_script_runs_from_any_folder_and_names_missing_packages(tmp_path):
    script = str(ROOT / "scripts" / "train_tokenizer.py")
    good = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert good.returncode == 0 and good.stdout.startswith("usage: tinylm tokenizer train")
    # -I and -S: the standard library only
    bare = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_path(sys.argv[2], run_name='__main__')"
    words = [sys.executable, "-I", "-S", "-c", bare, str(ROOT / "scripts"), script]
    bad = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert bad.returncode == 70 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith(f"tinylm: error: {sys.executable} has no tinylm; activate its environment, or: ")


@pytest.mark.parametrize(("words", "missing"), [("tokenizer inspect t x", "tqdm"), ("fit -c tiny", "yaml")])
def test_a_package_that_is_missing_is_named_on_one_line(words, missing, tmp_path):
    bare = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tinylm.commands import main; sys.exit(main())"
    process = [sys.executable, "-I", "-S", "-c", bare, str(ROOT), *words.split()]
    run = subprocess.run(process, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    problem = f"{sys.executable} has no {missing}; activate the environment in which tinylm is installed"
    assert (run.returncode, run.stderr.splitlines()[-1]) == (70, f"tinylm: error: {problem}")


def test_a_crash_in_a_kernel_names_the_python_line(tmp_path):
    """faulthandler is enabled: a segmentation fault prints the Python line."""
    process = processes.start(crash, tmp_path / "stderr.txt")
    process.join(60)
    text = (tmp_path / "stderr.txt").read_text()
    assert process.exitcode not in (0, 1) and "Segmentation fault" in text and "in crash" in text


def crash(stderr: Path) -> None:
    import ctypes

    with stderr.open("wb") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = ["tinylm", "configs"]
    main(["configs"])
    ctypes.string_at(0)
