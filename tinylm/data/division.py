"""The global batch of an optimizer step, divided into the micro-batches of each device."""

import contextlib
from typing import Any

from tinylm.data.content import Content
from tinylm.errors import ConfigError, notice
from tinylm.stages import Stages

BATCH_SIZE = 32


def data_ranks(trainer: Any) -> tuple[int, int]:
    """Number of processes that read different batches, and the index of this one.

    The strategy says which devices, those of a tensor-parallel group, read the same. All others count singly. Without a
    trainer, there is one process.
    """
    if trainer is None:
        return 1, 0
    share = None
    with contextlib.suppress(AttributeError, RuntimeError):  # no Trainer of Lightning's; no devices yet
        share = trainer.distributed_sampler_kwargs
    return (trainer.world_size, trainer.global_rank) if share is None else (share["num_replicas"], share["rank"])


def divide_batch(trainer: Any, batch_size: int, micro_batch_size: int | None) -> int:
    """The micro-batches of a device in an optimizer step.

    Args:
        trainer: determines the number of devices
        batch_size: sequences in a step, over all devices
        micro_batch_size: sequences that a device computes at once. None: all of its share

    Raises:
        ConfigError: if one number does not divide the other, or the trainer asks for another accumulation.
    """
    share, remainder = divmod(batch_size, readers := data_ranks(trainer)[0])
    if remainder:
        raise ConfigError(f"data.batch_size must be divisible by the number of devices, got {batch_size} and {readers}")
    micro = micro_batch_size or share
    if share % micro:
        raise ConfigError(
            f"data.batch_size / devices must be divisible by data.micro_batch_size, got {share} and {micro}"
        )
    if trainer is not None and trainer.accumulate_grad_batches not in (1, share // micro):
        raise ConfigError(
            "trainer.accumulate_grad_batches follows from data.batch_size and data.micro_batch_size; leave it out"
        )
    return share // micro


def check_batch_stages(batch_sizes: Stages, micro_batches: int) -> None:
    """Refuses batch sizes that cannot be divided: a step has equally many micro-batches at every stage.

    Args:
        batch_sizes: sequences in a step, by stages
        micro_batches: micro-batches of a step on all devices
    """
    for size in batch_sizes.values:
        if size % micro_batches:
            raise ConfigError(
                f"data.batch_schedule: {size} must be divisible by the {micro_batches} micro-batches of a step on "
                "all devices (data.batch_size / data.micro_batch_size)"
            )


def check_context_stages(contexts: Stages, length: int) -> None:
    """Refuses contexts into which a sequence of `length` tokens cannot be cut."""
    for context in contexts.values[:-1]:
        if length % context:
            raise ConfigError(f"data.context_schedule: {context} must divide the {length} tokens of a sequence")


def check_repeats(batch_size: int, content: Content, announce: bool) -> None:
    """Refuses a batch that repeats sequences, unless it is of the default size or there is only one sequence.

    A text that was cut short on purpose may be repeated.

    Args:
        batch_size: sequences in a step
        content: the training data
        announce: whether to print a notice of repeats that are allowed
    """
    sequences = content.num_sequences
    if batch_size <= sequences or content.settings.train_tokens is not None:
        return
    unit = content.unit if sequences != 1 else content.unit.replace("s of", " of", 1)
    repeats = f"data.batch_size: {batch_size:,} is more than the {sequences:,} {unit} to train on"
    if batch_size > BATCH_SIZE and sequences > 1:
        raise ConfigError(f"{repeats}; lower it, or give more data")
    if announce:
        notice(f"{repeats}: a step repeats {'it' if sequences == 1 else 'them'}")
