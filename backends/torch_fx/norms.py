"""Normalizations, alone and fused with the sum before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["TABLE", "layer_norm", "rms_norm"]


def _batch_norm(op: Any, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, op.attribute("epsilon", 1e-5))


def _instance_norm(op: Any, x: Any, scale: Any, bias: Any) -> Any:
    eps = op.attribute("epsilon", 1e-5)
    axes = list(range(2, op.rank()))
    shape = [-1] + [1] * len(axes)
    mean = torch.mean(x, axes, True)
    shifted = x - mean
    var = torch.mean(shifted * shifted, axes, True)
    return shifted * torch.rsqrt(var + eps) * scale.reshape(shape) + bias.reshape(shape)


def layer_norm(x: Any, axes: list[int], scale: Any, bias: Any, eps: float) -> tuple[Any, Any, Any]:
    """(x - mean) / sqrt(var + eps) * scale + bias, mean, 1 / sqrt(var + eps)"""
    mean = torch.mean(x, axes, True)
    shifted = x - mean
    inverse = torch.rsqrt(torch.mean(shifted * shifted, axes, True) + eps)
    y = shifted * inverse
    y = y if scale is None else y * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_norm(x: Any, axes: list[int], scale: Any, eps: float) -> tuple[Any, Any]:
    """x / sqrt(mean(x^2) + eps) * scale, 1 / sqrt(mean(x^2) + eps)"""
    inverse = torch.rsqrt(torch.mean(x * x, axes, True) + eps)
    y = x * inverse
    return (y if scale is None else y * scale), inverse


def _axes(op: Any, default: int = -1) -> list[int]:
    rank = op.rank()
    return list(range(op.attribute("axis", default) % rank, rank))


def _layer_norm(op: Any, x: Any, scale: Any, bias: Any = None) -> Any:
    axes = _axes(op)
    eps = op.attribute("epsilon", 1e-5)
    if axes == [op.rank() - 1] and op.rank(1) == 1 and not op.wanted(1) and not op.wanted(2):
        dims = op.dims(1) or [None]
        if dims[0] not in (None, 1):
            return F.layer_norm(x, dims, scale, bias, eps)
    return layer_norm(x, axes, scale, bias, eps)


def _rms_norm(op: Any, x: Any, scale: Any) -> Any:
    return rms_norm(x, _axes(op), scale, op.attribute("epsilon", 1e-5))


def _group_norm(op: Any, x: Any, scale: Any, bias: Any) -> Any:
    groups, eps = op.attribute("num_groups"), op.attribute("epsilon", 1e-5)
    n, c = x.size(0), x.size(1)
    split = x.reshape(n, groups, -1)
    mean = torch.mean(split, -1, True)
    shifted = split - mean
    y = shifted * torch.rsqrt(torch.mean(shifted * shifted, -1, True) + eps)
    ones = [1] * (op.rank() - 2)
    if op.opset < 21:  # one scale a group
        return (y * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape)
    return y.reshape(x.shape) * scale.reshape(1, c, *ones) + bias.reshape(1, c, *ones)


def _skip_layer_norm(
    op: Any, x: Any, skip: Any, gamma: Any, beta: Any = None, bias: Any = None
) -> Any:
    total = x + skip if bias is None else x + skip + bias
    y, mean, inverse = layer_norm(total, [-1], gamma, beta, op.attribute("epsilon", 1e-12))
    return y, mean, inverse, total


def _skip_rms_norm(op: Any, x: Any, skip: Any, gamma: Any, bias: Any = None) -> Any:
    total = x + skip if bias is None else x + skip + bias
    y, inverse = rms_norm(total, [-1], gamma, op.attribute("epsilon", 1e-12))
    return y, inverse, inverse, total


def _lp_norm(op: Any, x: Any) -> Any:
    axis, p = op.attribute("axis", -1), float(op.attribute("p", 2))
    norm = torch.linalg.vector_norm(x, p, [axis], True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _mean_variance(op: Any, x: Any) -> Any:
    axes = op.attribute("axes") or [0, 2, 3]
    shifted = x - torch.mean(x, axes, True)
    return shifted / (torch.sqrt(torch.mean(shifted * shifted, axes, True)) + 1e-9)


def _local_response(op: Any, x: Any) -> Any:
    size = op.attribute("size")
    square = (x * x).transpose(1, -1)
    padded = F.pad(square, [(size - 1) // 2, size // 2])
    total = padded.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    alpha, beta = op.attribute("alpha", 1e-4), op.attribute("beta", 0.75)
    return x / torch.pow(op.attribute("bias", 1.0) + alpha / size * total, beta)


TABLE: dict[str, Callable[..., Any]] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "com.microsoft:SkipLayerNormalization": _skip_layer_norm,
    "com.microsoft:SkipSimplifiedLayerNormalization": _skip_rms_norm,
}
