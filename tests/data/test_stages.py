"""Batches and rows that grow with the steps: every sample once, in order, whatever the devices."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tinylm.data.batches import ShortRows, TrainingBatches, TrainingWindows
from tinylm.data.datamodule import TextDataModule
from tinylm.data.mixture import MixtureOrder
from tinylm.data.pair_batches import RowOrder
from tinylm.data.shard_order import ShardOrder
from tinylm.errors import ConfigError
from tinylm.stages import Stages

TEXT = "the quick brown fox jumps over the lazy dog. " * 40
SIZES = Stages(8, ((2, 2), (5, 4)))
STEPS = [range(0, 2), range(2, 4), *(range(4 * i, 4 * i + 4) for i in (1, 2, 3)), range(16, 24), range(24, 32)]
"""The samples of the first seven steps of SIZES: two of 2, three of 4, then 8."""

stages = st.builds(
    lambda final, before: Stages(final, tuple(sorted(before.items()))),
    st.integers(1, 9),
    st.dictionaries(st.integers(1, 20), st.integers(1, 9), max_size=4),
)


@given(stages, st.integers(0, 30))
def test_the_total_is_the_sum_of_all_steps_and_ranges_adjoin(sizes, steps):
    assert sizes.total(steps) == sum(sizes.at(step) for step in range(steps))
    joined = np.concatenate([np.empty(0, int), *(sizes.range(step) for step in range(steps))])
    assert joined.tolist() == list(range(int(sizes.total(steps))))


def test_every_order_takes_the_samples_of_a_step_one_after_the_other():
    """The order with batches of one sample is the oracle: its step i is sample i."""
    windows = {size: TrainingWindows(200, 8, size, seed=3) for size in (1, SIZES)}
    rows = {size: RowOrder(13, size, seed=3) for size in (1, SIZES)}
    mixed = {size: MixtureOrder({"a": windows[1], "b": windows[1]}, {"a": 1.0, "b": 2.0}, size) for size in (1, SIZES)}
    shards = {size: ShardOrder([50, 90].__getitem__, 8, size, 3) for size in (1, SIZES)}
    for order in shards.values():
        order._length = lambda number: [50, 90, None][number]
    for step, samples in enumerate(STEPS):
        assert windows[SIZES].starts(step).tolist() == [windows[1].starts(i)[0] for i in samples]
        assert rows[SIZES].rows(step).tolist() == [rows[1].rows(i)[0] for i in samples]
        for ours, single in ((mixed[SIZES].starts, mixed[1].starts), (shards[SIZES].windows, shards[1].windows)):
            assert np.stack(ours(step)).T.tolist() == [np.stack(single(i))[:, 0].tolist() for i in samples]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 1), (2, 1), (1, 2)])
def test_devices_and_micro_batches_share_a_growing_batch(world_size, accumulate):
    tokens = np.arange(200, dtype=np.uint16)
    windows = TrainingWindows(len(tokens), 8, SIZES, seed=3)
    for step, samples in enumerate(STEPS):
        shares = [
            TrainingBatches(tokens, windows, accumulate, world_size, rank)[step * accumulate + micro_step]
            for rank in range(world_size)
            for micro_step in range(accumulate)
        ]
        assert torch.cat([each.inputs[:, 0] for each in shares]).tolist() == windows.starts(step).tolist()
        assert {each.num_targets for each in shares} == {len(samples) * 8}


def test_short_rows_hold_the_same_tokens_and_targets():
    tokens = np.arange(200, dtype=np.uint16)
    whole = TrainingBatches(tokens, TrainingWindows(200, 8, 4, seed=3), 2, 1, 0)
    rows = ShortRows(whole, Stages(8, ((1, 2), (3, 4))), accumulate=2)
    for index, width in enumerate([2, 2, 4, 4, 4, 4, 8, 8]):
        assert rows[index].inputs.shape == rows[index].targets.shape == (2 * 8 // width, width)
        assert torch.equal(rows[index].inputs.flatten(), whole[index].inputs.flatten())
        assert torch.equal(rows[index].targets, rows[index].inputs + 1)  # the tokens are consecutive numbers
        assert rows[index].num_targets == whole[index].num_targets


def trainer(**options):
    fields = dict(accumulate_grad_batches=1, val_check_interval=1.0, limit_train_batches=1.0, world_size=1)
    fields |= dict(max_steps=100, max_epochs=-1, state=SimpleNamespace(fn="fit"), global_rank=0)
    return SimpleNamespace(**fields | options)


@pytest.mark.parametrize(
    ("options", "trained", "message"),
    [
        ({"batch_schedule": {3: 8}}, {}, "batch_schedule: the final value is 8, so 8 before step 3 must be smaller"),
        ({"context_schedule": {3: 32}}, {}, "context_schedule: the final value is 16, so 32 before step 3"),
        ({"batch_schedule": {}}, {}, "batch_schedule: has no stages; give some, as {200: 8}"),
        ({"batch_schedule": {0: 2}}, {}, "batch_schedule: must give steps and sizes of at least 1"),
        ({"batch_schedule": {3: 0}}, {}, "batch_schedule: must give steps and sizes of at least 1"),
        ({"batch_schedule": {3: 2}, "micro_batch_size": 2}, {}, "2 must be divisible by the 4 micro-batches of a step"),
        ({"batch_schedule": {3: 3}}, {"world_size": 2}, "3 must be divisible by the 2 micro-batches of a step"),
        ({"context_schedule": {3: 5}}, {}, "context_schedule: 5 must divide the 16 tokens of a sequence"),
        ({"batch_schedule": {3: 2}}, {"max_steps": -1, "max_epochs": 2}, "trainer.max_steps: missing; with data.batch"),
        ({"batch_schedule": {3: 2}}, {"max_epochs": 2}, "trainer.max_epochs: does not work with data.batch_schedule"),
    ],
)
def test_stages_that_cannot_be_trained_are_refused(tmp_path, options, trained, message):
    (tmp_path / "t.txt").write_text(TEXT)
    common = dict(max_seq_len=16, batch_size=8, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match=message.replace("{", r"\{")):
        data = TextDataModule(str(tmp_path / "t.txt"), **common | options)
        data.trainer = trainer(**trained)
        data.setup("fit")


def test_rows_of_pairs_are_not_cut():
    with pytest.raises(ConfigError, match=r"data\.context_schedule: does not work with data.pairs; leave it out"):
        TextDataModule(pairs="pairs.jsonl", context_schedule={3: 8})
