"""Documents from files of any format. Each format has a file here, and a line in the table FORMATS.

A reader is a function (source, reading, errors) that yields the documents of a file in order, each as chunks that can
be read again. It never holds more than a document or a few megabytes in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tinylm.data.records.columns import ARROW_FILE, column_records, read_arrow, read_parquet
from tinylm.data.records.hub import HubSplit, hub_dataset, read_hub, saved_dataset
from tinylm.data.records.json_records import is_records, json_records, read_json
from tinylm.data.records.reading import DEFAULT, Reading, shown
from tinylm.data.records.table import read_table, table_records
from tinylm.data.records.text import (
    END,
    REPAIR,
    FileText,
    decoded,
    find_separator,
    read_text,
    split_documents,
    split_text,
)
from tinylm.data.sources import TEXTS, Source

__all__ = [
    "DEFAULT",
    "END",
    "FORMATS",
    "HUB",
    "REPAIR",
    "TEXT",
    "FileText",
    "Format",
    "HubSplit",
    "Reading",
    "column_records",
    "decoded",
    "find_format",
    "find_separator",
    "hub_dataset",
    "json_records",
    "saved_dataset",
    "shown",
    "split_documents",
    "split_text",
    "table_records",
]


class Format(NamedTuple):
    """A format of files.

    Attributes:
        name: its name, part of a corpus's fingerprint
        read: reads the documents of a file
        records: whether documents are a field of records
    """

    name: str
    read: Callable[[Source, Reading, str], Iterator[Iterable[str]]]
    records: bool = True


TEXT = Format("text", read_text, records=False)
HUB = Format("hub", read_hub)
JSON, TABLE = Format("json", read_json), Format("table", read_table)
PARQUET, ARROW = Format("parquet", read_parquet), Format("arrow", read_arrow)
FORMATS = {  # by the suffix of the name, without that of a compression; any other is text
    ".json": JSON,  # unless it is a single object
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".csv": TABLE,
    ".tsv": TABLE,
    ".parquet": PARQUET,
    ".arrow": ARROW,
    ".feather": ARROW,
}
MAGIC = {b"PAR1": PARQUET, ARROW_FILE: ARROW}  # first bytes


def find_format(source: Source, reading: Reading, errors: str) -> Format:
    """The format of a file by its name or, if the name is not enough, by its first bytes."""
    if isinstance(source, HubSplit):
        return HUB
    found = FORMATS.get(source.suffix)
    if source.suffix == ".json":
        return JSON if is_records(source, reading, errors) else TEXT
    if found is not None or source.suffix in TEXTS:
        return found or TEXT
    with source.open() as file:
        head = file.read(8)
    return next((each for magic, each in MAGIC.items() if head.startswith(magic)), TEXT)
