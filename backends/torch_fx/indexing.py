"""Operators that pick elements by index, sort, or write at indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["TABLE"]

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _gather(op: Any, x: Any, indices: Any) -> Any:
    axis = op.attribute("axis", 0) % op.rank()
    fixed = op.constant(1)
    if fixed is not None and fixed.ndim == 0:
        return x.select(axis, int(fixed))
    return x[(*[slice(None)] * axis, indices.to(torch.int64))]


def _wrapped(indices: Any, length: Any) -> Any:
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + length, indices)


def _gather_elements(op: Any, x: Any, indices: Any) -> Any:
    axis = op.attribute("axis", 0)
    return torch.gather(x, axis, _wrapped(indices, x.size(axis)))


def _columns(op: Any, indices: Any, first: int) -> tuple[Any, ...]:
    """The last axis of ND indices as one index tensor per axis."""
    count = (op.dims(1) or [None])[-1]
    assert count is not None, "the length of ND indices is not known"
    return tuple(indices.select(-1, k).to(torch.int64) for k in range(count))


def _gather_nd(op: Any, x: Any, indices: Any) -> Any:
    batch = op.attribute("batch_dims", 0)
    rank = op.rank(1) - 1
    columns = list(_columns(op, indices, batch))
    for axis in reversed(range(batch)):
        at = op.call(torch.arange, x.size(axis), device=op.device)
        columns.insert(0, at.reshape([-1 if k == axis else 1 for k in range(rank)]))
    return x[tuple(columns)]


def _scatter_elements(op: Any, x: Any, indices: Any, updates: Any) -> Any:
    axis = op.attribute("axis", 0)
    index = _wrapped(indices, x.size(axis))
    how = op.attribute("reduction", "none")
    if how == "none":
        return torch.scatter(x, axis, index, updates)
    return torch.scatter_reduce(x, axis, index, updates, _REDUCE[how], include_self=True)


def scatter_nd_reduce(x: Any, columns: tuple[Any, ...], updates: Any, how: str) -> Any:
    """Updates reduced into x at ND indices."""
    flat = torch.zeros_like(columns[0])
    for k, column in enumerate(columns):
        flat = flat * x.size(k) + torch.where(column < 0, column + x.size(k), column)
    inner = list(x.shape[len(columns) :])
    rows = x.reshape([-1, *inner])
    index = flat.reshape([-1] + [1] * len(inner)).expand([-1, *inner])
    done = rows.scatter_reduce(0, index, updates.reshape([-1, *inner]), how, include_self=True)
    return done.reshape(x.shape)


def _scatter_nd(op: Any, x: Any, indices: Any, updates: Any) -> Any:
    how = op.attribute("reduction", "none")
    columns = _columns(op, indices, 0)
    if how == "none":
        return torch.index_put(x, columns, updates)
    if how == "add":
        return torch.index_put(x, columns, updates, True)
    return op.call(scatter_nd_reduce, x, columns, updates, _REDUCE[how])


def _top_k(op: Any, x: Any, k: Any = None) -> Any:
    axis = op.attribute("axis", -1)
    count = op.numbers(1)
    count = count[0] if isinstance(count, list) else count
    if not isinstance(count, int):
        count = op.body.tensor(op.node.inputs[1]).reshape([]).item()
    largest = bool(op.attribute("largest", 1))
    values, indices = _pair(op, torch.sort, x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


def _pair(op: Any, function: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    both = op.call(function, *args, **kwargs)
    return both[0], both[1]


def _arg(function: Any) -> Callable[..., Any]:
    def lower(op: Any, x: Any) -> Any:
        axis, keep = op.attribute("axis", 0), bool(op.attribute("keepdims", 1))
        if op.attribute("select_last_index", 0):
            last = x.size(axis) - 1
            return last - function(torch.flip(x, [axis]), axis, keep)
        return function(x, axis, keep)

    return lower


def _one_hot(op: Any, indices: Any, depth: Any, values: Any) -> Any:
    axis = op.attribute("axis", -1)
    rank = op.rank() + 1
    count = op.numbers(1)
    count = count[0] if isinstance(count, list) else count
    at = op.call(torch.arange, count, device=op.device)
    shape = [-1 if k == axis % rank else 1 for k in range(rank)]
    hit = _wrapped(indices, count).unsqueeze(axis) == at.reshape(shape)
    return torch.where(hit, values[1], values[0])


def _cumsum(op: Any, x: Any, _: Any = None) -> Any:
    axis = op.numbers(1)
    axis = axis[0] if isinstance(axis, list) else axis
    back = op.attribute("reverse", 0)
    held = torch.flip(x, [axis]) if back else x
    total = torch.cumsum(held, axis, dtype=x.dtype)
    if op.attribute("exclusive", 0):
        total = total - held
    return torch.flip(total, [axis]) if back else total


def _compress(op: Any, x: Any, condition: Any) -> Any:
    axis = op.attribute("axis")
    at = torch.nonzero(condition).squeeze(-1)
    return x.reshape(-1)[at] if axis is None else x.index_select(axis, at)


def _non_zero(op: Any, x: Any) -> Any:
    return torch.nonzero(x).t()


def _reverse_sequence(op: Any, x: Any, lengths: Any) -> Any:
    time, batch = op.attribute("time_axis", 0), op.attribute("batch_axis", 1)
    rank = op.rank()
    at = op.call(torch.arange, x.size(time), device=op.device)
    at = at.reshape([-1 if k == time else 1 for k in range(rank)])
    length = lengths.reshape([-1 if k == batch else 1 for k in range(rank)])
    index = torch.where(at < length, length - 1 - at, at)
    return torch.gather(x, time, index.expand(x.shape))


TABLE: dict[str, Callable[..., Any]] = {
    "ArgMax": _arg(torch.argmax),
    "ArgMin": _arg(torch.argmin),
    "Compress": _compress,
    "CumSum": _cumsum,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
