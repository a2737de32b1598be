"""Differences between today and the training of a run: code, versions, machine, data, parents and defaults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tinylm.data import TextDataModule
from tinylm.errors import TinyLMError
from tinylm.locate import find_model
from tinylm.plugins import Part
from tinylm.runs.provenance import code_state, machine, parent, repositories, versions
from tinylm.training.options import TRAINER_DEFAULTS
from tinylm.training.parser import make_parser
from tinylm.training.precision import device_kind
from tinylm.training.record import data_facts, default_options, flat_options

HASH, MOST = 12, 4  # characters of a hash and names shown
BY_COMMAND = "; the printed commands set it"


def differences_today(record: dict[str, Any] | None, config: dict[str, Any] | None) -> list[str]:
    """One line for each difference.

    Args:
        record: the record of the run, if it has one
        config: the content of its config.yaml, if there is one
    """
    found: list[str] = []
    if record is not None:
        found += [*code_differences(record["code"]), *environment_differences(record, config)]
        for path, digest in record["plugins"].items():
            found += _line(f"code of {path}", str(digest)[:HASH], str(Part(path).source_hash())[:HASH])
    if config is not None:
        try:
            found += [*(data_differences(record, config) if record else ()), *option_differences(record, config)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found.append(f"config.yaml: cannot be compared ({type(error).__name__}: {error})")
    return found


def _line(name: str, then: Any, now: Any, remark: str = "") -> Iterator[str]:
    if then != now:
        yield f"{name}: {_word(then)}, now {_word(now)}{remark}"


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value[:MOST])) + f" and {len(value) - MOST} more" * (len(value) > MOST) or "none"
    return "unknown" if value is None else str(value)


def code_differences(then: dict[str, Any]) -> Iterator[str]:
    """The differences of commits and of local changes."""
    today = repositories()
    for name, state in then.items():
        where = "commit of tinylm" if name == "tinylm" else "commit of the working folder"
        if (repository := today.get(name)) is None:
            yield f"{where}: {_word(state.get('commit'))}, now no repository"
            continue
        now = code_state(repository)
        yield from _line(where, state.get("commit"), now["commit"])
        if state.get("diff_sha256") != now["diff_sha256"]:
            changed = [_word(each.get("changed")) for each in (state, now)]
            same = " (changed otherwise)" if changed[0] == changed[1] else ""
            yield f"local changes {where.removeprefix('commit ')}: {changed[0]}, now {changed[1]}{same}"
    for name in today.keys() - then.keys():
        yield f"{name}: was no git repository, now commit {today[name].commit}"


def environment_differences(record: dict[str, Any], config: dict[str, Any] | None) -> Iterator[str]:
    """The differences of versions, machine and threads."""
    for name, value in versions().items():
        yield from _line(name, record["versions"].get(name), value)
    names = sorted({torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())})
    then, now = record["machine"], machine(names)
    for name in ("system", "processor", "instructions"):
        yield from _line(name, then.get(name), now[name])
    if not {*(then.get("devices") or ())} <= {*names}:
        yield from _line("devices", then.get("devices"), names)
    computed = record["compute"]
    if config is not None and computed.get("accelerator") != "numpy":
        kind = device_kind((config.get("trainer") or {}).get("accelerator", "auto"))
        yield from _line("accelerator", computed.get("accelerator"), kind)
    yield from _line("threads", computed.get("threads"), torch.get_num_threads(), BY_COMMAND)


def data_differences(record: dict[str, Any], config: dict[str, Any]) -> Iterator[str]:
    """The differences of text, tokenizer and the checkpoints from which the run began."""
    then = {name: record[name].get("sha256") for name in ("text", "tokenizer")}
    name = f"text ({record['text'].get('name')})"
    try:
        data = open_data(config)
        now = data.fingerprint
        if then["text"] != now:
            sources = record["text"].get("sources") or {}
            parts = [each for each, value in data.fingerprints.items() if sources.get(each) != value]
            name = f"text ({', '.join(parts)})" if sources and parts else name
        yield from _line(name, str(then["text"])[:HASH], now[:HASH])
        if then["text"] == now:  # another text would give another tokenizer
            tokenizer = data_facts(data)["tokenizer"]["sha256"]
            yield from _line("tokenizer", str(then["tokenizer"])[:HASH], tokenizer[:HASH])
    except TinyLMError as error:
        yield f"{name}: cannot be opened now ({error})"
    paths = {"model.init_from": config["model"].get("init_from"), "ckpt_path": config.get("ckpt_path")}
    for option, facts in record["parents"].items():
        yield from parent_difference(option, facts, paths.get(option))


def parent_difference(option: str, then: dict[str, Any], path: str | None) -> Iterator[str]:
    """The difference of a checkpoint or model from which the run began."""
    try:
        found = find_model(path or "") if option == "model.init_from" and not Path(str(path)).is_dir() else path
        now = parent(str(found), None)["sha256"]
    except (TinyLMError, OSError) as error:
        yield f"{option}: cannot be opened now ({error})"
        return
    yield from _line(f"{option} ({path})", str(then.get("sha256"))[:HASH], now[:HASH])


def open_data(config: dict[str, Any]) -> TextDataModule:
    """The data module of a config. Only the options of the data are parsed, so no class of the config is imported."""
    length = config["model"]["network"]["max_seq_len"]
    values = {name: value for name, value in config["data"].items() if name != "max_seq_len"}
    parsed = make_parser("").parse_object({"model": {"network": {"max_seq_len": length}}, "data": values})
    return TextDataModule(**parsed.data.as_dict())


def option_differences(record: dict[str, Any] | None, config: dict[str, Any]) -> Iterator[str]:
    """Options whose default has changed since, that are new, or that no longer exist.

    An option of config.yaml that was not given had its default value then, so config.yaml records that default.
    """
    parser, flat = make_parser(""), flat_options(config)
    if record is None or record.get("command") == "fit":
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    defaults = default_options(parser)
    given = {*flat} if record is None else {*map(str, record.get("given") or ())}
    for name, value in flat.items():
        if name in defaults and name not in given and defaults[name] != value:
            then = json.dumps(value)
            yield f"default of {name}: {then}, now {json.dumps(defaults[name])}; config.yaml keeps {then}"
        elif name not in defaults and not _related(name, defaults):
            yield f"option {name}: {json.dumps(value)}, now unknown"
    for name in defaults:
        if name not in flat and not _related(name, flat):
            yield f"option {name}: unknown then, now {json.dumps(defaults[name])} by default"


def _related(name: str, others: dict[str, Any]) -> bool:
    """Whether an option belongs to a group that is a single value in the other config, or is such a group."""
    return any(name.startswith(f"{other}.") or other.startswith(f"{name}.") for other in others)
