"""Zero padding goes into the padding of the convolution or pooling after it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, constant_shape, constant_value

__all__ = ["PadIntoConv", "PadIntoPool"]


def _spatial_pads(pad: ir.Node, rank: int | None) -> list[int] | str | bool:
    """`pads` of the spatial axes (begins, then ends) of a constant zero Pad."""
    if attribute(pad, "mode") not in (None, "constant"):
        return "only padding with a constant can be a convolution's"
    if len(pad.inputs) < 2 or constant_shape(pad.inputs[1]) is None:
        return False
    pads = [int(p) for p in array_of(pad.inputs[1])]
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        if constant_value(pad.inputs[3]) is None or rank is None:
            return False
        axes = [int(a) % rank for a in array_of(pad.inputs[3])]
        full = [0] * (2 * rank)
        for k, axis in enumerate(axes):
            full[axis], full[rank + axis] = pads[k], pads[len(axes) + k]
        pads = full
    half = len(pads) // 2
    if rank is not None and half != rank:
        return False
    if min(pads) < 0:
        return "negative padding cuts"
    if any(pads[:2]) or any(pads[half : half + 2]):
        return "the batch or channel axis is padded"
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
        """A convolution of a padded value."""
        return op.Conv(op.Pad(x, ..., as_="pad"), w, ..., as_="conv")

    def check(
        self, pad: ir.Node, conv: ir.Node, w: ir.Value, ctx: Context
    ) -> bool | str | dict[str, Any]:
        """Zeros on spatial axes only, and the convolution's padding explicit."""
        extra = _spatial_pads(pad, ctx.get(shapes).rank(w))
        if not isinstance(extra, list):
            return extra
        if _value(pad) != 0.0:
            return "the padding is not zero"
        if attribute(conv, "auto_pad") not in (None, "NOTSET", "VALID"):
            return "the convolution pads by its input's size"
        return {"pads": _sum(conv, extra)}

    def rewrite(self, op: Any, conv: ir.Node, x: ir.Value, pads: list[int]) -> ir.Value:
        """The convolution with both paddings."""
        attributes = {k: a for k, a in conv.attributes.items() if k not in ("pads", "auto_pad")}
        out: ir.Value = op.node(
            "Conv", [x, *conv.inputs[1:]], {**attributes, "pads": pads}
        ).outputs[0]
        return out


class PadIntoPool(Rule):
    """MaxPool(Pad(x, p, -inf), pads=q) -> MaxPool(x, pads=p + q)
    AveragePool(Pad(x, p, 0), pads=q, count_include_pad=1) -> AveragePool(x, pads=p + q, ...)

    An average without padding of its own counts every element, so it takes the zeros too. A pool
    with ceil_mode may end inside its padding and is left alone; so is a pad not below the kernel.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """A pooling of a padded value."""
        padded = op.Pad(x, ..., as_="pad")
        return op.any(op.MaxPool(padded, as_="pool"), op.AveragePool(padded, as_="pool"))

    def check(self, pad: ir.Node, pool: ir.Node, ctx: Context) -> bool | str | dict[str, Any]:
        """The padded value is the pooling's neutral one."""
        kernel = list(attribute(pool, "kernel_shape"))
        extra = _spatial_pads(pad, len(kernel) + 2)
        if not isinstance(extra, list):
            return extra
        if attribute(pool, "auto_pad") not in (None, "NOTSET", "VALID"):
            return "the pooling pads by its input's size"
        if any(d != 1 for d in attribute(pool, "dilations") or ()):
            return "a dilated window may lie in the padding"
        if attribute(pool, "ceil_mode"):
            return "rounding up, the last window may lie in the padding"
        if len(pool.outputs) > 1 and pool.outputs[1].uses():
            return "indices would count the padding"
        value, own = _value(pad), any(attribute(pool, "pads") or ())
        if pool.op_type == "MaxPool":
            lowest = -np.inf
            dtype = ctx.get(shapes).dtype(pad.outputs[0])
            if dtype == ir.DataType.FLOAT:
                lowest = float(np.finfo(np.float32).min)
            if value is None or value > lowest:
                return "the padding is not below every value"
        elif value != 0.0 or (own and not attribute(pool, "count_include_pad")):
            return "the average does not count the padding as zeros"
        pads = _sum(pool, extra)
        if any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
            return "the padding is as large as the kernel"
        return {"pads": pads}

    def rewrite(self, op: Any, pool: ir.Node, x: ir.Value, pads: list[int]) -> ir.Value:
        """The pooling with both paddings."""
        attributes = {k: a for k, a in pool.attributes.items() if k not in ("pads", "auto_pad")}
        if pool.op_type == "AveragePool":
            attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
        out: ir.Value = op.node(pool.op_type, [x], {**attributes, "pads": pads}).outputs[0]
        return out
