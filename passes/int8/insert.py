"""Inserting Q/DQ: the edit itself, once plan and grids are known.

float producer    x -> Q -> DQ -> integer nodes        (float users keep reading x)
integer producer  y -> Q -> DQ -> every user
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import Grid
from graphopt.passes.int8.operators import Operator
from graphopt.passes.int8.plan import Plan
from graphopt.passes.int8.weights import weight_of

from graphopt import provenance
from graphopt.context import Context
from graphopt.rewrite import Builder, Names

__all__ = ["insert"]

Array = np.ndarray[Any, Any]


def insert(
    model: ir.Model,
    ctx: Context,
    plan: Plan,
    grids: Mapping[ir.Value, Grid],
    weights: Mapping[ir.Node, tuple[Array, Array]],
) -> None:
    """Put Q/DQ around the nodes of `plan`; `weights` holds (integers, scales) by node."""
    _Inserter(model, ctx, grids, weights).run(plan)


class _Inserter:
    def __init__(
        self,
        model: ir.Model,
        ctx: Context,
        grids: Mapping[ir.Value, Grid],
        weights: Mapping[ir.Node, tuple[Array, Array]],
    ) -> None:
        self.model = model
        self.ctx = ctx
        self.grids = grids
        self.weights = weights
        self.names = Names(model)
        self.rounded: dict[ir.Value, ir.Value] = {}
        self.constants: dict[tuple[str, bytes, tuple[int, ...]], ir.Value] = {}
        self.stored: dict[tuple[Any, bytes, int | None], ir.Value] = {}

    def run(self, plan: Plan) -> None:
        made = plan.made_by()
        for value, grid in self.grids.items():
            producer = made.get(value)
            if producer is not None and self._whole(plan, value, plan.nodes[producer]):
                self._round_all(value, grid, producer)
        for node, kind in plan.nodes.items():
            for position in kind.data:
                value = node.inputs[position]
                assert value is not None
                if value in self.grids:
                    node.replace_input_with(position, self._round(value, node))
            if kind.weight is not None:
                self._weigh(node, kind)

    def _whole(self, plan: Plan, value: ir.Value, kind: Operator) -> bool:
        """Whether every user of an integer node's result reads the rounded value."""
        if kind.output != "either":
            return True
        return not value.is_graph_output() and all(
            use.node in plan.nodes and use.idx in plan.nodes[use.node].data for use in value.uses()
        )

    def _round_all(self, value: ir.Value, grid: Grid, producer: ir.Node) -> None:
        uses = list(value.uses())
        output = value.is_graph_output()
        at = value.producer()
        assert at is not None
        last = self._pair(value, grid, at, producer)
        for use in uses:
            use.node.replace_input_with(use.idx, last)
        if output:
            name = value.name
            value.name = self.names.fresh(f"{name}_float")
            value.replace_all_uses_with(last, replace_graph_outputs=True)
            pair = last.producer()
            assert pair is not None
            assert pair.inputs[0] is not None
            quantizer = pair.inputs[0].producer()
            assert quantizer is not None
            quantizer.replace_input_with(0, value)
            last.name = name
        self.rounded[value] = last

    def _round(self, value: ir.Value, node: ir.Node) -> ir.Value:
        if value in self.rounded:
            return self.rounded[value]
        at = value.producer()
        tensor = weight_of(value)
        if tensor is not None:
            last = self._constant(value, tensor.array(), self.grids[value], node)
        else:
            last = self._pair(value, self.grids[value], at, node)
        self.rounded[value] = last
        return last

    def _pair(self, value: ir.Value, grid: Grid, at: ir.Node | None, origin: ir.Node) -> ir.Value:
        """Q and DQ right after the producer `at` (at the start of the graph for an input)."""
        scale = self._shared(np.asarray(grid.scale, np.float32), "scale")
        zero = self._shared(np.asarray(grid.zero, grid.dtype), "zero")
        q = self._node("QuantizeLinear", [value, scale, zero], f"{value.name}_q")
        dq = self._node("DequantizeLinear", [q.outputs[0], scale, zero], f"{value.name}_dq")
        graph = self.model.graph
        if at is None:
            graph.insert_before(graph[0], [q, dq])
        else:
            graph.insert_after(at, [q, dq])
        q.outputs[0].type = ir.TensorType(ir.DataType[grid.dtype.upper()])
        q.outputs[0].shape = dq.outputs[0].shape = value.shape
        dq.outputs[0].type = value.type
        provenance.derive([q, dq], [origin], self.ctx.pass_name)
        return dq.outputs[0]

    def _constant(self, value: ir.Value, array: Array, grid: Grid, node: ir.Node) -> ir.Value:
        """A constant operand on its grid: integers in the file, then DQ."""
        info = np.iinfo(grid.dtype)
        integers = np.clip(np.rint(array / grid.scale) + grid.zero, info.min, info.max)
        q = self._initializer(integers.astype(grid.dtype), f"{value.name}_q")
        scale = self._shared(np.asarray(grid.scale, np.float32), "scale")
        zero = self._shared(np.asarray(grid.zero, grid.dtype), "zero")
        return self._dequantize(q, scale, zero, None, value, node)

    def _weigh(self, node: ir.Node, kind: Operator) -> None:
        assert kind.weight is not None
        value = node.inputs[kind.weight]
        assert value is not None
        integers, scales = self.weights[node]
        axis = kind.axis if scales.ndim else None
        weight = weight_of(value)
        assert weight is not None
        key = (weight.key, scales.tobytes(), axis)
        if key not in self.stored:
            q = self._initializer(integers, f"{value.name}_q")
            scale = self._shared(scales, f"{value.name}_scale")
            zero = self._shared(np.zeros(scales.shape, integers.dtype), "zero")
            self.stored[key] = self._dequantize(q, scale, zero, axis, value, node)
        data = node.inputs[kind.data[0]]
        node.replace_input_with(kind.weight, self.stored[key])
        if kind.bias is not None:
            assert data is not None
            self._bias(node, kind, scales, data)

    def _bias(self, node: ir.Node, kind: Operator, scales: Array, data: ir.Value) -> None:
        """Bias as int32 at scale(data) * scale(weight), so that sums need no shift."""
        assert kind.bias is not None
        value = node.inputs[kind.bias]
        assert value is not None
        tensor = weight_of(value)
        if tensor is None:
            return
        pair = data.producer()
        assert pair is not None
        assert pair.inputs[1] is not None
        step = weight_of(pair.inputs[1])
        assert step is not None
        product = (step.array().astype(np.float32) * scales).astype(np.float32)
        flat = tensor.array().reshape(-1).astype(np.float64)
        integers = np.clip(np.rint(flat / product), -(2**31) + 1, 2**31 - 1).astype(np.int32)
        axis = 0 if product.ndim else None
        q = self._initializer(integers, f"{value.name}_q")
        scale = self._initializer(product, f"{value.name}_scale")
        zero = self._shared(np.zeros(product.shape, np.int32), "zero")
        node.replace_input_with(kind.bias, self._dequantize(q, scale, zero, axis, value, node))

    def _dequantize(
        self,
        q: ir.Value,
        scale: ir.Value,
        zero: ir.Value,
        axis: int | None,
        old: ir.Value,
        node: ir.Node,
    ) -> ir.Value:
        attributes = None if axis is None else {"axis": axis}
        dq = self._node("DequantizeLinear", [q, scale, zero], f"{old.name}_dq", attributes)
        self.model.graph.insert_before(node, dq)
        dq.outputs[0].type, dq.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), q.shape
        provenance.derive([dq], [node], self.ctx.pass_name)
        return dq.outputs[0]

    def _node(
        self,
        op_type: str,
        inputs: list[ir.Value],
        name: str,
        attributes: dict[str, Any] | None = None,
    ) -> ir.Node:
        node = ir.Node(
            "",
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes or {}),
            num_outputs=1,
            name=self.names.fresh(name),
        )
        node.outputs[0].name = node.name
        return node

    def _initializer(self, array: Array, name: str) -> ir.Value:
        builder = Builder(self.model, self.model.graph[0], self.names)
        return builder.constant(array, name)

    def _shared(self, array: Array, name: str) -> ir.Value:
        key = (str(array.dtype), array.tobytes(), array.shape)
        if key not in self.constants:
            self.constants[key] = self._initializer(array, name)
        return self.constants[key]
