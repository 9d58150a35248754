"""Second moments of what layers read on samples, E[x x^T], streamed; convolutions read patches.

Whatever least squares, whitening or error-aware rounding need of any number of samples is in sums
over rows f of what a linear operator multiplies, and of rows y beside them:

    sum f f^T,  sum f y^T,  sum y^2,  sum f

Memory grows with neither the samples nor their length.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import Linear
from graphopt.graph.attributes import attribute

__all__ = ["Moments", "patches", "rows_of", "taps"]

Array = np.ndarray[Any, Any]
#: Rows of a matrix that are worked on at a time.
BLOCK = 64


@dataclasses.dataclass
class Moments:
    """Sums over rows; a group is a block of channels that is multiplied by itself.

    Attributes:
        ff: sum of f f^T [groups, n, n].
        fy: sum of f y^T [groups, n, m].
        yy: sum of y^2 [groups, m].
        total: sum of f [groups, n].
        rows: how many.
    """

    ff: Array
    fy: Array
    yy: Array
    total: Array
    rows: int = 0

    @classmethod
    def zero(cls, groups: int, features: int, outputs: int = 0) -> Moments:
        """No rows yet."""
        return cls(
            np.zeros((groups, features, features)),
            np.zeros((groups, features, outputs)),
            np.zeros((groups, outputs)),
            np.zeros((groups, features)),
        )

    def add(self, f: Array, y: Array | None = None) -> None:
        """Add rows: f [groups, rows, n], y [groups, rows, m]."""
        self.ff += f.transpose(0, 2, 1) @ f
        self.total += f.sum(axis=1, dtype=np.float64)
        self.rows += f.shape[1]
        if y is not None:
            self.fy += f.transpose(0, 2, 1) @ y
            self.yy += np.einsum("grm,grm->gm", y, y, dtype=np.float64)

    def __add__(self, other: Moments) -> Moments:
        sums = (getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self))
        return Moments(*sums)

    @property
    def second(self) -> Array:
        """E[f f^T] [groups, n, n]."""
        return np.asarray(self.ff / max(self.rows, 1))

    @property
    def mean(self) -> Array:
        """E[f] [groups, n]."""
        return np.asarray(self.total / max(self.rows, 1))

    def covariance(self) -> Array:
        """E[f f^T] - E[f] E[f]^T [groups, n, n], positive definite.

        Sums of float32 leave a share of E[f f^T] unknown, which is added to the diagonal: it is
        more than the difference itself where features hardly vary about their means.
        """
        mean, found = self.mean, self.second
        unknown = np.finfo(np.float32).eps * np.einsum("gii->g", found)
        for at in range(0, found.shape[1], BLOCK):  # a temporary as large takes longer than sums
            part = slice(at, at + BLOCK)
            found[:, part] -= mean[:, part, None] * mean[:, None, :]
        np.einsum("gii->gi", found)[:] += unknown[:, None]
        return found


def rows_of(op: Linear, x: Array, most: int, rng: np.random.Generator) -> Array:
    """Rows [n, features] of what an operator without groups multiplies, at most `most`, in order.

    Rows are drawn evenly, without replacement; other element types than float64 become float32.
    """
    if op.kernel:
        table = taps(op.node, op.kernel, x.shape[2:], _conv_sizes(op.node, op.kernel, x.shape[2:]))
        places = len(x) * len(table)
        chosen = _drawn(places, most, rng)
        (flat,) = patches(x, table, chosen=np.arange(places) if chosen is None else chosen)
    else:
        flat = np.moveaxis(x, op.x_axis, -1).reshape(-1, x.shape[op.x_axis])
        chosen = _drawn(len(flat), most, rng)
        flat = flat if chosen is None else flat[chosen]
    rows: Array = flat if flat.dtype == np.float64 else flat.astype(np.float32, copy=False)
    return rows


def _drawn(count: int, most: int, rng: np.random.Generator) -> Array | None:
    return None if count <= most else np.sort(rng.choice(count, most, replace=False))


def patches(x: Array, table: Array, groups: int = 1, chosen: Array | None = None) -> Array:
    """What a convolution multiplies (im2col): [groups, rows, features].

    Args:
        x: its input [batch, channels, ...].
        table: `taps`, of all output positions or some.
        groups: of channels.
        chosen: rows to take, counted position by position, sample by sample; None: all.
    """
    n, c = x.shape[:2]
    flat = np.concatenate([x.reshape(n, c, -1), np.zeros((n, c, 1), x.dtype)], axis=2)
    if chosen is None:
        got = flat.reshape(n, groups, c // groups, -1)[:, :, :, table]  # n, g, c/g, p, t
        return got.transpose(1, 0, 3, 2, 4).reshape(groups, n * len(table), -1)
    sample, place = np.divmod(chosen, len(table))
    some = flat[sample[:, None, None], np.arange(c)[:, None], table[place][:, None]]  # r, c, t
    return some.reshape(len(chosen), groups, -1).transpose(1, 0, 2)


def taps(
    node: ir.Node, kernel: tuple[int, ...], size_in: tuple[int, ...], size_out: tuple[int, ...]
) -> Array:
    """[positions, taps]: the flat input position that each tap reads at each output, or -1.

    Convolution reads i = o * stride - pad + t * dilation; the transpose reads i where
    i * stride = o + pad - t * dilation.
    """
    rank = len(size_in)
    strides, dilations = _steps(node, rank)
    pads = _pads(node, size_in, size_out, kernel)
    flat = np.zeros((1,) * (2 * rank), np.int64)
    valid = np.ones((1,) * (2 * rank), bool)
    for d in range(rank):
        o = np.arange(size_out[d])[:, None]
        t = np.arange(kernel[d])[None] * dilations[d]
        if node.op_type == "Conv":
            i = o * strides[d] - pads[d] + t
            ok = np.ones_like(i, bool)
        else:
            i, ok = (o + pads[d] - t) // strides[d], (o + pads[d] - t) % strides[d] == 0
        ok &= (i >= 0) & (i < size_in[d])
        shape = [1] * (2 * rank)
        shape[d], shape[rank + d] = i.shape
        flat = flat * size_in[d] + i.reshape(shape)
        valid = valid & ok.reshape(shape)
    return np.where(valid, flat, -1).reshape(int(np.prod(size_out)), int(np.prod(kernel)))


def _steps(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return (
        list(attribute(node, "strides", [1] * rank)),
        list(attribute(node, "dilations", [1] * rank)),
    )


def _pads(
    node: ir.Node, size_in: tuple[int, ...], size_out: tuple[int, ...], kernel: tuple[int, ...]
) -> list[int]:
    """What is padded before each axis, then after."""
    mode = attribute(node, "auto_pad")
    if mode in ("NOTSET", ""):
        return list(attribute(node, "pads", [0] * (2 * len(size_in))))
    if mode == "VALID":
        return [0] * len(size_in)
    strides, dilations = _steps(node, len(size_in))
    total = [
        max(0, (o - 1) * s + (k - 1) * d + 1 - i)
        for i, o, k, s, d in zip(size_in, size_out, kernel, strides, dilations, strict=True)
    ]
    return [p // 2 if mode == "SAME_UPPER" else p - p // 2 for p in total]


def _conv_sizes(
    node: ir.Node, kernel: tuple[int, ...], size_in: tuple[int, ...]
) -> tuple[int, ...]:
    """Spatial sizes of a Conv's output."""
    rank = len(size_in)
    strides, dilations = _steps(node, rank)
    if str(attribute(node, "auto_pad")).startswith("SAME"):
        return tuple(-(-i // s) for i, s in zip(size_in, strides, strict=True))
    pads = [*_pads(node, size_in, (), kernel), *[0] * rank]
    return tuple(
        (size_in[d] + pads[d] + pads[rank + d] - dilations[d] * (kernel[d] - 1) - 1) // strides[d]
        + 1
        for d in range(rank)
    )
