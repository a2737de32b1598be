"""The local logs of a W&B run, read back, so that a resumed run logs every step once."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# LevelDB's log format: blocks of records, each with a header of CRC (4 bytes), length (2) and kind (1)
BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4  # kinds that end a record
STEP, NO_STEP = "trainer/global_step", -1  # of rows that belong to no optimizer step


def logged_metrics(folder: Path, run_id: str) -> dict[tuple[int, str], Any]:
    """(step, metric) -> value of everything in the logs of a W&B run, including logs truncated by a kill.

    Tables and histograms have the value None. `_step` is W&B's own number of a row.

    Args:
        folder: the run folder
        run_id: the W&B id
    """
    logs = sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"))
    return {(step, name): value for log in logs for step, name, value in _rows(log.read_bytes())}


def uploaded_metrics(run: Any) -> dict[tuple[int, str], Any]:
    """(step, metric) -> value of everything that W&B's server stores for an online run."""
    import wandb

    rows = wandb.Api().run(run.path).scan_history(use_cache=False)
    return {(int(row.get(STEP, NO_STEP)), name): _plain(value) for row in rows for name, value in row.items()}


def cut_incomplete_records(folder: Path, run_id: str) -> None:
    """Cuts off the incomplete record with which a killed offline log may end: `wandb sync` stops at such a log."""
    for log in folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"):
        end = max((end for _, end in _records(log.read_bytes())), default=HEADER)
        if end < log.stat().st_size:
            os.truncate(log, end)


def _rows(data: bytes) -> Iterator[tuple[int, str, Any]]:
    for record, _ in _records(data):
        row = {(item.nested_key or [item.key])[0]: _value(item) for item in record.history.item}
        step = row.pop(STEP, NO_STEP)
        yield from ((int(step), name, value) for name, value in row.items())


def _records(data: bytes) -> Iterator[tuple[Any, int]]:
    """The complete records of a log, each with its end offset."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    parts, place = b"", HEADER  # the file begins with a header of its own
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is empty
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts, place = parts + data[place + HEADER : place + HEADER + size], place + HEADER + size
        if place > len(data):
            return
        if kind in (WHOLE, LAST):
            try:
                yield Record.FromString(parts), place
            except DecodeError:
                return
            parts = b""


def _value(item: Any) -> Any:
    return None if len(item.nested_key) > 1 else _plain(json.loads(item.value_json))


def _plain(value: Any) -> Any:
    return None if isinstance(value, dict) else value
