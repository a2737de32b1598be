"""The wire format of Protocol Buffers: a message is a list of numbered fields. Their meaning is not in the message.

    12 05 68 65 6c 6c 6f        key 0x12: number 2, type 2 (bytes); length 5; "hello"

A key is `number << 3 | type`. Keys, lengths and integers are varints: seven bits per byte, the lowest first; all bytes
but the last have the high bit set. The types are 0 (varint), 1 (8 bytes), 2 (bytes) and 5 (4 bytes). Groups (3 and 4),
long deprecated, are refused.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tinylm.errors import ConfigError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: identifies the field
        type: VARINT, FIXED64, BYTES or FIXED32
        value: an integer for VARINT, else the bytes
    """

    number: int
    type: int
    value: int | bytes


def read_message(data: bytes, name: str) -> list[Field]:
    """The fields of a message, in order.

    Args:
        data: the message
        name: its name, for errors

    Raises:
        ConfigError: if the message is cut or damaged.
    """
    fields, place, size = [], 0, len(data)
    while place < size:
        key, place = _read_varint(data, place, name)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _read_varint(data, place, name)
        elif kind == BYTES or kind in FIXED:
            length, place = (FIXED[kind], place) if kind in FIXED else _read_varint(data, place, name)
            value, place = data[place : place + length], place + length
        else:
            raise ConfigError(f"{name}: is damaged, a field has type {kind} at byte {place}")
        if place > size or not number:
            raise ConfigError(f"{name}: is cut or damaged at byte {size if number else place}")
        fields.append(Field(number, kind, value))
    return fields


def _read_varint(data: bytes, place: int, name: str) -> tuple[int, int]:
    """The integer that begins at a byte, and the offset after it."""
    value = shift = 0
    for place in range(place, min(place + 10, len(data))):  # noqa: B020
        value |= (data[place] & 0x7F) << shift
        if data[place] < 0x80:
            return value, place + 1
        shift += 7
    raise ConfigError(f"{name}: is cut or damaged at byte {place}")


def write_message(fields: Iterable[Field]) -> bytes:
    """The bytes of a message."""
    parts = []
    for number, kind, value in fields:
        parts.append(_varint(number << 3 | kind))
        if isinstance(value, int):
            parts.append(_varint(value))
        else:
            parts += [_varint(len(value)), value] if kind == BYTES else [value]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def last(fields: Sequence[Field], number: int, kind: int) -> int | bytes | None:
    """The last value of a field; None if the field is missing.

    Raises:
        ConfigError: if it has another type.
    """
    value = None
    for field in fields:
        if field.number == number:
            if field.type != kind:
                raise ConfigError(f"field {number} has type {field.type}, not {kind}")
            value = field.value
    return value


def integer(fields: Sequence[Field], number: int, default: int = 0) -> int:
    """An integer or Boolean field; integers are signed, of 64 bits."""
    value = last(fields, number, VARINT)
    if not isinstance(value, int):
        return default
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def text(fields: Sequence[Field], number: int, default: str = "") -> str:
    """A string field. Raises UnicodeDecodeError if it is not UTF-8."""
    value = last(fields, number, BYTES)
    return value.decode() if isinstance(value, bytes) else default


def number32(fields: Sequence[Field], number: int, default: float = 0.0) -> float:
    """A float32 field."""
    value = last(fields, number, FIXED32)
    return struct.unpack("<f", value)[0] if isinstance(value, bytes) else default


def message(fields: Sequence[Field], number: int, name: str) -> list[Field]:
    """The fields of an inner message. Several inner messages with this number count as one."""
    last(fields, number, BYTES)
    return [each for field in fields if field.number == number for each in read_message(bytes(field.value), name)]
