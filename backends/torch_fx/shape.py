"""Operators that move elements about or make tensors from sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from graphopt.backends.torch_fx.types import torch_dtype

from graphopt.errors import ModelError

__all__ = ["TABLE"]


def axes_of(op: Any, k: int, name: str = "axes") -> list[int] | None:
    """Axes from input `k`, or from the attribute of older opsets."""
    if op.given(k):
        found = op.numbers(k)
        if isinstance(found, list):
            return found
        if isinstance(found, int):
            return [found]
        raise ModelError(f"{op.node.op_type} '{op.node.name}': axes that are data are not lowered")
    return op.attribute(name)  # type: ignore[no-any-return]


def reshape_at_run_time(x: Any, dims: list[int], copy_zero: bool) -> Any:
    """Reshape to dims that are data."""
    return x.reshape([x.size(k) if d == 0 and copy_zero else d for k, d in enumerate(dims)])


def _reshape(op: Any, x: Any, _: Any = None) -> Any:
    dims = op.numbers(1) if op.given(1) else op.attribute("shape")
    copies = not op.attribute("allowzero", 0)
    if not isinstance(dims, list):
        return op.call(reshape_at_run_time, x, dims, copies)
    return x.reshape(
        [x.size(k) if copies and isinstance(d, int) and d == 0 else d for k, d in enumerate(dims)]
    )


def _flatten(op: Any, x: Any) -> Any:
    rank = op.rank()
    axis = op.attribute("axis", 1)
    axis = axis + rank if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    return x.flatten(axis).flatten(0, axis - 1) if axis < rank else x.reshape(-1, 1)


def _transpose(op: Any, x: Any) -> Any:
    perm = op.attribute("perm") or list(range(op.rank()))[::-1]
    return x.permute(perm)


def _unsqueeze(op: Any, x: Any, _: Any = None) -> Any:
    axes = axes_of(op, 1) or []
    rank = op.rank() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(op: Any, x: Any, _: Any = None) -> Any:
    axes = axes_of(op, 1)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _expand(op: Any, x: Any, _: Any = None) -> Any:
    sizes = op.numbers(1)
    dims = op.dims() or [None]
    if isinstance(sizes, list) and len(sizes) >= len(dims):
        own = [1] * (len(sizes) - len(dims)) + dims
        if all(d == 1 or (isinstance(s, int) and s != 1) for s, d in zip(sizes, own, strict=True)):
            return x.expand(sizes)
    return x.expand(op.call(torch.broadcast_shapes, x.shape, sizes))


def _concat(op: Any, *values: Any) -> Any:
    return torch.cat(values, op.attribute("axis"))


def _split(op: Any, x: Any, _: Any = None) -> Any:
    axis = op.attribute("axis", 0)
    count = len(op.node.outputs)
    sizes = op.numbers(1) if op.given(1) else op.attribute("split")
    if sizes is None:
        length = (op.dims() or [])[axis] if op.dims() else None
        length = x.size(axis) if length is None else length
        sizes = (length + (count - 1)) // count
    parts = op.call(torch.split, x, sizes, axis)
    return tuple(op.call(operator.getitem, parts, k) for k in range(count))


def reversed_slice(x: Any, axis: int, start: int, end: int, step: int) -> Any:
    """x[start:end:step] along an axis, for a negative step."""
    length = x.size(axis)
    start = min(start + length if start < 0 else start, length - 1)
    end = -1 if end < -length else end + length if end < 0 else end
    index = torch.arange(start, end, step, device=x.device) if start > end else None
    return x.narrow(axis, 0, 0) if index is None else x.index_select(axis, index)


def _slice(op: Any, x: Any, *_: Any) -> Any:
    if op.given(1):
        starts, ends = op.numbers(1), op.numbers(2)
    else:
        starts, ends = op.attribute("starts"), op.attribute("ends")
    count = len(starts) if isinstance(starts, list) else len(ends) if isinstance(ends, list) else 0
    if not count:
        count = (op.dims(1) or [None])[0] or 1
    axes = axes_of(op, 3) or list(range(count))
    steps = op.numbers(4) if op.given(4) else [1] * count
    rank = op.rank()
    index: list[Any] = [slice(None)] * rank
    whole = True
    for k, axis in enumerate(axes):
        if isinstance(steps[k], int) and steps[k] < 0:
            x = op.call(reversed_slice, x, axis % rank, starts[k], ends[k], steps[k])
            continue
        start = None if isinstance(starts[k], int) and starts[k] == 0 else starts[k]
        end = None if isinstance(ends[k], int) and ends[k] >= 2**31 - 1 else ends[k]
        step = None if isinstance(steps[k], int) and steps[k] == 1 else steps[k]
        index[axis % rank] = slice(start, end, step)
        whole = False
    return x if whole else x[tuple(index)]


def border_index(length: int, before: int, after: int, mode: str, like: Any) -> Any:
    """Which element lies at -before ... length + after - 1 of an axis that goes on as `mode`."""
    at = torch.arange(-before, length + after, device=like.device)
    if mode == "edge":
        return at.clamp(0, length - 1)
    if mode == "wrap":
        return at.remainder(length)
    period = max(2 * length - 2, 1)
    at = at.remainder(period)
    return torch.where(at < length, at, period - at)


def _pad(op: Any, x: Any, *_: Any) -> Any:
    pads = op.numbers(1) if op.given(1) else op.attribute("pads")
    mode = op.attribute("mode", "constant")
    rank = op.rank()
    axes = [a % rank for a in (axes_of(op, 3) if op.given(3) else range(rank)) or ()]
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    if mode != "constant":
        for axis in range(rank):
            if not (isinstance(before[axis], int) and before[axis] == 0 == after[axis]):
                index = op.call(border_index, x.size(axis), before[axis], after[axis], mode, x)
                x = x.index_select(axis, index)
        return x
    if op.given(2):
        fixed = op.constant(2)
        value = op.body.tensor(op.node.inputs[2]).item() if fixed is None else fixed.item()
    else:
        value = op.attribute("value", 0.0)
    widths: list[Any] = []
    for axis in reversed(range(rank)):
        widths += [before[axis], after[axis]]
    while len(widths) > 2 and all(isinstance(w, int) and w == 0 for w in widths[-2:]):
        widths = widths[:-2]
    return F.pad(x, widths, "constant", value)


def _constant(op: Any) -> Any:
    return op.body.lookup(op.node.outputs[0])


def _constant_of_shape(op: Any, _: Any = None) -> Any:
    tensor = op.node.attributes.get("value")
    array = np.zeros(1, np.float32) if tensor is None else tensor.value.numpy()
    dtype = torch_dtype(1 if tensor is None else tensor.value.dtype)
    return op.call(
        torch.full, op.numbers(0), array.reshape(-1)[0].item(), dtype=dtype, device=op.device
    )


def _range(op: Any, *_: Any) -> Any:
    start, end, step = (op.numbers(k) for k in range(3))
    return op.call(torch.arange, start, end, step, dtype=torch_dtype(op.dtype()), device=op.device)


def _shape(op: Any, x: Any) -> Any:
    rank = op.rank()
    start, end, _ = slice(op.attribute("start", 0), op.attribute("end")).indices(rank)
    sizes = [x.size(k) for k in range(start, end)]
    return op.call(torch.tensor, sizes, dtype=torch.int64, device=op.device)


def _size(op: Any, x: Any) -> Any:
    return op.call(torch.tensor, x.numel(), dtype=torch.int64, device=op.device)


def _tile(op: Any, x: Any, _: Any = None) -> Any:
    return x.repeat(op.numbers(1))


def _depth_to_space(op: Any, x: Any) -> Any:
    b = op.attribute("blocksize")
    if op.attribute("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, b)
    n, c, h, w = (x.size(k) for k in range(4))
    x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(op: Any, x: Any) -> Any:
    b = op.attribute("blocksize")
    n, c, h, w = (x.size(k) for k in range(4))
    x = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * b * b, h // b, w // b)


def _trilu(op: Any, x: Any, k: Any = None) -> Any:
    shift = op.numbers(1) if op.given(1) else 0
    shift = shift[0] if isinstance(shift, list) else shift
    return torch.triu(x, shift) if op.attribute("upper", 1) else torch.tril(x, shift)


def _eye_like(op: Any, x: Any) -> Any:
    dtype = op.attribute("dtype") or op.dtype()
    ones = torch.ones_like(x, dtype=torch_dtype(dtype))
    k = op.attribute("k", 0)
    return torch.tril(torch.triu(ones, k), k)


TABLE: dict[str, Callable[..., Any]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
