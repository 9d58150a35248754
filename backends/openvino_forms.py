"""Forms: what ONNX Runtime takes and OpenVINO refuses, written so that both do.

A pooling window may not be larger than the image. Exported EfficientNets have one (the framework
clips it): hidden size times hidden size, over what is left of the image.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import shapes
from graphopt.context import Context
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Replacement, Walker

__all__ = ["in_its_forms"]


class PoolAll(Walker):
    """AveragePool(x), one window over all of x, nothing padded -> GlobalAveragePool(x)"""

    roots = ("AveragePool",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x, given = node.inputs[0], node.attributes
        dims, made = (
            None if v is None else ctx.get(shapes).static(v) for v in (x, node.outputs[0])
        )
        kernel = tuple(given.get_ints("kernel_shape", ()))
        if x is None or dims is None or made is None or len(kernel) != len(dims) - 2:
            return None
        covers = all(k >= d for k, d in zip(kernel, dims[2:], strict=True)) and kernel != dims[2:]
        dilated = any(d != 1 for d in given.get_ints("dilations", ()))
        padded = any(given.get_ints("pads", ()))
        automatic = given.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        if not covers or dilated or padded or automatic or any(d != 1 for d in made[2:]):
            return None
        return Replacement(lambda op: op.GlobalAveragePool(x))


def in_its_forms(model: ir.Model) -> ir.Model:
    """A clone of `model` (it shares the weights) in the forms OpenVINO takes."""
    clone = model.clone()
    apply_rules(clone, Context(clone), (PoolAll,))
    return clone
