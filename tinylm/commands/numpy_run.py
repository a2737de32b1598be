"""The run of `tinylm train-numpy`: options checked, files, and what happens around the steps of the NumPy twin."""

import math
import os
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tinylm.bundle import TOKENIZER
from tinylm.data import IGNORE, Template, TextDataModule
from tinylm.data.template import question_frame
from tinylm.errors import (
    ConfigError,
    DataError,
    Interrupted,
    MissingInputError,
    NumericError,
    Preempted,
    StorageError,
    notice,
)
from tinylm.files import atomic_folder, make_folder, sweep, write_text
from tinylm.locate import command
from tinylm.model import ModelConfig, TransformerLM, flops_per_token
from tinylm.model.attention import documents_apart
from tinylm.model.config import WITHOUT_WEIGHTS
from tinylm.reference import Config, NumpyTransformerLM, files
from tinylm.reference.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, save_checkpoint
from tinylm.reference.generate import generate
from tinylm.reference.optim import Optimizer, learning_rate, make_optimizer
from tinylm.reference.train import Batch, Step, evaluate, train
from tinylm.runs.folder import RUN_FOLDER, RunConfig, existing_run_folder, new_run_folder
from tinylm.runs.plots import draw_curves
from tinylm.tokenizer import Tokenizer
from tinylm.training.checkpoint import ConfigRecord
from tinylm.training.cli import quiet_lightning
from tinylm.training.finish import generate_command, loss_and_floor
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.optim import OptimizerConfig
from tinylm.training.progress import Progress
from tinylm.training.schedule import ScheduleConfig
from tinylm.training.standin import Lengths, Stage, build, make_parser
from tinylm.training.stop import GracefulStop
from tinylm.training.throughput import measure_peak_flops

# --- options: those of `tinylm fit`, of which some mean nothing here and some could not be honoured

HONOURED = (
    "max_steps", "max_epochs", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch",
    "log_every_n_steps", "precision", "callbacks", "enable_progress_bar", "accumulate_grad_batches",
)  # fmt: skip
# Another run would come out than the one that was asked for.
REFUSED = (
    "strategy", "devices", "num_nodes", "fast_dev_run", "min_epochs", "min_steps", "max_time", "limit_train_batches",
    "limit_val_batches", "overfit_batches", "gradient_clip_algorithm", "enable_checkpointing", "plugins",
)  # fmt: skip
PRECISIONS = {"None": np.float32, "32": np.float32, "32-true": np.float32, "64": np.float64, "64-true": np.float64}


def check(config: Any, defaults: Any) -> None:
    """Refuses what the twin cannot do, and says what it does not need.

    Raises:
        ConfigError: naming the option.
    """
    for name in ("compile", "init_from", "lora", "freeze"):
        if config.model[name]:
            raise ConfigError(f"model.{name}: the NumPy twin has no such thing; leave it out, or use tinylm fit")
    if config.threads is not None and config.threads < 1:
        raise ConfigError(f"threads must be at least 1, got {config.threads}")
    trainer = config.trainer
    if str(trainer.precision) not in PRECISIONS:
        raise ConfigError(f"trainer.precision: NumPy computes in 32-true or 64-true, got {trainer.precision}")
    given = [name for name in vars(trainer) if trainer[name] != defaults.trainer[name]]
    for name in given:
        if name in REFUSED and not (name == "devices" and str(trainer.devices) == "1"):
            raise ConfigError(f"trainer.{name}: the NumPy twin cannot honour it; leave it out, or use tinylm fit")
    useless = [f"trainer.{name}" for name in given if name not in (*HONOURED, *REFUSED)]
    useless = [name for name in useless if name != "trainer.accelerator" or trainer.accelerator != "cpu"]
    useless += [each.class_path for each in trainer.callbacks or [] if not is_last_checkpoint(each)]
    if useless:
        notice(f"of no use to the NumPy twin: {', '.join(useless)}")
    if trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
        raise ConfigError("trainer.max_steps: missing; give it, or trainer.max_epochs, or the run never ends")
    if config.data.packing and not config.model.network.document_mask:
        raise ConfigError("data.packing: needs model.network.document_mask to keep pairs apart")
    if config.model.schedule.min_lr > config.model.optimizer.lr:
        rates = f"min_lr={config.model.schedule.min_lr} and lr={config.model.optimizer.lr}"
        raise ConfigError(f"min_lr must not exceed lr, got {rates}")


def is_last_checkpoint(callback: Any) -> bool:
    """Whether a callback of the config says how often to save."""
    return callback.class_path.endswith(".LastCheckpoint")


# --- the run's files


class Files:
    """The run's folder: metrics.csv, checkpoints/{last,best}.npz, samples.txt, and in the end model/ and curves.png."""

    def __init__(self, config: Any, arguments: list[str]) -> None:
        """Claims a new folder; with `--resume` finds the one of the run.

        Args:
            config: the parsed options
            arguments: the command line
        """
        run = build(RunConfig, config.run)
        stem = (Path(str(config.config[0])).stem if config.config else "run") + "-numpy"
        words = ["train-numpy", *(word for word in arguments if word != "--resume")]
        if config.resume:
            self.folder = existing_run_folder(run, stem)
        else:
            self.folder = new_run_folder(run, stem, words)
            os.environ.pop(RUN_FOLDER)  # no other process belongs to this run
        if self.folder.name != (run.name or stem):
            words += ["--run.name", self.folder.name]
        self.command = command(*words, "--resume")
        self.paths = {name: self.folder / "checkpoints" / f"{name}.npz" for name in ("last", "best")}
        self.csv = MetricsCSV(self.folder)

    def begin(self, text: str, tokenizer: Tokenizer) -> None:
        """Writes the config and the tokenizer, and removes what killed writers left."""
        write_text(self.folder / "config.yaml", text)
        tokenizer.save(self.folder / TOKENIZER)
        sweep(make_folder(self.folder / "checkpoints"), older_than=0)
        sweep(self.folder, older_than=0)

    def newest(self) -> Checkpoint:
        """The checkpoint to go on from; what metrics.csv has beyond it is dropped.

        Raises:
            MissingInputError: if there is none.
            DataError: if all are damaged.
        """
        found, problems = newest_checkpoint(self.paths.values())
        if found is None and problems:
            raise DataError("; ".join(problems))
        if found is None:
            missing = f"{self.folder}: there is no checkpoint to resume from"
            raise MissingInputError(f"{missing}; leave out --resume to start afresh")
        for problem in problems:
            notice(f"warning: {problem}; going on from step {found.step:,}")
        self.csv.truncate(found.step)
        return found

    def save(self, name: str, *state: Any) -> None:
        """Writes a checkpoint; the state as `save_checkpoint`'s."""
        try:
            save_checkpoint(self.paths[name], *state)
        except OSError as error:
            reason = f"could not be written ({error.strerror}); the earlier one is intact"
            raise StorageError(f"{self.paths[name]}: {reason}") from error

    def add_sample(self, step: int, text: str) -> None:
        """Appends a text to samples.txt."""
        with (self.folder / "samples.txt").open("a", encoding="utf-8", newline="") as file:
            file.write(f"=== step {step}\n{text}\n\n")

    def finish(self, tokenizer: Tokenizer, prompt: str, template: Template | None) -> None:
        """Writes the best model as a folder and the curves as a picture, and says where they are and what to type."""
        has_best = self.paths["best"].is_file()
        found = read_checkpoint(self.paths["best" if has_best else "last"])
        info = {"step": found.step, "run": self.folder.name, "prompt": prompt}
        info |= {"val/loss": found.notes["best"]} if has_best else {}
        info |= {"template": template.name} if template is not None else {}
        with atomic_folder(self.folder / "model") as new:
            tokenizer.save(new / TOKENIZER)
            files.save(found.model, new, info)
        draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
        notice(f"model: {self.folder / 'model'}   curves: {self.folder / 'curves.png'}")
        notice(f"to hear it: {generate_command(self.folder, prompt, template)}")


# --- the run


class Run:
    """One training run: data, network, and what happens around the steps."""

    def __init__(self, config: Any, text: str, arguments: list[str]) -> None:
        """Everything is read and checked before the run gets its folder.

        Args:
            config: the parsed options
            text: all of them as YAML
            arguments: the command line
        """
        self.trainer, self.text, self.record = config.trainer, text, ConfigRecord(yaml.safe_load(text))
        self.seed = 0 if isinstance(config.seed_everything, bool) else config.seed_everything
        self.threads = config.threads or torch.get_num_threads()
        self.dtype = PRECISIONS[str(config.trainer.precision)]
        self.settings = build(OptimizerConfig, config.model.optimizer)
        self.schedule = build(ScheduleConfig, config.model.schedule)
        self.options = build(RunConfig, config.run)
        build(ModelConfig, config.model.network, vocab_size=1)  # what is wrong with it is wrong before data are read
        self._read(config.data)
        self.network = build(ModelConfig, config.model.network, vocab_size=self.data.vocab_size)
        intervals = [each.init_args for each in self.trainer.callbacks or [] if is_last_checkpoint(each)]
        self.save_every = intervals[-1]["every_n_train_steps"] if intervals else 100
        self.latest: dict[str, float] = {}  # what the progress display shows
        self.best, self.stopped_by = math.inf, 0
        prompts = [self.data.example_prompt()] if self.options.prompts is None else list(self.options.prompts)
        self.prompt = next(iter(prompts), "")
        self.template = self.data.template if self.data.pairs is not None else None
        self.prompts = prompts if self.options.sample_tokens else []
        self.files = Files(config, arguments)
        self.model, self.optimizer = self._go_on() if config.resume else self._begin(self._first_weights())
        self.progress: Any = Progress(self)  # type: ignore[arg-type]
        if self.trainer.enable_progress_bar is False:
            self.progress.disable()

    def _read(self, options: Any) -> None:
        """The data, and with them the length of an epoch and of the run."""
        self.stage = Stage(self.trainer.accumulate_grad_batches)
        self.data = build(TextDataModule, options)
        self.data.trainer = self.stage
        self.data.setup("fit")
        self.tokenizer = self.data.tokenizer
        self.lengths = Lengths.of(self.trainer, len(self.data.train_dataloader()) // self.stage.accumulate_grad_batches)
        self.stage.estimated_stepping_batches = self.total = self.lengths.total

    # --- where it begins

    def _first_weights(self) -> dict[str, np.ndarray]:
        """Those that `tinylm fit` begins with, so that the two runs can be laid side by side."""
        torch.manual_seed(self.seed)
        return {name: weight.detach().numpy() for name, weight in TransformerLM(self.network).named_parameters()}

    def _begin(self, weights: dict[str, np.ndarray]) -> tuple[NumpyTransformerLM, Optimizer]:
        config = Config.from_dict(self.network.to_dict())
        parameters = {name: weight.astype(self.dtype) for name, weight in weights.items()}
        model = NumpyTransformerLM(config, parameters, threads=self.threads)
        return model, make_optimizer(model.parameters, **vars(self.settings))

    def _go_on(self) -> tuple[NumpyTransformerLM, Optimizer]:
        """From the newest checkpoint.

        Raises:
            ConfigError: if it is of another architecture, tokenizer or kind of optimizer.
        """
        found = self.files.newest()
        theirs, ours = found.model.config.to_dict(), self.network.to_dict()
        pairs = [(name, theirs[name], ours[name]) for name in theirs if name not in WITHOUT_WEIGHTS]
        pairs.append(("tokenizer", found.notes["tokenizer"][:12], self.tokenizer.sha256[:12]))
        pairs.append(("optimizer.name", found.notes["optimizer"], self.settings.name))
        for name, before, now in pairs:
            if before != now:
                raise ConfigError(f"{name}: checkpoint {before}, config {now}")
        if changes := self.record.differences(found.notes["config"]):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")
        model, optimizer = self._begin(found.model.parameters)
        optimizer.load_state(found.state)
        self.stage.global_step, self.best = found.step, found.notes["best"]
        notice(f"going on with {self.files.folder} from step {found.step:,}")
        if self.total <= found.step:
            notice(f"the run is of {self.total:,} steps: there is nothing left to train")
        return model, optimizer

    def _introduce(self) -> None:
        """What is trained, on what."""
        notice(f"run: {self.files.folder}")
        notice(
            f"model: {sum(each.size for each in self.model.parameters.values()):,} parameters; text: "
            f"{self.data.source}, {self.tokenizer.kind} tokenizer, {self.data.vocab_size:,} tokens in the vocabulary, "
            f"{len(self.data.tokens['train']):,} to train on"
        )
        notice(
            f"training: {self.total:,} steps of {self.data.batch_size} x {self.data.context} tokens, "
            f"{self.settings.name}, NumPy {np.__version__} ({self.threads} threads), {np.dtype(self.dtype).name}"
        )

    # --- the loop

    def fit(self) -> None:
        """Trains to the end, then leaves the best model and the curves."""
        self._introduce()
        self.files.begin(self.text, self.tokenizer)
        kind = getattr(torch, np.dtype(self.dtype).name)
        self.peak = self.options.peak_flops or measure_peak_flops(torch.device("cpu"), kind)
        started = time.perf_counter()
        earlier = {number: signal.signal(number, self._receive) for number in GracefulStop.SIGNALS}
        try:
            self.progress.on_train_start(self.stage, self)
            self._take_steps()
        except FloatingPointError as error:
            raise NumericError(f"{error}. Try a lower lr, more warmup_steps, or trainer.gradient_clip_val=1") from error
        finally:
            self.progress.on_train_end(self.stage, self)
            for number, handler in earlier.items():
                signal.signal(number, handler)
        minutes, seconds = divmod(time.perf_counter() - started, 60)
        figures = f", {loss_and_floor(self.stage.callback_metrics)}" if self.stage.callback_metrics else ""
        notice(f"{self.stage.global_step:,} steps in {minutes:.0f} min {seconds:.0f} s{figures}")
        self.files.finish(self.tokenizer, self.prompt, self.template)

    def _take_steps(self) -> None:
        first, accumulate = self.stage.global_step, self.stage.accumulate_grad_batches
        batches = islice(self._batches(), max(self.total - first, 0))
        options: dict[str, Any] = dict(max_norm=self.trainer.gradient_clip_val or None, first=first, seed=self.seed)
        seconds, tokens, logged, clock = 0.0, 0, first, time.perf_counter()
        for step in train(self.model, self.optimizer, batches, self._rate, **options):
            seconds, tokens = seconds + time.perf_counter() - clock, tokens + step.tokens
            self.stage.global_step = step.number
            if step.number % (self.trainer.log_every_n_steps or 50) == 0 or step.number == self.total:
                self._log(step, tokens / seconds, seconds / (step.number - logged))
                seconds, tokens, logged = 0.0, 0, step.number
            self.progress.on_train_batch_end(self.stage, self, None, None, accumulate - 1)
            if self.lengths.validation_is_due(step.number):
                self._validate()
            if step.number % self.save_every == 0 or step.number == self.total or self.stopped_by:
                self._save("last")
            if self.stopped_by:
                self._stop()
            clock = time.perf_counter()  # what happened since the step does not count

    def _rate(self, step: int) -> float:
        return learning_rate(step, self.total, lr=self.settings.lr, **vars(self.schedule))

    def _batches(self) -> Iterator[list[Batch]]:
        """Each step's micro-batches, epoch after epoch, from where the run stands."""
        while True:
            parts: list[Batch] = []
            for batch in self.data.train_dataloader():
                parts.append(self._in_numpy(batch))
                if len(parts) == self.stage.accumulate_grad_batches:
                    yield parts
                    parts = []

    def _in_numpy(self, batch: Any) -> Batch:
        """A batch of the data module as arrays, with the documents that `LitTransformerLM` would see in it."""
        documents = documents_apart(self.network, batch.inputs, self.tokenizer.end_of_text, batch.documents)
        documents = None if documents is None else documents.numpy()
        return Batch(batch.inputs.numpy(), batch.targets.numpy(), batch.num_targets, documents)

    def _log(self, step: Step, rate: float, seconds: float) -> None:
        self.latest = {"train/loss": step.loss, "train/grad_norm": step.grad_norm, "lr": step.lr}
        self.latest |= {"perf/tokens_per_sec": rate, "perf/step_seconds": seconds}
        self.latest |= {"perf/mfu": rate * flops_per_token(self.network) / self.peak}
        self.files.csv.log_metrics(self.latest, step=step.number)

    def _save(self, name: str) -> None:
        notes = {"best": self.best, "tokenizer": self.tokenizer.sha256, "optimizer": self.settings.name}
        notes["config"] = self.record.config
        self.files.save(name, self.model, self.optimizer, self.stage.global_step, notes)

    def _receive(self, number: int, frame: Any) -> None:
        """A signal: the step is finished and saved; a second one quits at once."""
        self.stopped_by = number
        for each in GracefulStop.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\ntinylm: finishing this step, then saving (once more to quit at once)\n")

    def _stop(self) -> None:
        kind, step = Interrupted if self.stopped_by == signal.SIGINT else Preempted, self.stage.global_step
        raise kind(f"stopped after step {step:,}, which is saved; to go on: {self.files.command}")

    # --- validation

    def _validate(self) -> None:
        """Loss, perplexity, bits per byte and accuracy on the whole validation part; keeps the best checkpoint."""
        batches = list(self.data.val_dataloader())
        score = evaluate(self.model, map(self._in_numpy, batches))
        lengths = self.tokenizer.byte_lengths
        num_bytes = sum(int(lengths[batch.targets[batch.targets != IGNORE].numpy()].sum()) for batch in batches)
        best = -sum(math.nan if batch.log_prob is None else batch.log_prob for batch in batches)
        found = {"val/loss": score.loss, "val/perplexity": score.perplexity}
        found |= {"val/bpb": score.nats / math.log(2) / max(num_bytes, 1), "val/accuracy": score.accuracy}
        if math.isfinite(best):
            found |= {"val/floor": best / score.tokens, "val/excess": score.nats / best - 1}
        self.files.csv.log_metrics(found, step=self.stage.global_step)
        self.stage.callback_metrics = found
        self.progress.on_validation_end(self.stage, self)
        for seed, prompt in enumerate(list(self.prompts), start=1):
            self._show_sample(prompt, seed)
        if score.loss < self.best:
            self.best = score.loss
            self._save("best")

    def _show_sample(self, prompt: str, seed: int) -> None:
        """How the model continues a prompt, on the screen and in samples.txt."""
        end, context = self.tokenizer.end_of_text, self.network.max_seq_len
        try:
            before, after = ([], []) if self.template is None else question_frame(self.tokenizer, self.template)
            ids = [*([] if end is None else [end]), *before, *self.tokenizer.encode(prompt), *after]
        except DataError as error:  # a prompt with characters that this text does not have
            notice(f"no sample for {prompt!r}: {error}")
            return self.prompts.remove(prompt)
        ids = ids[-context:] or [0]
        length = min(self.options.sample_tokens, max(1, context - len(ids)))
        separator = end if self.template is None else None  # a prompt and its answer are one document
        new = generate(self.model, np.array([ids]), length, temperature=0.8, seed=seed, separator=separator)[0].tolist()
        text = prompt + self.tokenizer.decode(new[: new.index(end)] if end in new else new)
        self.progress.print("\n".join(f"    {line}" for line in text.strip().splitlines()))
        self.files.add_sample(self.stage.global_step, text)


def run(arguments: list[str]) -> None:
    """Trains."""
    quiet_lightning()
    parser = make_parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=None, help="Parts of a batch at a time. Default: PyTorch's.")
    config = parser.parse_args(arguments)
    check(config, parser.get_defaults())
    text = parser.dump(config, skip_unset=False, skip_link_targets=True)
    lines = text.splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith(("resume:", "threads:")))  # what `fit` reads too
    Run(config, f"# tinylm train-numpy --config config.yaml\n{text}", arguments).fit()
