"""Mistakes found before Lightning is imported: none that the parser would not find, and in its words."""

import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

import pytest
import yaml

from tinylm.checks import LINKED
from tinylm.commands import main
from tinylm.commands.fit_check import check_options, read_command
from tinylm.errors import ConfigError
from tinylm.locate import CONFIGS
from tinylm.mistakes import Given
from tinylm.plugins import Part

COMMANDS = ("fit", "validate", "test", "predict")


@cache
def make_parser(command: str):
    """The parser of LightningCLI, with one command."""
    from tinylm.training.cli import TinyLMCLI
    from tinylm.training.options import ConfigParser

    patch, made = pytest.MonkeyPatch(), []
    patch.setattr(sys, "argv", ["tinylm", command])
    patch.setattr(ConfigParser, "parse_args", lambda self, *others, **options: made.append(self) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TinyLMCLI([])
    patch.undo()
    return made[0]


@pytest.fixture(scope="module")
def numpy_parser():
    from tinylm.training.parser import make_parser

    parser = make_parser("")
    parser.add_argument("--threads", type=int, default=None)
    return parser


def commands_parser(command: str):
    actions = make_parser(command)._actions
    return next(action for action in actions if isinstance(action.choices, dict)).choices[command]


def in_order(error: ConfigError) -> str:
    """An error with the types that it names in alphabetical order.

    Python keeps one object for Union[int, float] and Union[float, int], in the order of the module that came first.
    """
    return re.sub(
        r"(?<=must be )\w+(?: or \w+)+", lambda found: " or ".join(sorted(found[0].split(" or "))), str(error)
    )


def parsed(*words: str) -> str | None:
    """The parser's error."""
    Given.files.clear()
    patch = pytest.MonkeyPatch()
    patch.setattr(sys, "argv", ["tinylm", *words])
    try:
        make_parser(words[0]).parse_args()
    except ConfigError as error:
        return in_order(error)
    finally:
        patch.undo()
    return None


def checked(command: str, *words: str) -> str | None:
    """The error of the check."""
    try:
        check_options(command, list(words))
    except ConfigError as error:
        return in_order(error)
    return None


# --- what the sources say is what the parser says


def kinds_of(hint: object) -> set[tuple[str, str]] | None:
    """The types of a type hint, None if it is more than numbers, booleans, null and choices."""
    if get_origin(hint) in (Union, UnionType):
        parts = [kinds_of(part) for part in get_args(hint)]
        return None if None in parts else {kind for part in parts for kind in part}
    if get_origin(hint) is Literal:
        return {("", ", ".join(map(repr, get_args(hint))))}
    return {(hint.__name__, "")} if hint in (int, float, bool, NoneType, Part) else None


def compare(command: str, parser) -> None:
    options = read_command(command)
    names = [action.dest for action in parser._actions if not action.dest.endswith(".help")]
    linked = [name for name in options.names if name in LINKED]
    assert sorted(linked) == sorted(LINKED)
    assert [name for name in options.names if name not in LINKED] == [name for name in names if name not in LINKED]
    hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    simple = {name: set(kinds) for name, kinds in options.kinds.items() if name not in LINKED}
    assert len(simple) > 60 and simple == {name: kinds_of(hints[name]) for name in simple}
    assert options.groups == {"trainer", "model", "model.network", "model.optimizer", "model.schedule", "data", "run"}


@pytest.mark.parametrize("command", COMMANDS)
def test_names_and_types_are_those_of_the_parser(command):
    compare(command, commands_parser(command))


def test_names_and_types_of_the_numpy_twin_are_those_of_its_parser(numpy_parser):
    compare("train-numpy", numpy_parser)


# --- mistakes

WORDS = """\
--trainer.max_stepz 5
--trainer.max_stepz=5
--trainer.max_stepz
--trainer.max-steps 5
--trainer.max_stepz+ 5
--trainer.max_stepz+=5
--model.network.n_layer 4
--model.network.n_head=4
--model.optimizr.lr 1
--model.nonsense.deep.down 1
--model.network.d-model 5
--data.block_size 4
--data.batchsize 4
--run.nam x
--run.x y
--d_model 5
--d-model 256
--d_modl=256
--lr 0.1
--warmup 5
--epochs 5
--batch-size 5
--seed 5
--name x
--network.d_model 5
--model.d_model 5
--fit.trainer.max_steps 5
--resum
--verbose true
--overwrite
--help_me
my.txt
small.txt
small
other.yaml
--data.corpus a.txt b.txt
--run.prompts The king
--run.name=x king
king --trainer.max_stepz 5
--trainer.max_stepz 5 king
--trainer.max_stepz 5 --data.foo 3
--trainer.max_stepz 5 --trainer.max_steps abc
--trainer.max_steps abc
--trainer.max_steps=0,5
--trainer.max_steps 5.5
--trainer.max_steps 1e5
--trainer.max_epochs many
--trainer.max_epochs 0.5
--trainer.fast_dev_run abc
--trainer.gradient_clip_val big
--trainer.enable_progress_bar abc
--trainer.limit_val_batches half
--model.optimizer.lr fast
--model.optimizer.lr 10k
--model.optimizer.name adamm
--model.network.activation swish
--model.network.num_kv_heads few
--model.compile maybe
--data.batch_size many
--data.seed abc
--run.timeout long
"""
FILES = r"""\
trainer: {max_stepz: 5}
trainer: {max_stepz: null}
trainer: {max_stepz: []}
trainer: {max_stepz: [{a: 3}]}
trainer: {max_steps: abc}
trainer: {max_steps: 5.5}
trainer: {max_stepz: 5, max_steps: abc}
model: {network: {n_layer: 2}}
model: {network: {n_layer: {a: 3}}, foo: 2}
model: {network: {activation: swish}, optimizer: {lr: fast}}
model: {netw: 5, network: {n_layer: 3}}\ndata: {xx: 1}
data: {batch_size: many}
data: {train: my.txt, batch_size: 8}
run: {zz: 1}\ndata: {xx: 1}
aa: 1\nrun: {zz: 1}
d_model: 3
modell: {network: {d_model: 3}}
data.foo: 3
trainer: {max_steps: abc}\n--- \n
data: {}\n- 3
trainer:
[1, 2]
trust: [mine]
model: null
verbose: true
verbos: true
"""


def command_lines() -> list[tuple[str, str]]:
    files = [line.replace("\\n", "\n") for line in FILES.splitlines()]
    return [(words, "") for words in WORDS.splitlines()] + [("", text) for text in files]


@pytest.mark.parametrize(("words", "text"), command_lines())
def test_a_mistake_is_answered_in_the_words_of_the_parser(tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(text or "run: {name: b}\n")
    line = ["-c", "small", "-c", "b.yaml", *words.split()]
    answer = checked("fit", *line)
    assert answer is not None and answer == parsed("fit", *line)


@pytest.mark.parametrize("words", ["--verbos 1", "--run.output=x y", "--return_prediction true", "--data.txt a"])
@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_answer_alike(command, words):
    answer = checked(command, "-c", "small", *words.split())
    assert answer is not None and answer == parsed(command, "-c", "small", *words.split())


TWINS = [("--thread 4", ""), ("--trainer.max_stepz 4", ""), ("--trainer.max_steps abc", ""), ("tiny", "")]
TWINS += [("", text) for text in FILES.splitlines()[:14]] + [("", "weights_only: null"), ("", "run: {x: 1}")]


@pytest.mark.parametrize(("words", "text"), TWINS)
def test_the_numpy_twin_answers_alike(numpy_parser, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(text.replace("\\n", "\n") or "run: {name: b}\n")
    line = ["-c", "tiny", "-c", "b.yaml", *words.split()]
    Given.files.clear()
    with pytest.raises(ConfigError) as refused:
        numpy_parser.parse_args(line)
    assert checked("train-numpy", *line) == str(refused.value)


VALUES = """\
5|5.0|-1|+5|0x10|0o7|0b1|1_000|.5|5.|1e5|1E5|1e-3|-1e3|1.5e3|inf|.inf|nan|12:30|2024-01-01|10k|0,5|1,000|5%|abc|a b|a-b
yes|No|on|OFF|y|n|true|True|TRUE|null|Null|None|~||"5"|'abc'|[1]|{a: 1}|a: 1|a #b|abc #|*a|&a|!x|@x|$x|${x}|é|\u0663
\u0663.\u0665|1.5.2|adamw|AdamW|muon|cosine|swiglu|relu2|rmsnorm|auto|1st|e5|1e|0x|Infinity|-abc|a,b|a=b|1 2"""
TYPED = ("trainer.max_steps", "trainer.fast_dev_run", "trainer.gradient_clip_val", "model.optimizer.name")
ALIKE = (  # of similar types
    "trainer.max_epochs", "trainer.overfit_batches", "trainer.benchmark", "model.compile", "model.optimizer.lr",
    "model.network.activation", "run.peak_flops",
)  # fmt: skip


@pytest.mark.parametrize("name", [*TYPED, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)])
def test_a_value_is_refused_only_if_the_parser_refuses_it_and_alike(name):
    refused = 0
    for value in VALUES.replace("\n", "|").split("|"):
        words = ["-c", "small", f"--{name}={value}"]
        if (answer := checked("fit", *words)) is not None:
            assert answer == parsed("fit", *words)
            refused += 1
    assert refused >= 5


# --- what must not be refused

ACCEPTED = """\
--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss
--trainer.callbacks+ tinylm.training.BestCheckpoint --trainer.callbacks.init_args.filename x
--trainer.logger+=WandbLogger --trainer.logger.project x --trainer.logger.init_args.id 5
--trainer.strategy tinylm.training.ShardedStrategy --trainer.strategy.init_args.x 5
--trainer.plugins+=x.Y --trainer.plugins.z 1
--trainer.profiler.dirpath x --trainer.max_time.days 1
--data.corpus.a a.txt --data.corpus '{a: b}' --data.weights.a 0.5
--model.lora.rank 4 --model.freeze.blocks 2 --model.lora '{rank: 4}' --model.lora.nonsense 3
--model.network.rope_scaling.kind linear --model.network '{d_model: 32}' --model.network x.yaml
--model.optimizer.lr.x 3
--print_config --trainer.max_stepz 5
--print_config=skip_null
--trainer.logger.help
--data.max_seq_len 5
--model.network.vocab_size 65
--trust mine --seed_everything true --ckpt_path x --weights_only false --resume
-- --trainer.max_stepz 5
--run.name -5 king
--run.prompts=--trainer.max_stepz
--run.prompts --a--b"""


@pytest.mark.parametrize("words", ACCEPTED.splitlines())
def test_what_only_the_parser_can_judge_is_left_to_it(words):
    assert checked("fit", "-c", "small", *shlex.split(words)) is None


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_of_ours_is_refused(path):
    if path.parent.name not in ("sweeps", "ablations"):
        for command in (*COMMANDS, "train-numpy"):
            assert checked(command, "-c", str(path), f"-c{path}", f"--config={path}") is None


def test_no_default_is_refused():
    actions = [action for action in commands_parser("fit")._actions if "." in action.dest]
    for action in actions:
        value = yaml.safe_dump(action.default, default_flow_style=True).removesuffix("...\n").strip()
        assert checked("fit", f"--{action.dest}", value) is None
    assert len(actions) > 100


@pytest.mark.parametrize(
    "text", ["model: {x: {}}", "trainer: {callbacks+: [x.Y]}", "model: {x+: 3}", "5: x", "data: {'': 3, x: 2}"]
)
def test_keys_that_only_the_parser_can_judge_are_left_to_it(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    assert checked("fit", "-c", str(tmp_path / "a.yaml")) is None


def test_another_lightning_is_left_to_the_parser(monkeypatch):
    read_command.cache_clear()
    monkeypatch.setattr("tinylm.commands.fit_check.find_spec", lambda name: None)
    assert checked("fit", "--trainer.max_stepz", "5") is None
    read_command.cache_clear()


def test_the_other_processes_of_a_run_leave_it_to_the_parser(monkeypatch, capfd):
    """Their errors name the rank."""
    monkeypatch.setattr(sys, "argv", ["tinylm"])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("tinylm.errors._silenced", False)  # as it is afterwards
    assert main(["fit", "-c", "small", "--trainer.max_stepz", "5"]) == 2
    assert "tinylm: error: rank 1: trainer.max_stepz: no such option" in capfd.readouterr().err
