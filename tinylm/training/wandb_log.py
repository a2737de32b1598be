"""The local logs of a W&B run, read back, so that a resumed run logs every step once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# LevelDB's log format: blocks of records, each with a header of CRC (4 bytes), length (2) and kind (1)
BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4  # kinds that end a record


def logged_metrics(folder: Path, run_id: str) -> dict[tuple[int, str], Any]:
    """(step, metric) -> value of everything in the logs of a W&B run, also in those that a kill has cut off.

    Args:
        folder: the run folder
        run_id: the W&B id
    """
    logs = sorted(folder.glob(f"wandb/*run-*-{run_id}/*.wandb"))
    return {(step, name): value for log in logs for step, name, value in _rows(log.read_bytes())}


def _rows(data: bytes) -> Iterator[tuple[int, str, Any]]:
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
                items = Record.FromString(parts).history.item
            except DecodeError:
                return
            row = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
            step = row.pop("trainer/global_step", None)
            if step is not None:
                yield from ((int(json.loads(step)), name, json.loads(value)) for name, value in row.items())
            parts = b""
