"""Trains a model by NumPy alone, every gradient by hand: `python scripts/train_numpy.py --config tiny.yaml`.

The same YAML and flags as `scripts/train.py fit`, the same tokens in the same order, the same weights to begin with,
and a run folder of the same shape, `runs/<config>-numpy`, whose checkpoints are NumPy archives. What learns is the
network of tinylm.reference, on one processor; what it does not know (lora, compile, bf16 ...) is refused by name.
"""

import math
import os
import shlex
import signal
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tinylm.analysis.plots import draw_curves
from tinylm.bundle import TOKENIZER
from tinylm.console import exit_code, run_as_script
from tinylm.data import IGNORE, TextDataModule
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
from tinylm.model import ModelConfig, TransformerLM, flops_per_token
from tinylm.reference import Config, NumpyTransformerLM, files
from tinylm.reference.checkpoint import Checkpoint, newest_checkpoint, read_checkpoint, save_checkpoint
from tinylm.reference.generate import generate
from tinylm.reference.optim import learning_rate, make_optimizer
from tinylm.reference.train import Batch, Score, Step, evaluate, train
from tinylm.training.callbacks import GracefulStop, loss_and_floor, measure_peak_flops
from tinylm.training.checkpoint import ConfigRecord
from tinylm.training.cli import quiet_lightning
from tinylm.training.module import FREE_TO_CHANGE
from tinylm.training.optim import OptimizerConfig
from tinylm.training.progress import Progress
from tinylm.training.records import RUN_FOLDER, MetricsCSV, RunConfig, existing_run_folder, new_run_folder
from tinylm.training.schedule import ScheduleConfig
from tinylm.training.standin import Lengths, Stage, build, make_parser

# --- options: train.py's own, of which some mean nothing here and some could not be honoured

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
            raise ConfigError(f"model.{name}: the NumPy twin has no such thing; leave it out, or use scripts/train.py")
    trainer = config.trainer
    if str(trainer.precision) not in PRECISIONS:
        raise ConfigError(f"trainer.precision: NumPy computes in 32-true or 64-true, got {trainer.precision}")
    given = [name for name in vars(trainer) if trainer[name] != defaults.trainer[name]]
    for name in given:
        if name in REFUSED and not (name == "devices" and str(trainer.devices) == "1"):
            raise ConfigError(f"trainer.{name}: the NumPy twin cannot honour it; leave it out, or use scripts/train.py")
    useless = [f"trainer.{name}" for name in given if name not in (*HONOURED, *REFUSED)]
    useless = [name for name in useless if name != "trainer.accelerator" or trainer.accelerator != "cpu"]
    useless += [each.class_path for each in trainer.callbacks or [] if not is_last_checkpoint(each)]
    if useless:
        notice(f"of no use to the NumPy twin: {', '.join(useless)}")
    if trainer.max_steps < 0 and (trainer.max_epochs or -1) < 0:
        raise ConfigError("trainer.max_steps: missing; give it, or trainer.max_epochs, or the run never ends")
    if config.model.schedule.min_lr > config.model.optimizer.lr:
        rates = f"min_lr={config.model.schedule.min_lr} and lr={config.model.optimizer.lr}"
        raise ConfigError(f"min_lr must not exceed lr, got {rates}")


def is_last_checkpoint(callback: Any) -> bool:
    """Whether a callback of the config says how often to save."""
    return callback.class_path.endswith(".LastCheckpoint")


# --- the run


class Run:
    """One training run: data, network, and what happens around the steps."""

    def __init__(self, config: Any, text: str, arguments: list[str]) -> None:
        """A run.

        Args:
            config: the parsed options
            text: all of them as YAML
            arguments: the command line
        """
        self.trainer, self.text, self.record = config.trainer, text, ConfigRecord(yaml.safe_load(text))
        self.seed = 0 if isinstance(config.seed_everything, bool) else config.seed_everything
        self.dtype = PRECISIONS[str(config.trainer.precision)]
        self.settings = build(OptimizerConfig, config.model.optimizer)
        self.schedule = build(ScheduleConfig, config.model.schedule)
        self.run = build(RunConfig, config.run)
        self.prompts = list(self.run.prompts)
        build(ModelConfig, config.model.network, vocab_size=1)  # what is wrong with it is wrong before data are read
        self.stage = Stage(self.trainer.accumulate_grad_batches)
        self.data = build(TextDataModule, config.data)
        self.data.trainer = self.stage
        self.data.setup("fit")
        self.tokenizer = self.data.tokenizer
        self.network = build(ModelConfig, config.model.network, vocab_size=self.data.vocab_size)
        per_epoch = len(self.data.train_dataloader()) // self.stage.accumulate_grad_batches
        self.lengths = Lengths.of(self.trainer, per_epoch)
        self.stage.estimated_stepping_batches = self.total = self.lengths.total
        intervals = [each.init_args for each in self.trainer.callbacks or [] if is_last_checkpoint(each)]
        self.save_every = intervals[-1]["every_n_train_steps"] if intervals else 100
        self.latest: dict[str, float] = {}  # what the progress display shows
        self.best, self.stopped_by = math.inf, 0
        self.folder = self._folder(config, arguments)
        self.model, self.optimizer = self._begin(config.resume)
        self.csv, self.progress = MetricsCSV(self.folder), Progress(self)  # type: ignore[arg-type]
        if self.trainer.enable_progress_bar is False:
            self.progress.disable()

    def _folder(self, config: Any, arguments: list[str]) -> Path:
        """The run's folder, and the command that goes on with it."""
        stem = (Path(str(config.config[0])).stem if config.config else "run") + "-numpy"
        words = [word for word in arguments if word != "--resume"]
        self.command = shlex.join(["python", "scripts/train_numpy.py", *words])
        if config.resume:
            return existing_run_folder(self.run, stem)
        folder = new_run_folder(self.run, stem, self.command)
        os.environ.pop(RUN_FOLDER)  # no other process belongs to this run
        if folder.name != (self.run.name or stem):
            self.command += f" --run.name {folder.name}"
        return folder

    def _begin(self, resume: bool) -> tuple[NumpyTransformerLM, Any]:
        """The network and the optimizer: as PyTorch's would begin with this seed, or as the newest checkpoint has them.

        Raises:
            ConfigError: if the checkpoint is of another architecture, tokenizer or kind of optimizer.
        """
        found = self._newest() if resume else None
        if found is None:
            torch.manual_seed(self.seed)
            names = dict(TransformerLM(self.network).named_parameters())
            parameters = {name: parameter.detach().numpy().astype(self.dtype) for name, parameter in names.items()}
        else:
            self._compare(found)
            parameters = {name: array.astype(self.dtype) for name, array in found.model.parameters.items()}
        model = NumpyTransformerLM(Config.from_dict(self.network.to_dict()), parameters)
        optimizer = make_optimizer(model.parameters, **vars(self.settings))
        if found is not None:
            optimizer.load_state(found.state)
            self.stage.global_step, self.best = found.step, found.notes["best"]
            MetricsCSV(self.folder).truncate(found.step)
            notice(f"going on with {self.folder} from step {found.step:,}")
            if self.total <= found.step:
                notice(f"the run is of {self.total:,} steps: there is nothing left to train")
        return model, optimizer

    def _newest(self) -> Checkpoint:
        found, problems = newest_checkpoint(self.folder / "checkpoints" / f"{name}.npz" for name in ("last", "best"))
        if found is None and problems:
            raise DataError("; ".join(problems))
        if found is None:
            missing = f"{self.folder}: there is no checkpoint to resume from"
            raise MissingInputError(f"{missing}; leave out --resume to start afresh")
        for problem in problems:
            notice(f"warning: {problem}; going on from step {found.step:,}")
        return found

    def _compare(self, found: Checkpoint) -> None:
        theirs, ours = found.model.config.to_dict(), Config.from_dict(self.network.to_dict()).to_dict()
        for name in theirs:
            if name not in FREE_TO_CHANGE and theirs[name] != ours[name]:
                raise ConfigError(f"{name}: checkpoint {theirs[name]}, config {ours[name]}")
        for name, value in (("tokenizer", self.tokenizer.sha256), ("optimizer.name", self.settings.name)):
            if found.notes[name] != value:
                raise ConfigError(f"{name}: checkpoint {found.notes[name][:12]}, config {value[:12]}")
        if changes := self.record.differences(found.notes["config"]):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")

    # --- the loop

    def fit(self) -> None:
        """Trains to the end, then leaves the best model and the curves."""
        self._introduce()
        write_text(self.folder / "config.yaml", self.text)
        sweep(make_folder(self.folder / "checkpoints"), older_than=0)
        self.peak = self.run.peak_flops or measure_peak_flops(
            torch.device("cpu"), getattr(torch, np.dtype(self.dtype).name)
        )
        started = time.perf_counter()
        earlier = {number: signal.signal(number, self._receive) for number in GracefulStop.SIGNALS}
        try:
            self.progress.on_train_start(self.stage, self)  # type: ignore[arg-type]
            self._take_steps()
        except FloatingPointError as error:
            raise NumericError(f"{error}. Try a lower lr, more warmup_steps, or trainer.gradient_clip_val=1") from error
        finally:
            self.progress.on_train_end(self.stage, self)  # type: ignore[arg-type]
            for number, handler in earlier.items():
                signal.signal(number, handler)
        self._finish(time.perf_counter() - started)

    def _take_steps(self) -> None:
        first = self.stage.global_step
        batches = islice(self._batches(), max(self.total - first, 0))
        options = dict(max_norm=self.trainer.gradient_clip_val or None, first=first, seed=self.seed)
        seconds, tokens, clock = 0.0, 0, time.perf_counter()
        log_every = self.trainer.log_every_n_steps or 50
        for step in train(self.model, self.optimizer, batches, self._rate, **options):
            seconds, tokens = seconds + time.perf_counter() - clock, tokens + step.tokens
            number = self.stage.global_step = step.number
            if number % log_every == 0 or number == self.total:
                self._log(step, tokens / seconds)
                seconds, tokens = 0.0, 0
            self.progress.on_train_batch_end(self.stage, self, None, None, self.stage.accumulate_grad_batches - 1)  # type: ignore[arg-type]
            if self.lengths.validation_is_due(number):
                self._validate()
            if number % self.save_every == 0 or number == self.total or self.stopped_by:
                self._save("last")
            if self.stopped_by:
                self._stop()
            clock = time.perf_counter()

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
        documents, end = batch.documents, self.tokenizer.end_of_text
        if not self.network.document_mask:
            documents = None
        elif documents is None and end is not None:
            ends = (batch.inputs == end).long()
            documents = ends.cumsum(dim=1) - ends  # the separator ends its own document
        documents = None if documents is None else documents.numpy()
        return Batch(batch.inputs.numpy(), batch.targets.numpy(), batch.num_targets, documents)

    def _log(self, step: Step, rate: float) -> None:
        self.latest = {"train/loss": step.loss, "train/grad_norm": step.grad_norm, "lr": step.lr}
        self.latest |= {"perf/tokens_per_sec": rate, "perf/mfu": rate * flops_per_token(self.network) / self.peak}
        self.csv.log_metrics(self.latest, step=step.number)

    # --- validation

    def _validate(self) -> None:
        """Loss, perplexity, bits per byte and accuracy on the whole validation part; keeps the best checkpoint."""
        score, num_bytes, best = Score(), 0, 0.0
        for batch in self.data.val_dataloader():
            score += evaluate(self.model, [self._in_numpy(batch)])
            num_bytes += int(self.tokenizer.byte_lengths[batch.targets[batch.targets != IGNORE].numpy()].sum())
            best -= math.nan if batch.log_prob is None else batch.log_prob
        found = {"val/loss": score.loss, "val/perplexity": score.perplexity}
        found |= {"val/bpb": score.nats / math.log(2) / max(num_bytes, 1), "val/accuracy": score.accuracy}
        if math.isfinite(best):
            found |= {"val/floor": best / score.tokens, "val/excess": score.nats / best - 1}
        self.csv.log_metrics(found, step=self.stage.global_step)
        self.stage.callback_metrics = found
        self.progress.on_validation_end(self.stage, self)  # type: ignore[arg-type]
        self._sample()
        if score.loss < self.best:
            self.best = score.loss
            self._save("best")

    def _sample(self) -> None:
        """How the model continues each prompt, on the screen and in samples.txt."""
        end = self.tokenizer.end_of_text
        for prompt in list(self.prompts) if self.run.sample_tokens else ():
            try:
                ids = ([] if end is None else [end]) + self.tokenizer.encode(prompt)
            except DataError as error:  # a prompt with characters that this text does not have
                notice(f"no sample for {prompt!r}: {error}")
                self.prompts.remove(prompt)
                continue
            ids = ids[-self.network.max_seq_len :] or [0]
            length = min(self.run.sample_tokens, max(1, self.network.max_seq_len - len(ids)))
            new = generate(self.model, np.array([ids]), length, temperature=0.8, seed=1)[0]
            new = new[: list(new).index(end)] if end in new else new
            text = prompt + self.tokenizer.decode(new.tolist())
            self.progress.print("\n".join(f"    {line}" for line in text.strip().splitlines()))
            with (self.folder / "samples.txt").open("a", encoding="utf-8", newline="") as file:
                file.write(f"=== step {self.stage.global_step}\n{text}\n\n")

    # --- saving, stopping, the end

    def _save(self, name: str) -> None:
        notes = {"best": self.best, "tokenizer": self.tokenizer.sha256, "optimizer.name": self.settings.name}
        path = self.folder / "checkpoints" / f"{name}.npz"
        try:
            save_checkpoint(
                path, self.model, self.optimizer, self.stage.global_step, {**notes, "config": self.record.config}
            )
        except OSError as error:
            raise StorageError(f"{path}: could not be written ({error.strerror}); the earlier one is intact") from error

    def _receive(self, number: int, frame: Any) -> None:
        """A signal: the step is finished and saved; a second one quits at once."""
        self.stopped_by = number
        for each in GracefulStop.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        os.write(2, b"\ntinylm: finishing this step, then saving (once more to quit at once)\n")

    def _stop(self) -> None:
        kind = Interrupted if self.stopped_by == signal.SIGINT else Preempted
        step = self.stage.global_step
        raise kind(f"stopped after step {step:,}, which is saved; to go on: {self.command} --resume")

    def _introduce(self) -> None:
        notice(f"run: {self.folder}")
        notice(
            f"model: {sum(each.size for each in self.model.parameters.values()):,} parameters; text: "
            f"{self.data.source}, {self.tokenizer.kind} tokenizer, {self.data.vocab_size:,} tokens in the vocabulary, "
            f"{len(self.data.tokens['train']):,} to train on"
        )
        notice(
            f"training: {self.total:,} steps of {self.data.batch_size} x {self.data.context} tokens, "
            f"{self.settings.name}, NumPy {np.__version__}, {np.dtype(self.dtype).name}"
        )

    def _finish(self, seconds: float) -> None:
        """The best model as a folder, the curves as a picture, and where they are."""
        paths = [self.folder / "checkpoints" / f"{name}.npz" for name in ("best", "last")]
        found = read_checkpoint(next(path for path in paths if path.is_file()))
        info = {"step": found.step, "run": self.folder.name}
        info |= {"val/loss": found.notes["best"]} if paths[0].is_file() else {}
        with atomic_folder(self.folder / "model") as new:
            self.tokenizer.save(new / TOKENIZER)
            files.save(found.model, new, info)
        draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
        figures = f", {loss_and_floor(self.stage.callback_metrics)}" if self.stage.callback_metrics else ""
        notice(f"{self.stage.global_step:,} steps in {seconds // 60:.0f} min {seconds % 60:.0f} s{figures}")
        notice(f"model: {self.folder / 'model'}   curves: {self.folder / 'curves.png'}")
        prompt = next(iter(self.run.prompts), "")
        notice(f'to hear it: python scripts/generate.py --model {self.folder} --prompt "{prompt}"')


def run(arguments: list[str]) -> None:
    """Trains."""
    quiet_lightning()
    parser = make_parser(__doc__)
    config = parser.parse_args(arguments)
    check(config, parser.get_defaults())
    text = parser.dump(config, skip_unset=False, skip_link_targets=True).replace(
        f"resume: {str(config.resume).lower()}\n", "", 1
    )
    Run(config, f"# python scripts/train_numpy.py --config config.yaml\n{text}", arguments).fit()


def main(arguments: list[str]) -> int:
    """The exit code."""
    return exit_code(run, arguments)


if __name__ == "__main__":
    run_as_script(main)
