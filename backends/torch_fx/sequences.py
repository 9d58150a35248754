"""Sequences of tensors: Python lists."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["TABLE"]


def _split(op: Any, x: Any, _: Any = None) -> Any:
    axis = op.attribute("axis", 0)
    if op.given(1) or op.attribute("keepdims", 1):
        return op.call(torch.split, x, op.numbers(1) if op.given(1) else 1, axis)
    return op.call(torch.unbind, x, axis)


def _at(op: Any, sequence: Any, _: Any) -> Any:
    return op.call(operator.getitem, sequence, op.numbers(1))


def _concat(op: Any, sequence: Any) -> Any:
    join = torch.stack if op.attribute("new_axis", 0) else torch.cat
    return op.call(join, sequence, op.attribute("axis"))


def inserted(sequence: Any, tensor: Any, position: int | None) -> list[Any]:
    """The sequence with `tensor` at `position`, at the end if that is None."""
    done = list(sequence)
    done.insert(len(done) if position is None else position, tensor)
    return done


def erased(sequence: Any, position: int | None) -> list[Any]:
    """The sequence without its element at `position`, its last if that is None."""
    done = list(sequence)
    del done[-1 if position is None else position]
    return done


TABLE: dict[str, Callable[..., Any]] = {
    "ConcatFromSequence": _concat,
    "SequenceAt": _at,
    "SequenceConstruct": lambda op, *values: op.call(list, values),
    "SequenceEmpty": lambda op: op.call(list),
    "SequenceErase": lambda op, sequence, k=None: op.call(
        erased, sequence, None if k is None else op.numbers(1)
    ),
    "SequenceInsert": lambda op, sequence, x, k=None: op.call(
        inserted, sequence, x, None if k is None else op.numbers(2)
    ),
    "SequenceLength": lambda op, sequence: op.call(
        torch.tensor, op.call(len, sequence), dtype=torch.int64, device=op.device
    ),
    "SplitToSequence": _split,
}
