"""Remarks on a run: at its start, and once its model overfits."""

from tinylm.data import TextDataModule
from tinylm.errors import notice
from tinylm.training.schedule import ScheduleConfig

MOST = 3  # remarks at the start
RISES = 3  # validations in a row whose loss rises


def epochs(data: TextDataModule) -> str:
    """The passes over the training data, such as `3.1 epochs`."""
    count = data.total_steps / data.order.steps_per_epoch
    return f"{count:,.1f} epochs" if count >= 0.1 else f"{count:.1g} epochs"


def remarks(data: TextDataModule, schedule: ScheduleConfig, lr: float) -> list[str]:
    """Up to three remarks on a run, after `data.setup`, the most important first."""
    found = []
    if schedule.warmup_steps >= data.total_steps > 0:
        found.append(
            f"model.schedule.warmup_steps is {schedule.warmup_steps:,} and the run has {data.total_steps:,} steps: "
            f"the learning rate never reaches {lr:g}"
        )
    corpus = data.corpus if data.pairs is None else None
    kind, _, size = data.tokenizer_spec.partition(":")
    if corpus and not corpus.has_floor and size.isdecimal() and int(size) > data.vocab_size:  # stories have few words
        found.append(f"data.tokenizer: {kind}:{size} found only {data.vocab_size:,} tokens in this text")
    files = len(getattr(corpus, "paths", ())) if getattr(corpus, "kind", "") in ("files", "lines") else 0
    if files > 1:
        found.append(f"data.corpus: {data.source} is {files:,} files")
    return found[:MOST]


class OverfittingWatch:
    """Remarks once that the validation loss rises while the training loss falls."""

    def __init__(self) -> None:
        self.losses: list[tuple[float, float]] = []
        self.told = False

    def add(self, validation: float, training: float) -> None:
        """Takes the two losses at a validation."""
        self.losses = [*self.losses, (validation, training)][-RISES - 1 :]
        rises = all(now[0] > before[0] for before, now in zip(self.losses, self.losses[1:], strict=False))
        if len(self.losses) > RISES and rises and training < self.losses[0][1] and not self.told:
            self.told = True
            notice(
                f"the validation loss has risen for {RISES} validations while the training loss falls: the model "
                "learns the text by heart; the best one is kept, and -c early_stopping would end the run"
            )
