"""Models without values: their weights are loaded later, or never."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialization(TorchFunctionMode):
    """Skips `torch.nn.init`, which has no effect on the meta device and imports the compiler, a second."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", next(iter(args), None))
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Creates modules on the meta device, where tensors have a shape and a type but no values."""
    with torch.device("meta"), _NoInitialization():
        yield
