"""Everything that a training run leaves in its folder, compared to the last bit."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from tests.failpoints import place_name
from tinylm.bundle import load_bundle, read_checkpoint
from tinylm.reference.checkpoint import read_checkpoint as read_numpy_checkpoint
from tinylm.runs.metrics import read_metrics


def wandb_rows(log: Path) -> Iterator[tuple]:
    """(step, metric, value) of a W&B log: protocol buffers in blocks of 32 KiB; CRC, length and kind before each.

    Numbers have nine digits, as in metrics.csv, from which a resumed run logs what a kill has lost.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, parts, place = log.read_bytes(), b"", 7
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts, place = parts + data[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 4) and place <= len(data):  # whole, or the last part
            items = Record.FromString(parts).history.item
            row = {"/".join(item.nested_key) or item.key: item.value_json for item in items}
            step = json.loads(row.pop("trainer/global_step", "-1"))
            values = ((name, json.loads(value)) for name, value in row.items())
            yield from ((step, name, f"{x:.9g}" if isinstance(x, int | float) else str(x)) for name, x in values)
            parts = b""


def tensorboard_rows(log: Path) -> Iterator[tuple]:
    """(step, metric, value) of a file of TensorBoard's."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for event in EventFileLoader(str(log)).Load():
        yield from ((event.step, value.tag, str(value.tensor)) for value in event.summary.value)


def tracked(rows: Iterator[tuple]) -> set[tuple]:
    """Without speeds, times and what is not a number; a resumed run may give a row twice."""
    return {row for row in rows if not row[1].startswith(("perf/", "_", "samples", "curves"))}


def without(value: Any, folder: str) -> Any:
    """The content of a checkpoint without the name of the folder in which a run was started."""
    if isinstance(value, dict):
        return {without(key, folder): without(each, folder) for key, each in value.items()}
    return value.replace(folder, "") if isinstance(value, str) else value


def content(path: Path) -> Any:
    """The content of a file of a run, for comparison."""
    if path.suffix == ".ckpt":
        return read_checkpoint(path)
    if path.suffix == ".npz":
        found = read_numpy_checkpoint(path)
        return {"weights": found.model.parameters, "state": found.state, "step": found.step, "notes": found.notes}
    if path.name == "metrics.csv":
        with path.open(newline="") as file:
            return [{k: v for k, v in row.items() if not str(k).startswith("perf/")} for row in csv.DictReader(file)]
    if path.name == "wandb.json":
        return json.loads(path.read_text())["samples"]
    if path.name == "curves.png":  # shows speeds, too
        return path.read_bytes()[-12:]  # the end of a whole PNG
    if path.name == "config.yaml":
        return path.read_text()
    if path.name == "run.json":  # has the times, and an entry for each start
        return {name: value for name, value in json.loads(path.read_text()).items() if name != "starts"}
    if path.name == "tinylm.json":
        manifest = json.loads(path.read_text())
        manifest["info"].pop("provenance", None)
        return {name: value for name, value in manifest.items() if name != "sha256"}
    return path.read_bytes()


def snapshot(folder: Path) -> dict[str, Any]:
    """Everything below `runs`, and the names of the files in the other folders, which hold caches."""
    runs, found = folder / "runs", {}
    found["runs"] = sorted(path.name for path in runs.iterdir())
    logs: dict[str, set] = {"tensorboard": set(), "wandb": set()}
    for path in sorted(path for path in runs.rglob("*") if path.is_file()):
        if path.suffix == ".wandb":
            logs["wandb"] |= tracked(wandb_rows(path))
        elif "tfevents" in path.name:
            logs["tensorboard"] |= tracked(tensorboard_rows(path))
        elif "wandb" not in path.parts and ".shards-" not in path.parent.name:  # read with their checkpoint
            found[str(path.relative_to(runs))] = without(content(path), str(folder))
    for cache in ("cache", "tmp"):  # the cache's temporary files are removed after an hour; W&B leaves some
        names = sorted({place_name("", str(path)).strip() for path in (folder / cache).rglob("*")})
        found[cache] = [] if logs["wandb"] and cache == "tmp" else [name for name in names if name[:5] != ".tmp-"]
    return found | logs


def differences(ours: Any, whole: Any, where: str = "") -> Iterator[str]:
    """Names what differs in the last bit."""
    if isinstance(ours, torch.Tensor) and isinstance(whole, torch.Tensor):
        ours, whole = ours.numpy(), whole.numpy()
    if isinstance(ours, dict) and isinstance(whole, dict):
        for key in [*whole, *(key for key in ours if key not in whole)]:
            if key not in ours or key not in whole:
                yield f"{where}{key}: {'missing' if key in whole else 'extra'}"
            else:
                yield from differences(ours[key], whole[key], f"{where}{key}: ")
    elif isinstance(ours, list | tuple) and isinstance(whole, list | tuple) and len(ours) == len(whole):
        for number, pair in enumerate(zip(ours, whole, strict=True)):
            yield from differences(*pair, f"{where}{number}: ")
    elif isinstance(ours, set) and isinstance(whole, set):
        if ours != whole:
            yield f"{where}{len(whole - ours)} rows missing, {len(ours - whole)} extra, {sorted(whole ^ ours)[:1]}"
    elif isinstance(ours, np.ndarray) and isinstance(whole, np.ndarray):
        if (ours.dtype, ours.shape, ours.tobytes()) != (whole.dtype, whole.shape, whole.tobytes()):
            yield f"{where}other values"
    elif type(ours) is not type(whole) or (ours != whole and repr(ours) != repr(whole)):  # repr: NaN equals itself
        size = f"{len(ours)} for {len(whole)}" if isinstance(ours, bytes | list | tuple) else f"{ours} for {whole}"
        yield f"{where}{size}"


def compared(ours: dict[str, Any], whole: dict[str, Any]) -> Iterator[str]:
    """The first difference of each entry of two snapshots."""
    for name in [*whole, *(name for name in ours if name not in whole)]:
        one, other = ({name: each[name]} if name in each else {} for each in (ours, whole))
        if found := list(differences(one, other)):
            yield found[0] + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")


def unloadable(folder: Path) -> list[str]:
    """The files that a killed run has left in a state in which tinylm cannot read them."""
    readers: dict[str, Callable[[Path], Any]] = {"*.ckpt": read_checkpoint, "*.npz": read_numpy_checkpoint}
    readers |= {"metrics.csv": read_metrics, "config.yaml": lambda path: yaml.safe_load(path.read_text())}
    readers |= {"tinylm.json": lambda path: load_bundle(path.parent)}
    found = []
    for pattern, read in readers.items():
        for path in (folder / "runs").rglob(pattern):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                try:
                    read(path)
                except Exception as error:  # whatever it is, it is reported
                    found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return found
