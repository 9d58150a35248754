"""Whether rows of several runs may be put together as one batch, found by trying it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.training.store import Store, tensors

if TYPE_CHECKING:
    import torch

__all__ = ["alike_rows", "doubles", "joins"]

Array = np.ndarray[Any, Any]


def alike_rows(store: Store) -> bool:
    """Whether all arrays of every run have as many rows as its first: rows can be told apart."""
    for run in range(len(store)):
        arrays = store[run]
        if any(a.ndim == 0 or len(a) != len(arrays[0]) for a in arrays):
            return False
    return len(store) > 0


def doubles(student: torch.nn.Module, store: Store, inputs: int) -> bool:
    """Whether the module takes twice the rows of a run, and one of them (frames come in clips)."""
    if not len(store):
        return False
    first = store[0][:inputs]
    twice = [np.concatenate([a, a]) if a.ndim else a for a in first]
    alone = [a[:1] if a.ndim else a for a in first]
    return all(_tried(student, arrays) is not None for arrays in (twice, alone))


def joins(student: torch.nn.Module, store: Store, inputs: int) -> bool:
    """Whether the module takes rows of two runs as one, though its model has a fixed batch.

    Most exports fix a batch of 1; their operators seldom need it.
    """
    import torch

    if len(store) < 2 or _recurrent(student):
        return False
    a, b = store[0][:inputs], store[1][:inputs]
    if any(x.ndim == 0 or x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return False
    both = [np.concatenate(pair) for pair in zip(a, b, strict=True)]
    first = [x[:1] for x in a]
    made = [_tried(student, arrays) for arrays in (a, b, both, first)]
    if any(outputs is None for outputs in made):
        return False
    for x, y, whole, one in zip(*(outputs or () for outputs in made), strict=True):
        if x.ndim == 0 or whole.shape != (2 * len(x), *x.shape[1:]):
            return False
        if not _alike(whole, torch.cat([x, y])) or not _alike(one, x[:1]):
            return False
    return True


def _alike(got: torch.Tensor, want: torch.Tensor) -> bool:
    """Equal but for sums in another order: far above rounding and far below a mix-up of rows."""
    import torch

    least = 1e-4 * float(want.abs().max())
    return got.shape == want.shape and bool(torch.allclose(got, want, rtol=1e-3, atol=least))


def _tried(student: torch.nn.Module, arrays: Sequence[Array]) -> tuple[torch.Tensor, ...] | None:
    """Its outputs; None where a size of the module's own does not fit."""
    import torch

    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    with torch.no_grad():
        try:
            outputs: tuple[torch.Tensor, ...] = student.forward(
                *(t.to(device) for t in tensors(arrays))
            )
        except (RuntimeError, ValueError, IndexError):
            return None
    return outputs


def _recurrent(student: torch.nn.Module) -> bool:
    """Whether it has torch's recurrent layers, which write past states of a smaller batch."""
    import torch

    unsafe = (torch.lstm, torch.gru, torch.rnn_tanh)
    graphs = [m.graph for m in student.modules() if isinstance(m, torch.fx.GraphModule)]
    return any(node.target in unsafe for graph in graphs for node in graph.nodes)
