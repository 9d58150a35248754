"""Function inlining: local functions replaced by their bodies where they are called."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from graphopt import Context
from graphopt.graph.traverse import all_nodes

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model, ctx: Context) -> int:
    """Every call of a model-local function -> its body, where all have the model's opsets."""
    called = [n for n in all_nodes(model.graph) if n.op_identifier() in model.functions]
    imports = model.graph.opset_imports
    for function in model.functions.values():
        if any(imports.get(d, v) != v for d, v in function.opset_imports.items()):
            return 0
    denied = [n for n in called if not ctx.edit("InlineFunction", n)]
    if not called or denied:
        return 0
    InlinePass()(model)
    ctx.invalidate()
    return len(called)
