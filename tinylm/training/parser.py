"""The options of `tinylm fit` without its subcommands: for `tinylm train-numpy`, and for the help of the Trainer."""

from argparse import SUPPRESS
from typing import Any

from lightning.pytorch import Trainer

from tinylm.data import TextDataModule
from tinylm.mistakes import Given
from tinylm.runs.folder import RunConfig
from tinylm.training.module import LitTransformerLM
from tinylm.training.options import ConfigFile, ConfigParser, add_trust_option


def make_parser(description: str) -> ConfigParser:
    """A parser of `--config`, `--resume`, `--seed_everything`, `--model.*`, `--data.*`, `--trainer.*` and `--run.*`."""
    Given.files.clear()  # files of an earlier command in this process
    parser = ConfigParser(description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ConfigFile, help="A config file's path or name; several combine.")
    add_trust_option(parser)
    parser.add_argument("--resume", action="store_true", help="Resume the run from its newest checkpoint.")
    parser.add_argument(
        "--seed_everything", type=bool | int, default=0, help="Seed of weights, dropout and the order of the data."
    )
    parser.add_lightning_class_args(LitTransformerLM, "model")
    parser.add_lightning_class_args(TextDataModule, "data")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_argument("--run", type=RunConfig, default=RunConfig())
    parser.set_defaults({"trainer.max_epochs": -1})
    parser.link_arguments("model.network.max_seq_len", "data.max_seq_len", apply_on="parse")
    parser.link_arguments("data.vocab_size", "model.network.vocab_size", apply_on="instantiate")
    return parser


def build(kind: type, values: Any, **more: Any) -> Any:
    """An object of the parsed options `values`, which may be a default object already."""
    return kind(**(values.as_dict() if hasattr(values, "as_dict") else vars(values)), **more)


def trainer_help() -> str:
    """Lightning's help of the Trainer's options."""
    parser = ConfigParser(description="", usage=SUPPRESS, add_help=False)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({"trainer.max_epochs": -1})
    return parser.format_help()
