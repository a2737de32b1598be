"""A network whose weights have no values yet: to be loaded, or only looked at."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _NoInitialization(TorchFunctionMode):
    """Leaves out what `torch.nn.init` does: on the meta device it has no effect and imports a second of compiler."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", next(iter(args), None))
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Inside, modules are made on the meta device, where tensors have shapes and types but no numbers."""
    with torch.device("meta"), _NoInitialization():
        yield
