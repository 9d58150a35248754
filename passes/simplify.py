"""Simplify: onnxsim's simplifier as one pass, under the same checks as every other."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir

from graphopt import Context, Pass
from graphopt.errors import MissingExtra
from graphopt.graph import provenance

__all__ = ["Simplify"]

#: onnxsim works on one protobuf message, which holds less than this.
MESSAGE_LIMIT = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Simplify(Pass):
    """Simplify with onnxsim (https://github.com/onnxsim/onnxsim): one edit, taken or left whole."""

    speeds_up: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"onnxsim"})

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Replace the graph by onnxsim's. Raises MissingExtra where onnxsim is not installed."""
        try:
            import onnxsim
        except ImportError as error:
            raise MissingExtra("onnxsim", "the pass 'simplify'") from error
        weights = (v.const_value for v in model.graph.initializers.values())
        if sum(w.nbytes for w in weights if w is not None) > MESSAGE_LIMIT:
            ctx.note("The model is larger than 2 GB, which onnxsim cannot hold; use clean, fold.")
            return 0
        before = ir.to_proto(model)
        overridable = any(v.name in model.graph.initializers for v in model.graph.inputs)
        after, _ = onnxsim.simplify(before, initializers_as_constants=not overridable)
        same = [n.SerializeToString(deterministic=True) for n in before.graph.node] == [
            n.SerializeToString(deterministic=True) for n in after.graph.node
        ]
        if same or not ctx.edit(self, "model"):
            return 0
        _replace(model, ir.from_proto(after), ctx.pass_name)
        ctx.invalidate()
        return 1


def _replace(model: ir.Model, new: ir.Model, pass_name: str) -> None:
    """Let `model` hold the graph of `new`; nodes it did not have are marked as this pass's."""
    names = {n.name for n in model.graph.all_nodes()}
    for node in new.graph.all_nodes():
        if node.name not in names:
            provenance.derive([node], [], pass_name)
    new.graph.meta.update(model.graph.meta)
    model.graph = new.graph
    model.ir_version = new.ir_version
    model.functions.clear()
    model.functions.update(new.functions)
