"""Q/DQ pairs inserted around the static nodes of a plan, once its grids are known.

float producer    x -> Q -> DQ -> integer nodes        (float users keep reading x)
integer producer  y -> Q -> DQ -> every user
wide reader       y -> Q -> DQ -> Q -> DQ -> reader    (16 bits; so does one of 8 bits read 16)
HardSigmoid(x)    x -> DQ at a times its step -> Add(b) -> Q on [0, 1], whose ends clip
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.channel_padding import missing_channels, padded, with_zeros
from graphopt.passes.int8.grid import Grid
from graphopt.passes.int8.operators import Operator
from graphopt.passes.int8.plan import Plan
from graphopt.passes.int8.plan_grids import read_grid
from graphopt.passes.int8.writer import Writer

from graphopt.graph.attributes import attribute
from graphopt.graph.building import remove_dead
from graphopt.graph.constants import weight_of
from graphopt.target import Int8Scheme

__all__ = ["insert", "integers_of"]

Array = np.ndarray[Any, Any]

#: What stands for 0.0 among unsigned weights.
UNSIGNED_ZERO = 128


def insert(
    writer: Writer,
    plan: Plan,
    grids: Mapping[ir.Value, Grid],
    weights: Mapping[ir.Node, tuple[Array, Array]],
    scheme: Int8Scheme,
    shifts: Mapping[ir.Node, Array],
) -> None:
    """Put Q/DQ around the nodes of `plan`; `weights` holds (integers, scales) by node.

    Biases become integers if the scheme's are, with `shifts` added. Convolutions of few channels
    get as many as the scheme's pack divides.
    """
    rounded: dict[tuple[ir.Value, str], ir.Value] = {}
    made_on: dict[ir.Value, Grid] = {}
    wider: dict[tuple[ir.Value, int], ir.Value] = {}
    made = plan.made_by()
    for value, grid in grids.items():
        producer = made.get(value)
        if producer is not None and plan.whole(producer):
            made_on[_round_all(writer, value, grid, producer)] = grid
    for node, kind in plan.nodes.items():
        for position in kind.data:
            read = node.inputs[position]
            assert read is not None
            found = grids.get(read) or made_on.get(read)
            if found is None:
                continue
            grid = read_grid(found, node, plan, scheme)
            if read in made_on and grid.dtype == found.dtype:
                continue
            if (read, grid.dtype) not in rounded:
                rounded[read, grid.dtype] = _round(writer, read, grid, node)
            node.replace_input_with(position, rounded[read, grid.dtype])
        if node.op_type == "HardSigmoid" and kind.fixed is not None:
            _line(writer, node)
        if kind.weight is not None and node not in plan.joined:
            integers, scales = weights[node]
            missing = missing_channels(node, scheme.conv_pack)
            if missing:
                read = node.inputs[0]
                assert read is not None
                if (read, missing) not in wider:
                    wider[read, missing] = padded(writer, read, missing, node)
                node.replace_input_with(0, wider[read, missing])
                integers = with_zeros(integers, missing)
            _weigh(writer, node, kind, integers, scales, scheme.weight)
            if kind.bias is not None and scheme.bias == "int32":
                _bias(writer, node, kind, scales, shifts.get(node))


def integers_of(node: ir.Node) -> list[ir.Value]:
    """What the DequantizeLinear before `node`'s activation reads: integers, scale, zero point."""
    value = node.inputs[0]
    pair = value.producer() if value is not None else None
    assert pair is not None
    return [v for v in pair.inputs if v is not None]


def _round_all(writer: Writer, value: ir.Value, grid: Grid, producer: ir.Node) -> ir.Value:
    """Every user of `value` reads it rounded; as a graph output it keeps its name."""
    uses = list(value.uses())
    output = value.is_graph_output()
    at = value.producer()
    assert at is not None
    quantizer, last = _pair(writer, value, grid, at, producer)
    for use in uses:
        use.node.replace_input_with(use.idx, last)
    if output:
        name = value.name
        value.name = writer.names.fresh(f"{name}_float")
        value.replace_all_uses_with(last, replace_graph_outputs=True)
        quantizer.replace_input_with(0, value)
        last.name = name
    return last


def _round(writer: Writer, value: ir.Value, grid: Grid, node: ir.Node) -> ir.Value:
    """What an integer node reads in the place of the float `value`."""
    weight = weight_of(value)
    if weight is None:
        return _pair(writer, value, grid, value.producer(), node)[1]
    info = np.iinfo(grid.dtype)
    integers = np.clip(np.rint(weight.array() / grid.scale) + grid.zero, info.min, info.max)
    q = writer.initializer(integers.astype(grid.dtype), f"{value.name}_q")
    name = f"{value.name}_dq"
    return writer.dequantize(q, *writer.grid(grid), None, node, name, domain=grid.domain)


def _pair(
    writer: Writer, value: ir.Value, grid: Grid, at: ir.Node | None, origin: ir.Node
) -> tuple[ir.Node, ir.Value]:
    """Q and DQ right after the producer `at` (at the start of the graph for an input)."""
    scale, zero = writer.grid(grid)
    q = writer.node(
        "QuantizeLinear",
        [value, scale, zero],
        f"{value.name}_q",
        origin=[origin],
        after=at,
        domain=grid.domain,
    )
    dq = writer.node(
        "DequantizeLinear",
        [q.outputs[0], scale, zero],
        f"{value.name}_dq",
        origin=[origin],
        after=q,
        domain=grid.domain,
    )
    q.outputs[0].type = ir.TensorType(ir.DataType[grid.dtype.upper()])
    q.outputs[0].shape = dq.outputs[0].shape = value.shape
    dq.outputs[0].type = value.type
    return q, dq.outputs[0]


def _line(writer: Writer, node: ir.Node) -> None:
    """a x + b in the place of HardSigmoid(x), which the runtime has in floats alone."""
    q, scale, zero = integers_of(node)
    step = weight_of(scale)
    assert step is not None
    name = node.name or "HardSigmoid"
    slope, middle = (np.float32(attribute(node, k)) for k in ("alpha", "beta"))
    scaled = writer.initializer(np.asarray(step.array() * slope), f"{name}_scale")
    x = writer.dequantize(q, scaled, zero, None, node, f"{name}_dq")
    x.shape = node.inputs[0].shape if node.inputs[0] is not None else None
    kept = weight_of(zero)
    assert kept is not None
    most = np.iinfo(kept.array().dtype).max
    held = writer.shared(np.asarray(most, kept.array().dtype), "most")
    half = writer.shared(np.asarray(middle / most, np.float32), f"{name}_middle")
    none = writer.shared(np.zeros((), kept.array().dtype), "zero")
    row = writer.dequantize(held, half, none, None, node, f"{name}_row")
    made = writer.node("Add", [x, row], name, origin=[node], before=node)
    node.outputs[0].replace_all_uses_with(made.outputs[0], replace_graph_outputs=True)
    made.outputs[0].type, made.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    remove_dead([node])


def _weigh(
    writer: Writer, node: ir.Node, kind: Operator, integers: Array, scales: Array, dtype: str
) -> None:
    assert kind.weight is not None
    value = node.inputs[kind.weight]
    weight = weight_of(value)
    assert value is not None
    assert weight is not None
    axis = kind.axis if scales.ndim else None
    zero = None
    if dtype == "uint8":
        integers = (integers.astype(np.int16) + UNSIGNED_ZERO).astype(np.uint8)
        zero = writer.shared(np.asarray(UNSIGNED_ZERO, np.uint8), "zero")
    q = writer.kept(
        (weight.key, scales.tobytes(), axis, integers.shape), integers, f"{value.name}_q"
    )
    scale = writer.shared(scales, f"{value.name}_scale")
    dq = writer.dequantize(q, scale, zero, axis, node, f"{value.name}_dq")
    node.replace_input_with(kind.weight, dq)


def _bias(
    writer: Writer, node: ir.Node, kind: Operator, scales: Array, shift: Array | None
) -> None:
    """Bias as int32 at scale(data) * scale(weight), so that sums need no shift."""
    assert kind.bias is not None
    value = node.inputs[kind.bias]
    data = node.inputs[kind.data[0]]
    bias = weight_of(value)
    pair = data.producer() if data is not None else None
    if bias is None or value is None or pair is None:
        return
    step = weight_of(pair.inputs[1])
    assert step is not None
    product = (step.array().astype(np.float32) * scales).astype(np.float32)
    flat = bias.array().reshape(-1).astype(np.float64)
    if shift is not None:
        flat = flat + shift
    integers = np.clip(np.rint(flat / product), -(2**31) + 1, 2**31 - 1).astype(np.int32)
    q = writer.initializer(integers, f"{value.name}_q")
    scale = writer.initializer(product, f"{value.name}_scale")
    axis = 0 if product.ndim else None
    dq = writer.dequantize(q, scale, None, axis, node, f"{value.name}_dq")
    node.replace_input_with(kind.bias, dq)
