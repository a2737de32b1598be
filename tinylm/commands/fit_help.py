"""`tinylm fit --help`: a sentence for each of tinylm's options.

The sentences are the docstrings of config fields and the `Args:` of two constructors. They are parsed from the source,
since importing Lightning takes seconds.
"""

import ast
import re
import shutil
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tinylm.checks import LINKED
from tinylm.locate import PACKAGE


class Option(NamedTuple):
    """An option: dotted name, default as written in the source, choices, and description."""

    name: str
    default: str
    choices: list[str]
    text: str


class Section(NamedTuple):
    """The options of one class; their names begin with `prefix`."""

    title: str
    prefix: str
    file: str
    kind: str


SECTIONS = (
    Section("Data", "data", "data/datamodule.py", "TextDataModule"),
    Section("Run", "run", "runs/folder.py", "RunConfig"),
    Section("Network", "model.network", "model/config.py", "ModelConfig"),
    Section("Optimizer", "model.optimizer", "optim/optimizer.py", "OptimizerConfig"),
    Section("Learning rate", "model.schedule", "optim/schedule.py", "ScheduleConfig"),
    Section("Model", "model", "training/module.py", "LitTransformerLM"),
    Section("LoRA, as in overlays/lora.yaml", "model.lora", "adapt/lora.py", "LoRAConfig"),
    Section("Frozen parameters, as in overlays/frozen.yaml", "model.freeze", "adapt/freeze.py", "FreezeConfig"),
)

TRAINER = {
    "max_steps": "Optimizer steps of the run; or max_epochs",
    "devices": "Number of GPUs or processes, or auto",
    "accelerator": "cpu, gpu, mps, or auto for the fastest",
    "strategy": "Several devices: ddp; fsdp and tensor_parallel by overlays",
    "precision": "bf16-mixed, 32-true, 64-true, ... (by machine and model)",
    "gradient_clip_val": "Largest norm of the gradient, 0 = no clipping",
    "val_check_interval": "Steps between validations",
    "log_every_n_steps": "Steps between rows of metrics.csv, which begins more densely",
    "callbacks+": "Adds a callback by its class path",
    "logger+": "Adds a logger; see overlays/wandb.yaml",
}
# Fields of ModelConfig that reproduce models of other projects: named in one line, explained in docs/architecture.md.
IMPORTED = (
    "d_head", "residual", "qk_norm_width", "qkv_bias", "head_bias", "rope_scaling", "rotary_fraction", "layer_pattern",
    "attention_scale",
)  # fmt: skip
READING = ("field", "separator", "include", "exclude", "deduplicate", "streaming", "shard_timeout", "max_cache_gb")
LARGE = ("loss_rows", "vocab_multiple")
MUON = ("ns_steps", "ns_dtype", "ns_coefficients", "neuron_beta")
STAGES = ("batch_schedule", "context_schedule")
NAMED = {  # class -> options that are only named, and the words before them
    "ModelConfig": (IMPORTED, "For models of other projects (docs/architecture.md): "),
    "TextDataModule": (READING + STAGES + ("subword_alpha",), "In docs/data.md: "),
    "OptimizerConfig": (MUON, "muon (docs/speed-cpu.md): "),
    "LitTransformerLM": (LARGE, "For large vocabularies: "),
}
COMMON = {
    "-c, --config NAME": "Config by name or path; later ones override (fit: small)",
    "-c auto --budget T": "fit: a config for a time, as 10min (docs/auto.md)",
    "--resume [RUN]": "fit: resume a run from its newest checkpoint",
    "--ckpt_path FILE": "validate, test, predict: the checkpoint (the run's best)",
    "--seed_everything N": "Seed of weights, dropout and the order of the data (0)",
    "--print_config": "Print the config; --trainer.help: Lightning's options",
    "--trust MODULE": "Import a module of yours whose classes a config names",
    "--overwrite": "predict: replace earlier predictions at run.output",
    "--debug": "Show the traceback of an error",
}
INTRODUCTION = """\
usage: tinylm {command} -c CONFIG [--OPTION VALUE ...]

{purpose}
Options have the same dotted names in YAML and on the command line; later ones win.
`tinylm configs` lists the configs, docs/glossary.md explains the terms. (Defaults.)
"""
PURPOSES = {
    "fit": "Trains a model and writes a run folder: runs/<name of the config>.",
    "validate": "Evaluates a run's best checkpoint on its validation split.",
    "test": "Evaluates a run's best checkpoint on the test split.",
    "predict": "Writes the log probability of every token of --data.text, as JSON lines.",
}


def help_text(command: str) -> str:
    """The help of `fit`, `validate`, `test` or `predict`."""
    lines = [INTRODUCTION.format(command=command, purpose=PURPOSES[command]), *_rows(COMMON.items())]
    for section in SECTIONS:
        rows = [(each.name.rpartition(".")[2], _sentence(each)) for each in read_options(section)]
        if section.kind in NAMED:
            names, words = NAMED[section.kind]
            rows = [row for row in rows if row[0] not in names]
            rows.append(("others", words + ", ".join(names)))
        lines += ["", f"{section.title}: --{section.prefix}.NAME", *_rows(rows)]
    lines += ["", "Lightning's Trainer, common options: --trainer.NAME", *_rows(TRAINER.items())]
    return "\n".join(lines)


def read_options(section: Section) -> Iterator[Option]:
    """The options of a section, without linked ones."""
    source = read_source(section)
    found = _fields(source.body) if source.constructor is None else _arguments(source.constructor)
    for name, annotation, default, text in found:
        full = f"{section.prefix}.{name}"
        if full not in LINKED and name not in ("network", "optimizer", "schedule"):
            yield Option(full, ast.unparse(default) if default else "", _choices(annotation, source.literals), text)


class Source(NamedTuple):
    """The source of a section's class."""

    body: list[ast.stmt]
    constructor: ast.FunctionDef | None
    literals: dict[str, ast.expr]  # name -> value, for the constants of its file

    def declared(self) -> dict[str, ast.expr]:
        """The options and the annotations of their types."""
        if self.constructor is not None:
            return declared(self.constructor)
        return {name: annotation for name, annotation, *_ in _fields(self.body)}


def read_source(section: Section) -> Source:
    """Parses the file of a section."""
    tree = ast.parse((PACKAGE / Path(section.file)).read_text(encoding="utf-8"))
    literals = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == section.kind)
    functions = (node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    return Source(body, next(functions, None), literals)


def declared(function: ast.FunctionDef) -> dict[str, ast.expr]:
    """The annotated arguments of a function."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    return {each.arg: each.annotation for each in arguments if each.annotation is not None}


def _fields(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr, ast.expr | None, str]]:
    """Fields of a dataclass with their docstrings."""
    for node, following in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = following.value if isinstance(following, ast.Expr) else None
            yield node.target.id, node.annotation, node.value, str(text.value) if isinstance(text, ast.Constant) else ""


def _arguments(node: ast.FunctionDef) -> Iterator[tuple[str, ast.expr, ast.expr | None, str]]:
    """Arguments of a constructor with their entries under `Args:`."""
    import docstring_parser

    docstring = docstring_parser.parse(ast.get_docstring(node) or "")
    texts = {each.arg_name: each.description or "" for each in docstring.params}
    arguments = declared(node)
    defaults = [None] * (len(arguments) - len(node.args.defaults)) + node.args.defaults
    for (name, annotation), default in zip(arguments.items(), defaults, strict=True):
        yield name, annotation, default, texts.get(name, "")


def _choices(annotation: ast.expr, literals: dict[str, ast.expr]) -> list[str]:
    """The values of a Literal, or of a name for one in the same file."""
    if isinstance(annotation, ast.Name):
        annotation = literals.get(annotation.id, annotation)
    if not isinstance(annotation, ast.Subscript) or ast.unparse(annotation.value) != "Literal":
        return []
    return [str(value) for value in ast.literal_eval(annotation.slice)]


def _sentence(option: Option) -> str:
    """The description of an option, with choices and default."""
    text = " ".join(option.text.split()).rstrip(".")
    missing = [choice for choice in option.choices if choice not in text.lower()]
    choices = f": {', '.join(option.choices)}" if missing else ""
    default = re.sub(r"^\(|,?\)$|[\"']", "", option.default)
    return f"{text}{choices}" + ("" if default in ("None", "False", "") else f" ({default})")


def _rows(rows) -> list[str]:
    """Names on the left, wrapped descriptions on the right."""
    width, left = min(max(shutil.get_terminal_size().columns, 60), 120), 23
    lines = []
    for name, text in rows:
        indent = " " * max(left - len(name) - 2, 1)
        wrapped = textwrap.wrap(f"  {name}{indent}{text}", width, subsequent_indent=" " * left, drop_whitespace=True)
        lines += wrapped
    return lines
