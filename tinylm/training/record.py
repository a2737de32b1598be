"""The facts of a training run that run.json records (runs/provenance.py)."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from tinylm.data.run_data import RunData
from tinylm.plugins import describe
from tinylm.runs.masking import impersonal, masked
from tinylm.runs.provenance import RunFacts, launcher, parent
from tinylm.runs.settings import flat_config
from tinylm.training.options import trusted_modules

OPTIONS = ("seed_everything", "model", "data", "trainer", "run")
NO_CHOICE = ("model.network.vocab_size", "run.name", "run.dir")  # of the data; where the run is


def fit_facts(
    trainer: pl.Trainer, module: Any, config: dict[str, Any], words: Sequence[str], given: Sequence[str], step: int
) -> RunFacts:
    """The facts of a run of `tinylm fit`, which has been set up.

    Args:
        trainer: the Trainer
        module: its LitTransformerLM
        config: the resolved options
        words: the command line after `tinylm fit`
        given: names of the options whose value is not the default
        step: that of the checkpoint from which the run begins, if it begins from one
    """
    kind = type(trainer.accelerator).__name__.removesuffix("Accelerator").lower()
    numbers = trainer.device_ids if kind == "cuda" else []
    parents = {} if module.start is None else {"model.init_from": _base(module.start)}
    if trainer.ckpt_path is not None:
        parents["ckpt_path"] = parent(str(trainer.ckpt_path), step)
    return RunFacts(
        command="fit",
        words=words,
        compute=compute(kind, trainer.world_size, str(trainer.precision)),
        devices=sorted({torch.cuda.get_device_name(number) for number in numbers}),
        seeds=seeds(config),
        parents={} if module.resumes else parents,
        plugins={each["class_path"]: each["sha256"] for each in describe(module.all_plugins)},
        options={"trust": [*dict.fromkeys(trusted_modules([*words]))]},
        given=given,
        **data_facts(trainer.datamodule),  # pyright: ignore[reportAttributeAccessIssue]
    )


def _base(start: Any) -> dict[str, Any]:
    return parent(start.path, start.bundle.info.get("step"))


def compute(kind: str, processes: int, precision: str) -> dict[str, Any]:
    """The facts of the computation: what may change the last bits of a loss, apart from versions and machine."""
    threads = torch.get_num_threads()
    found: dict[str, Any] = {"accelerator": kind, "processes": processes, "precision": precision, "threads": threads}
    return {**found, "launcher": launcher()}


def data_facts(data: RunData) -> dict[str, Any]:
    """`text` and `tokenizer` of a run on these data."""
    name = impersonal(masked(data.source))
    return {
        "text": {"name": name, "sha256": data.fingerprint, "sources": data.fingerprints},
        "tokenizer": {"kind": data.tokenizer.kind, "sha256": data.tokenizer.sha256},
    }


def seeds(config: dict[str, Any]) -> dict[str, Any]:
    """The seeds among the options."""
    flat = flat_config({name: value for name, value in config.items() if name not in ("trainer", "run")})
    return {name: value for name, value in flat.items() if "seed" in name.split(".")[-1]}


def given_options(parser: Any, config: dict[str, Any]) -> list[str]:
    """The options of a config whose value is not the parser's default, by dotted name."""
    defaults, flat = default_options(parser), flat_options(config)
    return [name for name in flat if name not in defaults or flat[name] != defaults[name]]


def default_options(parser: Any) -> dict[str, Any]:
    """The defaults of a parser of `fit` or `train-numpy`, by dotted name."""
    text = parser.dump(parser.get_defaults(), skip_unset=False, skip_link_targets=True, skip_validation=True)
    return flat_options(yaml.safe_load(text))


def flat_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of a config by dotted name, without those of one command and the name of the run."""
    flat = flat_config({name: value for name, value in config.items() if name in OPTIONS})
    return {name: value for name, value in flat.items() if name not in NO_CHOICE}
