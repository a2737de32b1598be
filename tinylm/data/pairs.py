"""Reads prompt/response pairs for finetuning from a file, and checks them.

A record is a conversation: turns of the roles system, user and assistant, of which the assistant's is the last. A
prompt with its response is a conversation of two turns. template.py turns conversations into tokens.

Left out: function calls and images in conversations.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tinylm.data.records import column_records, json_records, shown, table_records
from tinylm.data.sources import Source
from tinylm.errors import DataError, MissingInputError, did_you_mean
from tinylm.files import decode_blocks
from tinylm.progress import ProgressBar
from tinylm.recognize import CHATS, PROMPTS, RESPONSES

ROLES = ("system", "user", "assistant")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "developer": "system"}
ALPACA = ("instruction", "output")
OURS = ("prompt", "text")  # of a .jsonl file that `tinylm generate --out` has written
FIELDS = (("prompt", "response"), ALPACA, ("input", "output"), OURS)  # the names of prompt and response
MESSAGE = (("role", "content"), ("from", "value"))  # of a message


class Turn(NamedTuple):
    """One message of a conversation."""

    role: str
    content: str


Turns = tuple[Turn, ...]


# --- reading


def read_pairs(path: str | Path, fields: Sequence[str] | None = None) -> list[Turns]:
    """The records of a file, in order: JSON (a list, or an object per line), CSV or TSV (with a header line), Parquet,
    Arrow; JSON, CSV and TSV may be compressed.

    A record has `prompt` and `response`, `input` and `output`, Alpaca's `instruction`, `input` and `output`, the
    `prompt` and `text` of `tinylm generate --out`, or chats: `messages` with `role` and `content`, or ShareGPT's
    `conversations` with `from` and `value`. A `system` message comes first; other fields are ignored, as are blank
    lines and the case of the fields' names.

    Args:
        path: the file, or its URL; its name ends in .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow or .feather
        fields: the names of prompt and response, if they differ from these

    Raises:
        MissingInputError: if there is no such file, or it cannot be read.
        DataError: if the file is empty, not UTF-8 or damaged, or a record is malformed; names the line or record.
    """
    pairs = [turns_of(record, place, fields) for record, place in read_records(path)]
    if not pairs:
        raise DataError(f"{path}: has no records; write at least one prompt with its response")
    return pairs


def read_records(path: str | Path) -> Generator[tuple[Any, str]]:
    """The records of a file, and the place of each for errors. Files and errors are those of `read_pairs`."""
    path = str(path) if "://" in str(path) else os.path.expanduser(path)  # noqa: PTH111 (a Path would change a URL)
    if "://" not in path and not os.path.lexists(path):
        raise MissingInputError(f"{path}: no such file of pairs")
    source = Source(path)
    with ProgressBar(f"reading {path}", source.size) as bar:
        yield from ((record, f"{path}: {place}") for record, place in _records(source, bar.update))


def _records(source: Source, report: Callable[[int], None]) -> Iterator[tuple[Any, str]]:
    """The records of a file, and the place of each in it."""
    if source.suffix in COLUMNS:
        return column_records(source)
    blocks = source.blocks(report)
    chunks = decode_blocks(blocks, Path(source.url), records=True, remedy="save it as UTF-8")
    begin = next(chunks, "")  # a file that is not a text is named by its format
    reader = READERS.get(source.suffix)
    if reader is None:
        known = ", ".join((*READERS, *COLUMNS))
        raise DataError(f"{source.url}: is not a known format; give a file whose name ends in {known}")
    return reader(chain([begin], chunks), source.url)


COLUMNS = (".parquet", ".arrow", ".feather")
READERS: dict[str, Callable[[Iterable[str], str], Iterator[tuple[Any, str]]]] = {  # by the suffix of the file's name
    ".json": json_records,
    ".jsonl": json_records,
    ".ndjson": json_records,
    ".csv": table_records,
    ".tsv": table_records,
}


# --- checking


def turns_of(record: Any, where: str, fields: Sequence[str] | None) -> Turns:
    """The turns of a record, checked."""
    if not isinstance(record, dict):
        fail(where, f'must be an object such as {{"prompt": "2+2=", "response": "4"}}, got {shown(record)}')
    record = {name if name in (fields or ()) else name.strip().lower(): value for name, value in record.items()}
    chat = None if fields else next((name for name in CHATS if name in record), None)
    turns = _pair(record, where, fields) if chat is None else _messages(record[chat], chat, where)
    system = record.get("system")
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns = (Turn("system", system), *turns)
    if not any(turn.role == "assistant" for turn in turns):
        fail(where, "has no turn of the assistant to train on; add one, or remove the record")
    if turns[-1].role != "assistant":
        fail(where, f"ends with a turn of the {turns[-1].role}; end it with the assistant's")
    if any(turn.role == "assistant" and not turn.content.strip() for turn in turns):
        fail(where, "has an empty response; fill it in, or remove the record")
    return turns


def _pair(record: dict[str, Any], where: str, fields: Sequence[str] | None) -> Turns:
    """The two turns of a record with a prompt and a response."""
    layouts = FIELDS if fields is None else [fields]
    names = next((pair for pair in layouts if all(name in record for name in pair)), None)
    if names is None:
        missing = [name for name in layouts[0] if name not in record]
        fail(where, f"has no {' and no '.join(missing)}; {_naming(record)}")
    prompt, response = (_text(record[name], name, where) for name in names)
    if names is ALPACA:
        if record.get("history"):
            fail(where, "has a history, which is not read; write the record as messages")
        if record.get("input"):
            prompt = f"{prompt}\n{_text(record['input'], 'input', where)}"
    return Turn("user", prompt), Turn("assistant", response)


def _messages(messages: Any, name: str, where: str) -> Turns:
    if not isinstance(messages, list) or not messages:
        fail(where, f'{name} must be a list of {{"role": ..., "content": ...}}, got {shown(messages)}')
    turns = []
    for number, message in enumerate(messages, start=1):
        place = f"{where}: message {number}"
        keys = next((keys for keys in MESSAGE if isinstance(message, dict) and {*keys} <= {*message}), None)
        if keys is None:
            fail(place, f"must be an object with role and content, got {shown(message)}")
        role = OTHER_ROLES.get(str(message[keys[0]]), message[keys[0]])
        if role not in ROLES:
            hint = did_you_mean(str(role), ROLES) or "; roles are " + ", ".join(ROLES)
            fail(place, f"has an unknown role {shown(role)}{hint}")
        turns.append(Turn(role, _text(message[keys[1]], keys[1], place)))
    return tuple(turns)


def _text(value: Any, name: str, where: str) -> str:
    """A string, or the joined parts of OpenAI's list of text parts."""
    if isinstance(value, list) and value and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        fail(where, f"{name} must be a string, got {shown(value)}; put it in quotes")
    return value


def _naming(record: dict[str, Any]) -> str:
    """A hint to name the fields of a record in another format."""
    if len(record) < 2:
        return "give both, or messages"
    prompt, response = (next((n for n in names if n in record), n) for names, n in ((PROMPTS, "A"), (RESPONSES, "B")))
    fields = f"data.fields=[{prompt},{response}], in score with --fields {prompt} {response}"
    return f"it has {', '.join(record)}: say which two with {fields}"


def fail(where: str, problem: str) -> NoReturn:
    """Raises DataError for a record at a place of a file."""
    raise DataError(f"{where}: {problem}")
