"""Processes: one training in several, each with its share of every step (torchrun, accelerate).

Every process holds the whole model. Gradients are added up in one buffer, so that the weights
are the same everywhere after each step, whatever the order the processes finish in.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graphopt.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["Group", "device_of"]


class Group:
    """The processes that train together; just this one unless a launcher started more."""

    def __init__(self) -> None:
        self._ours = False
        self.rank, self.size = 0, 1

    def __enter__(self) -> Group:
        import torch.distributed as dist

        if not dist.is_available():
            return self
        if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            import torch

            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            self._ours = True
        if dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            import torch.distributed as dist

            dist.destroy_process_group()

    @property
    def share(self) -> tuple[int, int]:
        """This process, and how many there are."""
        return self.rank, self.size

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def sum(self, value: float) -> float:
        """The sum of `value` over the processes."""
        if self.size == 1:
            return value
        import torch
        import torch.distributed as dist

        total = torch.tensor([value], dtype=torch.float64, device=device_of())
        dist.all_reduce(total)
        return float(total)

    def same(self, weights: Iterable[torch.Tensor]) -> None:
        """Raise InputError unless every process has the same weights.

        Steps before this one may have been decided by timing, differently in each process.
        """
        import hashlib

        if self.size == 1:
            return
        import torch.distributed as dist

        seen = hashlib.sha256()
        for weight in weights:
            seen.update(weight.detach().cpu().contiguous().numpy().tobytes())
        found: list[str | None] = [None] * self.size
        dist.all_gather_object(found, seen.hexdigest())
        if len(set(found)) > 1:
            raise InputError(
                "the processes came to different models before training: steps that are decided by "
                "timing may differ between them; add --no-measure"
            )

    def add_gradients(self, weights: Sequence[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes."""
        if self.size == 1:
            return
        import torch
        import torch.distributed as dist

        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        gradients = [w.grad for w in weights if w.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        dist.all_reduce(flat)
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()


def device_of() -> torch.device:
    """Where to train: CUDA if there is any, a device of its own for each process of a machine."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())
