"""Convolutions in 1, 2 and 3 dimensions, with every attribute of the standard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["TABLE", "convolve", "explicit_pads"]

_CONV = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}
_TRANSPOSE = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}


def same_pads(size: Any, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[Any, Any]:
    """Padding before and after such that there are ceil(size / stride) windows."""
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    less, more = total // 2, total - total // 2
    return (less, more) if upper else (more, less)


def padded_same(
    x: Any, kernel: list[int], strides: list[int], dilations: list[int], upper: bool, value: float
) -> Any:
    """x with the padding of auto_pad SAME_UPPER or SAME_LOWER."""
    widths: list[int] = []
    for k in reversed(range(len(kernel))):
        size = x.size(x.dim() - len(kernel) + k)
        widths += same_pads(size, kernel[k], strides[k], dilations[k], upper)
    return F.pad(x, widths, "constant", value)


def explicit_pads(
    op: Any,
    x: Any,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    value: float = 0.0,
) -> tuple[Any, list[int]]:
    """x and what is left to pad on both sides alike; what is not alike is padded here."""
    n = len(kernel)
    auto = op.attribute("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        upper = auto == "SAME_UPPER"
        return op.call(padded_same, x, kernel, strides, dilations, upper, value), [0] * n
    pads = list(op.attribute("pads") or [0] * (2 * n)) if auto == "NOTSET" else [0] * (2 * n)
    if pads[:n] == pads[n:]:
        return x, pads[:n]
    widths: list[int] = []
    for k in reversed(range(n)):
        widths += [pads[k], pads[k + n]]
    return F.pad(x, widths, "constant", value), [0] * n


def convolve(op: Any, x: Any, w: Any, b: Any = None, weight: int = 1) -> Any:
    """Conv; `weight` says which input has the weight's shape."""
    dims = op.dims(weight)
    assert dims is not None
    n = len(dims) - 2
    kernel = op.attribute("kernel_shape") or dims[2:]
    strides = op.attribute("strides") or [1] * n
    dilations = op.attribute("dilations") or [1] * n
    x, pads = explicit_pads(op, x, kernel, strides, dilations)
    return _CONV[n](x, w, b, strides, pads, dilations, op.attribute("group", 1))


def _transposed(op: Any, x: Any, w: Any, b: Any = None) -> Any:
    dims = op.dims(1)
    assert dims is not None
    n = len(dims) - 2
    strides = op.attribute("strides") or [1] * n
    dilations = op.attribute("dilations") or [1] * n
    extra = op.attribute("output_padding") or [0] * n
    group = op.attribute("group", 1)
    pads = op.attribute("pads") or [0] * (2 * n)
    auto = op.attribute("auto_pad", "NOTSET")
    wanted = op.attribute("output_shape")
    if wanted or auto.startswith("SAME"):
        full = _TRANSPOSE[n](x, w, b, strides, 0, extra, group, dilations)
        upper = auto == "SAME_UPPER"
        sizes = [
            wanted[k - n if len(wanted) > n else k] if wanted else x.size(k + 2) * strides[k]
            for k in range(n)
        ]
        return op.call(cropped, full, sizes, upper if auto != "NOTSET" else False)
    if pads[:n] == pads[n:]:
        return _TRANSPOSE[n](x, w, b, strides, pads[:n], extra, group, dilations)
    full = _TRANSPOSE[n](x, w, b, strides, 0, extra, group, dilations)
    widths: list[int] = []
    for k in reversed(range(n)):
        widths += [-pads[k], -pads[k + n]]
    return F.pad(full, widths)


def cropped(x: Any, sizes: list[int], upper: bool) -> Any:
    """The middle of x of these sizes; with `upper` the odd element is cut at the end."""
    widths: list[int] = []
    for k in reversed(range(len(sizes))):
        total = x.size(k + 2) - sizes[k]
        first = total // 2 if upper else total - total // 2
        widths += [-first, -(total - first)]
    return F.pad(x, widths)


_ACTIVATIONS: dict[str, Callable[[Any, list[float]], Any]] = {
    "": lambda x, p: x,
    "Relu": lambda x, p: torch.relu(x),
    "Tanh": lambda x, p: torch.tanh(x),
    "Sigmoid": lambda x, p: torch.sigmoid(x),
    "LeakyRelu": lambda x, p: F.leaky_relu(x, p[0]),
    "Clip": lambda x, p: torch.clamp(x, p[0], p[1]),
    "HardSigmoid": lambda x, p: torch.clamp(x * p[0] + p[1], 0.0, 1.0),
    "HardSwish": lambda x, p: F.hardswish(x),
}


def activated(op: Any, y: Any) -> Any:
    """The activation that a fused operator names."""
    parameters = [float(p) for p in op.attribute("activation_params") or ()]
    return _ACTIVATIONS[op.attribute("activation", "")](y, parameters)


def _fused(op: Any, x: Any, w: Any, b: Any = None, z: Any = None) -> Any:
    y = convolve(op, x, w, b)
    return activated(op, y if z is None else y + z)


def _fused_gemm(op: Any, a: Any, b: Any, c: Any = None) -> Any:
    from graphopt.backends.torch_fx.reductions import gemm

    alpha = op.attribute("activation_alpha", 0.01)
    y = gemm(op, a, b, c)
    name = op.attribute("activation", "")
    return _ACTIVATIONS[name](y, [float(alpha), float(op.attribute("activation_beta", 0.0))])


TABLE: dict[str, Callable[..., Any]] = {
    "Conv": convolve,
    "ConvTranspose": _transposed,
    "com.microsoft:FusedConv": _fused,
    "com.microsoft:FusedGemm": _fused_gemm,
}
