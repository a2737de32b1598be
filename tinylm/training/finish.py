"""FinishRun: the model folder, the curves and the closing lines at the end of a run."""

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, Timer
from torch.distributed.fsdp import FSDPModule
from tqdm import tqdm

from tinylm.adapt import add_lora, save_adapter
from tinylm.bundle import Bundle, load_bundle, network_weights, read_checkpoint, save_bundle
from tinylm.console import duration
from tinylm.data import CHAT, Batch, ChatTemplate, Template
from tinylm.errors import ConfigError, DataError, MissingInputError, notice
from tinylm.files import read_json
from tinylm.known import unknown_part
from tinylm.locate import MANIFEST, command
from tinylm.model import TransformerLM
from tinylm.model.attention import documents_apart
from tinylm.runs.plots import draw_curves
from tinylm.runs.provenance import bundle_record
from tinylm.training.checkpoint import BestCheckpoint
from tinylm.training.module import LitTransformerLM
from tinylm.training.trackers import trackers


class FinishRun(Callback):
    """Writes the best model as a folder and the curves as a picture when training ends, and prints where they are."""

    def __init__(self, folder: Path, prompt: str) -> None:
        self.folder, self.prompt = folder, prompt
        self._first = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Notes the step from which a run is resumed."""
        self._first = trainer.global_step

    def on_exception(self, trainer: pl.Trainer, pl_module: LitTransformerLM, exception: BaseException) -> None:
        """Tells the trackers why the run ends."""
        for tracker in trackers(trainer):
            tracker.log_failure(exception)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Finishes the run; not called after an exception or a signal."""
        if trainer.is_global_zero:
            self._finish(trainer, pl_module)
            for tracker in trackers(trainer):
                tracker.log_files(self.folder)  # in their final form

    def _finish(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Writes the files and prints the closing lines."""
        best = self._best(trainer, pl_module)
        problem = pl_module.changed or self._save_model(best, pl_module)
        hooked = None if problem or isinstance(pl_module.net, FSDPModule) else unknown_part(pl_module.net, plugins=True)
        curves = ""
        if (self.folder / "metrics.csv").is_file():
            draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
            curves = f"   curves: {self.folder / 'curves.png'}"
        took = duration(time.perf_counter() - self._started)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        figures = f", {loss_and_floor(found)}" if "val/loss" in found else ""
        steps, reason = end_of(trainer)
        if trainer.global_step > self._first or figures or reason:
            notice(f"{steps} in {took}{figures}{reason and f'; stopped early: {reason}'}")
        if problem is not None:
            notice(f"no model folder is written, since it could not describe this model: {problem}")
            return
        step = f" of step {best.info['step']:,}" if best.info["step"] != trainer.global_step else ""
        loss = f" (validation loss {best.info['val/loss']:.4f})" if step and "val/loss" in best.info else ""
        notice(f"model{step}: {self.folder / 'model'}{loss}{curves}")
        self._evaluate(best, trainer, pl_module)
        if hooked is not None:
            notice(f"warning: {hooked}, which the saved model does not have")
        trusted = any(part.is_foreign for part in pl_module.network.parts.values())
        notice(f"to try it: {generate_command(self.folder, self.prompt, pl_module.template, trusted)}")

    def _best(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> Bundle:
        """The model of the best checkpoint that can be read, or of the last step if there are no checkpoints.

        Without a validation that is the last one; a `best.ckpt` is then from before the run was resumed.
        """
        for name in ("best.ckpt", "last.ckpt") if trainer.limit_val_batches != 0 else ("last.ckpt",):
            try:
                self._checkpoint = self.folder / "checkpoints" / name
                bundle = load_bundle(self._checkpoint)
            except MissingInputError:  # checkpoints were switched off, or no validation took place
                continue
            except DataError as error:
                if pl_module.changed:
                    break
                notice(f"warning: {error}; the model folder is written from another")
                continue
            return replace(bundle, info=bundle.info | (self._best_loss(trainer) if name == "best.ckpt" else {}))
        self._checkpoint = None
        return Bundle(pl_module.net, pl_module.tokenizer, {"step": trainer.global_step})

    def _save_model(self, best: Bundle, pl_module: LitTransformerLM) -> str | None:
        """Writes the model folder; returns the reason if it cannot."""
        if self._checkpoint is not None:
            self._save_adapter(pl_module, self._checkpoint)
        try:
            info = {**best.info, "run": self.folder.name, "prompt": self.prompt, **bundle_record(self.folder)}
            info |= {"template": pl_module.template.name} if pl_module.template is not None else {}
            save_bundle(self.folder / "model", best.model, pl_module.tokenizer, info, overwrite=True)
        except ConfigError as error:
            return str(error)
        return None

    def _evaluate(self, best: Bundle, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Evaluates the saved model on the whole validation split, if the validations during training read a part."""
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        if data.validation_tokens is None:
            return
        found = evaluate_split(best.model, pl_module, data.whole_validation())
        save = {**read_json(self.folder / "model" / MANIFEST)["info"], **found}
        save_bundle(self.folder / "model", best.model, pl_module.tokenizer, save, overwrite=True)
        notice(f"on all {data.content.num_tokens('val'):,} validation tokens: {loss_and_floor(found)}")

    def _best_loss(self, trainer: pl.Trainer) -> dict[str, float]:
        """The value of the monitored metric at the best checkpoint."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
                return {str(callback.monitor): float(callback.best_model_score)}
        return {}

    def _save_adapter(self, pl_module: LitTransformerLM, checkpoint: Path) -> None:
        """Saves the adapter of a checkpoint by itself, beside the model that it is merged into."""
        if pl_module.lora is None or pl_module.start is None:
            return
        net = TransformerLM(pl_module.network)  # the module's own may be sharded
        add_lora(net, pl_module.lora)
        net.load_state_dict(network_weights(read_checkpoint(checkpoint)))
        save_adapter(self.folder / "adapter", net, base=pl_module.start.path, overwrite=True)
        notice(f"adapter: {self.folder / 'adapter'}")


def end_of(trainer: Any) -> tuple[str, str]:
    """The steps of a run that has ended, and what ended it before its last step; empty otherwise."""
    step, planned = trainer.global_step, trainer.datamodule.total_steps
    if step >= planned:
        return f"{step:,} {'step' if step == 1 else 'steps'}", ""
    stops = [each.stopping_reason_message for each in trainer.early_stopping_callbacks]
    reasons = [each.removesuffix(" Signaling Trainer to stop.").rstrip(".") for each in stops if each]
    left = [each.time_remaining() for each in trainer.callbacks if isinstance(each, Timer)]
    reasons += ["the time is up" for seconds in left if seconds is not None and seconds <= 0]
    return f"{step:,} of {planned:,} steps", "; ".join(reasons) or "by a callback"


def generate_command(
    folder: Path, prompt: str, template: Template | ChatTemplate | None = None, trusted: bool = False
) -> str:
    """The command line that continues a prompt. A long prompt is left out, since it is recorded with the model."""
    chat = ["--chat"] if template is not None and template.name == CHAT.name else []
    trust = ["--trust-code"] if trusted else []
    words = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return command("generate", "--model", folder, *trust, *([*chat, *words] if len(prompt) <= 60 else []))


def loss_and_floor(metrics: dict[str, float]) -> str:
    """`validation loss 0.412, floor 0.387, 6% above the best possible`; without a floor if it is unknown.

    The losses of the sources of a mixture follow in brackets.
    """
    text = f"validation loss {metrics['val/loss']:.4f}"
    sources = [f"{name[9:]} {value:.4f}" for name, value in metrics.items() if name.startswith("val/loss_")]
    text += f" ({', '.join(sources)})" if sources else ""
    if "val/floor" not in metrics:
        return text
    excess = metrics["val/excess"]
    side = "above" if excess >= 0 else "below"  # below by chance, within a few standard errors
    return f"{text}, floor {metrics['val/floor']:.4f}, {abs(excess):.1%} {side} the best possible"


def evaluate_split(model: TransformerLM, module: LitTransformerLM, batches: Iterable[Batch]) -> dict[str, float]:
    """`val/loss`, `val/perplexity`, ... of a model on the batches of a split, with the module's settings."""
    metric = module.new_metrics(sync_on_compute=False)  # this process alone
    model, device = model.to(module.device).eval(), module.device
    with torch.inference_mode():
        for batch in tqdm(batches, desc="validating", leave=False, delay=2, disable=not sys.stderr.isatty()):
            ids, documents = batch.inputs.to(device), batch.documents
            documents = documents_apart(model.config, ids, module.tokenizer.end_of_text, documents)
            logits = model(ids, documents=None if documents is None else documents.to(device))
            metric.update(logits.cpu(), batch.targets, batch.log_prob, batch.source)
    return {f"val/{name}": value for name, value in metric.compute().items()}
