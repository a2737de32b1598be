"""ShardedStrategy: weights, gradients and optimizer state sharded over devices (FSDP 2; overlays/fsdp.yaml)."""

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism over all devices of all nodes.

    By default it would use the devices of a node for tensor parallelism, which needs a plan for each layer. Checkpoints
    are single files.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        """Creates the strategy.

        Args:
            process_group_backend: nccl, gloo, ... Default: the one for the device
        """
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        """Sets the data-parallel size to the number of devices."""
        count: Any = self.num_nodes * self.num_processes
        self._data_parallel_size = count
        super().setup_environment()
