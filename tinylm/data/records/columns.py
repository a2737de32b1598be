"""Text columns of Parquet and Arrow files, read a few rows at a time."""

import contextlib
import importlib
import tempfile
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO

from tinylm.data.records.reading import Reading, fail, missing_field, no_text
from tinylm.data.records.text import REPAIR
from tinylm.data.sources import Source
from tinylm.data.sources.compression import MAGIC_LENGTH, compression
from tinylm.errors import DataError, InvalidTextError, MissingInputError, TinyLMError

ROWS, BATCH = 1024, 16 << 20  # rows and bytes of a batch, at most
ARROW_FILE, FEATHER_1 = b"ARROW1", b"FEA1"


def library(name: str, source: Source) -> Any:
    """Imports a module of an optional package; MissingInputError with what to install if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingInputError(f'{source.url}: needs {package}; pip install "tinylm[data]"') from error


@contextlib.contextmanager
def _damage(source: Source, kind: str) -> Iterator[None]:
    """Converts the errors of pyarrow to a DataError of one line."""
    pyarrow = library("pyarrow", source)
    try:
        yield
    except TinyLMError:
        raise
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        if getattr(error, "errno", None):  # of the disk
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{source.url}: is not a valid {kind} file, or is truncated or damaged ({reason}); get it again"
        ) from error


@contextlib.contextmanager
def _seekable(source: Source) -> Iterator[BinaryIO]:
    """The content of a source, to be read in any order: a compressed one is decompressed to a temporary file."""
    with source.open() as file:
        if compression(file.read(MAGIC_LENGTH)) is None:
            file.seek(0)
            yield file
            return
    with tempfile.TemporaryFile() as file:
        for block in source.blocks():
            file.write(block)
        file.seek(0)
        yield file


def read_parquet(source: Source, reading: Reading, errors: str) -> Iterator[list[str]]:
    """The texts of a column of a Parquet file; no other column is read."""
    parquet = library("pyarrow.parquet", source)
    with _seekable(source) as file, _damage(source, "Parquet"):
        table = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        path = _column(table.schema_arrow, reading, source)
        for batch, number in _rows(table, reading.field):
            yield from _texts(batch, path, number, reading, source, errors)


def column_records(source: Source) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a Parquet or Arrow file, with all columns, and the place of each."""
    with _seekable(source) as file, _damage(source, "Parquet or Arrow"):
        head = file.read(len(ARROW_FILE))
        file.seek(0)
        if head.startswith(b"PAR1"):
            batches = library("pyarrow.parquet", source).ParquetFile(file).iter_batches(ROWS, use_threads=False)
        else:
            batches = _batches(library("pyarrow.ipc", source), file, head == ARROW_FILE, None)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from ((record, f"record {number}") for number, record in enumerate(rows, start=1))


def _rows(table: Any, field: str) -> Iterator[tuple[Any, int]]:
    """Batches of a Parquet file's column, each with the number of rows before it."""
    number = 0
    for group in range(table.num_row_groups):
        known = table.metadata.row_group(group)
        size = sum(
            known.column(i).total_uncompressed_size
            for i in range(known.num_columns)
            if f"{known.column(i).path_in_schema}.".startswith(f"{field}.")
        )
        rows = max(1, min(ROWS, BATCH * max(1, known.num_rows) // max(1, size)))
        for batch in table.iter_batches(rows, row_groups=[group], columns=[field], use_threads=False):
            yield batch, number
            number += len(batch)


def read_arrow(source: Source, reading: Reading, errors: str) -> Iterator[list[str]]:
    """The texts of a column of an Arrow file, in the file format (Feather, version 2) or the stream format."""
    ipc = library("pyarrow.ipc", source)
    with _seekable(source) as file, _damage(source, "Arrow"):
        head = file.read(len(ARROW_FILE))
        if head.startswith(FEATHER_1):
            fail(source.url, "", "is Feather, version 1; write it again with pyarrow.feather")
        is_file = head == ARROW_FILE
        file.seek(0)
        schema = (ipc.open_file if is_file else ipc.open_stream)(file).schema
        path = _column(schema, reading, source)
        options = ipc.IpcReadOptions(included_fields=[schema.get_field_index(path[0])], use_threads=False)
        file.seek(0)
        number = 0
        for batch in _batches(ipc, file, is_file, options):
            for begin in range(0, len(batch), ROWS):
                rows = batch.slice(begin, ROWS)
                yield from _texts(rows, path, number, reading, source, errors)
                number += len(rows)


def _batches(ipc: Any, file: Any, is_file: bool, options: Any) -> Iterator[Any]:
    if not is_file:
        yield from ipc.open_stream(file, options=options)
        return
    reader = ipc.open_file(file, options=options)
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _column(schema: Any, reading: Reading, source: Source) -> list[str]:
    """The names that lead to the column of a field: its own, or those of structs within each other."""
    types = importlib.import_module("pyarrow.types")
    field = reading.field
    path = [field] if field in schema.names else field.split(".")
    names, find, within = schema.names, schema.field, ""
    kind: Any = None
    for name in path:
        if name not in names:
            missing_field([within + each for each in names], field, source.url, "")
        kind, within = find(name).type, f"{within}{name}."
        is_struct = types.is_struct(kind)
        names = [each.name for each in kind] if is_struct else []
        find = kind.field if is_struct else find
    value = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    if not any(is_kind(value) for is_kind in texts):
        fail(source.url, "", f"{field} must be a column of strings, is {kind}; set data.field to one of text")
    return path


def _texts(
    batch: Any, path: list[str], number: int, reading: Reading, source: Source, errors: str
) -> Iterator[list[str]]:
    """The texts of a batch, whose first row has `number` rows before it."""
    array = batch.column(batch.schema.get_field_index(path[0]))
    compute = importlib.import_module("pyarrow.compute")
    for name in path[1:]:
        array = compute.struct_field(array, name)
    if hasattr(array, "dictionary_decode"):
        array = array.dictionary_decode()
    try:
        texts = array.to_pylist()
    except UnicodeDecodeError:
        texts = _decode(array, number, source, errors)
    for row, text in enumerate(texts, start=number + 1):
        if text is None:
            no_text(text, reading.field, source.url, f"record {row}")
        yield [text]


def _decode(array: Any, number: int, source: Source, errors: str) -> list[str | None]:
    """Texts of an array of which some are not UTF-8."""
    pyarrow = importlib.import_module("pyarrow")
    texts: list[str | None] = []
    for row, data in enumerate(array.cast(pyarrow.large_binary()).to_pylist(), start=number + 1):
        try:
            texts.append(None if data is None else data.decode("utf-8", errors))
        except UnicodeDecodeError as error:
            problem = f"is not UTF-8 at byte {error.start} ({error.reason}); {REPAIR}"
            raise InvalidTextError(f"{source.url}: record {row}: {problem}") from error
    return texts
