"""CUDA graphs: fixed sequences of kernels that are launched as one, and results that are read a step late.

A small step spends most of its time launching kernels, one by one, from Python. A CUDA graph records them once. A
replay runs the same kernels on the same addresses, so everything that changes from step to step must be in tensors that
are written in place, and nothing in the step may wait for the device or depend on its results in Python.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tinylm.errors import first_line, notice

WARM_UPS = 3  # runs before a capture, in which libraries allocate workspaces and choose kernels


def capture(
    function: Callable[[], None],
    device: torch.device,
    restore: Callable[[], None] = lambda: None,
    pool: Any = None,
) -> Callable[[], None]:
    """Captures a function as a CUDA graph.

    Args:
        function: reads and writes tensors that keep their addresses
        device: of these tensors
        restore: undoes the changes of one run of the function; called after every warm-up
        pool: memory of the graph's intermediate results (`torch.cuda.graph_pool_handle`), which graphs that never run
            at the same time may share

    Returns:
        a function that repeats the work: a replay on a GPU, the function itself on other devices. If the capture
        fails, a notice is printed and the function itself is returned, which is slower
    """
    if device.type != "cuda":
        return function
    stream, graph = _capture_stream(device), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):  # a capture that fails leaves its own stream current
        for _ in range(WARM_UPS):
            function()
            restore()
        try:
            # thread_local: other threads, such as one that pins batches, may allocate meanwhile
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                function()
        except RuntimeError as error:
            notice(f"a step cannot be captured as a CUDA graph, which makes it slower: {first_line(error)}")
            graph = None
    torch.cuda.current_stream(device).wait_stream(stream)
    return function if graph is None else graph.replay


@cache
def _capture_stream(device: torch.device) -> "torch.cuda.Stream":
    """The stream of all captures on a device: graphs that share memory must be captured on one."""
    return torch.cuda.Stream(device)


def read_later(tensor: Tensor) -> Callable[[], list]:
    """Begins to copy a tensor to the CPU and returns at once; the result waits for the copy and gives its values."""
    if tensor.device.type != "cuda":
        values = tensor.clone()
        return values.tolist
    values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    values.copy_(tensor, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(tensor.device))

    def wait() -> list:
        copied.synchronize()
        return values.tolist()

    return wait
