"""Reads YAML with plain values only, and limits its size.

A few lines of aliases may stand for a billion values, and a line of brackets may nest without limit. Both are counted
in the parser's events before anything is built.
"""

from pathlib import Path
from typing import Any

import yaml

from tinylm.errors import DataError

SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where available
DEEPEST, MOST = 50, 100_000  # levels, and values with those that aliases repeat
COMMENTS = ("//", "/*")  # of other languages
NO_COMMENT = "comments begin with # in YAML, and JSON has none"


def read_yaml(path: str | Path, *, no_blanks: bool = False) -> Any:
    """Reads a YAML file, in UTF-8 whatever the locale.

    Args:
        path: the file
        no_blanks: refuse keys without a value, which YAML reads as null

    Raises:
        DataError: if it is not YAML, has a key twice, is nested too deeply, or its aliases repeat too many values.
    """
    source = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    try:
        check_size(text, source)
        loader = SAFE_LOADER(text)
        try:
            root = loader.get_single_node()
            check_keys(root, source, no_blanks)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.constructor.ConstructorError as error:
        raise DataError(f"{source}: {error.problem}") from error
    except yaml.MarkedYAMLError as error:
        raise DataError(f"{source}: {_located(text, error)}") from error
    except DataError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: from a date, or a number of many digits
        raise DataError(f"{source}: is not valid YAML ({' '.join(str(error).split())})") from error


def _located(text: str, error: yaml.MarkedYAMLError) -> str:
    """An error of the parser with its line, and with the remedy for tabs and for comments of other languages."""
    number = 0 if error.problem_mark is None else error.problem_mark.line + 1
    before, line, *_ = ["", *text.splitlines(), "", ""][max(number - 1, 0) :]
    if line.lstrip().startswith(COMMENTS) or before.lstrip().startswith(COMMENTS):
        number, reason = number - before.lstrip().startswith(COMMENTS), NO_COMMENT
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        reason = "indent with spaces, not with tabs"
    else:
        reason = " ".join(str(error.problem).split())
    return f"is not valid YAML, line {number}: {reason}"


def check_keys(root: yaml.Node | None, source: str, no_blanks: bool = False) -> None:
    """Refuses a repeated key in a mapping, a key that begins like a comment and, with `no_blanks`, one without a value.

    YAML would use the last of repeated keys, and null for a missing value.
    """
    todo: list[tuple[str, Any]] = [("", root)]
    seen = set()  # aliases share a node
    while todo:
        name, node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += [(name, item) for item in node.value]
        elif isinstance(node, yaml.MappingNode):
            _check_mapping(name, node, source, no_blanks)
            todo += [(f"{name}.{getattr(key, 'value', '')}".lstrip("."), value) for key, value in node.value]


def _check_mapping(name: str, node: yaml.MappingNode, source: str, no_blanks: bool) -> None:
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        full, line = f"{name}.{key.value}".lstrip("."), key.start_mark.line + 1
        if key.value.startswith(COMMENTS):
            raise DataError(f"{source}: is not valid YAML, line {line}: {NO_COMMENT}")
        if first := lines.get((key.tag, key.value)):
            raise DataError(f"{source}: {full} is given twice, in lines {first} and {line}; keep one")
        lines[key.tag, key.value] = line
        if no_blanks and isinstance(value, yaml.ScalarNode) and value.value == "" and value.tag.endswith(":null"):
            raise DataError(f"{source}: line {line}: {full} is empty; indent its options below it, or remove the line")


def check_size(text: str | bytes, source: str) -> None:
    """Refuses a text with too many levels or values; an alias counts all values that it repeats."""
    counts, anchors, sizes = [0], [None], {}
    for event in yaml.parse(text, Loader=SAFE_LOADER):  # iterative, unlike loading
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.pop(anchor, None)
            counts.append(1)
            anchors.append(anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = anchors.pop(), counts.pop()
            sizes[anchor] = size
            counts[-1] += size
        elif isinstance(event, yaml.AliasEvent):
            counts[-1] += sizes.get(anchor, MOST)  # unknown: the alias stands within the value that it repeats
        elif isinstance(event, yaml.ScalarEvent):
            sizes[anchor] = 1
            counts[-1] += 1
        if counts[-1] > MOST or len(counts) > DEEPEST:
            raise DataError(f"{source}: has more than {MOST:,} values or {DEEPEST} levels, aliases written out")
