"""Estimates the cost of a training run before it starts: parameters, operations, memory, time, money.

tinylm estimate -c small                                     # on this machine, whose speed is measured
tinylm estimate -c large --devices 8 --device h100 --price 2.5
tinylm estimate -c large --devices 8 --device h100 --model.compile true --data.micro_batch_size 8

All configs and options of `tinylm fit` are accepted. No data are read if the options bound the vocabulary.
"""

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tinylm.commands.fit_check import check_options
from tinylm.commands.train import announced_configs
from tinylm.console import Parser, duration, scaled, table
from tinylm.errors import ConfigError

if TYPE_CHECKING:
    from tinylm.experiments.estimate import Estimate
    from tinylm.experiments.workload import Workload

OWN = {  # option: type, help
    "device": (str, "cpu, cuda, or a name such as h100 (default: the fastest of this machine)"),
    "devices": (int, "number of devices (default: trainer.devices)"),
    "price": (float, "price of one device for an hour"),
    "mfu": (float, "share of the peak FLOP/s in use (default: measured here, 0.35 elsewhere)"),
    "peak-flops": (float, "peak FLOP/s of a device that the table lacks"),
    "memory": (float, "memory of a device in GB"),
    "vocab-size": (int, "size of the vocabulary (default: SIZE of bpe:SIZE; for other tokenizers, the data are read)"),
}


def run(arguments: list[str]) -> None:
    """Prints the estimate."""
    options, words = parse(arguments)
    check_options("fit", words)
    sys.argv = [sys.argv[0], "fit", *words]  # read by the parser of `fit`

    from tinylm.experiments.devices import find_device
    from tinylm.experiments.estimate import estimate
    from tinylm.experiments.workload import read_workload
    from tinylm.training.cli import quiet_lightning

    quiet_lightning()
    device = find_device(options.device, options.peak_flops, options.memory)
    workload = read_workload(words, options.vocab_size, options.read_data, options.devices)
    found = estimate(workload, device, mfu=options.mfu, price=options.price)
    if options.json:
        print(json.dumps(asdict(found) | {"device": device.name, "assumed": workload.assumed}, indent=1))
    else:
        print(report(found, workload, device.name, device.memory))


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the options of this command, and returns with them those of `fit`."""
    parser = Parser("estimate", __doc__)
    for name, (kind, text) in OWN.items():
        parser.add_argument(f"--{name}", type=kind, help=text)
    parser.add_argument("--read-data", action="store_true", help="read the data for the exact vocabulary size")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("-c", "--config", action="append", help="config of the run (default: small)")
    ours, theirs = split(arguments)
    options = parser.parse([word for word in ours if word != "--debug"])
    for name in ("price", "mfu"):
        if (value := getattr(options, name)) is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} must be positive, got {value}")
    if options.mfu is not None and options.mfu > 1:
        raise ConfigError(f"--mfu must be at most 1, got {options.mfu}")
    if "--resume" in theirs:
        raise ConfigError("--resume: an estimate covers a whole run; leave it out")
    return options, announced_configs(theirs, default="small")


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words of this command, and those of `fit`."""
    names = {f"--{name}" for name in OWN}
    ours: list[str] = []
    theirs: list[str] = []
    place = iter(arguments)
    for word in place:
        name, given, _ = word.partition("=")
        if name.replace("_", "-") in names:
            ours += [word] if given else [word, *(value for value in [next(place, None)] if value is not None)]
        elif word in ("--json", "--help", "-h", "--debug") or name.replace("_", "-") == "--read-data":
            ours.append(word)
        else:
            theirs.append(word)
    return ours, theirs


# --- the report


def report(found: "Estimate", workload: "Workload", device: str, memory: int | None) -> str:
    """The estimate as text."""
    total = sum(found.parameters.values())
    parts = ", ".join(f"{name} {size:,}" for name, size in found.parameters.items())
    frozen = "" if found.trained == total else f"; {found.trained:,} of them are trained"
    step = workload.batch_size * workload.context
    time = f"{found.hours / 24:.1f} days" if found.hours >= 48 else duration(found.hours * 3600)
    lines = [
        f"parameters: {total:,}: {parts}{frozen}",
        f"operations: {scaled(found.token_flops)}FLOP a token, {scaled(found.step_flops)}FLOP a step, "
        f"{found.run_flops:.3g} FLOPs in all",
        f"tokens: {workload.steps:,} steps of {workload.batch_size:,} x {workload.context:,}: {found.tokens:,}",
        "",
        memory_table(found, workload, device, memory),
        "",
        f"speed: {found.tokens_per_second:,.0f} tokens/s, {found.seconds * 1e3:,.1f} ms a step of {step:,} tokens "
        f"({found.bound}{f'; MFU {found.mfu:.0%}' if found.mfu is not None else ''})",
        f"time: {time}, without validation" + ("" if found.cost is None else f"; cost: {found.cost:,.2f}"),
    ]
    lines += [f"assumed: {'; '.join(workload.assumed)}"] if workload.assumed else []
    return "\n".join(lines)


def memory_table(found: "Estimate", workload: "Workload", device: str, memory: int | None) -> str:
    """Memory by part and strategy, and the largest micro-batch."""
    names = [*found.memory]
    where = device if workload.devices == 1 else f"each of {workload.devices} x {device}"
    heads = [f"{name}, {found.precision}" for name in names]
    rows = [[f"memory of {where}, MB, {workload.rows:,} sequences at once", *heads]]
    for part in found.memory[names[0]]:
        rows.append([f"  {part}", *(f"{found.memory[name][part] / 1e6:,.1f}" for name in names)])
    rows.append(["  total", *(f"{sum(found.memory[name].values()) / 1e6:,.1f}" for name in names)])
    if memory is not None:
        rows.append(["  available", *(f"{memory / 1e6:,.1f}" for _ in names)])
    if found.largest_rows is not None:
        rows.append(["largest micro-batch", *(f"{found.largest_rows[name]:,}" for name in names)])
    return table(rows)
