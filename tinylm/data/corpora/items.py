"""Items: the texts, records or token ids that a Python object gives.

Nothing of pandas, polars, PyArrow or `datasets` is imported: their objects are iterables of values or of records, or
tables with named columns.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

from tinylm.errors import ConfigError, DataError

HELD = 1 << 30  # most characters or ids of an iterator that are held in memory
CONTRACT = "give a name or path, an iterable of texts or records, token ids, or a subclass of tinylm.data.Corpus"


class Items:
    """The values of an iterable, one pass after the other.

    An iterator can be read once only, so its values are held in memory. Anything else is read again in each pass.

    Args:
        given: an iterable of values or records, a table with named columns, or an object with `__len__` and
            `__getitem__`
        field: the field of a record, or the column of a table, that is its value; `a.b` is field b of field a
        option: the option that it was given as, for messages

    Attributes:
        name: what was given, for messages
        records: whether the first item is a record
        uses_field: whether `field` names a field or a column of what was given
        first: the first value; None if there is none

    Raises:
        ConfigError: if it can give no values, or no column has that name.
    """

    def __init__(self, given: Any, field: str = "text", option: str = "data.corpus") -> None:
        self.field, self.option, self.name = field, option, type(given).__name__
        values = _column(given, field, option)
        self.uses_field = values is not given
        if isinstance(given, list | tuple):
            values = tuple(given)  # it may be changed later
        self._again = _iterable(values, self.name, option)
        iterator = self._again()
        first = list(itertools.islice(iterator, 1))
        self._rest: Iterator[Any] | None = itertools.chain(first, iterator) if iterator is values else None
        self._held: list[Any] = []
        self.records = bool(first) and isinstance(first[0], Mapping)
        self.uses_field = self.uses_field or self.records
        self.first = self._value(first[0], 1) if first else None
        if isinstance(given, list | tuple):
            kind = "record" if self.records else "text" if isinstance(self.first, str) else "item"
            self.name = f"{len(given):,} {kind}{'s' * (len(given) != 1)}"

    def __iter__(self) -> Iterator[Any]:
        """The values, in order."""
        if self._rest is None and not self._held:
            yield from (self._value(item, number) for number, item in enumerate(self._again(), start=1))
            return
        yield from self._held
        size = sum(map(_size, self._held))
        for item in self._rest or ():
            value = self._value(item, len(self._held) + 1)
            self._held.append(value)
            size += _size(value)
            if size > HELD:
                problem = f"gives more than {HELD:,} characters and can be read only once"
                raise DataError(f"{self.option}: {self.name}: {problem}; write them to a file such as my.jsonl")
            yield value

    def _value(self, item: Any, number: int) -> Any:
        """The value of an item: the item, its only element, or a field of it."""
        if isinstance(item, tuple) and len(item) == 1:  # of a TensorDataset
            (item,) = item
        as_python = getattr(item, "as_py", None)  # of PyArrow
        item = item if as_python is None else as_python()
        if not isinstance(item, Mapping):
            return item
        if self.field in item:
            return item[self.field]
        value: Any = item
        for name in self.field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                names = ", ".join(map(str, item)) or "none"
                problem = f"record {number} has no field {self.field}; it has {names}"
                raise DataError(f"{self.option}: {self.name}: {problem}; set field")
            value = value[name]
        return value


def _column(given: Any, field: str, option: str) -> Any:
    """The column of a table (pandas, polars, PyArrow), or the object itself if it is none."""
    if not hasattr(given, "columns"):
        return given
    names = list(getattr(given, "column_names", given.columns))
    if field not in names:
        problem = f"has no column {field}; it has {', '.join(map(str, names))}"
        raise ConfigError(f"{option}: {type(given).__name__}: {problem}; set field")
    return given[field]


def _iterable(given: Any, name: str, option: str) -> Callable[[], Iterator[Any]]:
    """A function that starts a pass over an object."""
    if isinstance(given, Mapping):
        parts = f"corpus={name}[...] and val={name}[...]"
        raise ConfigError(f"{option}: {name} has {', '.join(map(str, given))}; give one of them, or two, as {parts}")
    if isinstance(given, bytes):
        raise ConfigError(f"{option}: bytes are not text; decode them, as in [given.decode()]")
    if isinstance(given, Iterable):
        return lambda: iter(given)
    if isinstance(given, Sized) and hasattr(given, "__getitem__"):
        read: Any = given
        return lambda: (read[number] for number in range(len(read)))
    raise ConfigError(f"{option}: {name} gives no texts; {CONTRACT}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 1
