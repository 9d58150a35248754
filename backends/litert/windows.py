"""Windows over images, channels last: their padding in numbers, and as LiteRT names it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.writer import Axes, Writer

__all__ = ["SAME", "VALID", "image", "last", "pad", "pads_of", "same", "two"]

SAME, VALID = 0, 1


def last(rank: int) -> Axes:
    """The order with channels last."""
    return (0, *range(2, rank), 1)


def pad(
    w: Writer, x: Tensor, before: Sequence[int], after: Sequence[int], value: Tensor | None = None
) -> Tensor:
    """Zeros, or one value, around `x`."""
    around = w.file.constant(np.array([*zip(before, after, strict=True)], np.int32))
    shape = [b + d + a for b, d, a in zip(before, x.shape, after, strict=True)]
    if value is None:
        return w.moved("PAD", [x, around], shape, "Pad")
    return w.moved("PADV2", [x, around, value], shape, "PadV2")


def image(w: Writer, x: Tensor) -> Tensor:
    """Batch, rows, columns, channels; a signal has one row."""
    return x if x.rank == 4 else w.reshape(x, (x.shape[0], 1, *x.shape[1:]))


def two(values: Sequence[int] | None, usual: int) -> list[int]:
    """Numbers for rows and columns; of a signal, which has one row, the usual one comes first."""
    found = list(values or ())
    return [usual] * (2 - len(found)) + found


def pads_of(
    w: Writer,
    node: ir.Node,
    dims: Sequence[int],
    size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[list[int], list[int]]:
    """What a window pads before and behind, by rows and columns."""
    automatic = w.attribute(node, "auto_pad")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        before, after = same(dims, size, stride, dilation)
        return (before, after) if automatic == "SAME_UPPER" else (after, before)
    pads = list(w.attribute(node, "pads") or [0] * 4)
    half = len(pads) // 2
    if automatic == "VALID":
        pads = [0] * len(pads)
    return two(pads[:half], 0), two(pads[half:], 0)


def same(
    dims: Sequence[int], size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What LiteRT's SAME pads before and behind."""
    found = []
    for d, k, s, g in zip(dims, size, stride, dilation, strict=True):
        total = max(0, (-(-d // s) - 1) * s + (k - 1) * g + 1 - d)
        found.append((total // 2, total - total // 2))
    return [b for b, _ in found], [a for _, a in found]
