"""Pad fusion: padding goes into the padding of the convolution or pooling after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, constant_value
from graphopt.rewriting.rules import Verdict

__all__ = ["PadIntoConv", "PadIntoPool"]


def _spatial_pads(pad: ir.Node, rank: int | None) -> list[int] | Refused | None:
    """`pads` of the spatial axes (begins, then ends) of a constant zero Pad."""
    if attribute(pad, "mode") not in (None, "constant"):
        return Refused("only padding with a constant can be a convolution's")
    if len(pad.inputs) < 2 or constant_shape(pad.inputs[1]) is None:
        return None
    pads = [int(p) for p in array_of(pad.inputs[1])]
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        if constant_value(pad.inputs[3]) is None or rank is None:
            return None
        axes = [int(a) % rank for a in array_of(pad.inputs[3])]
        full = [0] * (2 * rank)
        for k, axis in enumerate(axes):
            full[axis], full[rank + axis] = pads[k], pads[len(axes) + k]
        pads = full
    half = len(pads) // 2
    if rank is not None and half != rank:
        return None
    if min(pads) < 0:
        return Refused("negative padding cuts")
    if any(pads[:2]) or any(pads[half : half + 2]):
        return Refused("the batch or channel axis is padded")
    return pads[2:half] + pads[half + 2 :]


def _value(pad: ir.Node) -> float | None:
    given = pad.inputs[2] if len(pad.inputs) > 2 else None
    if given is None:
        return 0.0
    return None if constant_value(given) is None else float(array_of(given).reshape(-1)[0])


def _sum(node: ir.Node, extra: list[int]) -> list[int]:
    own = attribute(node, "pads") or [0] * len(extra)
    return [a + b for a, b in zip(own, extra, strict=True)]


class PadIntoConv(Rule):
    """Conv(Pad(x, p), W, pads=q) -> Conv(x, W, pads=p + q), the padding being zero"""

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(op.Pad(x, ..., as_="pad"), w, ..., as_="conv")

    def check(self, pad: ir.Node, conv: ir.Node, w: ir.Value, ctx: Context) -> Verdict:
        why_not = "" if _value(pad) == 0.0 else "the padding is not zero"
        return _joined(pad, conv, ctx.get(shapes).rank(w), why_not or _implicit(conv))

    def rewrite(self, op: Builder, conv: ir.Node, x: ir.Value, pads: list[int]) -> ir.Value:
        return op.again(conv, [x, *conv.inputs[1:]], auto_pad=None, pads=pads)


class PadIntoPool(Rule):
    """MaxPool(Pad(x, p, -inf), pads=q) -> MaxPool(x, pads=p + q)
    AveragePool(Pad(x, p, 0), pads=q, count_include_pad=1) -> AveragePool(x, pads=p + q, ...)

    An average without padding of its own counts every element, so it takes the zeros too. A pool
    with ceil_mode may end inside its padding and is left alone; so is a pad not below the kernel.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        padded = op.Pad(x, ..., as_="pad")
        return op.any(op.MaxPool(padded, as_="pool"), op.AveragePool(padded, as_="pool"))

    def check(self, pad: ir.Node, pool: ir.Node, ctx: Context) -> Verdict:
        kernel = list(attribute(pool, "kernel_shape"))
        why_not = _implicit(pool) or _counts_padding(pool) or _not_neutral(pad, pool, ctx)
        verdict = _joined(pad, pool, len(kernel) + 2, why_not)
        if not isinstance(verdict, Bind):
            return verdict
        if any(p >= k for p, k in zip(verdict.arguments["pads"], kernel * 2, strict=True)):
            return Refused("the padding is as large as the kernel")
        return verdict

    def rewrite(self, op: Builder, pool: ir.Node, x: ir.Value, pads: list[int]) -> ir.Value:
        counted = {"count_include_pad": 1} if pool.op_type == "AveragePool" else {}
        return op.again(pool, [x], auto_pad=None, **counted, pads=pads)


def _joined(pad: ir.Node, node: ir.Node, rank: int | None, why_not: str) -> Verdict:
    """Both paddings of the spatial axes in one, unless there is a reason why not."""
    extra = _spatial_pads(pad, rank)
    if not isinstance(extra, list):
        return extra
    return Refused(why_not) if why_not else Bind(pads=_sum(node, extra))


def _implicit(node: ir.Node) -> str:
    """Why there is no padding to add to, or ""."""
    kind = "convolution" if node.op_type == "Conv" else "pooling"
    explicit = attribute(node, "auto_pad") in (None, "NOTSET", "VALID")
    return "" if explicit else f"the {kind} pads by its input's size"


def _counts_padding(pool: ir.Node) -> str:
    """Why the windows or indices of a pooling would see padding where the Pad had none, or ""."""
    if any(d != 1 for d in attribute(pool, "dilations") or ()):
        return "a dilated window may lie in the padding"
    if attribute(pool, "ceil_mode"):
        return "rounding up, the last window may lie in the padding"
    if len(pool.outputs) > 1 and pool.outputs[1].uses():
        return "indices would count the padding"
    return ""


def _not_neutral(pad: ir.Node, pool: ir.Node, ctx: Context) -> str:
    """Why the padded value is not the one that the pooling pads with, or ""."""
    value, own = _value(pad), any(attribute(pool, "pads") or ())
    if pool.op_type == "MaxPool":
        single = ctx.get(shapes).dtype(pad.outputs[0]) == ir.DataType.FLOAT
        lowest = float(np.finfo(np.float32).min) if single else -np.inf
        return "the padding is not below every value" if value is None or value > lowest else ""
    if value != 0.0 or (own and not attribute(pool, "count_include_pad")):
        return "the average does not count the padding as zeros"
    return ""
