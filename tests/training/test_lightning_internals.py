"""Every private name of Lightning and its neighbours that tinylm uses, pinned against the installed versions.

A failure here after an upgrade names the file to change.
"""

import inspect

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector


@pytest.mark.parametrize("name", ["_prepare_subcommand_parser", "_parse_ckpt_path", "_get", "_parser"])
def test_lightning_cli_has_the_hooks_of_cli(name):
    assert callable(getattr(LightningCLI, name))


def test_training_loop_decides_on_validation_as_checkpoint_asks():
    assert list(inspect.signature(_TrainingEpochLoop._should_check_val_fx).parameters) == ["self", "data_fetcher"]
    assert isinstance(pl.Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop, _TrainingEpochLoop)
    assert "_data_fetcher" in vars(pl.Trainer(logger=False, accelerator="cpu").fit_loop)
    assert _DataFetcher is not None


def test_checkpoint_callback_counts_steps_as_last_checkpoint_reads_them():
    callback = ModelCheckpoint(every_n_train_steps=7)
    assert callback._every_n_train_steps == 7
    assert (callback._last_global_step_saved, callback._last_checkpoint_saved) == (0, "")


def test_loops_have_the_counts_that_resume_sets():
    trainer = pl.Trainer(logger=False, accelerator="cpu", max_steps=3, max_epochs=2)
    loop = trainer.fit_loop
    assert (loop.epoch_loop.max_steps, loop.max_epochs) == (3, 2)
    assert (loop.epoch_loop._batches_that_stepped, loop.epoch_loop.val_loop._has_run) == (0, False)
    assert (loop.epoch_progress.current.ready, loop.epoch_progress.current.processed) == (0, 0)
    assert trainer._logger_connector._first_loop_iter is None
    assert "_is_validation_done" in vars(_TrainingEpochLoop)  # reads _has_run


def test_rows_are_numbered_by_the_names_that_rows_overrides():
    loop = pl.Trainer(logger=False, accelerator="cpu").fit_loop.epoch_loop
    assert (loop.batch_progress.current.ready, loop.batch_progress.current.processed) == (0, 0)
    assert loop._should_accumulate() is False
    assert isinstance(_LoggerConnector.should_update_logs, property)
    assert "_batches_that_stepped" in inspect.getsource(_LoggerConnector.log_metrics)
    assert "_batches_that_stepped" in inspect.getsource(LearningRateMonitor.on_train_batch_start)


def test_optimization_loop_is_called_and_counts_as_captured_steps_do():
    assert list(inspect.signature(_AutomaticOptimization.run).parameters) == [
        "self",
        "optimizer",
        "batch_idx",
        "kwargs",
    ]
    loop = pl.Trainer(logger=False, accelerator="cpu").fit_loop
    progress = loop.epoch_loop.automatic_optimization.optim_progress.optimizer
    for each in (progress.step.increment_ready, progress.step.increment_completed, loop._should_accumulate):
        assert callable(each)
    for name in ("ready", "started", "completed"):
        assert callable(getattr(progress.zero_grad, f"increment_{name}"))
    assert MixedPrecision("bf16-mixed", "cpu").autocast_context_manager()._cache_enabled is False  # as graphs need it


def test_sharded_strategy_has_the_size_that_ours_sets():
    assert ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)._data_parallel_size == 2


def test_wandb_logger_has_the_fields_of_tracking(tmp_path):
    pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    assert logger._experiment is None
    assert isinstance(logger._wandb_init, dict)


def test_wandb_has_the_records_settings_and_history_of_wandb_log():
    wandb = pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    item = Record().history.item.add(nested_key=["samples", "size"], value_json="1")
    assert (item.key, *item.nested_key, item.value_json) == ("", "samples", "size", "1")
    assert {"x_transaction_log_flush_interval", "resumed"} <= wandb.Settings.model_fields.keys()
    assert "use_cache" in inspect.signature(wandb.apis.public.Run.scan_history).parameters


def test_parser_lists_its_actions_as_options_reads_them():
    parser = LightningArgumentParser()
    parser.add_argument("--one", type=int)
    assert "one" in [str(action.dest) for action in parser._actions]
