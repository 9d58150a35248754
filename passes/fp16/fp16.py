"""Half precision, the pass: choose nodes, give them half values, cast at the shores of islands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.fp16.islands import (
    HEAVY,
    MASKED,
    ROUNDED,
    Places,
    half_nodes,
    half_places,
    is_mask,
    position_nodes,
    why_float,
)

from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.calibration.precision import MOST, rounding_errors
from graphopt.calibration.ranges import Observed, calibrate
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.building import Names
from graphopt.graph.constants import constant_value
from graphopt.layers import by_node
from graphopt.pass_ import Pass

__all__ = ["Fp16"]

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


@dataclass(frozen=True)
class Fp16(Pass):
    """Compute in half precision where the target gains from it; inputs and outputs stay float.

    Values whose range on the samples does not fit, and products that lose too much there, stay in
    float islands, with a Cast at each shore. Weights are stored in half precision, so the file
    halves.

    Attributes:
        layers: (pattern, "float" or "half") pairs (`graphopt.layers`): nodes whose name matches
            stay float, or may be half; the first match counts.
    """

    layers: tuple[tuple[str, Literal["float", "half"]], ...] = ()

    lossy: ClassVar[bool] = True
    compresses: ClassVar[bool] = True

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Make nodes of the main graph half in place; returns how many."""
        if "float16" not in ctx.target.precisions:
            ctx.note(f"{ctx.target.name} gains nothing from half precision.")
            return 0
        if ctx.samples is None:
            ctx.note("Without --samples fp16 knows the ranges of weights only.")
        able = self._able(model, ctx)
        chosen = [n for n in model.graph if n in able and ctx.edit(self, n)]
        _Writer(model, ctx).run({n: able[n] for n in chosen})
        ctx.invalidate()
        return len(chosen)

    def _able(self, model: ir.Model, ctx: Context) -> dict[ir.Node, Places]:
        """The nodes to make half, and which of their inputs and outputs."""
        known = ctx.get(shapes)
        opset = model.graph.opset_imports.get("") or 1
        could = {}
        for node in model.graph:
            places = half_places(node, opset)
            if places is None:
                continue
            inputs = frozenset(i for i in places.inputs if _is_float(known, node.inputs[i]))
            outputs = frozenset(i for i in places.outputs if _is_float(known, node.outputs[i]))
            if inputs:
                could[node] = Places(inputs, outputs)
        ranges = self._ranges(model, ctx, could)
        able = {}
        given = by_node(self.layers, model.graph, "fp16")
        positions = position_nodes(model.graph)
        moved = self._moved(model, ctx, could)
        for node, places in could.items():
            reason = "layers= says so" if given.get(node) == "float" else ""
            if node in positions and given.get(node) != "half":
                reason = reason or "it computes with positions"
            reason = reason or why_float(node, places, ranges, known)
            error = moved.get(node, 0.0)
            if not reason and error > MOST * ROUNDED:
                reason = f"its output moves by {error:.2g} of itself"
            if reason:
                ctx.refuse(self, node, f"{reason}: it stays float")
            else:
                able[node] = places
        regions = half_nodes(able)
        return {n: places for n, places in able.items() if n in regions}

    def _moved(
        self, model: ir.Model, ctx: Context, could: Mapping[ir.Node, Places]
    ) -> dict[ir.Node, float]:
        """By product, how far its output moves on samples if what it reads is rounded to half."""
        if ctx.samples is None:
            return {}
        places = {
            n: [i for i in sorted(p.inputs) if (v := n.inputs[i]) is not None and not is_mask(v)]
            for n, p in could.items()
            if n.op_type in HEAVY
        }
        return rounding_errors(model, places, HALF, ctx.samples)

    def _ranges(
        self, model: ir.Model, ctx: Context, could: dict[ir.Node, Places]
    ) -> dict[str, Observed | None]:
        if ctx.samples is None:
            return {}
        values = {
            v.name: None
            for n, places in could.items()
            for v in _values(n, places)
            if v.name and constant_value(v) is None
        }
        return calibrate(model, [n for n in values if n], ctx.samples, cache=ctx.cache)


class _Writer:
    """Half versions of values, each made once."""

    def __init__(self, model: ir.Model, ctx: Context) -> None:
        self.model = model
        self.ctx = ctx
        self.names = Names(model)
        self.half: dict[ir.Value, ir.Value] = {}

    def run(self, nodes: dict[ir.Node, Places]) -> None:
        made = [n.outputs[i] for n, places in nodes.items() for i in sorted(places.outputs)]
        self.half.update({v: v for v in made})
        for node, places in nodes.items():
            for i in sorted(places.inputs):
                value = node.inputs[i]
                assert value is not None
                node.replace_input_with(i, self._half(value, node))
        for value in made:
            value.type = ir.TensorType(HALF)
            self._return_to_float(value, nodes)
        self._drop_unused()

    def _half(self, value: ir.Value, user: ir.Node) -> ir.Value:
        if value not in self.half:
            tensor = constant_value(value)
            if tensor is not None:
                self.half[value] = self._constant(value, tensor)
            else:
                self.half[value] = self._cast(value, HALF, f"{value.name}_half", user)
        return self.half[value]

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        array = tensor.numpy()
        if is_mask(value):
            array = np.maximum(array, np.float32(MASKED))
        name = self.names.fresh(f"{value.name}_half")
        half = ir.tensor(array.astype(np.float16), name=name)
        made = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(HALF))
        made.const_value = half
        self.model.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, to: ir.DataType, name: str, origin: ir.Node) -> ir.Value:
        """A Cast right after what makes `value` (at the start of the graph for an input)."""
        attributes = [ir.AttrInt64("to", to.value)]
        node = ir.Node("", "Cast", [value], attributes, name=self.names.fresh(f"{name}/Cast"))
        result = node.outputs[0]
        result.name = self.names.fresh(name)
        result.type, result.shape = ir.TensorType(to), value.shape
        producer = value.producer()
        graph = self.model.graph
        if producer is None:
            graph.insert_before(graph[0], node)
        else:
            graph.insert_after(producer, node)
        provenance.derive([node], [origin], self.ctx.pass_name)
        return result

    def _return_to_float(self, value: ir.Value, nodes: dict[ir.Node, Places]) -> None:
        """A Cast back for those who read `value` in float; a graph output keeps its name."""
        readers = [
            u for u in value.uses() if u.node not in nodes or u.idx not in nodes[u.node].inputs
        ]
        if not readers and not value.is_graph_output():
            return
        producer = value.producer()
        assert producer is not None
        back = self._cast(value, FLOAT, f"{value.name}_float", producer)
        for use in readers:
            use.node.replace_input_with(use.idx, back)
        if value.is_graph_output():
            outputs = self.model.graph.outputs
            for k, output in enumerate(outputs):
                if output is value:
                    outputs[k] = back
            name = value.name
            value.name, back.name = self.names.fresh(f"{name}_half"), name

    def _drop_unused(self) -> None:
        """Float weights whose half version is the only one read."""
        initializers = self.model.graph.initializers
        for value in [v for v in self.half if v.name in initializers]:
            if not value.uses() and not value.is_graph_output() and value.name:
                del initializers[value.name]
        for value in self.half:
            node = value.producer()
            unused = node is not None and node.op_type == "Constant" and not value.uses()
            if unused and node is not None and not value.is_graph_output():
                self.model.graph.remove(node, safe=True)


def _is_float(known: Shapes, value: ir.Value | None) -> bool:
    return value is not None and bool(value.name) and known.dtype(value) == FLOAT


def _values(node: ir.Node, places: Places) -> list[ir.Value]:
    inputs = [v for i in sorted(places.inputs) if (v := node.inputs[i]) is not None]
    return [*inputs, *(node.outputs[i] for i in sorted(places.outputs))]
