"""Recognizes files that are not plain UTF-8 text by their first bytes, and suggests a remedy.

Training on compressed bytes, documents, other encodings or JSON records would raise no error but give a useless model.
Left out: a statistical guess between single-byte encodings.
"""

import contextlib
import json
import re
import shlex
import unicodedata
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinylm.errors import DataError, InvalidTextError
from tinylm.locate import command

BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors write before UTF-8; not part of the text
HEAD = 4096  # bytes that are examined
PANDOC, GIVE = "pandoc {path} -t plain -o {stem}.txt", "give the text itself, as UTF-8"
ICONV = "iconv -f {encoding} -t UTF-8 {path} > {stem}-utf8.txt"

FORMATS: tuple[tuple[int, bytes, str, str], ...] = (  # offset, first bytes, name, remedy
    (0, b"\x1f\x8b", "a gzip file", "gunzip -k {path}"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", "unzstd {path}"),
    (0, b"\xfd7zXZ\0", "an xz file", "unxz -k {path}"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "7z x {path}"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unrar x {path}"),
    (257, b"ustar", "a tar archive", "tar -xf {path}"),
    (0, b"%PDF-", "a PDF document", "pdftotext {path} {stem}.txt"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "save it as plain text, in UTF-8"),
    (0, b"{\\rtf", "an RTF document", PANDOC),
    (60, b"BOOKMOBI", "a Kindle book", "convert it to plain text, as with Calibre"),
    (0, b"SQLite format 3\0", "an SQLite database", "export its text: sqlite3 {path} 'SELECT ...' > {stem}.txt"),
    (0, b"PAR1\x15", "a Parquet file", "write its column of texts to a file, as with pandas.read_parquet"),
    (0, b"ARROW1\0", "an Arrow file", "write its column of texts to a file, as with pandas.read_feather"),
    (0, b"\x93NUMPY", "a NumPy array", GIVE),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", GIVE),
    (0, b"GGUF\3\0", "a model in GGUF", GIVE),
    (0, b"\x80\4\x95", "a Python pickle", GIVE),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", GIVE),
    (0, b"\xff\xd8\xff", "a JPEG image", GIVE),
    (0, b"GIF89a", "a GIF image", GIVE),
    (0, b"GIF87a", "a GIF image", GIVE),
)
MARKS = (  # byte order marks, the longer ones first
    (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
UNMARKED = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
OTHER_CONTROLS = bytes(set(range(28)) - set(b"\t\n\r\f\b\x1b"))  # rare in any text
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
PROMPTS = ("prompt", "instruction", "question", "input", "query")
RESPONSES = ("response", "output", "answer", "completion", "target")
CHATS = ("messages", "conversations")


def text_begin(path: Path, head: bytes, errors: str = "strict") -> int:
    """The number of bytes before the text of a file, which are a byte order mark.

    Args:
        path: the file, for the message
        head: its first `HEAD` bytes or more
        errors: with `surrogateescape`, any bytes are accepted

    Raises:
        DataError: if the file is not text; names its format and the remedy.
    """
    if errors != "surrogateescape" and (problem := foreign(path, head)):
        raise DataError(f"{path}: {problem}")
    return len(BOM) if head.startswith(BOM) else 0


def foreign(path: Path, head: bytes) -> str | None:
    """The format of a file that is not UTF-8 text, with the remedy; None if nothing is recognized."""
    head = head[:HEAD]
    for mark, encoding in MARKS:
        if head.startswith(mark):
            return f"is {encoding}, not UTF-8; convert it: {_remedy(ICONV, path, encoding)}"
    if head.startswith(b"PK\3\4"):
        name, remedy = _zip_format(path)
        return f"is {name}, not text; {_remedy(remedy, path)}"
    if re.match(rb"BZh[1-9]1AY&SY", head):
        return f"is a bzip2 file, not text; {_remedy('bunzip2 -k {path}', path)}"
    for offset, magic, name, remedy in FORMATS:
        if head.startswith(magic, offset):
            return f"is {name}, not text; {_remedy(remedy, path)}"
    return _binary(path, head)


def _remedy(remedy: str, path: Path, encoding: str = "") -> str:
    """A remedy for a file; compressed tar archives are unpacked by tar."""
    stem = shlex.quote(str(path.with_suffix("")))
    if re.search(r"\.(tar\.\w+|tgz|tbz2?|txz)$", path.name):
        remedy = "tar -xf {path}"
    return remedy.format(path=shlex.quote(str(path)), stem=stem, encoding=encoding)


def _zip_format(path: Path) -> tuple[str, str]:
    """The name and the remedy of a zip archive, by the files in it."""
    names: list[str] = []
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # damaged archives raise many types
        names = archive.namelist()
    for part, name, remedy in (
        ("word/", "a Word document", PANDOC),
        ("META-INF/container.xml", "an EPUB book", PANDOC),
        ("content.xml", "an OpenDocument file", PANDOC),
        ("xl/", "an Excel workbook", "save it as CSV, in UTF-8"),
        ("ppt/", "a PowerPoint presentation", "save it as plain text, in UTF-8"),
    ):
        if any(each.startswith(part) for each in names):
            return name, remedy
    if any(each.endswith((".npy", "data.pkl")) for each in names):
        return "an archive of arrays", GIVE
    return "a zip archive", "unzip {path}"


def _binary(path: Path, head: bytes) -> str | None:
    """The problem of a file with more control characters than any text; None if it has fewer."""
    controls = len(head) - len(head.translate(None, OTHER_CONTROLS))
    if controls < max(32, 0.06 * len(head)):  # random bytes: 9%, UTF-16: 50%
        return None
    encoding = None if path.suffix == ".bin" else _unmarked(head)
    if encoding is not None:
        return f"looks like {encoding}, not UTF-8; convert it: {_remedy(ICONV, path, encoding)}"
    return f"is binary (such as token ids), not text; {GIVE}"


def _unmarked(data: bytes) -> str | None:
    """The encoding of UTF-16 or UTF-32 without a byte order mark; None for anything else."""
    for encoding in UNMARKED:
        with contextlib.suppress(UnicodeDecodeError):
            text = data[: len(data) // 4 * 4].decode(encoding)
            odd = sum(unicodedata.category(each) in ("Cc", "Cn", "Co") and each not in "\t\n\r\f" for each in text)
            if odd <= 0.01 * len(text) and (" " in text or "\n" in text):
                return encoding
    return None


def utf8_problem(path: Path, error: UnicodeDecodeError, offset: int, otherwise: str) -> InvalidTextError:
    """The error for bytes that are not UTF-8, with the encoding that they look like.

    Args:
        path: the file
        error: the error of `bytes.decode`
        offset: the position of the invalid byte in the file
        otherwise: the remedy for a damaged file
    """
    begin = max(0, error.start - HEAD // 2) // 4 * 4
    encoding = _legacy_encoding(error.object[begin : begin + HEAD])
    if encoding is None:
        remedy = otherwise
    elif encoding == "ENCODING":
        remedy = f"it looks like an older encoding; if you know which: {_remedy(ICONV, path, encoding)}"
    else:
        remedy = f"it looks like {encoding}; convert it: {_remedy(ICONV, path, encoding)}"
    return InvalidTextError(f"{path}: is not UTF-8 at byte {offset} ({error.reason}); {remedy}")


def _legacy_encoding(data: bytes) -> str | None:
    """The encoding that text around an invalid byte looks like, `ENCODING` if several fit; None for damaged UTF-8.

    In Latin-1 letters beyond ASCII stand alone among others; in UTF-8 each takes several bytes.
    """
    if encoding := _unmarked(data):
        return encoding
    beyond = len(re.findall(rb"[\x80-\xff]", data))
    alone = len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])", data))
    in_words = re.search(rb"[A-Za-z][\x91-\x97\xc0-\xff]|[\x91-\x97\xc0-\xff][a-z]", data)
    if in_words and alone >= 0.9 * beyond:
        return "WINDOWS-1252" if re.search(rb"[\x80-\x9f]", data) else "ISO-8859-1"
    invalid = data.decode("utf-8", "replace").count("\ufffd")
    return "ENCODING" if invalid > max(8, 0.2 * beyond) else None


# --- JSON and markup


def refuse_records(path: Path, head: bytes) -> None:
    """Raises DataError for a file of JSON records where a plain text is expected.

    A single object, such as a package.json among source code, is a text like others.
    """
    if path.suffix.lower() not in JSON_SUFFIXES:
        return
    record, many = _first_record(head.removeprefix(BOM).decode("utf-8", "ignore").lstrip())
    if not isinstance(record, dict) or (path.suffix.lower() == ".json" and not many):
        return
    if advice := pairs_advice(path, record):
        raise DataError(f"{path}: {advice}")
    texts = {name: len(value) for name, value in record.items() if isinstance(value, str)}
    field = "text" if "text" in texts else max(texts, key=texts.__getitem__, default="text")
    query = f"{'.[]' if head.lstrip().startswith(b'[') else ''}.{field}"
    extract = f"jq -r {shlex.quote(query)} {shlex.quote(str(path))} > {shlex.quote(str(path.with_suffix('.txt')))}"
    problem = (
        "holds JSON records, not plain text; name it .txt to train on the JSON itself, or write the texts to a file"
    )
    raise DataError(f"{path}: {problem}: {extract}")


def pairs_advice(path: Path, names: Iterable[str]) -> str | None:
    """The remedy for a record of these names where a text is expected, if it has a prompt and a response; else None."""
    found = {name.lower() for name in names}
    if found >= {"chosen", "rejected"}:
        return (
            f"holds preferences, not plain text; give it as data.pairs={path}, with model.objective=tinylm.training.DPO"
        )
    if not (found & {*CHATS} or (found & {*PROMPTS} and found & {*RESPONSES})):
        return None
    finetune = command("fit", "-c", "finetune", "--data.pairs", path)
    return f"holds prompts and responses, not plain text; give it as pairs, as in: {finetune}"


def record_list(head: str, field: str) -> tuple[bool, str | None]:
    """Whether JSON holds records: in a list, on lines, or one with the field; and a field with a list of objects.

    Args:
        head: the beginning of the text, which may end within its first record
        field: a field of the records
    """
    head = head.lstrip()
    record, many = _first_record(head)
    if head.startswith("["):
        return isinstance(record, dict | str) or head[1:].lstrip()[:1] in ("{", '"'), None
    if record is None:
        found = re.match(r'\{\s*"([^"\\]+)"\s*:\s*\[\s*\{', head)
        return found is None and f'"{field}"' in head, found and found[1]
    if not isinstance(record, dict):
        return False, None
    if many or isinstance(record.get(field), str):
        return True, None
    lists = (name for name, value in record.items() if isinstance(value, list) and isinstance((value or [0])[0], dict))
    return False, next(lists, None)


def _first_record(text: str) -> tuple[Any, bool]:
    """The first value of a JSON list or of JSON lines, or None, and whether there may be more."""
    listed = text.startswith("[")
    text = text[1:].lstrip() if listed else text
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, False
    return value, listed or bool(text[end:].strip())


def markup(path: Path, text: str) -> str | None:
    """A remark on a text that looks like markup or JSON; None for any other."""
    text = text[:HEAD].lstrip()
    if re.match(r'\{\s*"(?:[^"\\\n]|\\.)*"\s*:|\[\s*\{\s*"', text):
        return "looks like JSON; its syntax is trained on as it stands"
    html = re.match(r"<!doctype html|<html\b", text, re.IGNORECASE)
    if html or text.startswith("<?xml") or len(re.findall(r"</\w+>", text)) > 0.01 * len(text):
        kind, clean = ("HTML", f", as with: {_remedy(PANDOC, path)}") if html else ("markup", "")
        return f"looks like {kind}; its tags are trained on as they stand, unless you remove them{clean}"
    return None
