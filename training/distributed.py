"""Data parallelism: the same loop runs alone or, under ``torchrun``, in several processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process evaluates, writes and talks."""
        return self.rank == 0

    def average_gradients(self, model: torch.nn.Module) -> None:
        """Replaces each gradient by its mean over the processes, in one exchange."""
        if self.world_size == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.world_size
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()

    def same_everywhere(self, value: float) -> float:
        """Returns the main process's ``value`` in every process."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(tensor, src=0)
        return float(tensor.item())

    def mean(self, value: float) -> float:
        """Returns the mean of the processes' values in every process."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(tensor)
        return float(tensor.item()) / self.world_size

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def processes() -> Iterator[Processes]:
    """Joins the process group that ``torchrun`` announces in the environment; alone without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes()
        return
    distributed.init_process_group("gloo")
    try:
        yield Processes(distributed.get_rank(), world_size)
    finally:
        distributed.destroy_process_group()
