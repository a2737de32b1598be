"""YAML of which only plain values are read, and no more than can be walked through.

A few lines of aliases may stand for a billion values, and a line of brackets for a recursion without end. Both are
counted in the events of the parser, before anything is built.
"""

from pathlib import Path
from typing import Any

import yaml

from tinylm.errors import DataError

SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where available
DEEPEST, MOST = 50, 100_000  # levels, and values with those that aliases repeat


def read_yaml(path: str | Path, loader: Any = SAFE_LOADER) -> Any:
    """Reads a YAML file.

    Args:
        path: the file
        loader: a safe loader of PyYAML

    Raises:
        DataError: if the file is not YAML, is nested too deeply, or its aliases repeat too many values.
    """
    return parse_yaml(Path(path).read_bytes(), str(path), loader)


def parse_yaml(text: str | bytes, source: str, loader: Any = SAFE_LOADER) -> Any:
    """The value of a YAML text; `source` is its name in errors, which are those of `read_yaml`."""
    try:
        check_size(text, source)
        return yaml.load(text, Loader=loader)
    except DataError:
        raise
    except yaml.constructor.ConstructorError as error:
        raise DataError(f"{source}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date, or a number of many digits
        raise DataError(f"{source}: is not valid YAML ({' '.join(str(error).split())})") from error


def check_size(text: str | bytes, source: str) -> None:
    """Refuses a text of too many levels or values, an alias counting as many as it repeats."""
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
            counts[-1] += sizes.get(anchor, MOST)  # unknown: it stands in the value that it repeats
        elif isinstance(event, yaml.ScalarEvent):
            sizes[anchor] = 1
            counts[-1] += 1
        if counts[-1] > MOST or len(counts) > DEEPEST:
            raise DataError(f"{source}: has more than {MOST:,} values or {DEEPEST} levels, aliases written out")
