"""The command line of training: `tinylm fit|validate|test|predict`, declared in YAML.

It is LightningCLI with configs found by name, one-line errors with "did you mean", exit codes, and run folders.
"""

import copy
import logging
import math
import os
import re
import sys
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from tinylm.adapt import trainable_share
from tinylm.bundle import TOKENIZER
from tinylm.console import exit_code, plural, print_error, process_rank
from tinylm.data import TextDataModule
from tinylm.data.division import data_ranks
from tinylm.data.template import find_template, stop_after_turns
from tinylm.errors import (
    ConfigError,
    Interrupted,
    MissingInputError,
    Preempted,
    TinyLMError,
    notice,
    silence_notices,
)
from tinylm.files import write_text
from tinylm.mistakes import Given
from tinylm.model import ModelConfig
from tinylm.plugins import Part, trust
from tinylm.runs.folder import (
    Claim,
    RunConfig,
    existing_run_folder,
    has_checkpoint,
    new_run_folder,
    resume_command,
    started_from_outside,
)
from tinylm.signals import raised
from tinylm.tokenizer import Tokenizer
from tinylm.training.checkpoint import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from tinylm.training.classes import check_arguments, chosen_class
from tinylm.training.earlier import recorded_seed
from tinylm.training.finish import FinishRun
from tinylm.training.foreign import find_base
from tinylm.training.frozen_start import FrozenStart
from tinylm.training.metrics_csv import MetricsCSV
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
from tinylm.training.precision import SamePrecision, set_precision
from tinylm.training.predictions import PredictionWriter
from tinylm.training.preflight import (
    check_averaging,
    check_devices,
    check_loggers,
    check_memory,
    check_monitors,
    check_trainer,
)
from tinylm.training.progress import Progress
from tinylm.training.ranks import watch_ranks
from tinylm.training.record import given_options
from tinylm.training.remarks import check_warmup, epochs
from tinylm.training.resume import (
    ConfigRecord,
    ExactResume,
    ResumePoint,
    RunFiles,
    find_resume_point,
)
from tinylm.training.samples import SampleText
from tinylm.training.start import Start
from tinylm.training.stop import GracefulStop
from tinylm.training.throughput import MetricsLog, Throughput


class TinyLMCLI(LightningCLI):
    """LightningCLI with run folders. Creating it runs the command.

    Args:
        claims: takes the claim of the run folder if this process writes it, for the caller to release
    """

    def __init__(self, claims: list[Claim]) -> None:
        Given.files.clear()  # of an earlier command in this process
        self.folder: Path | None = None
        self.own_data: OwnData | None = None
        self.claims = claims
        words = sys.argv[1:]
        trust([*TRUSTED, *trusted_modules(words)])
        look_beside_configs(words)
        model, path = chosen_class("model", LitTransformerLM, words)
        self.chosen = {} if path is None else {"model": path}  # parts of a class that the user names -> its path
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
        """The commands, or the one that is run: a parser of all four takes four times as long to make."""
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
        if self.subcommand == "fit":
            check_trainer(config.trainer)
        check_devices(config.trainer.accelerator, config.trainer.devices)
        check_loggers(config.trainer.logger)
        for name, part in ModelConfig(vocab_size=1, **network).parts.items():
            part.load(f"model.network.{name}")  # before the data are read
        for name in ("objective", "optimizer", "schedule"):
            if isinstance(part := config.model.get(name), Part):
                part.load(f"model.{name}")
        run = config.run if isinstance(config.run, RunConfig) else RunConfig(**config.run.as_dict())
        stem = Path(str(config.config[0])).stem if config.config else "run"
        self.start = ResumePoint()
        if self.subcommand == "fit" and not config.resume:
            self.folder, claim = new_run_folder(run, stem)
            self.claims += [] if claim is None else [claim]
        elif self.subcommand != "fit" and config.ckpt_path and not _is_run_config(config):
            self.folder = Path(config.ckpt_path).parent  # no run is needed
        elif self.subcommand != "fit" and run.name is None and _is_run_config(config):
            self.folder = Path(str(config.config[0])).parent
        else:
            self.folder = existing_run_folder(run, stem)
        if self.subcommand == "fit" and config.resume and process_rank() == 0:
            self.claims.append(Claim(self.folder))
        trusted = dict.fromkeys(trusted_modules(sys.argv[1:]))
        self.run, self.command = run, resume_command("fit", self.folder, trusted)
        self._choose_checkpoint(config)
        if config.model.init_from:
            self._use_base_model(config)
        self.precision_reason = set_precision(config, self.folder) if self.subcommand == "fit" else None
        _set_folder(config.trainer, "{run}", str(self.folder))

    def _choose_checkpoint(self, config: Any) -> None:
        """Sets `ckpt_path`: evaluation needs a checkpoint, never random weights.

        A resumed run that was killed before its first checkpoint starts again.
        """
        assert self.folder is not None
        self.origin = config.get("ckpt_path")  # a checkpoint of another run from which this one began
        if self.subcommand == "fit" and config.resume:
            if _is_typed("--ckpt_path"):
                raise ConfigError("--ckpt_path: --resume takes the run's newest checkpoint; leave out one of the two")
            self.start = find_resume_point(self.folder)
            config.ckpt_path = self.origin if self.start.path is None else str(self.start.path)
            if OwnClass.path is None and config.data.seed is None:  # the run keeps its order
                config.data.seed = recorded_seed(self.folder)
        elif self.subcommand != "fit":
            best = self.folder / "checkpoints" / "best.ckpt"
            validated = config.trainer.limit_val_batches != 0  # else the best is from before the run was resumed
            if not config.ckpt_path or _is_run_config(config):
                config.ckpt_path = str(best if best.is_file() and validated else self._newest_checkpoint())
            if "verbose" in config:
                config.verbose = False
        if config.ckpt_path and not Path(config.ckpt_path).is_file():
            raise MissingInputError(f"--ckpt_path {config.ckpt_path}: no such checkpoint")

    def _newest_checkpoint(self) -> Path:
        assert self.folder is not None
        path = find_resume_point(self.folder).path
        if path is None:
            raise MissingInputError(f"{self.folder}: has no checkpoint yet")
        return path

    def _use_base_model(self, config: Any) -> None:
        """Takes architecture and tokenizer of the model of `model.init_from`."""
        assert self.folder is not None
        config.model.init_from = str(find_base(config.model.init_from))
        start = Start(config.model.init_from)
        for name, value in start.architecture(config.model.network.as_dict()).items():
            if name != "vocab_size":
                config.model.network[name] = value
        if OwnClass.path is not None:
            return
        config.data.max_seq_len = config.model.network.max_seq_len
        if config.data.tokenizer == "char":  # the default
            config.data.tokenizer = str(self.folder / TOKENIZER)
            if self.start.path is None:  # a resumed run has it
                self._tokenizer_of(start, config.data).save(config.data.tokenizer, overwrite=True)

    @staticmethod
    def _tokenizer_of(start: Start, data: Any) -> Tokenizer:
        """The base model's tokenizer with what the template of the pairs needs."""
        if not data.pairs:
            return start.tokenizer(())
        template = find_template(data.template, start.bundle.tokenizer)
        return stop_after_turns(start.tokenizer(template.special_tokens), template)

    def instantiate_classes(self) -> None:
        """Creates data, model and trainer. A class of the config that cannot be created is a ConfigError."""
        for part in self.chosen:
            del self.config[str(self.subcommand)][part]["class_path"]  # no argument of the class
        try:
            super().instantiate_classes()
        except ValueError as error:
            if failed := FAILED_CLASS.search(" ".join(str(error).split())):
                raise ConfigError(f"trainer: {failed[1]} cannot be created: {failed[2]}") from error
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
        options = {"callbacks": self._callbacks(config), "plugins": plugins, "logger": self._loggers(config.logger)}
        options["default_root_dir"] = config.default_root_dir or str(self.folder)
        try:
            trainer = super().instantiate_trainer(**options, **kwargs)
        except TinyLMError:
            raise
        except (ValueError, TypeError, ImportError) as error:
            raise ConfigError(f"trainer: {error}") from error
        watch_ranks(trainer, self.run.timeout)
        return trainer

    def _callbacks(self, config: Any) -> list[Callback]:
        """The callbacks of the config, and those that every run has unless the config lists one of the kind."""
        assert self.folder is not None
        callbacks = list(_as_list(config.callbacks or []))
        throughput = Throughput(self.run.peak_flops)
        metrics = MetricsLog(throughput)
        prompts = self._prompts()
        ours = [
            ExactResume(self.start.damaged),
            throughput,
            Progress(metrics),
            metrics,  # after Progress, whose line a remark follows
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
            ours = [files, *ours, ConfigRecord(values), SamePrecision()]
        for callback in ours:
            theirs = any(isinstance(other, ProgressBar) for other in callbacks)
            wanted = not isinstance(callback, Progress) or (config.enable_progress_bar is not False and not theirs)
            wanted = wanted and (config.enable_checkpointing is not False or not _is_checkpoint(callback))
            if wanted and not any(type(other) is type(callback) for other in callbacks):
                callbacks.append(callback)
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                self._place(callback)
        return callbacks

    def _place(self, callback: ModelCheckpoint) -> None:
        """Puts the files of a checkpoint callback into the run folder, unless its config says where."""
        assert self.folder is not None
        ours = (self.folder / "checkpoints").resolve()
        if callback.dirpath is None:
            callback.dirpath = str(ours)
        taken = callback.filename in ("best", "last") or callback.save_last
        if not _is_checkpoint(callback) and Path(callback.dirpath).resolve() == ours and taken:
            raise ConfigError(
                "trainer.callbacks: a ModelCheckpoint must not write best.ckpt or last.ckpt, which every run has; "
                "leave out save_last, and choose another filename or dirpath"
            )

    def _prompts(self) -> tuple[str, ...]:
        """Prompts of the samples: the run's, or one taken from the data."""
        if self.subcommand != "fit":
            return ()
        return (self.datamodule.example_prompt(),) if self.run.prompts is None else tuple(self.run.prompts)

    def _loggers(self, configured: Any) -> list[Logger] | bool:
        """metrics.csv, and the loggers of the config."""
        if configured is False or self.subcommand != "fit":
            return False
        assert self.folder is not None
        others = configured if isinstance(configured, list) else [configured] if isinstance(configured, Logger) else []
        return [MetricsCSV(self.folder), *others]

    # --- the four commands

    def before_fit(self) -> None:
        """Writes the config of a new run and prints what is about to be trained."""
        assert self.folder is not None
        self.datamodule.trainer = self.trainer
        self.datamodule.setup("fit")  # counts the steps
        check_monitors(self.trainer, self.model, self.datamodule)
        check_averaging(self.trainer)
        if (size := getattr(self.trainer.strategy, "group_size", 1)) > 1:
            self.model.check_tensor_parallel(size)  # before other processes start
        if isinstance(self.model.objective, FrozenStart):
            self.model.objective.check_strategy(self.trainer.strategy)
        data = self.datamodule
        share = data.batch_size // data_ranks(self.trainer)[0]
        if rows := data.micro_batch_size or share:
            check_memory(self.trainer, self.model, rows, data.content.sequence_length)
        self.model.resumes = self.start.path is not None
        if self.start.path is not None:
            notice(f"resuming {self.folder} from step {self.start.step:,} ({self.start.path.name})")
        elif self.config[str(self.subcommand)].resume:
            notice(f"{self.folder} has no checkpoint yet: starting from the first step")
        elif self.trainer.is_global_zero:  # a resumed run writes it once its checkpoint has been accepted
            write_text(self.folder / "config.yaml", self._config_text)
        self._introduce()

    @cached_property
    def _config_text(self) -> str:
        """The whole resolved config, which can be run again."""
        assert self.folder is not None
        config = copy.deepcopy(self.config[str(self.subcommand)])
        config.ckpt_path = self.origin
        _set_folder(config.trainer, str(self.folder), "{run}")  # a rerun has another folder
        dump = self._parser(self.subcommand).dump(config, skip_unset=False, skip_link_targets=True)
        return saved_config("fit", dump, self.model.network.vocab_size, self.chosen)

    def _introduce(self) -> None:
        """Prints what is trained, on which data and devices."""
        data, net, trainer = self.datamodule, self.model.net, self.trainer
        tokens = data.content.num_tokens("train")
        kind = type(trainer.accelerator).__name__.removesuffix("Accelerator")
        devices = f"{trainer.world_size} x {kind}" if trainer.world_size > 1 else kind
        if devices == "CPU":
            devices += f" ({plural(torch.get_num_threads(), 'thread')})"
        rows = "" if net.config.vocab_size == data.vocab_size else f" (padded to {net.config.vocab_size:,} rows)"
        notice(f"run: {self.folder}")
        if self.model.start is not None:
            notice(f"base model: {self.model.start.path}")
        notice(
            f"model: {net.num_parameters():,} parameters; text: {data.source}, {data.tokenizer.kind} tokenizer, "
            f"{data.vocab_size:,} tokens in the vocabulary{rows}" + (f", {tokens:,} to train on" if tokens else "")
        )
        if "val" in data.floors:
            floor = data.floors["val"]
            notice(
                f"best possible: {floor.nats_per_token:.4f} nats per token ({floor.bits_per_byte:.4f} bits per byte), "
                f"standard error {floor.standard_error:.4f}: exact for the {len(floor.log_probs):,} validation texts"
            )
        trainable, weights = trainable_share(net)
        if trainable < weights:
            notice(f"trainable: {trainable:,} of {weights:,} parameters ({trainable / weights:.1%})")
        notice(
            f"training: {data.total_steps:,} steps of {data.step_size} ({epochs(data)}), "
            f"{self.model.optimizer_name}, {devices}, precision {trainer.precision}"
        )
        if self.precision_reason is not None:
            notice(f"precision: {trainer.precision} ({self.precision_reason}); trainer.precision sets another")
        check_warmup(data, self.model.schedule, getattr(self.model.optimizer, "lr", math.nan))
        if data.validation_tokens is not None:
            every = f"{data.validation_tokens:,} of {data.content.num_tokens('val'):,} tokens, evenly spaced"
            notice(f"validation: {every} (data.max_val_tokens); the best model on all of them at the end")

    def _announce_checkpoint(self) -> None:
        notice(f"checkpoint: {self.config[str(self.subcommand)].ckpt_path}")

    before_validate = before_test = before_predict = _announce_checkpoint

    def _print_metrics(self) -> None:
        for name, value in self.trainer.callback_metrics.items():
            print(f"{name:16} {float(value):.6f}")

    after_validate = after_test = _print_metrics


def _is_typed(option: str) -> bool:
    """Whether the command line gives an option itself, not a config."""
    return any(word.split("=")[0] == option for word in sys.argv)


def _is_run_config(config: Any) -> bool:
    """Whether the first config is that of a run, whose `ckpt_path` says from which checkpoint the run began."""
    paths = [Path(str(path)) for path in config.config or []]
    return (
        not _is_typed("--ckpt_path")
        and bool(paths)
        and paths[0].name == "config.yaml"
        and (paths[0].parent / "checkpoints").is_dir()
    )


def _is_checkpoint(callback: Any) -> bool:
    return isinstance(callback, BestCheckpoint | LastCheckpoint)


FAILED_CLASS = re.compile(r"Problem with given class_path '[\w.]*?(\w+)': *(.*?) *(?:- Expected|Given value type|$)")


def _set_folder(trainer: Any, old: str, new: str) -> None:
    """Replaces a folder, at first "{run}", in the arguments of loggers and callbacks."""
    for part in [*_as_list(trainer.logger), *_as_list(trainer.callbacks)]:
        arguments = getattr(part, "init_args", None) or {}
        for name in ("save_dir", "dirpath", "folder"):
            if arguments.get(name) == old:
                arguments[name] = new


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def quiet_lightning() -> None:
    """Silences hardware lists, tips, and warnings that do not apply to tinylm."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)  # advice on meshes, not ours
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # see data/batches.py
    warnings.filterwarnings("ignore", message=".*when logging on epoch level in distributed.*")  # metrics are summed
    warnings.filterwarnings("ignore", message=".*from an ambiguous collection.*")  # a Batch has its size found right
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")  # MetricsLog counts steps
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # on a login node it is not meant
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # a teacher in an objective
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")  # nor shards
    warnings.filterwarnings("ignore", module="jsonargparse")


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
    # after a failure of a process that it started, Lightning would kill rank 0; a stop is no failure
    return 0 if rank and stopped and not started_from_outside() else code
