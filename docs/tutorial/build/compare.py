"""Compares what is expected with what the reader's code finds, in words."""

from collections.abc import Callable
from typing import Any

import numpy as np

KINDS = {"Tensor": "a tensor", "ndarray": "an array"}


def compare(expected: Any, find: Callable[[], Any]) -> str:
    """The difference in words between what is expected and what is found; empty if there is none."""
    return difference(expected, find())


def difference(expected: Any, found: Any) -> str:
    """The difference between two values in words; empty if they are equal, or close for floating-point numbers."""
    if found is None and expected is not None:
        return f"expected {described(expected)}, found None; is a `return` missing?"
    kind = KINDS.get(type(expected).__name__)
    if kind is None and not isinstance(expected, float):
        found = found.item() if isinstance(found, np.generic) else found
        same = isinstance(found, type(expected)) and bool(found == expected)
        return "" if same else f"expected {described(expected)}, found {described(found)}"
    if kind is not None and not isinstance(found, type(expected)):
        return f"expected {described(expected)}, found {described(found)}"
    try:
        ours, theirs = numbers(expected), numbers(found)
    except (TypeError, ValueError, RuntimeError):
        return f"expected {described(expected)}, found {described(found)}"
    if ours.shape != theirs.shape:
        return f"expected the shape {ours.shape}, found {theirs.shape}"
    return first_difference(ours, theirs)


def first_difference(expected: np.ndarray, found: np.ndarray) -> str:
    """The first place where two arrays of one shape differ."""
    wrong = np.argwhere(~np.isclose(found, expected, rtol=1e-4, atol=1e-5))
    if not len(wrong):
        return ""
    index = tuple(wrong[0].tolist())
    place = f" at {list(index)}" if index else ""
    share = f" ({len(wrong)} of {expected.size} numbers differ)" if expected.size > 1 else ""
    return f"expected {expected[index]:.6g}{place}, found {found[index]:.6g}{share}"


def numbers(value: Any) -> np.ndarray:
    """A number, array or tensor as an array of float64."""
    if hasattr(value, "detach"):
        value = value.detach()
    return np.asarray(value, dtype=np.float64)


def described(value: Any) -> str:
    """A value in a few words."""
    kind = KINDS.get(type(value).__name__)
    return shortened(repr(value), 80) if kind is None else f"{kind} of shape {tuple(value.shape)}"


def shortened(text: str, length: int) -> str:
    """The text, or its beginning."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
