"""CompiledNetwork: the program of a training step by torch.compile, with a cache that outlives the run."""

import contextlib
import logging
import os
from typing import Any

import torch
from torch import Tensor

from tinylm.errors import ConfigError, first_line, notice
from tinylm.files import default_cache_dir
from tinylm.model import TransformerLM
from tinylm.model.positional import PositionTable


class CompiledNetwork:
    """Calls a network as `net(...)` does, hooks included, by a compiled program.

    For the first batch of another shape, the network is compiled again with symbolic sizes, which fit all later shapes.
    Programs are kept in the user's cache (`TORCHINDUCTOR_CACHE_DIR` names another folder), so that the next run starts
    in seconds. A network that cannot be compiled runs uncompiled, and a notice says so.

    Args:
        net: the network
    """

    def __init__(self, net: TransformerLM) -> None:
        self.net = net
        self._run: Any = torch.compile(net.__call__)  # net.forward would skip the network's own hooks
        self._breaks: dict[str, int] | None = None  # by reason, counted by the compiler

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """The network's result; the arguments are those of `TransformerLM.forward`."""
        if self._run is None:
            return self.net(*args, **options)
        if self._breaks is None:
            self._breaks = self._prepare()
        from torch._dynamo.exc import TorchDynamoException

        known = len(self._breaks)
        try:
            result = self._run(*args, **options)
        except TorchDynamoException as error:
            self._run = None
            cause = getattr(error, "inner_exception", None) or error
            notice(
                f"model.compile: not possible here ({first_line(cause)}); training continues uncompiled, more slowly"
            )
            return self.net(*args, **options)
        if len(self._breaks) > known:
            reason = next(reversed(self._breaks)).splitlines()[0]
            notice(f"model.compile: a hook or module splits the program, which makes it slower ({reason})")
        return result

    def _prepare(self) -> dict[str, int]:
        """Sets up the compiler, and creates the tables that the network would otherwise make within the first step.

        Returns:
            the compiler's count of split programs, by reason
        """
        import torch._dynamo.config as dynamo  # takes a second to import
        import torch._functorch.config as functorch
        from torch._dynamo.utils import counters

        with contextlib.suppress(ConfigError):  # a user without a home folder has no cache
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache_dir() / "compiled"))
        functorch.autograd_cache_allow_custom_autograd_functions = True  # of RMSNorm and the loss
        functorch.force_non_lazy_backward_lowering = True  # so that compilation fails, if at all, in the first forward
        dynamo.skip_nnmodule_hook_guards = False  # so that a hook added later takes effect
        logging.getLogger("torch._dynamo.variables.tensor").setLevel(logging.ERROR)  # ten lines on a split
        for module in self.net.modules():
            if isinstance(module, PositionTable):
                module(self.net.embedding.weight)
        return counters["graph_break"]
