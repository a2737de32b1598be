"""Training without Lightning's trainer: its options, and a stand-in for what others ask it.

For `tinylm train-numpy`, whose steps are none of PyTorch's, but whose configs, data and display are `tinylm fit`'s.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Trainer

from tinylm.data import TextDataModule
from tinylm.errors import ConfigError
from tinylm.runs.folder import RunConfig
from tinylm.training.module import LitTransformerLM
from tinylm.training.options import ConfigFile, ConfigParser


def make_parser(description: str) -> ConfigParser:
    """The options of `tinylm fit`, without its subcommands."""
    ConfigFile.read.clear()  # of an earlier command in this process
    parser = ConfigParser(description=description, allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ConfigFile, help="A config file's path or name; several combine.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run from its newest checkpoint.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Of the first weights, and of dropout.")
    parser.add_lightning_class_args(LitTransformerLM, "model")
    parser.add_lightning_class_args(TextDataModule, "data")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_argument("--run", type=RunConfig, default=RunConfig())
    parser.set_defaults({"trainer.max_epochs": -1})
    parser.link_arguments("model.network.max_seq_len", "data.max_seq_len", apply_on="parse")
    parser.link_arguments("data.vocab_size", "model.network.vocab_size", apply_on="instantiate")
    return parser


def build(kind: type, values: Any, **more: Any) -> Any:
    """An object of parsed options, or of a default that is one already."""
    return kind(**(values.as_dict() if hasattr(values, "as_dict") else vars(values)), **more)


def trainer_help() -> str:
    """Lightning's own words on the options of its Trainer."""
    parser = make_parser("")
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        if any(action.dest.startswith("trainer.") for action in group._group_actions):
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
    return formatter.format_help()


@dataclass
class Stage:
    """As much of Lightning's trainer as `TextDataModule` and `Progress` ask for: where the run stands."""

    accumulate_grad_batches: int = 1
    estimated_stepping_batches: int = 0
    global_step: int = 0
    val_check_interval: None = None
    world_size: int = 1
    global_rank: int = 0
    sanity_checking: bool = False
    state: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(fn="fit"))
    callback_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Lengths:
    """How long a run is, and when it validates: Lightning's rules, counted in whole steps.

    Attributes:
        total: optimizer steps in the run
        per_epoch: in an epoch
        every: from validation to validation, counted in the run, or in each epoch if there are `epochs`
        epochs: validate in every so many epochs; None: epochs do not matter
    """

    total: int
    per_epoch: int
    every: int
    epochs: int | None

    @classmethod
    def of(cls, options: Any, per_epoch: int) -> "Lengths":
        """Those of a trainer's options.

        Raises:
            ConfigError: if validations are further apart than an epoch is long, and would never come.
        """
        ends = [options.max_steps, (options.max_epochs or -1) * per_epoch]
        interval = 1.0 if options.val_check_interval is None else options.val_check_interval
        every = interval if isinstance(interval, int) else max(1, int(interval * per_epoch))
        if options.check_val_every_n_epoch is not None and every > per_epoch:
            raise ConfigError(
                f"trainer.val_check_interval must be at most the {per_epoch} steps of an epoch, got {every}; "
                f"set check_val_every_n_epoch: null to count steps of the whole run"
            )
        return cls(min(end for end in ends if end >= 0), per_epoch, every, options.check_val_every_n_epoch)

    def validation_is_due(self, step: int) -> bool:
        """Whether a validation follows the step that is the run's `step`-th."""
        if self.epochs is None:
            return step % self.every == 0
        epoch, place = divmod(step - 1, self.per_epoch)
        return (epoch + 1) % self.epochs == 0 and (place + 1) % self.every == 0
