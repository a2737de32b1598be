"""OwnData: the user's own LightningDataModule as the data of a run."""

from typing import Any

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from tinylm.data.datamodule import seed_of_run
from tinylm.data.division import data_ranks
from tinylm.data.loader_content import LoaderContent
from tinylm.data.run_data import RunData
from tinylm.data.trainer_settings import ENDLESS
from tinylm.errors import ConfigError, DataError, notice
from tinylm.files import default_cache_dir, locked, sha256_bytes
from tinylm.plugins import Part
from tinylm.stages import Stages
from tinylm.tokenizer import Tokenizer

PLAIN = (dict, list, tuple, str, bytes, int, float, bool, Tensor, type(None))


class OwnData(RunData):
    """Adapts any LightningDataModule that is a `BatchSource` to a run.

    From Python: `trainer.fit(model, datamodule=OwnData(mine))`. The micro-batches of a step are
    `trainer.accumulate_grad_batches` on each device; intervals count optimizer steps, as with `TextDataModule`.
    """

    def __init__(self, given: pl.LightningDataModule, max_seq_len: int | None = None) -> None:
        """Creates the adapter.

        Args:
            given: The data module
            max_seq_len: Most tokens of a sequence. Default: no limit

        Raises:
            ConfigError: if it is no LightningDataModule, or has no `train_dataloader`.
        """
        kind = type(given)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if not isinstance(given, pl.LightningDataModule):
            raise ConfigError(f"data: {name} is not a LightningDataModule; derive it from that")
        self.given, self.max_seq_len = given, max_seq_len
        self.loaders = LoaderContent(given, name, max_seq_len or 1 << 62, seed_of_run())
        if not self.loaders.defines("train"):
            raise ConfigError(f"data: {name} has no train_dataloader; define it")
        plugins = [Part.of(kind)] if "<locals>" not in kind.__qualname__ else []
        unknown = Stages(0)  # until the loader has given a batch
        super().__init__(self.loaders, unknown, unknown, plugins=plugins)
        self._prepared, self._stages = False, set()

    def __getattr__(self, name: str) -> Any:
        """The attributes of the data module, for callbacks that know it."""
        if name == "given":
            raise AttributeError(name)
        return getattr(self.given, name)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the data module, which may be known only after its `setup`."""
        self._prepare()
        if getattr(self.given, "tokenizer", None) is None:
            self._set_up("fit")
        return self.content.tokenizer

    def example_prompt(self) -> str:
        """The prompt of the data module, or the first words of its first training sequence."""
        self._prepare()
        self._set_up("fit")
        return super().example_prompt()

    @property
    def text_seed(self) -> int:
        """The seed of the text: none, since the data module has its own."""
        return 0

    # --- preparation

    def _prepare(self) -> None:
        """Calls `prepare_data` once in this process, while no other process of this machine does."""
        if not self._prepared:
            self._prepared = True
            name = sha256_bytes(self.content.source.encode())[:16]
            with locked(default_cache_dir() / f"prepare-{name}.lock"):
                self.given.prepare_data()

    def _set_up(self, stage: str) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self.given.setup(stage)

    def setup(self, stage: str) -> None:
        """Sets the data module up, and counts the steps.

        Raises:
            ConfigError: if it gives no loader, or the trainer needs something that it does not provide.
        """
        self._prepare()
        self.given.trainer = self.trainer
        self._set_up(stage)
        _ = self.tokenizer
        if stage == "fit" and self._settings.is_new(self.trainer) and not self.fingerprint:
            name = self.content.source
            notice(f"data: {name} has no fingerprint: a resumed run cannot tell whether its text is the same")
        super().setup(stage)

    def teardown(self, stage: str) -> None:
        """Tears the data module down, too."""
        super().teardown(stage)
        self._stages.discard(stage)
        self.given.teardown(stage)

    def _micro_batches_of_step(self) -> int:
        accumulate = 1 if self.trainer is None else int(self.trainer.accumulate_grad_batches)
        self.micro_batch_size = self.loaders.rows or None
        self.batch_sizes = Stages(self.loaders.rows * accumulate * data_ranks(self.trainer)[0])
        return accumulate

    @property
    def _steps_of_order(self) -> int:
        """Optimizer steps in an epoch; of a loader without a length, those of the run."""
        trainer, count = self.trainer, self.loaders.num_batches("train")
        if trainer is None:
            return ENDLESS if count is None else count
        share = trainer.accumulate_grad_batches * data_ranks(trainer)[0]
        if count is not None and count < share:
            raise DataError(f"data: train_dataloader gives {count} batches, and a step takes {share}; give more data")
        if count is not None:
            return count // share
        if trainer.max_steps < 0 or trainer.max_epochs not in (None, -1):
            raise ConfigError("trainer.max_steps: the loader has no length, and the run no epochs; set max_steps alone")
        return trainer.max_steps

    def _choose_validation_tokens(self) -> None:
        """None: a validation reads the whole split."""

    # --- loaders

    def predict_dataloader(self) -> DataLoader:
        """The batches of the data module's `predict_dataloader`."""
        return self._evaluation("predict")

    # --- position

    def state_dict(self) -> dict[str, Any]:
        """The states of the data module and of its training loader, if they keep any."""
        found = {}
        if self.loaders.restores_itself:
            found["module"] = self.given.state_dict()
        if "fit" in self._stages and hasattr(self.loaders.loader("train"), "load_state_dict"):
            found["loader"] = self.loaders.loader("train").state_dict()
        if not _is_plain(found):
            raise ConfigError(f"data: state_dict of {self.content.source} must have plain values and tensors only")
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states; the state of a loader is restored when it is read."""
        if "module" in state_dict:
            self.given.load_state_dict(state_dict["module"])
            self.loaders.restored.by_module = True
        self.loaders.restored.state = state_dict.get("loader")


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that executes nothing can hold a value."""
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return type(value) in PLAIN and all(map(_is_plain, parts))
