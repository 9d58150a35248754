"""Reductions, products of matrices, softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphopt.backends.torch_fx.shape import axes_of

__all__ = ["TABLE"]


def reduce_by(function: Callable[[Any, list[int], bool], Any]) -> Callable[..., Any]:
    """function(x, axes, keepdims) over the axes of the node, all of them if none are given."""

    def lower(op: Any, x: Any, _: Any = None) -> Any:
        axes = axes_of(op, 1)
        if not axes and op.attribute("noop_with_empty_axes", 0):
            return x
        axes = axes or list(range(op.rank()))
        if not axes:
            return function(x.reshape([1]), [0], False)
        return function(x, axes, bool(op.attribute("keepdims", 1)))

    return lower


def _prod(x: Any, axes: list[int], keep: bool) -> Any:
    for axis in axes:
        x = torch.prod(x, axis, True)
    return x if keep else x.squeeze(tuple(axes))


def _sum(op: Any, x: Any, _: Any = None) -> Any:
    # torch sums 32-bit integers in 64 bits
    return reduce_by(lambda x, a, k: torch.sum(x, a, k, dtype=x.dtype))(op, x)


def _softmax(function: Any) -> Callable[..., Any]:
    def lower(op: Any, x: Any) -> Any:
        if op.opset >= 13:
            return function(x, op.attribute("axis"))
        axis = op.attribute("axis") % op.rank()
        flat = x.flatten(axis) if axis < op.rank() else x
        return function(flat, axis).reshape(x.shape)

    return lower


def _hardmax(op: Any, x: Any) -> Any:
    axis = op.attribute("axis", -1)
    hit = torch.zeros_like(x)
    return torch.scatter(hit, axis, torch.argmax(x, axis, True), 1.0)


def _matmul(op: Any, a: Any, b: Any) -> Any:
    return torch.matmul(a, b)


def gemm(op: Any, a: Any, b: Any, c: Any = None) -> Any:
    """alpha op(A) op(B) + beta C"""
    a = a.t() if op.attribute("transA", 0) else a
    b = b.t() if op.attribute("transB", 0) else b
    y = torch.matmul(a, b)
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    y = y if alpha == 1 else y * alpha
    if c is None or beta == 0:
        return y
    return y + (c if beta == 1 else c * beta)


def _fused_matmul(op: Any, a: Any, b: Any) -> Any:
    for k, name in ((0, "A"), (1, "B")):
        x = (a, b)[k]
        if op.attribute(f"transBatch{name}", 0):
            rank = op.rank(k)
            x = x.permute([*range(1, rank - 1), 0, rank - 1])
        if op.attribute(f"trans{name}", 0) and op.rank(k) > 1:
            x = x.transpose(-1, -2)
        a, b = (x, b) if k == 0 else (a, x)
    y = torch.matmul(a, b)
    alpha = op.attribute("alpha", 1.0)
    return y if alpha == 1 else y * alpha


def _einsum(op: Any, *values: Any) -> Any:
    return torch.einsum(op.attribute("equation").replace(" ", ""), *values)


TABLE: dict[str, Callable[..., Any]] = {
    "Einsum": _einsum,
    "Gemm": gemm,
    "Hardmax": _hardmax,
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _matmul,
    "ReduceL1": reduce_by(lambda x, a, k: torch.sum(torch.abs(x), a, k)),
    "ReduceL2": reduce_by(lambda x, a, k: torch.linalg.vector_norm(x, 2, a, k)),
    "ReduceLogSum": reduce_by(lambda x, a, k: torch.log(torch.sum(x, a, k))),
    "ReduceLogSumExp": reduce_by(torch.logsumexp),
    "ReduceMax": reduce_by(torch.amax),
    "ReduceMean": reduce_by(torch.mean),
    "ReduceMin": reduce_by(torch.amin),
    "ReduceProd": reduce_by(_prod),
    "ReduceSum": _sum,
    "ReduceSumSquare": reduce_by(lambda x, a, k: torch.sum(x * x, a, k)),
    "Softmax": _softmax(torch.softmax),
    "com.microsoft:FusedMatMul": _fused_matmul,
}
