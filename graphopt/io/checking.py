"""What must hold of a model before graphopt works on it; each failure is one line.

Checked on the protobuf message, before anything is built from it: versions, one definition per
name, every name defined, no cycles, tensors whose data has the size their shape says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.io.signatures import STANDARD, check_calls, check_signatures, title_of

__all__ = ["OLDEST_OPSET", "check_structure", "check_tensor", "check_versions"]

OLDEST_OPSET = 7
#: Bytes that a sparse tensor may stand for.
LARGEST = 8 << 30
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
_SPARSE = (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS)
#: Typed data field by data type, and how many of its entries one element takes.
_TYPED = {
    "float_data": {"FLOAT": 1, "COMPLEX64": 2},
    "double_data": {"DOUBLE": 1, "COMPLEX128": 2},
    "int64_data": {"INT64": 1},
    "uint64_data": {"UINT32": 1, "UINT64": 1},
    "string_data": {"STRING": 1},
}
#: What defines each name.
_Defined = dict[str, "str | onnx.NodeProto"]
_FIELD = {d: (f, n) for f, types in _TYPED.items() for d, n in types.items()}


def check_versions(proto: onnx.ModelProto) -> None:
    """The versions are ones that this installation can read. Raises ModelError."""
    if proto.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"ONNX IR version {proto.ir_version} is newer than the installed onnx "
            f"{onnx.__version__} knows ({onnx.IR_VERSION}): upgrade onnx"
        )
    if proto.training_info:
        raise ModelError(
            "it holds training_info, which would be lost: export the inference model alone"
        )
    version = next((e.version for e in proto.opset_import if e.domain in STANDARD), None)
    if version is None:
        if any(n.domain in STANDARD for n in proto.graph.node):
            raise ModelError("it says no opset version (opset_import of the ai.onnx domain)")
        return
    newest = onnx.defs.onnx_opset_version()
    if version > newest:
        raise ModelError(
            f"opset {version} is unknown: the installed onnx {onnx.__version__} "
            f"knows up to {newest}; upgrade onnx or export with an older opset"
        )
    if version < OLDEST_OPSET:
        raise ModelError(
            f"opset {version} is too old: graphopt reads {OLDEST_OPSET} and later; "
            "convert it with onnx.version_converter first"
        )


def check_structure(proto: onnx.ModelProto) -> list[str]:
    """Names, order and tensors of every graph and function. Raises ModelError.

    Returns:
        Notes on what was wrong but can be set right: graphs whose nodes are out of order.
    """
    notes: list[str] = []
    for value in proto.graph.input:
        kind = value.type
        if kind.HasField("tensor_type") and not kind.tensor_type.elem_type:
            raise ModelError(f"graph: input '{value.name}' has no element type")
    free = _check_graph(proto.graph, "graph", notes)
    for name, where in free.items():
        raise ModelError(f"{where} reads '{name}', which nothing defines")
    check_signatures(proto)
    check_calls(proto)
    for function in proto.functions:
        where = f"function {function.domain}:{function.name}"
        given: _Defined = dict.fromkeys(function.input, "input")
        inner = _check_nodes(function.node, given, where, notes)
        for name, reader in inner.items():
            raise ModelError(f"{where}: {reader} reads '{name}', which nothing defines")
        made = {*function.input, *(o for n in function.node for o in n.output)}
        _check_outputs(function.output, made, where)
    return notes


def check_tensor(tensor: onnx.TensorProto, what: str) -> int:
    """The bytes a tensor takes as raw data; its own data is checked against that.

    Raises:
        ModelError: an unknown type, a negative size, or data that does not match the shape.
    """
    if tensor.data_type == 0 or tensor.data_type not in ir.DataType._value2member_map_:
        raise ModelError(f"{what} has the unknown element type {tensor.data_type}")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{what} has the impossible shape {list(tensor.dims)}")
    dtype, count = ir.DataType(tensor.data_type), math.prod(tensor.dims)
    is_text = dtype == ir.DataType.STRING
    nbytes = 0 if is_text else math.ceil(count * dtype.bitwidth / 8)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return nbytes
    shape = f"its shape {list(tensor.dims)} of {dtype.name}"
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise ModelError(
                f"{what} holds {len(tensor.raw_data)} bytes where {shape} needs {nbytes}"
            )
        return nbytes
    field, each = _FIELD.get(dtype.name, ("int32_data", 1))
    wanted = count * each
    if field == "int32_data" and dtype.bitwidth in (2, 4):
        wanted = math.ceil(count * dtype.bitwidth / 8)
    have = len(getattr(tensor, field))
    if have != wanted:
        raise ModelError(f"{what} holds {have} values where {shape} needs {wanted}")
    return nbytes


def _check_graph(graph: onnx.GraphProto, where: str, notes: list[str]) -> dict[str, str]:
    """Names the graph reads from outside it, each with who reads it."""
    defined: _Defined = {}
    for value in graph.input:
        _define(defined, value.name, "input", where)
    inputs = set(defined)
    for tensor in graph.initializer:
        what = f"{where}: initializer '{tensor.name}'"
        if not tensor.name:
            raise ModelError(f"{where}: an initializer has no name")
        check_tensor(tensor, what)
        if defined.get(tensor.name) != "input" or tensor.name not in inputs:
            _define(defined, tensor.name, "initializer", where)
        inputs.discard(tensor.name)
    for sparse in graph.sparse_initializer:
        _check_sparse(sparse, f"{where}: sparse initializer '{sparse.values.name}'")
        if sparse.values.name not in inputs:
            _define(defined, sparse.values.name, "sparse initializer", where)
    free = _check_nodes(graph.node, defined, where, notes)
    _check_outputs((v.name for v in graph.output), set(defined), where)
    return free


def _check_nodes(
    nodes: Iterable[onnx.NodeProto], defined: _Defined, where: str, notes: list[str]
) -> dict[str, str]:
    """Define what `nodes` make; returns the names they read that `defined` lacks."""
    listed = list(nodes)
    maker: dict[str, int] = {}
    for k, node in enumerate(listed):
        for name in node.output:
            if name:
                _define(defined, name, node, where)
                maker[name] = k
    free: dict[str, str] = {}
    needs: list[list[int]] = []
    ordered = True
    for k, node in enumerate(listed):
        if not node.op_type:
            raise ModelError(f"{where}: node '{node.name}' has no operator")
        before: list[int] = []
        inner = _inner_reads(node, where, notes) if node.attribute else {}
        for name in (*node.input, *inner):
            if name in maker:
                before.append(maker[name])
                ordered = ordered and maker[name] < k
            elif name and name not in defined:
                free.setdefault(name, inner.get(name) or title_of(node))
        needs.append(before)
    if not ordered:
        cycle = _cycle(needs)
        if cycle:
            names = " -> ".join(title_of(listed[k]) for k in cycle)
            raise ModelError(f"{where} has a cycle: {names}")
        notes.append(f"The nodes of the {where} were out of order and have been sorted.")
    return free


def _inner_reads(node: onnx.NodeProto, where: str, notes: list[str]) -> dict[str, str]:
    """Names that a node's subgraphs read from outside them, each with the reader."""
    reads: dict[str, str] = {}
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR:
            check_tensor(attribute.t, f"{title_of(node)}, attribute '{attribute.name}'")
        elif attribute.type in _SPARSE:
            raise ModelError(
                f"{title_of(node)} has a sparse tensor as attribute '{attribute.name}', which "
                "would be lost: make it dense"
            )
        elif attribute.type in _GRAPHS:
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                inside = f"{title_of(node)}, {attribute.name}"
                reads = {**_check_graph(graph, inside, notes), **reads}
    return reads


def _check_sparse(sparse: onnx.SparseTensorProto, what: str) -> None:
    """Values and indices match, and the indices lie in the tensor."""
    check_tensor(sparse.values, what)
    check_tensor(sparse.indices, what)
    dims = list(sparse.dims)
    size = math.prod(dims) * ir.DataType(sparse.values.data_type).bitwidth / 8
    if min(dims, default=0) < 0 or size > LARGEST:
        raise ModelError(f"{what} has the impossible shape {dims}")
    indices = onnx.numpy_helper.to_array(sparse.indices)
    limits = dims if indices.ndim == 2 else [math.prod(dims)]
    if (
        indices.dtype != "int64"
        or indices.shape[:1] != (math.prod(sparse.values.dims),)
        or (indices.ndim == 2 and indices.shape[1] != len(dims))
        or ((indices < 0) | (indices >= limits)).any()
    ):
        raise ModelError(f"{what} has indices that do not fit its shape {dims}")


def _check_outputs(names: Iterable[str], defined: set[str], where: str) -> None:
    for name in names:
        if name not in defined:
            raise ModelError(f"{where}: output '{name}' is made by no node in it")


def _define(defined: _Defined, name: str, by: str | onnx.NodeProto, where: str) -> None:
    if name in defined:
        first, second = (b if isinstance(b, str) else title_of(b) for b in (defined[name], by))
        raise ModelError(f"{where}: '{name}' is defined twice, by {first} and by {second}")
    defined[name] = by


def _cycle(needs: list[list[int]]) -> list[int]:
    """A cycle in the graph "k needs i", first node repeated at the end, or nothing."""
    state = [0] * len(needs)  # 0 new, 1 on the path, 2 done
    for root in range(len(needs)):
        if state[root]:
            continue
        state[root] = 1
        path: list[int] = [root]
        todo = [iter(needs[root])]
        while path:
            step = next(todo[-1], None)
            if step is None:
                state[path.pop()] = 2
                todo.pop()
            elif state[step] == 1:
                found = [*path[path.index(step) :], step]
                return found[::-1]
            elif state[step] == 0:
                state[step] = 1
                path.append(step)
                todo.append(iter(needs[step]))
    return []
