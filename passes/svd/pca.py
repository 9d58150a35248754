"""PCA of activations: those that span few directions narrowed in both neighbouring layers.

    y = x M + c;  z = y W     with  y Q Qᵀ ~ y   ->   y' = x (M Q) + c Q;  z = y' (Qᵀ W)

Q [N, r] is the principal basis of y over the samples. It passes through everything that acts on
every channel alike and linearly: sums (residual streams), per-channel constants added, Identity and
averages over positions. So all layers that write or read such a *stream* are rewritten together and
no operator is added. (For residual streams of transformers the idea is Ashkboos et al. 2024,
"SliceGPT".) The second moment is not centred, so padding with zeros stays right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from graphopt.passes.svd.factorize import drop
from graphopt.passes.svd.layers import Array, Layer, Use
from graphopt.passes.svd.spectrum import symmetric

from graphopt.execution.observe import observe
from graphopt.graph import provenance
from graphopt.graph.building import Builder, Names
from graphopt.graph.constants import constant_array, is_constant
from graphopt.samples import Feeds

__all__ = ["Stream", "bases", "narrow", "streams"]

#: Rows taken from one value in one run.
ROWS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Values that share their channels, and every layer at their ends.

    Attributes:
        width: number of channels N.
        axis: where they are: 1 for convolutions, -1 for matrices.
        values: the values.
        writers, readers: layers that produce and consume them.
        constants: Adds of a per-channel constant, and which input it is.
    """

    width: int
    axis: int
    values: tuple[ir.Value, ...]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    constants: tuple[tuple[ir.Node, int], ...]


def streams(layers: Sequence[Layer]) -> list[Stream]:
    """Every stream that layers alone write and read."""
    able = [la for la in layers if _foldable(la)]
    writers = {la.node.outputs[0]: la for la in able}
    readers = {la.node: la for la in able}
    found, seen = [], set[ir.Value]()
    for value in writers:
        if value not in seen:
            stream = _follow(value, writers, readers, seen)
            if stream is not None:
                found.append(stream)
    return found


def _foldable(layer: Layer) -> bool:
    use = layer.uses[0]
    plain = layer.kind == "conv" or use.node.op_type in ("MatMul", "Gemm")
    bias = use.op.bias
    array = constant_array(bias) if bias is not None else np.zeros(layer.columns)
    if array is None or array.shape[-1:] != (layer.columns,):
        return False
    return len(layer.uses) == 1 and plain and not (layer.shared or use.left or use.op.turned)


def _follow(
    start: ir.Value,
    writers: Mapping[ir.Value, Layer],
    readers: Mapping[ir.Node, Layer],
    seen: set[ir.Value],
) -> Stream | None:
    first = writers[start]
    axis = 1 if first.kind == "conv" else -1
    made: dict[Layer, None] = {}
    read: dict[Layer, None] = {}
    added: dict[tuple[ir.Node, int], None] = {}
    values: dict[ir.Value, None] = {}
    queue = [start]
    sound = True
    while queue:
        value = queue.pop()
        if value in values:
            continue
        values[value] = None
        seen.add(value)
        if value.is_graph_output() or value.is_graph_input():
            sound = False
        writer, node = writers.get(value), value.producer()
        if writer is not None:
            sound &= writer.kind == first.kind and writer.columns == first.columns
            made[writer] = None
        elif node is None or not _carries(node, first.columns, axis, queue, added):
            sound = False
        for use in value.uses():
            reader = readers.get(use.node)
            if reader is not None and reader.uses[0].op.data == use.idx:
                sound &= reader.kind == first.kind and reader.channels == first.columns
                read[reader] = None
            elif not _carries(use.node, first.columns, axis, queue, added):
                sound = False
    if not sound or not read or not made:
        return None
    return Stream(first.columns, axis, tuple(values), tuple(made), tuple(read), tuple(added))


def _carries(
    node: ir.Node,
    width: int,
    axis: int,
    queue: list[ir.Value],
    added: dict[tuple[ir.Node, int], None],
) -> bool:
    """Whether the node acts on channels alike and linearly; its values join the stream."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return False
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Add":
        if axis == 1 and len(node.outputs[0].shape or ()) != 4:
            return False
        for k, value in enumerate(inputs):
            if not is_constant(value):
                continue
            array = constant_array(value)
            if array is None or not _per_channel(array, width, axis):
                return False
            added[node, k] = None
        queue += [v for v in inputs if not is_constant(v)]
    elif node.op_type == "Identity" or (node.op_type == "GlobalAveragePool" and axis == 1):
        queue.append(inputs[0])
    else:
        return False
    same = [v.shape for v in (*inputs, node.outputs[0]) if not is_constant(v)]
    if node.op_type == "Add" and any(s is None or list(s) != list(same[0] or []) for s in same):
        return False  # a sum that broadcasts
    queue.append(node.outputs[0])
    return True


def _per_channel(array: Array, width: int, axis: int) -> bool:
    if axis == -1:
        return bool(array.shape[-1:] == (width,))
    return array.ndim >= 3 and bool(array.shape[-3] == width)


def bases(
    model: ir.Model,
    found: Sequence[Stream],
    samples: Iterable[Feeds],
    allowed: float,
    multiple: int,
) -> list[tuple[Stream, Array, float]]:
    """For every stream that can be narrowed: its basis Q [N, r] and what that loses.

    Args:
        model: the model, not changed here.
        found: streams of it.
        samples: what is run.
        allowed: relative squared error of the stream's values.
        multiple: widths are multiples of this.
    """
    read = {s: sorted({la.uses[0].x.name or "" for la in s.readers}) for s in found}
    sums = {(s, n): np.zeros((s.width, s.width)) for s, names in read.items() for n in names}
    for seen in observe(model, sorted({n for _, n in sums}), samples):
        for (stream, name), total in sums.items():
            rows = np.moveaxis(seen[name], stream.axis, -1).reshape(-1, stream.width)
            if len(rows) > ROWS:
                rows = rows[:: -(-len(rows) // ROWS)]
            rows = rows.astype(np.float64)
            total += rows.T @ rows
    out = []
    for stream, names in read.items():
        each = [sums[stream, n] for n in names]
        moment = sum((m / max(float(np.trace(m)), 1e-300) for m in each), np.zeros(1))
        values, vectors = symmetric(moment)
        lost = np.maximum(1 - values.cumsum() / max(float(values.sum()), 1e-300), 0.0)
        rank = int(np.argmax(lost <= allowed)) + 1 if (lost <= allowed).any() else stream.width
        rank = -(-rank // multiple) * multiple
        if values.sum() > 0 and rank < stream.width:
            out.append((stream, vectors[:, :rank], float(lost[rank - 1]) ** 0.5))
    return out


def narrow(model: ir.Model, stream: Stream, basis: Array, why: str, names: Names) -> None:
    """Rewrite every layer of `stream` in `basis` [N, r]; no node is added or removed."""
    rank = basis.shape[1]
    for layer in stream.writers:
        matrix = layer.matrix().astype(np.float64) @ basis
        _store(model, layer.uses[0], _shaped(layer, matrix), names)
        node = layer.node
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _bias(model, node, basis, names)
    for layer in stream.readers:
        old = layer.matrix()
        columns = old.shape[1]  # fewer than the layer's, if what it writes was narrowed before
        split = old.reshape(stream.width, -1, columns).astype(np.float64)
        matrix = np.einsum("nr,npo->rpo", basis, split).reshape(-1, columns)
        _store(model, layer.uses[0], _shaped(layer, matrix), names)
    for node, k in stream.constants:
        array = constant_array(node.inputs[k])
        assert array is not None
        moved = np.moveaxis(array, -3, -1) if stream.axis == 1 else array
        moved = moved.astype(np.float64) @ basis
        moved = np.moveaxis(moved, -1, -3) if stream.axis == 1 else moved
        _put(model, node, k, moved.astype(array.dtype), names)
    for value in stream.values:
        if value.shape is not None:
            sizes = list(value.shape)
            sizes[stream.axis] = rank
            value.shape = ir.Shape(sizes)
    nodes = [la.node for la in (*stream.writers, *stream.readers)]
    provenance.explain([n for n in nodes if not provenance.why(n).startswith("svd(")], why)


def _shaped(layer: Layer, matrix: Array) -> Array:
    """M in the layout its node reads."""
    if layer.kind == "conv":
        return matrix.T.reshape(matrix.shape[1], -1, *layer.kernel)
    return layer.stored(matrix, layer.uses[0])


def _store(model: ir.Model, use: Use, array: Array, names: Names) -> None:
    dtype = (use.weight.dtype or ir.DataType.FLOAT).numpy()
    _put(model, use.node, use.op.at, array.astype(dtype), names)


def _bias(model: ir.Model, node: ir.Node, basis: Array, names: Names) -> None:
    array = constant_array(node.inputs[2])
    assert array is not None
    _put(model, node, 2, (array.astype(np.float64) @ basis).astype(array.dtype), names)


def _put(model: ir.Model, node: ir.Node, k: int, array: Array, names: Names) -> None:
    """Give the node a new constant as input k, and drop the old one if nobody reads it."""
    old = node.inputs[k]
    assert old is not None
    fresh = Builder(model, node, names).constant(np.ascontiguousarray(array), f"{old.name}.pca")
    node.replace_input_with(k, fresh)
    drop(old)
