"""What a training is given: batches in the same order at every call, and a loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Batches", "Loss"]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Attributes:
        inputs: the model's inputs, in its order.
        targets: what the loss compares the module's outputs with, in their order.
        label: labels of the rows, or None.
        rows: how many rows there are; a step weighs its batches by this.
    """

    inputs: tuple[torch.Tensor, ...]
    targets: tuple[torch.Tensor, ...]
    label: torch.Tensor | None = None
    rows: int = 1


#: The mean loss over the rows of a batch, from the module's outputs.
Loss = Callable[[tuple[Any, ...], Batch], Any]


class Batches(Protocol):
    """The data of a training: the same at every call with the same arguments.

    A step is a list of batches whose gradients add up; in several processes each is given its own.
    """

    steps: int

    def epoch(self, number: int, share: tuple[int, int]) -> Iterator[Sequence[Batch]]:
        """The steps of an epoch; `share`: this process and how many there are."""
        ...

    def held(self, share: tuple[int, int]) -> Iterator[Batch]:
        """The batches that are held out."""
        ...
