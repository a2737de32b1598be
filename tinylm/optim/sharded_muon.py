"""Muon on sharded matrices: each is gathered by one process, orthogonalized there, and its shards are sent back.

So no process repeats the work of another. Two exchanges per shape of matrices send every number there and back once,
which is less than FSDP sends to gather the weights.
"""

import math
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from tinylm.optim.muon import Muon, norm_ratios, row_factors

Box = tuple[slice, slice]


class ShardedMuon(Muon):
    """`Muon` for parameters that are DTensors, sharded over one or two axes of devices."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._load: dict[int, int] = defaultdict(int)  # work given to each process in this step

    def _step_muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        self._load.clear()
        super()._step_muon(group, parameters)

    def _orthogonalize(self, momenta: list[Tensor]) -> list[Tensor]:
        """Changes the shards in place: momenta before, updates after."""
        by_placement = defaultdict(list)  # of one shape, one may be divided by rows and another by columns
        for momentum in momenta:
            assert isinstance(momentum, DTensor)
            by_placement[momentum.placements].append(momentum)
        for same in by_placement.values():
            self._orthogonalize_alike(same)
        return momenta

    def _evened(self, updates: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
        """Changes the shards in place. The running means are divided among the processes as the rows are."""
        squares = []
        for update in updates:
            sums = update.square().sum(-1, keepdim=True)
            assert isinstance(sums, DTensor)
            whole = [Replicate() if each.is_partial() else each for each in sums.placements]  # over divided columns
            squares.append(sums.redistribute(placements=whole))
        means = self._neuron_means(parameters, squares)
        for update, square, mean in zip(updates, squares, means, strict=True):
            norms = norm_ratios(square, mean)
            assert isinstance(update, DTensor) and isinstance(mean, DTensor) and isinstance(norms, DTensor)
            update.to_local().mul_(row_factors(mean.to_local(), norms.full_tensor()))
        return updates

    def _orthogonalize_alike(self, momenta: list[DTensor]) -> None:
        """Orthogonalizes matrices of one shape and one sharding, in place."""
        first, parts = momenta[0], [each.to_local() for each in momenta]
        mesh = first.device_mesh
        group = mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD
        boxes, rank = shard_boxes(first), dist.get_rank(group)
        owned = self._divided(len(momenta), first.shape, len(boxes))
        order = [number for numbers in owned for number in numbers]  # the matrices by their owners
        sizes = [math.prod(part.stop - part.start for part in box) for box in boxes]
        ours, theirs = [len(numbers) * sizes[rank] for numbers in owned], [len(owned[rank]) * size for size in sizes]
        received = _exchange(torch.cat([parts[number].flatten() for number in order]), ours, theirs, group)
        stack = received.new_empty(len(owned[rank]), *first.shape)
        for box, part in zip(boxes, received.split(theirs), strict=True):
            stack[:, *box] = part.view(stack[:, *box].shape)
        del received  # so that the iteration has its memory
        if len(stack):
            stack = self.iteration(stack)
        back = _exchange(torch.cat([stack[:, *box].flatten() for box in boxes]), theirs, ours, group)
        for number, part in zip(order, back.split(sizes[rank]) if sizes[rank] else (), strict=False):
            parts[number].copy_(part.view(parts[number].shape))

    def _divided(self, count: int, shape: torch.Size, processes: int) -> list[list[int]]:
        """The numbers of the matrices that each process gets; each goes to the process with the least work so far."""
        owned: list[list[int]] = [[] for _ in range(processes)]
        for number in range(count):
            owner = min(range(processes), key=lambda process: self._load[process])
            self._load[owner] += shape.numel() * min(shape)
            owned[owner].append(number)
        return owned


def _exchange(sent: Tensor, sizes: list[int], others: list[int], group: Any) -> Tensor:
    """Sends `sizes[r]` numbers to every process r, and receives `others[r]` from it."""
    received = sent.new_empty(sum(others))
    dist.all_to_all_single(received, sent, others, sizes, group=group)
    return received


def shard_boxes(tensor: DTensor) -> list[Box]:
    """The rows and columns of a matrix that each process of its mesh holds, in the order of their ranks.

    The last axis of the mesh, tensor parallelism, divides the matrix first; data parallelism divides what it left.
    """
    mesh, boxes = tensor.device_mesh, []
    for place in torch.cartesian_prod(*(torch.arange(size) for size in mesh.shape)).view(-1, mesh.ndim).tolist():
        bounds = [(0, size) for size in tensor.shape]
        for size, number, placement in reversed([*zip(mesh.shape, place, tensor.placements, strict=True)]):
            if not placement.is_replicate():
                start, stop = bounds[placement.dim]  # pyright: ignore[reportAttributeAccessIssue]
                each = -(-(stop - start) // size)  # as torch.chunk divides
                first = min(stop, start + each * number)
                bounds[placement.dim] = first, min(stop, first + each)  # pyright: ignore[reportAttributeAccessIssue]
        boxes.append(tuple(slice(*each) for each in bounds))
    return boxes
