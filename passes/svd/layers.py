"""Layers with a constant matrix (MatMul, Gemm, Conv, LSTM, ...), and who shares it.

Every layer is seen as a matrix M [K, N]: rows x [K] go to x M [N]. A convolution's x is a patch
(K = I kh kw), a recurrent layer's M holds every gate of every direction (N = D G H), a lookup's x
is one-hot (K = vocabulary).
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.linear import Linear, linear_of
from graphopt.analyses.shapes.analysis import bound_shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.context import Context
from graphopt.graph import provenance
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_array, is_constant

__all__ = ["Array", "Geometry", "Layer", "Use", "find"]

Array = np.ndarray[Any, Any]
Kind = Literal["linear", "conv", "recurrent"]

_KINDS: dict[str, Kind] = {
    "Conv": "conv",
    "GRU": "recurrent",
    "Gather": "linear",
    "Gemm": "linear",
    "LSTM": "recurrent",
    "MatMul": "linear",
}


@dataclasses.dataclass(frozen=True)
class Use:
    """One node that multiplies by the matrix.

    Attributes:
        op: how the MatMul, Gemm, Conv, Gather, LSTM or GRU multiplies.
        reverse: it multiplies by Mᵀ: x is [N].
    """

    op: Linear
    reverse: bool = False

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.op.node

    @property
    def x(self) -> ir.Value:
        """What is multiplied, as the graph is now (the indices, for Gather)."""
        return self.op.x

    @property
    def weight(self) -> ir.Value:
        """The value the node reads the matrix from."""
        return self.op.weight

    @property
    def left(self) -> bool:
        """Whether the matrix stands on the left: Mᵀ x, over the last but one axis of x."""
        return self.op.left

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
        matrix: Array = first.op.matrix()[0]
        return matrix if first.reverse else matrix.T

    def stored(self, matrix: Array, use: Use) -> Array:
        """M [K, N] as the array that `use` reads: the inverse of `matrix`."""
        return use.op.stored((matrix if use.reverse else matrix.T)[None])

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
        if node.op_type not in _KINDS:
            continue
        head = provenance.why(node).partition(": ")[0]
        if head.startswith("svd") and not head.endswith(" pca"):
            continue
        op = linear_of(node)
        if not isinstance(op, str) and not (op.dtype and op.dtype.is_floating_point()):
            continue
        reason = op if isinstance(op, str) else _why_not(op)
        if isinstance(op, str) or reason:
            if reason:
                ctx.refuse(rule, node, reason)
            continue
        kind = _KINDS[node.op_type]
        rows = op.in_channels * int(np.prod(op.kernel, dtype=int))
        found = Layer(kind, rows, op.out_channels, (Use(op),), op.kernel)
        groups.setdefault((root(op.weight)[0], kind), []).append(found)
    return [_join(source, layers, shapes) for (source, _), layers in groups.items()]


def _why_not(op: Linear) -> str:
    if op.stacked:
        return "the weight is a stack of matrices, not one"
    if op.groups != 1:
        return "grouped convolution: its matrix is block diagonal, two factors would not be cheaper"
    if op.left and op.x.shape is None:
        return "what it multiplies is not known to have rows"
    return ""


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


def root(value: ir.Value) -> tuple[ir.Value, bool]:
    """The value a matrix comes from through Identity and Transpose, and whether it is flipped."""
    flipped = False
    while (node := value.producer()) is not None and node.domain in ("", "ai.onnx"):
        source = node.inputs[0] if node.inputs else None
        if source is None or not is_constant(source):
            break
        if node.op_type == "Transpose":
            array = constant_array(source)
            if array is None or array.ndim != 2:
                break
            flipped ^= list(attribute(node, "perm", (1, 0))) == [1, 0]
        elif node.op_type != "Identity":
            break
        value = source
    return value, flipped


def _orientation(use: Use) -> bool:
    """Whether the use multiplies by the transpose of the weight as it is stored."""
    return root(use.weight)[1] ^ (use.op.out_axis < use.op.in_axis)


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
