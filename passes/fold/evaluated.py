"""Constant evaluation: the values that are the same on every run, and what storing them costs."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.constants import QUANTIZATION, constant_value
from graphopt.graph.evaluation import deterministic, evaluate, quick
from graphopt.graph.numpy_kernels import MOVES
from graphopt.graph.traverse import all_graphs

__all__ = ["Allowance", "Evaluated"]

Array = np.ndarray[Any, Any]

#: Moved weights larger than this are not held in memory: they are computed where they are read.
HELD = 1 << 20
_TEXT = ir.DataType.STRING
#: Nothing is computed from, or into, more bytes or elements than this.
LARGEST = 1 << 26
#: Bytes by which all folds together may make a file larger: of a small file half, and some.
GROWTH, SMALL_GROWTH = 1 << 20, 1 << 17
#: A node takes about as many bytes as this: a value of that size is always stored in its place.
NODE = 1 << 8
#: Operators that may grow their inputs are computed up to this many elements.
GROWN = 1 << 22
#: A copy of a weight that is read elsewhere too may take this many bytes.
COPY = 1 << 12
#: Operators whose result may be far larger than their inputs.
GROWING = frozenset(("Tile", "Expand", "ConstantOfShape", "Range", "Resize", "OneHot", "Pad"))


@dataclasses.dataclass(frozen=True)
class Constant:
    """A value known before the model runs: held, or to be computed by `make` when it is read.

    `leaves` are the initializers it is computed from; `moved` says that its elements are theirs.
    """

    dtype: ir.DataType
    shape: tuple[int, ...]
    leaves: frozenset[ir.Value]
    moved: bool = False
    array: Array | None = None
    make: partial[Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return int(np.ceil(np.prod(self.shape, dtype=np.float64) * self.dtype.itemsize))

    def read(self) -> Array:
        """The elements."""
        if self.array is not None:
            return self.array
        assert self.make is not None
        return self.make()


class Allowance:
    """Bytes by which the folds of one run may still make the file larger."""

    def __init__(self, model: ir.Model) -> None:
        held = sum(_nbytes(v) for g in all_graphs(model.graph) for v in g.initializers.values())
        self.left = min(GROWTH, held // 2 + SMALL_GROWTH)

    def take(self, growth: float) -> bool:
        """Use some of it, if that much is left."""
        if growth > max(self.left, NODE):
            return False
        if growth > NODE:
            self.left -= int(growth)
        return True


class Evaluated:
    """Constants found so far, by value; which of their nodes stay is decided afterwards."""

    def __init__(self, model: ir.Model, shapes: Shapes, allowance: Allowance) -> None:
        self.values: dict[ir.Value, Constant] = {}
        self._opsets = dict(model.graph.opset_imports)
        self._shapes = shapes
        self._allowance = allowance
        self._kept: set[ir.Node] = set()
        self._demand: dict[ir.Value, float] = {}

    # --- forwards ---------------------------------------------------------------------------

    def visit(self, node: ir.Node) -> None:
        """Evaluate the node if its outputs are the same on every run."""
        if node.op_type == "Constant" or _is_stored_output(node):
            return
        if self._by_shape(node) or not deterministic(node) or node.op_type in QUANTIZATION:
            return
        inputs = [self._constant(v) for v in node.inputs]
        if any(c is None and v is not None for c, v in zip(inputs, node.inputs, strict=True)):
            return
        if not any(inputs):
            return
        leaves = frozenset[ir.Value]().union(*(c.leaves for c in inputs if c is not None))
        if not self._defer(node, inputs, leaves):
            self._compute(node, inputs, leaves)

    def _by_shape(self, node: ir.Node) -> bool:
        """A value whose elements follow from static shapes."""
        known = [self._shapes.fact(o) for o in node.outputs]
        stored = [f.concrete is not None and f.dtype not in (None, _TEXT) for f in known]
        if not known or not all(stored):
            return False
        for value, fact in zip(node.outputs, known, strict=True):
            array = fact.concrete
            assert array is not None
            assert fact.dtype is not None
            leaves = frozenset(v for v in node.inputs if v is not None and self._is_leaf(v))
            self.values[value] = Constant(fact.dtype, array.shape, leaves, array=array)
        return True

    def _defer(
        self, node: ir.Node, inputs: list[Constant | None], leaves: frozenset[ir.Value]
    ) -> bool:
        """Describe a large result of moving elements, to be computed when it is read."""
        fact = self._shapes.fact(node.outputs[0])
        dims = self._shapes.static(node.outputs[0])
        if len(node.outputs) != 1 or dims is None or fact.dtype in (None, _TEXT):
            return False
        made = Constant(fact.dtype, dims, leaves, _moved(node, inputs))
        if made.nbytes <= HELD or node.op_type not in MOVES:
            return False
        make = partial(_read_first, node.op_type, _attributes(node), inputs)
        self.values[node.outputs[0]] = dataclasses.replace(made, make=make)
        return True

    def _compute(
        self, node: ir.Node, inputs: list[Constant | None], leaves: frozenset[ir.Value]
    ) -> None:
        sizes = [self._shapes.static(o) for o in node.outputs if o.name]
        most = GROWN if node.op_type in GROWING else LARGEST
        if any(s is not None and np.prod(s, dtype=np.float64) > most for s in sizes):
            return
        if node.op_type in GROWING and None in sizes:
            return
        if sum(c.nbytes for c in inputs if c is not None) > LARGEST:
            return
        arrays = evaluate(node, [None if c is None else c.read() for c in inputs], self._opsets)
        if arrays is None:
            return
        moved = _moved(node, inputs)
        for value, array in zip([o for o in node.outputs if o.name], arrays, strict=True):
            dtype = _element_type(value, array, self._shapes)
            if dtype not in (None, ir.DataType.STRING):
                held = np.ascontiguousarray(array).reshape(array.shape)
                self.values[value] = Constant(dtype, array.shape, leaves, moved, held)

    def _is_leaf(self, value: ir.Value) -> bool:
        return value.is_initializer() and not value.is_graph_input()

    def _constant(self, value: ir.Value | None) -> Constant | None:
        if value is None:
            return None
        known = self.values.get(value)
        if known is not None:
            return known
        tensor = constant_value(value)
        if tensor is None or tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
            return None
        leaves = frozenset({value}) if self._is_leaf(value) else frozenset[ir.Value]()
        shape = tuple(tensor.shape.numpy())
        return Constant(tensor.dtype, shape, leaves, True, make=partial(_numpy, tensor))

    # --- backwards --------------------------------------------------------------------------

    def read_elsewhere(self, value: ir.Value) -> bool:
        """Whether a node that stays reads this constant, or it is an output."""
        return value.is_graph_output() or any(
            u.node in self._kept or not any(o in self.values for o in u.node.outputs)
            for u in value.uses()
        )

    def settle(self) -> None:
        """Add up, for each weight, the bytes of all results that would be stored in its place."""
        for value, constant in self.values.items():
            weights = _weights(constant)
            if weights and self.read_elsewhere(value):
                whole = sum(_nbytes(v) for v in weights)
                for leaf in weights:
                    share = constant.nbytes * _nbytes(leaf) / whole
                    self._demand[leaf] = self._demand.get(leaf, 0.0) + share

    def may_store(self, value: ir.Value) -> bool:
        """Whether storing the value makes the file larger by no more than what is left for that.

        Saved are initializers that nothing which stays reads, each shared among the results that
        replace it. A weight that would be stored twice is not: what is tied stays tied.
        """
        if value not in self.values:
            return False
        constant = self.values[value]
        if constant.nbytes <= COPY:
            return self._allowance.take(constant.nbytes)
        weights = _weights(constant)
        free = [v for v in weights if not self.read_elsewhere(v)]
        if constant.moved and weights:
            if free != weights or any(self._wanted(v, constant) > _nbytes(v) + COPY for v in free):
                return False
            # it may hold more than they do: rows of a table many times over
            return self._allowance.take(constant.nbytes - sum(map(_nbytes, free)))
        saved = sum(_nbytes(v) * min(1.0, _nbytes(v) / self._wanted(v, constant)) for v in free)
        return self._allowance.take(constant.nbytes - saved)

    def _wanted(self, leaf: ir.Value, constant: Constant) -> float:
        """Bytes that all results would store in the place of `leaf`, this one at least."""
        return max(self._demand.get(leaf, 0.0), float(min(constant.nbytes, _nbytes(leaf))))

    def keep(self, node: ir.Node) -> None:
        """The node stays: what it reads is read."""
        self._kept.add(node)

    def tensor(self, value: ir.Value) -> ir.TensorProtocol:
        """The constant as a tensor; a large one is computed when it is read, and not held."""
        constant = self.values[value]
        if constant.make is None:
            assert constant.array is not None
            return _tensor(constant.array, constant.dtype)
        shape = ir.Shape(constant.shape)
        return ir.LazyTensor(partial(_made, constant), dtype=constant.dtype, shape=shape)


def _weights(constant: Constant) -> list[ir.Value]:
    """The initializers it is computed from that are worth counting."""
    return [v for v in constant.leaves if _nbytes(v) > COPY]


def _is_stored_output(node: ir.Node) -> bool:
    """An Identity that gives a graph output its name."""
    return node.op_type == "Identity" and node.outputs[0].is_graph_output()


def _moved(node: ir.Node, inputs: list[Constant | None]) -> bool:
    return node.op_type in MOVES and inputs[0] is not None and inputs[0].moved


def _attributes(node: ir.Node) -> list[ir.Attr]:
    return list(node.attributes.values())


def _read_first(op_type: str, attributes: list[ir.Attr], inputs: list[Constant | None]) -> Array:
    """The output of a moving operator."""
    node = ir.Node("", op_type, [], attributes)
    arrays = quick(node, [None if c is None else c.read() for c in inputs])
    assert arrays is not None, f"{op_type} cannot be evaluated"
    return arrays[0]


def _made(constant: Constant) -> ir.TensorProtocol:
    return _tensor(constant.read(), constant.dtype)


def _tensor(array: Array, dtype: ir.DataType) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(array).reshape(array.shape), dtype=dtype)


def _numpy(tensor: ir.TensorProtocol) -> Array:
    return tensor.numpy()


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.nbytes)


def _element_type(value: ir.Value, array: Array, shapes: Shapes) -> ir.DataType | None:
    known = shapes.dtype(value)
    if known is not None:
        return known
    return ir.DataType.from_numpy(array.dtype) if array.dtype.kind in "fiub" else None
