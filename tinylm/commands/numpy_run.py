"""The run of `tinylm train-numpy`: keeps the run folder, and trains the NumPy twin."""

import math
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml

from tinylm.bundle import TOKENIZER
from tinylm.commands.numpy_batches import in_numpy, measure, sample
from tinylm.commands.numpy_checkpoint import check_checkpoint, find_checkpoint
from tinylm.commands.numpy_options import PRECISIONS, check, is_last_checkpoint, refuse_classes, stem_of
from tinylm.console import duration, plural
from tinylm.data import TextDataModule
from tinylm.data.stream_content import StreamContent
from tinylm.errors import ConfigError, DataError, NumericError, notice
from tinylm.files import atomic_folder, full_disk
from tinylm.kernels.heap import keep_freed_memory
from tinylm.model import ModelConfig, TransformerLM, flops_per_token
from tinylm.model.size import empty_model
from tinylm.optim.optimizer import OptimizerConfig, parameter_groups
from tinylm.optim.schedule import ScheduleConfig
from tinylm.reference import Config, files
from tinylm.reference.checkpoint import read_checkpoint, save_checkpoint
from tinylm.reference.fast import FastTransformerLM
from tinylm.reference.optim import Optimizer, learning_rate
from tinylm.reference.parameters import rate_factors
from tinylm.reference.train import Batch, Step, train
from tinylm.reference.transformer import NumpyTransformerLM
from tinylm.runs.folder import RUN_FOLDER, Claim, RunConfig, existing_run_folder, new_run_folder, resume_command
from tinylm.runs.plots import draw_curves
from tinylm.runs.provenance import RunFacts, bundle_record, end_record
from tinylm.signals import SIGNALS, quit_at_next, raised, stopped_by
from tinylm.training.earlier import recorded_seed
from tinylm.training.finish import generate_command, loss_and_floor
from tinylm.training.introduction import describe_model, describe_training
from tinylm.training.metrics_csv import MetricsCSV
from tinylm.training.options import check_vocab_size, located_errors, saved_config
from tinylm.training.parser import build, make_parser
from tinylm.training.progress import Progress
from tinylm.training.quiet import quiet_lightning
from tinylm.training.record import compute, data_facts, given_options, seeds
from tinylm.training.remarks import OverfittingWatch, check_warmup
from tinylm.training.rows import is_logged
from tinylm.training.run_files import ConfigRecord, prepare_files
from tinylm.training.samples import append_sample, has_samples
from tinylm.training.throughput import measure_peak_flops


class Run:
    """One training run: data, network, run folder, and the work between the steps.

    The folder holds run.json, metrics.csv, checkpoints/{last,best}.npz, samples.txt, and in the end model/, curves.png.
    """

    def __init__(self, config: Any, dump: str, words: Sequence[str], parser: Any) -> None:
        """Reads and checks everything, then claims the run folder.

        Args:
            config: the parsed options
            dump: the same as YAML
            words: the command line after `tinylm train-numpy`
            parser: the parser of the options
        """
        self.words, self.parser, self.trusted = words, parser, list(config.trust)
        plain = {name: value for name, value in yaml.safe_load(dump).items() if name not in ("resume", "config")}
        self.trainer, self.dump, self.record = config.trainer, dump, ConfigRecord(plain)
        self.seed = 0 if isinstance(config.seed_everything, bool) else config.seed_everything
        self.threads = config.threads or torch.get_num_threads()
        self.dtype = PRECISIONS[str(config.trainer.precision)]
        self.settings = build(OptimizerConfig, config.model.optimizer)
        self.schedule = build(ScheduleConfig, config.model.schedule)
        self.options = build(RunConfig, config.run)
        size = config.model.network.pop("vocab_size", None)
        checked = build(ModelConfig, config.model.network, vocab_size=1)  # reports mistakes before the data are read
        for field, part in checked.parts.items():
            raise ConfigError(f"model.network.{field}: the NumPy twin has no plug-ins, got {part}; use tinylm fit")
        if config.data.seed is None:
            config.data.seed = self.seed
        self._open_data(config.data)
        known = self.data.vocab_size
        check_vocab_size(size, known)
        self.network = build(ModelConfig, config.model.network, vocab_size=known)
        parameter_groups(empty_model(self.network), self.settings)  # refuses an optimizer without a rule of muP
        self.log_every = 50 if self.trainer.log_every_n_steps is None else self.trainer.log_every_n_steps
        intervals = [each.init_args for each in self.trainer.callbacks or [] if is_last_checkpoint(each)]
        self.save_every = intervals[-1]["every_n_train_steps"] if intervals else 100
        self._figures: dict[str, float] = {}  # loss and throughput of this step
        self._overfitting = OverfittingWatch()
        self.best, self.stopped_by, self.validating = math.inf, 0, False
        prompts = [self.data.example_prompt()] if self.options.prompts is None else list(self.options.prompts)
        self.prompt, self.prompts = next(iter(prompts), ""), prompts if self.options.sample_tokens else []
        self.template = self.data.template
        self._open_folder(config)
        if not config.resume or not self._resume():
            torch.manual_seed(self.seed)  # then the initial weights are those of `tinylm fit`
            initial = TransformerLM(self.network).named_parameters()
            self._make_model({name: weight.detach().numpy() for name, weight in initial})
        self.progress: Any = Progress(self)  # type: ignore[arg-type]
        if self.trainer.enable_progress_bar is False:
            self.progress.disable()

    def _open_data(self, options: Any) -> None:
        """Reads the data, and counts the steps of an epoch and of the run."""
        self.state: Any = SimpleNamespace(  # the attributes of a Trainer that the data module and Progress read
            global_step=0, world_size=1, global_rank=0, accumulate_grad_batches=self.trainer.accumulate_grad_batches,
            val_check_interval=1.0 if self.trainer.val_check_interval is None else self.trainer.val_check_interval,
            limit_train_batches=1.0, limit_val_batches=0 if self.trainer.limit_val_batches == 0 else 1.0,
            max_steps=self.trainer.max_steps, max_epochs=self.trainer.max_epochs or -1,
            check_val_every_n_epoch=self.trainer.check_val_every_n_epoch, sanity_checking=False,
            state=SimpleNamespace(fn="fit"), callback_metrics={},
        )  # fmt: skip
        self.data = self.state.datamodule = build(TextDataModule, options)
        if self.data.preferences:
            raise ConfigError("data.pairs: preferences are not available in the NumPy twin; use tinylm fit")
        self.data.trainer = self.state
        self.data.setup("fit")
        self.tokenizer = self.data.tokenizer
        self.per_epoch, self.total = self.data.steps_per_epoch, self.data.total_steps
        interval = self.state.val_check_interval
        whole = isinstance(interval, float)  # an epoch
        self.validate_every = self.per_epoch if whole else interval // self.state.accumulate_grad_batches

    def _open_folder(self, config: Any) -> None:
        """Claims a new folder, or the folder of the run to resume."""
        if config.resume:
            self.folder = existing_run_folder(self.options, stem_of(config))
            self.claim: Claim | None = Claim(self.folder)
        else:
            self.folder, self.claim = new_run_folder(self.options, stem_of(config), "train-numpy")
            os.environ.pop(RUN_FOLDER, None)  # no other process belongs to this run
        self.resume_command = resume_command("train-numpy", self.folder, config.trust)
        self.checkpoints = {name: self.folder / "checkpoints" / f"{name}.npz" for name in ("last", "best")}
        self.csv = MetricsCSV(self.folder)

    def _make_model(self, weights: dict[str, np.ndarray]) -> None:
        parameters = {name: weight.astype(self.dtype) for name, weight in weights.items()}
        keep_freed_memory()
        self.model = FastTransformerLM(Config.from_dict(self.network.to_dict()), parameters, threads=self.threads)
        settings = {name: value for name, value in vars(self.settings).items() if name != "ns_dtype"}
        factors = rate_factors(self.model.config, self.settings.name)
        self.optimizer = Optimizer(parameters, **settings, factors=factors)

    def _resume(self) -> bool:
        """Continues from the newest undamaged checkpoint, and returns whether there is one."""
        found, problems = find_checkpoint(self.folder, self.checkpoints.values())
        if found is None:
            return False
        check_checkpoint(found, self.network, self.data, self.settings.name)
        if changes := self.record.differences(found.notes["config"]):
            notice(f"changed since the checkpoint: {'; '.join(changes)}")
        self._make_model(found.model.parameters)
        self.optimizer.load_state(found.state)
        best = self.checkpoints["best"]
        lost = not best.is_file() or any(problem.startswith(str(best)) for problem in problems)
        self.state.global_step, self.best = found.step, math.inf if lost else found.notes["best"]
        self.validating = found.notes.get("validating", False)
        notice(f"resuming {self.folder} from step {found.step:,}")
        if self.total <= found.step:
            notice(f"the run has {self.total:,} steps: there is nothing left to train")
        return True

    # --- the loop

    def fit(self) -> None:
        """Trains to the end, then writes the best model and the curves."""
        self._announce()
        config = saved_config("train-numpy", self.dump, self.network.vocab_size)
        prepare_files(self.folder, config, self._facts(config), self.state.global_step, self.validating)
        self.tokenizer.save(self.folder / TOKENIZER, overwrite=True)
        kind = getattr(torch, np.dtype(self.dtype).name)
        self.peak = self.options.peak_flops or measure_peak_flops(torch.device("cpu"), kind)
        started, first = time.perf_counter(), self.state.global_step
        if isinstance(self.data.content, StreamContent):
            self.data.content.stream.while_waiting = lambda: self._check_stop(waiting=True)
        handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            self.progress.on_train_start(self.state, self)
            if self.validating:  # when it was stopped
                self._validate()
            self._take_steps()
            if not self.data.validates and not has_samples(self.folder / "samples.txt", self.total):
                self._show_samples()
        except FloatingPointError as error:
            raise NumericError(f"{error}. Try a lower lr, more warmup_steps, or trainer.gradient_clip_val=1") from error
        finally:
            self.progress.on_train_end(self.state, self)
            end_record(self.folder, self.state.global_step)
            for number, handler in handlers.items():
                signal.signal(number, handler)
        took = duration(time.perf_counter() - started)
        figures = f", {loss_and_floor(self.state.callback_metrics)}" if self.state.callback_metrics else ""
        if self.state.global_step > first or figures:
            notice(f"{self.state.global_step:,} steps in {took}{figures}")
        self._write_model()

    def _facts(self, config: str) -> RunFacts:
        """The facts for run.json; `--threads` is among the options that config.yaml leaves out."""
        values = yaml.safe_load(config)
        return RunFacts(
            command="train-numpy",
            words=self.words,
            compute=compute("numpy", 1, f"{np.dtype(self.dtype).itemsize * 8}-true"),
            seeds=seeds(values),
            options={"trust": self.trusted, "threads": self.threads},
            given=given_options(self.parser, values),
            **data_facts(self.data),
        )

    def figures(self, trainer: Any, module: Any) -> dict[str, float]:
        """Loss and throughput as of this step, for Progress."""
        return self._figures

    def _announce(self) -> None:
        notice(f"run: {self.folder}")
        describe_model(sum(each.size for each in self.model.parameters.values()), self.data)
        machine = f"NumPy {np.__version__} ({plural(self.threads, 'thread')}), {np.dtype(self.dtype).name}"
        describe_training(self.data, self.settings.name, machine)
        check_warmup(self.data, self.schedule, self.settings.lr)

    def _take_steps(self) -> None:
        first, accumulate = self.state.global_step, self.state.accumulate_grad_batches
        options: dict[str, Any] = dict(max_norm=self.trainer.gradient_clip_val or None, first=first, seed=self.seed)
        seconds, tokens, logged, clock = 0.0, 0, first, time.perf_counter()
        for step in train(self.model, self.optimizer, self._batches(), self._rate, **options):
            seconds, tokens = seconds + time.perf_counter() - clock, tokens + step.tokens
            self.state.global_step, rate = step.number, tokens / seconds
            self._figures = {"train/loss": step.loss, "perf/tokens_per_sec": rate}
            self._figures["perf/mfu"] = rate * flops_per_token(self.network) / self.peak
            if is_logged(step.number, self.log_every, self.total):
                self._log(step, seconds / (step.number - logged))
                seconds, tokens, logged = 0.0, 0, step.number
            self.progress.on_train_batch_end(self.state, self, None, None, accumulate - 1)
            due = self.data.validates and (step.number == self.total or self._validation_is_due(step.number))
            if due:
                self._validate()
            saved = self.save_every > 0 and step.number % self.save_every == 0 and not due
            if saved or step.number == self.total or self.stopped_by:
                self._save("last")
            self._check_stop()
            clock = time.perf_counter()  # validating and saving do not count

    def _check_stop(self, waiting: bool = False) -> None:
        """Ends a run that was asked to stop, after a step or while it waits for a shard."""
        if not self.stopped_by:
            return
        if waiting:
            self._save("last")
        done = f"stopped after step {self.state.global_step:,}, which is saved{', waiting for a shard' * waiting}"
        raise stopped_by(self.stopped_by, f"{done}; to resume: {self.resume_command}")

    def _rate(self, step: int) -> float:
        return learning_rate(step, self.total, lr=self.settings.lr, **vars(self.schedule))

    def _batches(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left."""
        while self.state.global_step < self.total:
            loader = map(self._in_numpy, self.data.train_dataloader())  # to the end of the epoch
            for parts in zip(*[loader] * self.state.accumulate_grad_batches, strict=True):
                yield list(parts)
                if self.state.global_step == self.total:
                    return

    def _in_numpy(self, batch: Any) -> Batch:
        return in_numpy(batch, self.network, self.tokenizer)

    def _validation_is_due(self, step: int) -> bool:
        """Whether a validation follows a step, by Lightning's rules in whole steps."""
        epochs = self.trainer.check_val_every_n_epoch
        if epochs is None:
            return step % self.validate_every == 0
        epoch, position = divmod(step - 1, self.per_epoch)
        return (epoch + 1) % epochs == 0 and (position + 1) % self.validate_every == 0

    def _log(self, step: Step, seconds: float) -> None:
        row = {"train/loss": step.loss, "train/grad_norm": step.grad_norm, "lr": step.lr}
        row |= {"perf/tokens_per_sec": self._figures["perf/tokens_per_sec"], "perf/step_seconds": seconds}
        self.csv.log_metrics(row | {"perf/mfu": self._figures["perf/mfu"]}, step=step.number)

    def _save(self, name: str) -> None:
        notes = {"best": self.best, "tokenizer": self.tokenizer.sha256, "optimizer": self.settings.name}
        notes |= {"config": self.record.config, "text": self.data.fingerprint, "validating": self.validating}
        notes |= {"sources": self.data.fingerprints, "order": self.data.order.version}
        with full_disk(self.checkpoints[name]):
            save_checkpoint(self.checkpoints[name], self.model, self.optimizer, self.state.global_step, notes)

    def _receive(self, number: int, frame: Any) -> None:
        """Handles a signal: the step is finished and saved; a second signal quits at once."""
        self.stopped_by = number
        quit_at_next()
        what = "leaving the validation" if self.validating else "finishing this step, then saving"
        os.write(2, f"\ntinylm: {what} (once more to quit at once)\n".encode())

    # --- validation and the end

    def _validate(self) -> None:
        """Saves, evaluates the model, shows samples, and keeps the best checkpoint.

        A signal leaves it at the next batch; the resumed run repeats it.
        """
        self.validating = True
        self._save("last")
        self.progress.on_validation_start(self.state, self)
        found = self._evaluate(self.model, self.data.val_dataloader())
        self.validating = False
        self.csv.log_metrics(found, step=self.state.global_step)
        self.state.callback_metrics = found
        self.progress.on_validation_end(self.state, self)
        if self._figures:
            self._overfitting.add(found["val/loss"], self._figures["train/loss"])
        self._show_samples()
        if found["val/loss"] < self.best:
            self.best = found["val/loss"]
            self._save("best")

    def _evaluate(self, model: NumpyTransformerLM, batches: Iterable[Any]) -> dict[str, float]:
        """`val/loss`, `val/perplexity`, ... of a model."""
        return measure(model, self._watched(batches), self.network, self.tokenizer)

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches of an evaluation, until a signal."""
        for batch in batches:
            if self.stopped_by:
                step = f"stopped in the validation after step {self.state.global_step:,}, which is saved"
                raise stopped_by(self.stopped_by, f"{step}; to resume: {self.resume_command}")
            yield batch
            if self.validating:
                self.progress.on_validation_batch_end(self.state, self, None, batch, 0)

    def _show_samples(self) -> None:
        for seed, prompt in enumerate(list(self.prompts), start=1):
            self._show_sample(prompt, seed)

    def _show_sample(self, prompt: str, seed: int) -> None:
        """Continues a prompt, on the screen and in samples.txt."""
        try:
            text = sample(self.model, self.tokenizer, self.template, prompt, self.options.sample_tokens, seed)
        except DataError as error:  # the prompt has characters that the tokenizer lacks
            notice(f"no sample for {prompt!r}: {error}")
            return self.prompts.remove(prompt)
        self.progress.print("\n".join(f"    {line}" for line in text.strip().splitlines()))
        append_sample(self.folder / "samples.txt", self.state.global_step, text)

    def _write_model(self) -> None:
        """Writes the best model as a folder and the curves as a picture."""
        found, info = None, {}
        try:
            if self.data.validates:  # else a best one is from before the run was resumed
                found = read_checkpoint(self.checkpoints["best"])
                info = {"val/loss": found.notes["best"]}
        except (FileNotFoundError, ValueError) as error:
            notice(f"warning: {error}; the model folder is written from the last checkpoint")
        found = found or read_checkpoint(self.checkpoints["last"])
        info |= {"step": found.step, "run": self.folder.name, "prompt": self.prompt, **bundle_record(self.folder)}
        info |= {"template": self.template.name} if self.template is not None else {}
        if self.data.validation_tokens is not None:
            info |= (whole := self._evaluate(found.model, self.data.whole_validation()))
            notice(f"on all {self.data.content.num_tokens('val'):,} validation tokens: {loss_and_floor(whole)}")
        with atomic_folder(self.folder / "model") as new:
            self.tokenizer.save(new / TOKENIZER)
            files.save(found.model, new, info)
        draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
        step = f" of step {found.step:,}" if found.step != self.state.global_step else ""
        notice(f"model{step}: {self.folder / 'model'}   curves: {self.folder / 'curves.png'}")
        notice(f"to try it: {generate_command(self.folder, self.prompt, self.template)}")


def run(arguments: list[str]) -> None:
    """Trains."""
    quiet_lightning()
    parser = make_parser(__doc__ or "")
    parser.add_argument("--threads", type=int, default=None, help="Parts of a batch at a time. Default: PyTorch's.")
    refuse_classes(arguments)
    config = parser.parse_args(arguments)
    with raised(), located_errors():
        check(config, parser.get_defaults())
        if config.resume and config.data.seed is None:
            config.data.seed = recorded_seed(existing_run_folder(build(RunConfig, config.run), stem_of(config)))
        this = Run(config, parser.dump(config, skip_unset=False, skip_link_targets=True), arguments, parser)
        try:
            this.fit()
        finally:
            if this.claim is not None:
                this.claim.release()
