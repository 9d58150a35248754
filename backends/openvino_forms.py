"""Forms: what ONNX Runtime takes and OpenVINO refuses, written so that both do.

A pooling window may not be larger than the image. Exported EfficientNets have one (the framework
clips it): hidden size times hidden size, over what is left of the image.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.rewriting.rules import Rule, rewrite

__all__ = ["in_its_forms"]


class PoolAll(Rule):
    """AveragePool(x), one window over all of x, nothing padded -> GlobalAveragePool(x)"""

    def pattern(self, op: Any, x: Any) -> Any:
        """One AveragePool."""
        return op.AveragePool(x, as_="pool")

    def check(self, x: ir.Value, pool: ir.Node, ctx: Context) -> bool:
        """The window covers the image with room to spare, and there is one window."""
        dims, made = (ctx.get(shapes).static(v) for v in (x, pool.outputs[0]))
        kernel = tuple(pool.attributes.get_ints("kernel_shape", ()))
        if dims is None or made is None or len(kernel) != len(dims) - 2:
            return False
        covers = all(k >= d for k, d in zip(kernel, dims[2:], strict=True)) and kernel != dims[2:]
        dilated = any(d != 1 for d in pool.attributes.get_ints("dilations", ()))
        padded = any(pool.attributes.get_ints("pads", ()))
        automatic = pool.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        single = all(d == 1 for d in made[2:])
        return covers and single and not (dilated or padded or automatic)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """The pool without a window."""
        return op.GlobalAveragePool(x)


def in_its_forms(model: ir.Model) -> ir.Model:
    """A clone of `model` (it shares the weights) in the forms OpenVINO takes."""
    clone = model.clone()
    rewrite(clone, Context(clone), (PoolAll,))
    return clone
