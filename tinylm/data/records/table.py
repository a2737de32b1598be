"""Records in tables: CSV and TSV, with a header line."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain

from tinylm.data.records.reading import Reading, fail, missing_field, text_of
from tinylm.data.records.text import decoded, split_text
from tinylm.data.sources import Source
from tinylm.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}


def read_table(source: Source, reading: Reading, errors: str) -> Iterator[list[str]]:
    """The texts of a column, row by row."""
    for record, place in table_records(decoded(source, errors), source.url):
        if reading.field not in record:
            missing_field(list(record), reading.field, source.url, "line 1")
        yield [text_of(record, reading, source.url, place, errors)]


def table_records(chunks: Iterable[str], name: str) -> Iterator[tuple[dict[str, str], str]]:
    """The records of a table, with their lines. Columns are divided by commas, semicolons or tabs, as in the header.

    Raises:
        DataError: if a row has another number of columns, or a quotation does not end; names the line.
    """
    csv.field_size_limit(1 << 30)  # 128 KB by default
    lines = _lines(chunks)
    header = next(lines, "")
    order = "\t,;" if ".tsv" in name.lower() else ",;\t"  # among equally frequent ones the first
    delimiter = max(order, key=lambda each: len(next(csv.reader([header.rstrip("\r\n")], delimiter=each), [])))
    reader = csv.DictReader(chain([header], lines), strict=True, delimiter=delimiter)
    try:
        for record in reader:
            place = f"line {reader.line_num}"
            if None in record or None in record.values():
                columns = len(reader.fieldnames or ())
                quote = f"put text with {DELIMITERS[delimiter]} in quotes"
                fail(name, place, f"must have {columns} columns as in line 1; {quote}")
            yield record, place
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num + 1}: is not valid CSV ({error}); repair it") from error


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    """The lines with their endings."""
    waiting = None
    for line in split_text(chunks, "\n"):
        if waiting is not None:
            yield waiting + "\n"
        waiting = line
    if waiting:
        yield waiting
