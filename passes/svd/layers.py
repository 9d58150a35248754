"""Layers with a constant matrix (MatMul, Gemm, Conv, LSTM, ...), and who shares it.

Every layer is seen as a matrix M [K, N]: rows x [K] go to x M [N]. A convolution's x is a patch
(K = I kh kw), a recurrent layer's M holds every gate of every direction (N = D G H), a lookup's x
is one-hot (K = vocabulary).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.weights import Array, as_array, is_constant, root, static_shape

from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.samples import bind_shapes

__all__ = ["Geometry", "Layer", "Use", "find"]

Kind = Literal["linear", "conv", "recurrent"]


@dataclasses.dataclass(frozen=True, eq=False)
class Use:
    """One node that multiplies by the matrix.

    Attributes:
        node: the MatMul, Gemm, Conv, Gather, LSTM or GRU.
        at: which input is multiplied; the weight is the other of the first two.
        reverse: it multiplies by Mᵀ: x is [N].
        left: the matrix stands on the left: Mᵀ x, contracted over the last but one axis of x.
    """

    node: ir.Node
    at: Literal[0, 1] = 0
    reverse: bool = False
    left: bool = False

    @property
    def x(self) -> ir.Value:
        """What is multiplied, as the graph is now (the indices, for Gather)."""
        return self._input(self.at)

    @property
    def weight(self) -> ir.Value:
        """The value the node reads the matrix from."""
        return self._input(1 - self.at)

    def _input(self, k: int) -> ir.Value:
        value = self.node.inputs[k]
        assert value is not None
        return value

    @property
    def lookup(self) -> bool:
        """Whether x is one-hot (Gather)."""
        return self.node.op_type == "Gather"


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where a layer is applied: spatial sizes before and after (convolutions), and how often.

    Attributes:
        times: applications in one run, spatial positions of a convolution not counted.
        before, after: spatial sizes of a convolution's input and output.
    """

    times: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A constant matrix M [K, N] and the nodes that multiply by it.

    Attributes:
        kind: how its nodes apply it.
        rows, columns: K and N.
        kernel: spatial sizes of a convolution's kernel, else ().
        uses: the nodes, in graph order.
        shared: other nodes read the same weight, so it stays in the file.
        places: how often each use is applied, in the order of `uses`.
    """

    kind: Kind
    rows: int
    columns: int
    uses: tuple[Use, ...]
    kernel: tuple[int, ...] = ()
    shared: bool = False
    places: tuple[Geometry, ...] = ()

    @property
    def node(self) -> ir.Node:
        """The first node, which stands for the layer in reports."""
        return self.uses[0].node

    @property
    def name(self) -> str:
        """The name of the first node."""
        return self.node.name or self.node.outputs[0].name or self.node.op_type

    @property
    def weight_name(self) -> str:
        """The initializer (or value) that holds the weight."""
        return root(self.uses[0].weight)[0].name or "?"

    @property
    def channels(self) -> int:
        """Input channels of a convolution (K / kernel size), K otherwise."""
        return self.rows // int(np.prod(self.kernel, dtype=int))

    def matrix(self) -> Array:
        """M [K, N], a view of the stored weight where one exists."""
        first = next((u for u in self.uses if not u.reverse), self.uses[0])
        array = as_array(first.weight)
        assert array is not None
        if self.kind == "linear":
            return array.T if _flips(first) else array
        columns = array.shape[0] if self.kind == "conv" else self.columns
        return array.reshape(columns, -1).T

    def stored(self, matrix: Array, use: Use) -> Array:
        """M [K, N] as the array that `use` reads: the inverse of `matrix`."""
        if self.kind == "linear":
            return matrix.T if _flips(use) else matrix
        shape = static_shape(use.weight)
        assert shape is not None
        return matrix.T.reshape(shape)

    @cached_property
    def params(self) -> int:
        """Elements of the stored weight."""
        return self.rows * self.columns


def find(model: ir.Model, ctx: Context, rule: object) -> list[Layer]:
    """Layers whose weight is constant and not factored yet; the others are refused with a reason.

    Nodes that read one weight (tied embedding and head, layers that share) form one layer.
    """
    shapes = bound_shapes(model, bind_shapes(model, ctx.shapes)[0])
    groups: dict[tuple[ir.Value, str], list[Layer]] = {}
    for node in model.graph.all_nodes():
        reader = _READERS.get(node.op_type)
        if reader is None or node.domain not in ("", "ai.onnx"):
            continue
        head = provenance.why(node).partition(": ")[0]
        if head.startswith("svd") and not head.endswith(" pca"):
            continue
        found = reader(node)
        if isinstance(found, str):
            ctx.refuse(rule, node, found)
        elif found is not None:
            source, _ = root(found.uses[0].weight)
            groups.setdefault((source, found.kind), []).append(found)
    return [_join(source, layers, shapes) for (source, _), layers in groups.items()]


def _join(source: ir.Value, layers: list[Layer], shapes: Shapes) -> Layer:
    """One layer of all that read `source`, seen from the first that is no lookup."""
    first = next((la for la in layers if not la.uses[0].lookup), layers[0])
    seen = _orientation(first.uses[0])
    uses = []
    for layer in layers:
        use = layer.uses[0]
        reverse = layer.kind == "linear" and _orientation(use) != seen
        uses.append(dataclasses.replace(use, reverse=reverse))
    readers = {use.node for use in source.uses()}
    inside = {u.node for u in uses} | {p for u in uses if (p := u.weight.producer()) is not None}
    shared = bool(readers - inside) or source.is_graph_output()
    places = tuple(geometry(use, first.kernel, shapes) for use in uses)
    return dataclasses.replace(first, uses=tuple(uses), shared=shared, places=places)


def _orientation(use: Use) -> bool:
    """Whether the use multiplies by the transpose of the weight as it is stored."""
    flip = root(use.weight)[1]
    if use.node.op_type == "Gemm" and _int(use.node, "transB"):
        flip = not flip
    return not flip if use.left else flip


def _flips(use: Use) -> bool:
    """Whether the node reads M transposed."""
    stored = use.node.op_type == "Gemm" and bool(_int(use.node, "transB"))
    return stored ^ use.left ^ use.reverse


def _int(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of a constant floating-point value, else None."""
    if value is None or not is_constant(value):
        return None
    source = root(value)[0]
    dtype = value.dtype or source.dtype
    if dtype is None or not dtype.is_floating_point():
        return None
    return static_shape(value)


def _matmul(node: ir.Node) -> Layer | str | None:
    a, b = node.inputs
    shape = _shape(b)
    if shape is not None and a is not None and b is not None:
        if len(shape) != 2:
            return None if len(shape) < 2 else "the weight is a stack of matrices, not one"
        if not is_constant(a):
            return Layer("linear", shape[0], shape[1], (Use(node),))
        return None
    shape = _shape(a)
    if shape is not None and len(shape) == 2 and a is not None and b is not None:
        if b.shape is None or len(b.shape) < 2:
            return None
        return Layer("linear", shape[1], shape[0], (Use(node, at=1, left=True),))
    return None


def _gemm(node: ir.Node) -> Layer | str | None:
    a, b = node.inputs[:2]
    shape = _shape(b)
    if shape is None or len(shape) != 2 or a is None or b is None or is_constant(a):
        return None
    rows, columns = reversed(shape) if _int(node, "transB") else shape
    return Layer("linear", rows, columns, (Use(node),))


def _conv(node: ir.Node) -> Layer | str | None:
    x, w = node.inputs[:2]
    shape = _shape(w)
    if shape is None or x is None or w is None or len(shape) < 3:
        return None
    if _int(node, "group", 1) != 1:
        return "grouped convolution: its matrix is block diagonal, two factors would not be cheaper"
    rows = int(np.prod(shape[1:]))
    return Layer("conv", rows, shape[0], (Use(node),), kernel=tuple(shape[2:]))


def _gather(node: ir.Node) -> Layer | str | None:
    w, ids = node.inputs
    shape = _shape(w)
    if shape is None or len(shape) != 2 or ids is None or w is None or _int(node, "axis"):
        return None
    if is_constant(ids):
        return None
    return Layer("linear", shape[0], shape[1], (Use(node, at=1),))


def _recurrent(node: ir.Node) -> Layer | str | None:
    x, w = node.inputs[:2]
    shape = _shape(w)
    if shape is None or len(shape) != 3 or x is None or w is None:
        return None
    return Layer("recurrent", shape[2], shape[0] * shape[1], (Use(node),))


_READERS: dict[str, Callable[[ir.Node], Layer | str | None]] = {
    "Conv": _conv,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _matmul,
}


def geometry(use: Use, kernel: tuple[int, ...], shapes: Shapes) -> Geometry:
    """How often a use applies its matrix in one run; sizes that cannot be told count as 1."""
    out, into = _sizes(use.node.outputs[0], shapes), _sizes(use.x, shapes)
    if use.node.op_type == "Conv":
        blank = (1,) * len(kernel)
        return Geometry((out or (1,))[0], (into or ())[2:] or blank, (out or ())[2:] or blank)
    if use.node.op_type in ("LSTM", "GRU"):
        return Geometry(int(np.prod((into or ())[:2])))
    if not out:
        return Geometry(1)
    return Geometry(int(np.prod(out[:-2] + out[-1:] if use.left else out[:-1])))


def _sizes(value: ir.Value, shapes: Shapes) -> tuple[int, ...] | None:
    dims = shapes.shape(value)
    return None if dims is None else tuple(d if isinstance(d, int) else 1 for d in dims)
