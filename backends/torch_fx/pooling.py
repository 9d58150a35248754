"""Pooling, resizing and sampling of images (and signals, and volumes)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from graphopt.backends.torch_fx.convolution import explicit_pads

from graphopt.errors import ModelError

__all__ = ["TABLE", "average_pool"]

_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_MAX_INDICES = {
    1: F.max_pool1d_with_indices,
    2: F.max_pool2d_with_indices,
    3: F.max_pool3d_with_indices,
}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _window(op: Any) -> tuple[list[int], list[int], list[int], bool]:
    kernel = op.attribute("kernel_shape")
    n = len(kernel)
    return (
        kernel,
        op.attribute("strides") or [1] * n,
        op.attribute("dilations") or [1] * n,
        bool(op.attribute("ceil_mode", 0)),
    )


def _max_pool(op: Any, x: Any) -> Any:
    kernel, strides, dilations, ceil = _window(op)
    n = len(kernel)
    x, pads = explicit_pads(op, x, kernel, strides, dilations, float("-inf"))
    if any(2 * p > k for p, k in zip(pads, kernel, strict=True)):
        widths = [w for p in reversed(pads) for w in (p, p)]
        x, pads = F.pad(x, widths, "constant", float("-inf")), [0] * n
    ends = _ends(op, n) if ceil and pads == [0] * n else None
    if not op.wanted(1):
        y = op.call(_MAX[n], x, kernel, strides, pads, dilations, ceil)
        return y if ends is None else op.call(started, y, x, strides, ends)
    if op.attribute("storage_order", 0):
        raise ModelError(f"MaxPool '{op.node.name}': indices in column order are not lowered")
    both = op.call(_MAX_INDICES[n], x, kernel, strides, pads, dilations, ceil)
    return both[0], op.call(whole_index, both[1], x)


def _ends(op: Any, n: int) -> list[int]:
    """The padding after each axis."""
    auto = op.attribute("auto_pad", "NOTSET") != "NOTSET"
    return [0] * n if auto else list(op.attribute("pads") or [0] * (2 * n))[n:]


def started(y: Any, x: Any, strides: list[int], ends: list[int]) -> Any:
    """y without the windows that start in the padding after x, which is part of x."""
    for k, stride in enumerate(strides):
        axis = x.dim() - len(strides) + k
        count = (x.size(axis) - ends[k] - 1) // stride + 1
        y = y.narrow(axis, 0, min(count, y.size(axis)))
    return y


def whole_index(index: Any, x: Any) -> Any:
    """Indices into one channel as indices into the whole tensor."""
    inner = x[0, 0].numel()
    channel = torch.arange(x.size(0) * x.size(1), device=x.device) * inner
    return index + channel.reshape([x.size(0), x.size(1)] + [1] * (x.dim() - 2))


def average_pool(op: Any, x: Any) -> Any:
    """Means over windows."""
    kernel, strides, dilations, ceil = _window(op)
    n = len(kernel)
    include = bool(op.attribute("count_include_pad", 0))
    before = x
    x, pads = explicit_pads(op, x, kernel, strides, dilations)
    small = all(2 * p <= k for p, k in zip(pads, kernel, strict=True))
    if x is before and small and set(dilations) == {1} and not (ceil and include):
        return op.call(_AVERAGE[n], x, kernel, strides, pads, ceil, include)
    ones = torch.ones_like(before[:1, :1])
    ones, _ = explicit_pads(op, ones, kernel, strides, dilations, 1.0 if include else 0.0)
    if pads != [0] * n:
        widths = [w for p in reversed(pads) for w in (p, p)]
        x = F.pad(x, widths)
        ones = F.pad(ones, widths, "constant", 1.0 if include else 0.0)
    ends = _ends(op, n)
    total = op.call(window_sum, x, kernel, strides, dilations, ceil, ends)
    return total / op.call(window_sum, ones, kernel, strides, dilations, ceil, ends)


def window_sum(
    x: Any,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    ceil: bool,
    ends: list[int],
) -> Any:
    """Sums over windows, axis after axis; `ends` of each axis are padding, where none starts."""
    for k, length in enumerate(kernel):
        axis = x.dim() - len(kernel) + k
        reach = (length - 1) * dilations[k] + 1
        extra = 0
        if ceil:
            size = x.size(axis)
            windows = -(-(size - reach) // strides[k]) + 1
            if (windows - 1) * strides[k] >= size - ends[k]:
                windows -= 1
            extra = max((windows - 1) * strides[k] + reach - size, 0)
        widths = [0, 0] * (x.dim() - 1 - axis) + [0, extra]
        x = F.pad(x, widths).unfold(axis, reach, strides[k])[..., :: dilations[k]].sum(-1)
    return x


def _spatial(op: Any) -> list[int]:
    return list(range(2, op.rank()))


def _lp_pool(op: Any, x: Any) -> Any:
    kernel, strides, dilations, ceil = _window(op)
    p = float(op.attribute("p", 2))
    x, pads = explicit_pads(op, x, kernel, strides, dilations)
    x = F.pad(x, [w for q in reversed(pads) for w in (q, q)])
    total = op.call(
        window_sum,
        torch.pow(torch.abs(x), p),
        kernel,
        strides,
        dilations,
        ceil,
        _ends(op, len(kernel)),
    )
    return torch.pow(total, 1.0 / p)


def _global_lp(op: Any, x: Any) -> Any:
    return torch.linalg.vector_norm(x, float(op.attribute("p", 2)), _spatial(op), True)


TABLE: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda op, x: torch.mean(x, _spatial(op), True),
    "GlobalLpPool": _global_lp,
    "GlobalMaxPool": lambda op, x: torch.amax(x, _spatial(op), True),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
