"""Writer: the nodes of a model as operators of LiteRT, each value held in the axes it was made in.

ONNX has channels first, LiteRT last. A value is held as a tensor and the order of its axes; what
follows element by element takes them as they are, and a TRANSPOSE is written only where an operator
asks for another order, once per value and order. A Transpose in the model is a renaming.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.emitting import Emitter
from graphopt.backends.litert.flatbuffer import Array, Grid, Tensor

from graphopt.analyses.shapes.analysis import infer
from graphopt.errors import ModelError
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value

__all__ = ["Axes", "Held", "Lower", "Refused", "Writer", "plain_axes"]

Axes = tuple[int, ...]


class Refused(Exception):
    """LiteRT has no such operator, or not in this form: why."""


@dataclasses.dataclass(frozen=True)
class Held:
    """A value as a tensor: axis `k` of the tensor is axis `axes[k]` of the value."""

    tensor: Tensor
    axes: Axes


def plain_axes(rank: int) -> Axes:
    """The order of the model itself."""
    return tuple(range(rank))


class Writer(Emitter):
    """One model being written.

    Attributes:
        model: fixed shapes, folded.
    """

    def __init__(self, model: ir.Model, table: Mapping[str, Lower]) -> None:
        super().__init__()
        self.model, self.shapes = model, infer(model)
        self._table = table
        self._held: dict[ir.Value, list[Held]] = {}
        self._done: set[ir.Node] = set()

    # --- what a node asks for ---------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """Its shape. Refused if it depends on data."""
        found = None if value is None else self.shapes.static(value)
        if found is None:
            raise Refused("its shape depends on data")
        return found

    def dtype(self, value: ir.Value) -> str:
        """Its element type, as NumPy calls it."""
        found = self.shapes.dtype(value)
        if found is None:
            raise Refused("its type is unknown")
        return str(found.numpy())

    def attribute(self, node: ir.Node, name: str, default: Any = None) -> Any:
        """An attribute's value, or the default of the standard, or `default`."""
        imports = self.model.graph.opset_imports
        value = attribute(node, name, default, opset=imports.get(node.domain, 1))
        return list(value) if isinstance(value, tuple) else value

    def array(self, value: ir.Value | None) -> Array | None:
        """The elements of a constant."""
        tensor = constant_value(value)
        if tensor is not None:
            return np.asarray(tensor.numpy())
        data = None if value is None else self.shapes.data(value)
        return None if data is None or data.dtype == object else np.asarray(data)

    def integers(self, node: ir.Node, k: int) -> list[int] | None:
        """Input `k` as numbers; None if it is absent. Refused if it is computed."""
        if k >= len(node.inputs) or node.inputs[k] is None:
            return None
        found = self.array(node.inputs[k])
        if found is None:
            raise Refused(f"its input {k} is computed at run time")
        return [int(v) for v in found.reshape(-1)]

    def axes(self, value: ir.Value) -> Axes:
        """The order that a value is at hand in."""
        value = self._source(value)
        held, node = self._held.get(value), value.producer()
        if not held and node is not None and _is_dequantized(value):
            assert node.inputs[0] is not None
            return self.axes(node.inputs[0])
        return held[0].axes if held else plain_axes(len(self.shape(value)))

    def operand(self, node: ir.Node) -> tuple[Tensor, Axes]:
        """The first input of a node with its axes as they are at hand, and their order."""
        value = node.inputs[0]
        assert value is not None
        axes = self.axes(value)
        return self.read(value, axes), axes

    def read(self, value: ir.Value | None, axes: Axes | None = None) -> Tensor:
        """A value with its axes in this order, or its own."""
        assert value is not None
        value = self._source(value)
        rank = len(self.shape(value))
        axes = plain_axes(rank) if axes is None else axes
        held = self._held.setdefault(value, [])
        for one in held:
            if one.axes == axes:
                return one.tensor
        if not held and (array := self.array(value)) is not None:
            made = self._constant(value, array, axes)
        elif not held and _is_dequantized(value):
            made = self._dequantize(value, axes)
        elif held:
            order = [held[0].axes.index(a) for a in axes]
            made = self.transpose(held[0].tensor, order)
        else:
            raise Refused("what it reads could not be written")
        held.append(Held(made, axes))
        return made

    def weight(
        self, value: ir.Value, shape: Sequence[int], order: Sequence[int], *, kept: bool = False
    ) -> Tensor:
        """A value reshaped and then transposed; of a constant this is done here.

        `kept`: a constant in integers without zero point stays one, though the operator gives
        floats.
        """
        value = self._source(value)
        if kept and self.grid is None and (held := self._integers_of(value)) is not None:
            value = held
        array = self.array(value)
        if array is None:
            given = self.read(value)
            return self.transpose(self.reshape(given, shape), order)
        grid = self._grid_of(value, tuple(shape), tuple(order))
        return self.file.constant(_signed(array, grid).reshape(shape).transpose(order), grid)

    def _integers_of(self, value: ir.Value) -> ir.Value | None:
        """The integers of a constant that a DequantizeLinear reads, if it has no zero point."""
        node = value.producer()
        if node is None or node.op_type != "DequantizeLinear" or self.array(node.inputs[0]) is None:
            return None
        zeros = [self.array(v) for v in node.inputs[2:]]
        plain = all(z is not None and not z.any() for z in zeros)
        signed = node.inputs[0] is not None and self.dtype(node.inputs[0]) == "int8"
        blocks = self.attribute(node, "block_size", 0)
        return node.inputs[0] if plain and signed and not blocks else None

    def _constant(self, value: ir.Value, array: Array, axes: Axes) -> Tensor:
        grid = self._grid_of(value, array.shape, axes)
        return self.file.constant(_signed(array, grid).transpose(axes), grid)

    # --- integers ---------------------------------------------------------------------------

    def _source(self, value: ir.Value) -> ir.Value:
        """What stands for a value: in integers, what a DequantizeLinear reads."""
        node = value.producer()
        if self.grid is not None and node is not None and node.op_type == "DequantizeLinear":
            source = node.inputs[0]
            assert source is not None
            return source
        return value

    def _grid_of(self, value: ir.Value, shape: Axes, order: Axes) -> Grid | None:
        """The grid of a quantized constant, whose axes become `order`."""
        readers = [n for n, k in value.uses() if n.op_type == "DequantizeLinear" and k == 0]
        return self.grid_of(readers[0], shape, order) if readers else None

    def grid_of(self, node: ir.Node, shape: Axes = (), order: Axes = ()) -> Grid:
        """The grid of a Q or DQ node; of one with a scale per channel, after the transposition."""
        scale, zero = self.array(node.inputs[1]), np.zeros(1)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            zero = np.asarray(self.array(node.inputs[2]))
        if scale is None or self.attribute(node, "block_size", 0):
            raise Refused("its scales are computed or in blocks")
        if (zero != zero.reshape(-1)[0]).any():
            raise Refused("its channels have zero points of their own")
        held = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
        assert held is not None
        shift = 128 if self.dtype(held) == "uint8" else 0
        axis = 0
        if scale.size > 1:
            axis = self.attribute(node, "axis", 1) % len(self.shape(node.inputs[0]))
            axis = _axis_after(self.shape(node.inputs[0]), axis, shape, order)
        scales = tuple(float(v) for v in scale.reshape(-1))
        return Grid(scales, int(zero.reshape(-1)[0]) - shift, axis)

    def _dequantize(self, value: ir.Value, axes: Axes) -> Tensor:
        node = value.producer()
        assert node is not None
        assert node.inputs[0] is not None
        if self.dtype(node.inputs[0]) == "int32":  # a bias, which DEQUANTIZE does not take
            real = self.real(value)
            if real is None:
                raise Refused("a computed int32 is dequantized")
            return self.floats(real.transpose(axes))
        source = self.read(node.inputs[0], axes)
        return self.emit("DEQUANTIZE", [source], source.shape)

    def real(self, value: ir.Value | None) -> Array | None:
        """The numbers of a constant, also of one that a DequantizeLinear reads; else None."""
        node = None if value is None else value.producer()
        if node is None or node.op_type != "DequantizeLinear":
            return self.array(value)
        source = self.array(node.inputs[0])
        if source is None:
            return None
        scale, zero = self.array(node.inputs[1]), np.zeros(())
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            zero = np.asarray(self.array(node.inputs[2]))
        if scale is None or self.attribute(node, "block_size", 0):
            return None
        if scale.size > 1:
            axis = self.attribute(node, "axis", 1) % source.ndim
            along = [-1 if k == axis else 1 for k in range(source.ndim)]
            scale, zero = scale.reshape(along), zero.reshape(along) if zero.size > 1 else zero
        return (source.astype(np.float64) - zero) * scale

    # --- the walk ---------------------------------------------------------------------------

    def run(self) -> bytes:
        """The file. Raises ModelError naming every node that LiteRT does not take, and why."""
        graph = self.model.graph
        inputs = {}
        for value in graph.inputs:
            if not value.is_initializer():
                inputs[value.name or ""] = made = self._input(value)
                self._held[value] = [Held(made, plain_axes(made.rank))]
        refused = [text for node in graph if (text := self._node(node))]
        if refused:
            listed = "; ".join(refused[:8]) + (f"; {len(refused) - 8} more" * (len(refused) > 8))
            raise ModelError(f"LiteRT does not take {len(refused)} nodes: {listed}")
        outputs: dict[str, Tensor] = {}
        taken = {t.index for t in inputs.values()}
        for value in graph.outputs:
            tensor = self.read(value)
            if tensor.index in taken or self.array(value) is not None:
                tensor = self._copy(tensor)
            taken.add(tensor.index)
            outputs[value.name or ""] = tensor
        return self.file.to_bytes(inputs, outputs)

    def _input(self, value: ir.Value) -> Tensor:
        return self.file.tensor(self.shape(value), self.dtype(value), name=value.name or "")

    def _copy(self, x: Tensor) -> Tensor:
        shape = np.array(x.shape, np.int32)
        return self.moved("RESHAPE", [x, self.numbers(x.shape)], x.shape, "Reshape", newShape=shape)

    def _node(self, node: ir.Node) -> str:
        """Write a node; why it cannot be written, or ""."""
        if node in self._done:
            return ""
        name = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        try:
            if all(self.array(o) is not None for o in node.outputs):
                return ""
            if name not in self._table:
                raise Refused("there is no such operator")
            self._table[name](self, node)
        except Refused as error:
            self.grid = None
            for value in node.outputs:  # what follows is looked at all the same
                shape = self.shapes.static(value) or ()
                made = self.file.tensor(shape, "float32")
                self._held.setdefault(value, [Held(made, plain_axes(len(shape)))])
            return f"{name} (node '{node.name}': {error})"
        return ""

    def give(self, value: ir.Value, tensor: Tensor, axes: Axes | None = None) -> None:
        """Say that a value is this tensor."""
        axes = plain_axes(tensor.rank) if axes is None else axes
        self._held.setdefault(value, []).insert(0, Held(tensor, axes))

    def rename(self, value: ir.Value, source: ir.Value, order: Sequence[int]) -> None:
        """Say that a value is another with its axes in this order."""
        self.read(source, self.axes(source))
        for one in self._held[self._source(source)]:
            axes = tuple(order.index(a) for a in one.axes)
            self._held.setdefault(value, []).append(Held(one.tensor, axes))

    def take(self, value: ir.Value) -> Held:
        """What a value was said to be, said no longer."""
        (held, *_) = self._held.pop(value)
        return held

    def skip(self, node: ir.Node) -> None:
        """A node that is written as part of another."""
        self._done.add(node)

    def only_reader(self, value: ir.Value) -> ir.Node | None:
        """The one node that reads a value, if there is no other and it is no output."""
        uses = list(value.uses())
        return uses[0][0] if len(uses) == 1 and not value.is_graph_output() else None


Lower = Callable[[Writer, ir.Node], None]


def _is_dequantized(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "DequantizeLinear"


def _signed(array: Array, grid: Grid | None) -> Array:
    """Unsigned bytes of a grid as signed ones: its zero point moved along."""
    if grid is None or array.dtype != np.uint8:
        return array
    return (array.astype(np.int16) - 128).astype(np.int8)


def _axis_after(before: Axes, axis: int, shape: Axes, order: Axes) -> int:
    """Where an axis is after a reshape that keeps it whole, and a transposition."""
    size = int(np.prod(before[:axis], initial=1))
    found = next(
        k
        for k in range(len(shape))
        if int(np.prod(shape[:k], initial=1)) == size and shape[k] == before[axis]
    )
    return order.index(found)
