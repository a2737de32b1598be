"""A stand-in for CUDA graphs on the CPU: a tape of the operations of a function, which is played back.

As in a CUDA graph Python runs once, numbers are fixed, and the memory of every result stays the same.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique", "is_nonzero", "_linalg_check_errors")


class Tape(TorchDispatchMode):
    """Records operations; refuses those for which a host would wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.played: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        result = func(*args, **(kwargs or {}))
        self.played.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.played:
            given = [each for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)]
            inputs = {each.untyped_storage().data_ptr() for each in given}
            for ours, now in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if torch.is_tensor(ours) and ours.untyped_storage().data_ptr() not in inputs:
                    ours.copy_(now)


class TapedGraphs:
    """In the place of CUDAGraphs. The first replay was the recording, since a tape records what runs."""

    def __init__(self) -> None:
        self.runs = self.captures = self.replays = 0

    def run(self, function: Callable[[], None]) -> None:
        self.runs += 1
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        with Tape() as tape:
            function()
        fresh = [True]

        def replay() -> None:
            self.replays += 1
            if not fresh:
                tape.replay()
            fresh.clear()

        return replay
