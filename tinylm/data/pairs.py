"""Reads prompt/response pairs for finetuning from a file, and checks them.

A record is a conversation: turns of the roles system, user and assistant, of which the assistant's is the last. A
prompt with its response is a conversation of two turns. template.py turns conversations into tokens.

Left out: function calls and images in conversations.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tinylm.errors import DataError, MissingInputError, did_you_mean

ROLES = ("system", "user", "assistant")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}
OTHER_NAMES = {  # our name of a field -> its names in other formats
    "prompt": ("instruction", "question", "input", "query", "text"),
    "response": ("output", "answer", "completion", "target", "label"),
    "messages": ("conversations", "conversation", "dialogue", "turns"),
}


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


Turns = tuple[Turn, ...]


# --- reading


def read_pairs(path: str | Path) -> list[Turns]:
    """The records of a file, in order: .json (a list), .jsonl (an object per line), .csv (with a header line).

    A record has `prompt` and `response`, or `messages`, a list of `{"role": ..., "content": ...}`; other fields are
    ignored. Blank lines are skipped.

    Raises:
        MissingInputError: if there is no such file.
        DataError: if the file is empty, not UTF-8 or damaged, or a record is malformed; names the line or record.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file of pairs")
    if path.suffix not in READERS:
        raise DataError(f"{path}: is not a known format; give a file whose name ends in {', '.join(READERS)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets write a byte order mark before their CSV
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 at byte {error.start} ({error.reason}); save it as UTF-8") from error
    pairs = [_turns(record, where) for record, where in READERS[path.suffix](text, str(path))]
    if not pairs:
        raise DataError(f"{path}: has no records; write at least one prompt with its response")
    return pairs


Records = Iterator[tuple[Any, str]]  # (record, its file and line for errors)


def _json_records(text: str, name: str) -> Records:
    records = _parse(text, name) if text.strip() else []
    if not isinstance(records, list):
        raise DataError(f"{name}: must be a list of records; write [...] around it, or name it .jsonl")
    yield from ((record, f"{name}: record {number}") for number, record in enumerate(records, start=1))


def _jsonl_records(text: str, name: str) -> Records:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would split at U+2028 too
        if line.strip():
            where = f"{name}: line {number}"
            yield _parse(line, where), where


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not valid JSON ({error}); repair or remove it") from error


def _csv_records(text: str, name: str) -> Records:
    csv.field_size_limit(1 << 30)  # 128 KB by default
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            where = f"{name}: line {reader.line_num}"
            if None in record or None in record.values():
                columns = len(reader.fieldnames or ())
                raise DataError(f"{where}: must have {columns} columns as in line 1; put text with commas in quotes")
            yield record, where
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num + 1}: is not valid CSV ({error}); repair it") from error


Reader = Callable[[str, str], Records]
READERS: dict[str, Reader] = {".json": _json_records, ".jsonl": _jsonl_records, ".csv": _csv_records}


# --- checking


def _turns(record: Any, where: str) -> Turns:
    """The turns of a record, checked."""
    if not isinstance(record, dict):
        _fail(where, f'must be an object such as {{"prompt": "2+2=", "response": "4"}}, got {_shown(record)}')
    if "messages" in record:
        turns = _messages(record["messages"], where)
    else:
        missing = [name for name in ("prompt", "response") if name not in record]
        if missing:
            _fail(where, f"has no {' and no '.join(missing)}{_renaming(record) or '; give both, or messages'}")
        turns = tuple(
            Turn(role, _text(record[name], name, where))
            for role, name in (("user", "prompt"), ("assistant", "response"))
        )
    if not any(turn.role == "assistant" for turn in turns):
        _fail(where, "has no turn of the assistant to train on; add one, or remove the record")
    if turns[-1].role != "assistant":
        _fail(where, f"ends with a turn of the {turns[-1].role}; end it with the assistant's")
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
        _fail(where, "has an empty response; fill it in, or remove the record")
    return turns


def _messages(messages: Any, where: str) -> Turns:
    if not isinstance(messages, list) or not messages:
        _fail(where, f'messages must be a list of {{"role": ..., "content": ...}}, got {_shown(messages)}')
    turns = []
    for number, message in enumerate(messages, start=1):
        place = f"{where}: message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            _fail(place, f"must be an object with role and content, got {_shown(message)}")
        if message["role"] not in ROLES:
            hint = did_you_mean(str(message["role"]), ROLES, OTHER_ROLES)
            _fail(place, f"has an unknown role {_shown(message['role'])}{hint or '; roles are ' + ', '.join(ROLES)}")
        turns.append(Turn(message["role"], _text(message["content"], "content", place)))
    return tuple(turns)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        _fail(where, f"{name} must be a string, got {_shown(value)}; put it in quotes")
    return value


def _renaming(record: dict[str, Any]) -> str:
    """A hint to rename the fields of a record in another format."""
    found = {ours: next((name for name in theirs if name in record), None) for ours, theirs in OTHER_NAMES.items()}
    renamed = [f"{theirs} to {ours}" for ours, theirs in found.items() if theirs and ours not in record]
    return f"; rename {' and '.join(renamed)}" if renamed else ""


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _fail(where: str, problem: str) -> NoReturn:
    raise DataError(f"{where}: {problem}")
