"""Combinations of settings, of which the tests that are not slow take a part."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def crossed(*axes: Iterable[Any], every: int) -> list[Any]:
    """All combinations for `parametrize`; only one of `every`, by the sum of their places, is not slow.

    Each setting is in one of these if another axis has at least `every` settings.
    """
    return [
        pytest.param(
            *(setting for _, setting in each),
            id="-".join(getattr(setting, "__name__", str(setting)) for _, setting in each),
            marks=[pytest.mark.slow] if sum(place for place, _ in each) % every else [],
        )
        for each in itertools.product(*map(enumerate, axes))
    ]
