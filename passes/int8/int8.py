"""The pass: plan, calibrate, round weights, insert."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import onnx_ir as ir
from graphopt.passes.int8.grids import make_grids, make_weights, observed
from graphopt.passes.int8.insert import insert
from graphopt.passes.int8.operators import ALREADY
from graphopt.passes.int8.plan import Plan, make_plan
from graphopt.passes.int8.weights import weight_of

from graphopt.analyses.ranges import minmax
from graphopt.context import Context
from graphopt.pass_ import Pass
from graphopt.rewrite import remove_dead

__all__ = ["Int8"]

#: Per-channel DequantizeLinear is new in this opset.
OPSET = 13


@dataclass(frozen=True)
class Int8(Pass):
    """Compute in 8-bit integers where the target gains from it, with ranges from samples.

    Attributes:
        exclude: node name patterns (`*` and `?` match) to leave in float.
    """

    exclude: tuple[str, ...] = ()

    lossy: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"samples"})

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Quantize `model` in place; returns how many nodes became integer."""
        scheme = ctx.target.int8
        if scheme is None:
            ctx.note(f"{ctx.target.name} gains nothing from integers.")
            return 0
        if (model.graph.opset_imports.get("") or 0) < OPSET:
            ctx.note(f"int8 needs opset {OPSET} or newer for scales per channel.")
            return 0
        if ctx.samples is None:
            ctx.note("int8 has no samples to find ranges with; give --samples.")
            return 0
        if ctx.samples.synthetic:
            ctx.note(
                "int8 found its ranges on random inputs: give real --samples, "
                "or accuracy may suffer."
            )
        draft = make_plan(model.graph, scheme.operators, self._allowed)
        ranges = minmax(model, observed(draft), ctx.samples)
        plan = make_plan(
            model.graph,
            scheme.operators,
            lambda n: self._allowed(n) or (None if ctx.edit(self, n) else "its edit was denied"),
        )
        grids = make_grids(plan, ranges, scheme)
        weights = make_weights(plan, grids, scheme)
        _report(model, ctx, plan)
        insert(model, ctx, plan, grids, weights)
        _drop_unused(model)
        ctx.invalidate()
        return len(plan.nodes)

    def _allowed(self, node: ir.Node) -> str | None:
        name = node.name or ""
        for pattern in self.exclude:
            if fnmatchcase(name, pattern):
                return f"excluded by '{pattern}'"
        return None


def _report(model: ir.Model, ctx: Context, plan: Plan) -> None:
    """Say what stays float and why, and which share of the weights became integer."""
    for node, reason in plan.left.items():
        if reason != ALREADY:
            ctx.refuse("Int8", node, reason)
    if not plan.nodes:
        return
    inside = {
        weight.root: weight.tensor.nbytes
        for node, kind in plan.nodes.items()
        if kind.weight is not None and (weight := weight_of(node.inputs[kind.weight]))
    }
    total = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    share = sum(inside.values()) / max(total, 1)
    ctx.note(f"int8: {len(plan.nodes)} nodes, {share:.1%} of the weight bytes.")


def _drop_unused(model: ir.Model) -> None:
    """Remove constants nothing reads any more: no dead float copies."""
    graph = model.graph
    remove_dead(n for n in list(graph) if n.op_type in ("Constant", "Identity", "Transpose"))
    for name in [n for n, v in graph.initializers.items() if not _read(v)]:
        del graph.initializers[name]


def _read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_input() or value.is_graph_output()
