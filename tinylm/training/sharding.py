"""ShardedStrategy: weights, gradients and optimizer state in pieces, one on each device (FSDP; overlays/fsdp.yaml)."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy, with every device of every node for the data.

    Left to itself it gives the nodes to the data and the devices of a node to tensor parallelism, which needs a plan
    for each layer. Checkpoints are whole files.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        """Sharding over all devices.

        Args:
            process_group_backend: nccl, gloo ... Empty: what suits the devices
        """
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Counts the devices, just before processes find each other."""
        count: Any = self.num_nodes * self.num_processes
        self._data_parallel_size = count
        super().setup_environment()
