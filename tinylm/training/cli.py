"""The command line of training: `tinylm fit|validate|test|predict`, declared in YAML.

It is LightningCLI with configs found by name, one-line errors with "did you mean", exit codes, and run folders.
"""

import copy
import os
import sys
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tinylm.console import exit_code, print_error, process_rank
from tinylm.data import TextDataModule
from tinylm.errors import ConfigError, Interrupted, Preempted, TinyLMError, first_line, notice, silence_notices
from tinylm.files import write_text
from tinylm.mistakes import Given
from tinylm.model import ModelConfig
from tinylm.plugins import Part, trust
from tinylm.runs.folder import Claim, RunConfig, has_checkpoint, resume_command, started_from_outside
from tinylm.signals import raised
from tinylm.training.callbacks import all_callbacks, all_loggers, replace_folder
from tinylm.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from tinylm.training.classes import check_arguments, chosen_class
from tinylm.training.finish import FinishRun
from tinylm.training.introduction import introduce
from tinylm.training.module import LitTransformerLM
from tinylm.training.options import (
    TRAINER_DEFAULTS,
    TRUSTED,
    ConfigFile,
    ConfigParser,
    add_trust_option,
    check_vocab_size,
    located_errors,
    look_beside_configs,
    saved_config,
    trusted_modules,
)
from tinylm.training.own_data import OwnData
from tinylm.training.own_data_options import OwnClass, takes
from tinylm.training.precision import SamePrecision, set_precision, warn_of_slow_types
from tinylm.training.predictions import PredictionWriter
from tinylm.training.preflight import check_devices, check_loggers, check_run, check_trainer, follow_launcher
from tinylm.training.progress import Progress
from tinylm.training.quiet import quiet_lightning
from tinylm.training.ranks import watch_ranks
from tinylm.training.record import given_options
from tinylm.training.resume import ExactResume
from tinylm.training.run_choice import choose_checkpoint, choose_folder, use_base_model
from tinylm.training.run_files import ConfigRecord, RunFiles
from tinylm.training.samples import SampleText
from tinylm.training.stop import GracefulStop
from tinylm.training.thawed import ThawedParameters
from tinylm.training.throughput import MetricsLog, Throughput
from tinylm.training.time_budget import TimeBudget, check_time_budget


class TinyLMCLI(LightningCLI):
    """LightningCLI with run folders. Creating it runs the command.

    Attributes:
        folder: the run folder, from `before_instantiate_classes` on
        start: the point from which a resumed run continues

    Args:
        claims: receives the claim of the run folder if this process writes it; the caller releases it
    """

    folder: Path

    def __init__(self, claims: list[Claim]) -> None:
        Given.files.clear()  # of an earlier command in this process
        self.own_data: OwnData | None = None
        self.claims = claims
        words = sys.argv[1:]
        trust([*TRUSTED, *trusted_modules(words)])
        look_beside_configs(words)
        model, path = chosen_class("model", LitTransformerLM, words)
        self.chosen = {} if path is None else {"model": path}  # part whose class the user names -> its path
        self.data_class, OwnClass.path = chosen_class("data", TextDataModule, words, LightningDataModule)
        super().__init__(
            model,
            self.data_class,
            save_config_callback=None,  # the config goes to the run folder
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # `tinylm.load` does this
            parser_class=ConfigParser,
        )

    # --- the parser

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Creates a parser without abbreviations, which would accept `--model.network.n_head`."""
        parser = self.parser_class(**kwargs, allow_abbrev=False)
        parser.add_argument("-c", "--config", action=ConfigFile, help="Config by path or name; several combine.")
        add_trust_option(parser)
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The commands, or only the one being run: a parser for all four takes four times as long to build."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "fit":
            parser.add_argument("--resume", action="store_true", help="Resume the run from its newest checkpoint.")
        if subcommand == "predict":
            parser.add_argument("--overwrite", action="store_true", help="Replace earlier predictions at run.output.")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds `run`, the classes that the user names, and the two links between model and data."""
        parser.add_argument("--run", type=RunConfig, default=RunConfig())
        for part, path in self.chosen.items():
            parser.add_argument(f"--{part}.class_path", type=str, default=path, help="The class, by its import path.")
        check_arguments(parser, self.chosen)
        if takes(self.data_class, "max_seq_len"):
            parser.link_arguments("model.network.max_seq_len", "data.max_seq_len", apply_on="parse")
        if issubclass(self.data_class, TextDataModule):
            parser.link_arguments("data.vocab_size", "model.network.vocab_size", apply_on="instantiate")
        else:
            parser.link_arguments("data", "model.network.vocab_size", self._adapt, apply_on="instantiate")

    def _adapt(self, given: Any) -> int:
        """Adapts a data module of the user's own, and returns the size of its vocabulary."""
        network = self.config[str(self.subcommand)].model.network
        self.own_data = OwnData(given, network.max_seq_len)
        return self.own_data.vocab_size

    def _parse_ckpt_path(self) -> None:
        """Does nothing: `LitTransformerLM.on_load_checkpoint` compares the checkpoint with the config."""

    # --- preparation

    def before_instantiate_classes(self) -> None:
        """Checks what needs no data, then chooses the run folder and the checkpoint."""
        config = self.config[str(self.subcommand)]
        network = config.model.network.clone().as_dict()
        network.pop("vocab_size", None)
        self.run = config.run if isinstance(config.run, RunConfig) else RunConfig(**config.run.as_dict())
        if self.subcommand == "fit":
            check_trainer(config.trainer)
            check_time_budget(self.run.seconds, config.trainer, config.model.get("schedule"))
        check_devices(config.trainer.accelerator, config.trainer.devices)
        check_loggers(config.trainer.logger)
        for name, part in ModelConfig(vocab_size=1, **network).parts.items():
            part.load(f"model.network.{name}")  # before the data are read
        for name in ("objective", "optimizer", "schedule"):
            if isinstance(part := config.model.get(name), Part):
                part.load(f"model.{name}")
        self.folder, claim = choose_folder(str(self.subcommand), config, self.run)
        self.claims += [] if claim is None else [claim]
        self.command = resume_command("fit", self.folder, dict.fromkeys(trusted_modules(sys.argv[1:])))
        self.origin = config.get("ckpt_path")  # a checkpoint of another run, from which this run began
        self.start = choose_checkpoint(str(self.subcommand), config, self.folder)
        if config.model.init_from:
            use_base_model(config, self.folder, resumes=self.start.path is not None)
        self.precision_reason = set_precision(config, self.folder) if self.subcommand == "fit" else None
        replace_folder(config.trainer, "{run}", str(self.folder))

    def instantiate_classes(self) -> None:
        """Creates data, model and trainer. A class of the config that cannot be created is a ConfigError."""
        for part in self.chosen:
            del self.config[str(self.subcommand)][part]["class_path"]  # no argument of the class
        failures: list[tuple[type, Exception]] = []

        def create(kind: type, /, *arguments: Any, **settings: Any) -> Any:
            try:
                return kind(*arguments, **settings)
            except Exception as error:
                failures.append((kind, error))
                raise

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # by jsonargparse, of a method that Lightning calls too
            self.parser.add_instantiator(create, object)  # after those of model and data
        try:
            super().instantiate_classes()
        except ValueError as error:  # of a parser that tried all types of an option, one of them with that class
            for kind, cause in failures:
                if first_line(cause) in str(error):
                    problem = ConfigError(f"{kind.__name__} cannot be created: {first_line(cause)}")
                    raise (cause if isinstance(cause, TinyLMError) else problem) from error
            raise

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Adds loggers, callbacks and checkpoint files to those of the config."""
        given = self.config[str(self.subcommand)].model.network.get("vocab_size")
        check_vocab_size(given, self.model.network.vocab_size)
        self.datamodule = self.own_data or self.datamodule
        config = self._get(self.config_init, "trainer")
        plugins = config.plugins if isinstance(config.plugins, list) else [config.plugins] if config.plugins else []
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins = [*plugins, AtomicCheckpointIO()]
        if "SLURM_JOB_ID" in os.environ and SLURMEnvironment.detect():
            plugins = [*plugins, SLURMEnvironment(auto_requeue=False)]  # scripts/slurm.sh requeues
        options = {"callbacks": self._callbacks(config), "plugins": plugins, "logger": False}
        if self.subcommand == "fit":
            options["logger"] = all_loggers(config.logger, self.folder)
        options |= follow_launcher(config)
        options["default_root_dir"] = config.default_root_dir or str(self.folder)
        try:
            trainer = super().instantiate_trainer(**options, **kwargs)
        except TinyLMError:
            raise
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ConfigError(f"trainer: {error}") from error
        watch_ranks(trainer, self.run.timeout)
        return trainer

    def _callbacks(self, config: Any) -> list[Callback]:
        """The callbacks of the config, and those that every run has."""
        metrics = MetricsLog(throughput := Throughput(self.run.peak_flops))
        prompts = self._prompts()
        ours = [
            ThawedParameters(),  # before ExactResume, which may validate and save at once
            ExactResume(self.start.damaged),
            throughput,
            Progress(metrics),
            metrics,  # after Progress, so that a remark follows its line
            BestCheckpoint(*getattr(self.model.objective, "monitor", ("val/loss", "min"))),
            LastCheckpoint(),
            SampleText(self.folder, prompts, self.run.sample_tokens),
            GracefulStop(self.command),
            FinishRun(self.folder, next(iter(prompts), "")),
            PredictionWriter(
                Path(self.run.output or self.folder / "predictions.jsonl"),
                overwrite=self.run.output is None or self.config[str(self.subcommand)].get("overwrite", False),
            ),
        ]
        if self.subcommand == "fit":
            values = yaml.safe_load(self._config_text)
            given = given_options(self._parser("fit"), values)
            files = RunFiles(self.folder, self._config_text, self.start, sys.argv[2:], given)
            timed = [] if self.run.seconds is None else [TimeBudget(self.run.seconds)]
            ours = [files, *timed, *ours, ConfigRecord(values), SamePrecision()]
        return all_callbacks(config, ours, self.folder)

    def _prompts(self) -> tuple[str, ...]:
        """Prompts of the samples: the run's, or one taken from the data."""
        if self.subcommand != "fit":
            return ()
        return (self.datamodule.example_prompt(),) if self.run.prompts is None else tuple(self.run.prompts)

    # --- the four commands

    def before_fit(self) -> None:
        """Writes the config of a new run and prints what is about to be trained."""
        data = self.datamodule
        data.trainer = self.trainer
        data.setup("fit")  # counts the steps
        check_run(self.trainer, self.model, data)
        self.model.resumes = self.start.path is not None
        if self.start.path is not None:
            notice(f"resuming {self.folder} from step {self.start.step:,} ({self.start.path.name})")
        elif self.config[str(self.subcommand)].resume:
            notice(f"{self.folder} has no checkpoint yet: starting from the first step")
        elif self.trainer.is_global_zero:  # a resumed run writes it once its checkpoint has been accepted
            write_text(self.folder / "config.yaml", self._config_text)
        notice(f"run: {self.folder}")
        introduce(self.trainer, self.model, data, self.precision_reason)

    @cached_property
    def _config_text(self) -> str:
        """The whole resolved config, which can be run again."""
        config = copy.deepcopy(self.config[str(self.subcommand)])
        config.ckpt_path = self.origin
        replace_folder(config.trainer, str(self.folder), "{run}")  # a rerun has another folder
        dump = self._parser(self.subcommand).dump(config, skip_unset=False, skip_link_targets=True)
        return saved_config("fit", dump, self.model.network.vocab_size, self.chosen)

    def _announce_checkpoint(self) -> None:
        notice(f"checkpoint: {self.config[str(self.subcommand)].ckpt_path}")
        warn_of_slow_types(self.trainer.strategy.root_device.type, str(self.trainer.precision))

    before_validate = before_test = before_predict = _announce_checkpoint

    def _print_metrics(self) -> None:
        for name, value in self.trainer.callback_metrics.items():
            print(f"{name:16} {float(value):.6f}")

    after_validate = after_test = _print_metrics


def main() -> int:
    """Runs the command line of this process and returns the exit code."""
    debug = ["--debug"] if "--debug" in sys.argv else []
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    quiet_lightning()
    if process_rank() > 0:
        silence_notices()
    claims: list[Claim] = []

    def run(_: list[str]) -> None:
        try:
            with located_errors():
                TinyLMCLI(claims)
        except MisconfigurationException as error:
            raise ConfigError(f"trainer: {error}") from error
        except (Interrupted, Preempted) as error:
            if not claims or not has_checkpoint(claims[0].folder) or "resume" in str(error):
                raise
            trusted = trusted_modules(sys.argv[1:])
            raise type(error)(f"{error}; to resume: {resume_command('fit', claims[0].folder, trusted)}") from error
        finally:
            for claim in claims:
                claim.release()

    with raised():
        return exit_code(run, debug, report_error)


def report_error(message: str, code: int) -> int:
    """Prints an error of this process on one line and returns the exit code of the process."""
    stopped, rank = code in (Interrupted.exit_code, Preempted.exit_code), process_rank()
    where = f"rank {rank}: " if rank else ""
    print_error(f"{where}{' '.join(message.split())}", code)
    # after a failure of a process that it started, Lightning would kill rank 0; a stop is not a failure
    return 0 if rank and stopped and not started_from_outside() else code
