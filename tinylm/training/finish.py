"""FinishRun: the model folder, the curves and the closing lines at the end of a run."""

import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch.distributed.fsdp import FSDPModule

from tinylm.adapt import add_lora, save_adapter
from tinylm.bundle import load_bundle, network_weights, read_checkpoint, save_bundle
from tinylm.data import CHAT, Template
from tinylm.errors import ConfigError, MissingInputError, notice
from tinylm.locate import command
from tinylm.model import TransformerLM
from tinylm.model.known import unknown_part
from tinylm.runs.plots import draw_curves
from tinylm.training.checkpoint import BestCheckpoint
from tinylm.training.module import LitTransformerLM
from tinylm.training.tracking import trackers


class FinishRun(Callback):
    """Writes the best model as a folder and the curves as a picture when training ends, and prints where they are."""

    def __init__(self, folder: Path, prompt: str) -> None:
        self.folder, self.prompt = folder, prompt

    def on_fit_start(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Starts the clock."""
        self._started = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> None:
        """Finishes the run; not called after an exception or a signal."""
        if not trainer.is_global_zero:
            return
        problem = pl_module.changed or self._save_model(trainer, pl_module)
        hooked = None if problem or isinstance(pl_module.net, FSDPModule) else unknown_part(pl_module.net)
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if (self.folder / "metrics.csv").is_file():
            draw_curves(self.folder / "metrics.csv", self.folder / "curves.png", self.folder.name)
        for tracker in trackers(trainer):
            tracker.log_files(self.folder)
        minutes, seconds = divmod(time.perf_counter() - self._started, 60)
        figures = f", {loss_and_floor(found)}" if "val/loss" in found else ""
        notice(f"{trainer.global_step:,} steps in {minutes:.0f} min {seconds:.0f} s{figures}")
        if problem is not None:
            notice(f"no model folder is written, since it could not describe this model: {problem}")
            return
        notice(f"model: {self.folder / 'model'}   curves: {self.folder / 'curves.png'}")
        if hooked is not None:
            notice(f"warning: {hooked}, which the saved model does not have")
        notice(f"to try it: {generate_command(self.folder, self.prompt, pl_module.template)}")

    def _save_model(self, trainer: pl.Trainer, pl_module: LitTransformerLM) -> str | None:
        """Writes the model folder, from the best checkpoint if there is one; returns the reason if it cannot."""
        try:
            best = load_bundle(_best_or_last(self.folder))
        except MissingInputError:  # checkpoints were switched off
            info, model = {"step": trainer.global_step}, pl_module.net
        else:
            info, model = best.info | self._best_loss(trainer), best.model
            self._save_adapter(pl_module)
        try:
            info |= {"run": self.folder.name, "prompt": self.prompt}
            info |= {"template": pl_module.template.name} if pl_module.template is not None else {}
            save_bundle(self.folder / "model", model, pl_module.tokenizer, info, overwrite=True)
        except ConfigError as error:
            return str(error)
        return None

    def _best_loss(self, trainer: pl.Trainer) -> dict[str, float]:
        """The value of the monitored metric at the best checkpoint."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
                return {str(callback.monitor): float(callback.best_model_score)}
        return {}

    def _save_adapter(self, pl_module: LitTransformerLM) -> None:
        """Saves the best adapter by itself, beside the model that it is merged into."""
        if pl_module.lora is None or pl_module.start is None:
            return
        net = TransformerLM(pl_module.network)  # the module's own may be sharded
        add_lora(net, pl_module.lora)
        net.load_state_dict(network_weights(read_checkpoint(_best_or_last(self.folder))))
        save_adapter(self.folder / "adapter", net, base=pl_module.start.path, overwrite=True)
        notice(f"adapter: {self.folder / 'adapter'}")


def generate_command(folder: Path, prompt: str, template: Template | None = None) -> str:
    """The command line that continues a prompt. A long prompt is left out, since it is recorded with the model."""
    chat = ["--chat"] if template == CHAT else []
    words = [f"--prompt={prompt}"] if prompt.startswith("-") else ["--prompt", prompt]
    return command("generate", "--model", folder, *([*chat, *words] if len(prompt) <= 60 else []))


def loss_and_floor(metrics: dict[str, float]) -> str:
    """`validation loss 0.412, floor 0.387, 6% above the best possible`; without a floor if it is unknown."""
    text = f"validation loss {metrics['val/loss']:.4f}"
    if "val/floor" not in metrics:
        return text
    excess = metrics["val/excess"]
    side = "above" if excess >= 0 else "below"  # below by chance, within a few standard errors
    return f"{text}, floor {metrics['val/floor']:.4f}, {abs(excess):.1%} {side} the best possible"


def _best_or_last(folder: Path) -> Path:
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / "checkpoints" / name).is_file():
            return folder / "checkpoints" / name
    raise MissingInputError(f"{folder}: has no checkpoint")
