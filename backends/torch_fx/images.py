"""Resizing and sampling of images, signals and volumes.

A resized axis is a product with a matrix [out, in] of interpolation weights, which depends on the
sizes alone; axes are resized one after another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from graphopt.backends.torch_fx.shape import axes_of

__all__ = ["TABLE", "resized"]


def resized(
    x: Any,
    axes: list[int],
    sizes: list[int] | None,
    scales: list[float] | None,
    roi: list[float] | None,
    options: dict[str, Any],
) -> Any:
    """x with `axes` resized to `sizes`, or by `scales`."""
    before = [x.size(a) for a in axes]
    if sizes is None:
        assert scales is not None
        sizes = [scaled(n, s) for n, s in zip(before, scales, strict=True)]
    else:
        policy = options["keep_aspect_ratio_policy"]
        scales = [m / n for m, n in zip(sizes, before, strict=True)]
        if policy != "stretch":
            one = min(scales) if policy == "not_larger" else max(scales)
            scales = [one] * len(axes)
            sizes = [math.floor(one * n + 0.5) for n in before]
    outside = None
    for k, axis in enumerate(axes):
        if scales[k] == 1 and sizes[k] == before[k] and not roi:
            continue
        span = (roi[k], roi[k + len(axes)]) if roi else (0.0, 1.0)
        at = coordinates(before[k], sizes[k], scales[k], span, options, x)
        if options["coordinate_transformation_mode"] == "tf_crop_and_resize":
            beyond = (at < 0) | (at > before[k] - 1)
            shape = [-1 if a == axis else 1 for a in range(x.dim())]
            outside = _either(outside, beyond.reshape(shape))
        if options["mode"] == "nearest":
            x = x.index_select(axis, nearest(at, options["nearest_mode"], before[k]))
        else:
            weights = interpolation(at, before[k], scales[k], options).to(x.dtype)
            x = torch.matmul(x.movedim(axis, -1), weights.t()).movedim(-1, axis)
    if outside is None:
        return x
    return torch.where(outside, torch.full_like(x, options["extrapolation_value"]), x)


def _either(a: Any, b: Any) -> Any:
    return b if a is None else a | b


def scaled(size: Any, scale: float) -> Any:
    """floor(size * scale), in float32 as runtimes compute it."""
    if isinstance(size, int):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    return math.floor(size * scale)


def coordinates(
    n: int, m: int, scale: float, span: tuple[float, float], options: dict[str, Any], like: Any
) -> Any:
    """Where each of the m positions lies on an axis of length n, in float32."""
    i = torch.arange(m, dtype=torch.float32, device=like.device)
    way = options["coordinate_transformation_mode"]
    if way == "asymmetric":
        return i / scale
    if way == "align_corners":
        return i * ((n - 1) / (m - 1)) if m > 1 else i * 0
    if way == "tf_crop_and_resize":
        start, end = span
        if m > 1:
            return start * (n - 1) + i * ((end - start) * (n - 1) / (m - 1))
        return i * 0 + 0.5 * (start + end) * (n - 1)
    if way == "pytorch_half_pixel" and m <= 1:
        return i * 0
    if way == "half_pixel_symmetric":
        adjusted = m / (scale * n)
        return n / 2 * (1 - adjusted) + (i + 0.5) / scale - 0.5
    return (i + 0.5) / scale - 0.5


def nearest(at: Any, mode: str, n: int) -> Any:
    """The index of the element that stands for each coordinate."""
    if mode == "round_prefer_floor":
        index = torch.ceil(at - 0.5)
    elif mode == "round_prefer_ceil":
        index = torch.floor(at + 0.5)
    else:
        index = torch.ceil(at) if mode == "ceil" else torch.floor(at)
    return index.clamp(0, n - 1).to(torch.int64)


def interpolation(at: Any, n: int, scale: float, options: dict[str, Any]) -> Any:
    """[m, n]: the weight of every element in every position."""
    cubic = options["mode"] == "cubic"
    shrink = min(scale, 1.0) if options["antialias"] else 1.0
    if not cubic and not options["antialias"]:
        at = at.clamp(0, n - 1)
    reach = (2 if cubic else 1) / shrink
    count = 2 * math.ceil(reach) + 1
    first = torch.floor(at) - math.ceil(reach) + 1
    taps = first.reshape(-1, 1) + torch.arange(count, device=at.device)
    distance = (taps - at.reshape(-1, 1)) * shrink
    if cubic:
        weights = _keys(distance.abs(), options["cubic_coeff_a"])
    else:
        weights = (1 - distance.abs()).clamp(min=0)
    inside = (taps >= 0) & (taps <= n - 1)
    if options["exclude_outside"]:
        weights = weights * inside
    if options["exclude_outside"] or options["antialias"]:
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros((at.size(0), n), dtype=weights.dtype, device=at.device)
    return matrix.scatter_add(1, taps.clamp(0, n - 1).to(torch.int64), weights)


def _keys(d: Any, a: float) -> Any:
    """The cubic kernel of Keys (1981), of support 2."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _resize(op: Any, x: Any, *_: Any) -> Any:
    rank = op.rank()
    axes = [a % rank for a in op.attribute("axes") or range(rank)]
    old = op.opset < 11
    sizes = op.numbers(3) if not old and op.given(3) else None
    scales = None if sizes is not None else op.numbers(1 if old else 2)
    names = {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric" if old else "half_pixel",
        "nearest_mode": "floor" if old else "round_prefer_floor",
        "cubic_coeff_a": -0.75,
        "exclude_outside": 0,
        "extrapolation_value": 0.0,
        "antialias": 0,
        "keep_aspect_ratio_policy": "stretch",
    }
    options = {name: op.attribute(name, default) for name, default in names.items()}
    if old:
        options |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    roi = None
    if options["coordinate_transformation_mode"] == "tf_crop_and_resize":
        roi = op.numbers(1)
    if isinstance(sizes, list):
        # the axes that change, where that is known: the others need no look
        dims = op.dims() or [None] * rank
        same = options["keep_aspect_ratio_policy"] == "stretch" and roi is None
        moved = [k for k, a in enumerate(axes) if not (same and sizes[k] == dims[a])]
        axes, sizes = [axes[k] for k in moved], [sizes[k] for k in moved]
    elif isinstance(scales, list) and roi is None:
        moved = [k for k in range(len(axes)) if scales[k] != 1]
        axes, scales = [axes[k] for k in moved], [scales[k] for k in moved]
    return op.call(resized, x, axes, sizes, scales, roi, options)


def _grid_sample(op: Any, x: Any, grid: Any) -> Any:
    modes = {"linear": "bilinear", "cubic": "bicubic"}
    mode = op.attribute("mode", "linear")
    return F.grid_sample(
        x,
        grid,
        modes.get(mode, mode),
        op.attribute("padding_mode", "zeros"),
        bool(op.attribute("align_corners", 0)),
    )


def _affine_grid(op: Any, theta: Any, _: Any = None) -> Any:
    return F.affine_grid(theta, op.numbers(1), bool(op.attribute("align_corners", 0)))


def _upsample(op: Any, x: Any, _: Any = None) -> Any:
    options = {
        "mode": op.attribute("mode", "nearest"),
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
        "cubic_coeff_a": -0.75,
        "exclude_outside": 0,
        "extrapolation_value": 0.0,
        "antialias": 0,
        "keep_aspect_ratio_policy": "stretch",
    }
    return op.call(resized, x, list(range(op.rank())), None, op.numbers(1), None, options)


def _center_crop_pad(op: Any, x: Any, _: Any = None) -> Any:
    rank = op.rank()
    axes = axes_of(op, 9) or list(range(rank))
    return op.call(center_crop_pad, x, [a % rank for a in axes], op.numbers(1))


def center_crop_pad(x: Any, axes: list[int], sizes: list[int]) -> Any:
    """The middle of x, or x in the middle of zeros, along each axis."""
    for axis, size in zip(axes, sizes, strict=True):
        extra = size - x.size(axis)
        if extra < 0:
            x = x.narrow(axis, -extra // 2, size)
        elif extra:
            widths = [0, 0] * (x.dim() - 1 - axis) + [extra // 2, extra - extra // 2]
            x = F.pad(x, widths)
    return x


TABLE: dict[str, Callable[..., Any]] = {
    "AffineGrid": _affine_grid,
    "CenterCropPad": _center_crop_pad,
    "GridSample": _grid_sample,
    "Resize": _resize,
    "Upsample": _upsample,
}
