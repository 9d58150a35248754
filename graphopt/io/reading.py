"""Reading a model: the graph is parsed, the weights stay in the file (memory-mapped)."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from graphopt.errors import ModelError
from graphopt.graph.collector import resting_collector
from graphopt.graph.traverse import all_graphs
from graphopt.io.checking import check_structure, check_versions
from graphopt.io.external import map_external, mapped
from graphopt.io.mending import mend, take_maps
from graphopt.io.tensors import MappedFile, ProtoTensor, SparseTensor
from graphopt.wire import Malformed, TooDeep, Truncated, strip

__all__ = [
    "EXAMPLES",
    "NOTES",
    "SOURCE",
    "THRESHOLD",
    "Source",
    "declare_tensor",
    "examples_of",
    "from_proto",
    "graphs_of",
    "looks_like",
    "read_model",
    "set_aside",
    "source_of",
]

#: Tensors of at least this many bytes stay in the file.
THRESHOLD = 1024
#: Where `Source` lies in `model.graph.meta` (it survives `model.clone()`).
SOURCE = "graphopt.source"
#: Where a traced model's example inputs (a tuple of dicts of arrays) and notes lie, likewise.
EXAMPLES, NOTES = "graphopt.examples", "graphopt.notes"
#: Where types of inputs and outputs lie that `onnx_ir` lacks (maps), by name, likewise.
_TYPES = "graphopt.types"


@dataclasses.dataclass(frozen=True)
class Source:
    """The files a model was read from.

    Attributes:
        path: the .onnx file.
        files: device and inode of it and of its external data files.
        data: the external data files.
        notes: plain sentences on what was set right while reading.
    """

    path: Path
    files: frozenset[tuple[int, int]]
    data: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all of them."""
        return sum(path.stat().st_size for path in (self.path, *self.data))


def source_of(model: ir.Model) -> Source | None:
    """The files `model` was read from, if graphopt read it."""
    found = model.graph.meta.get(SOURCE)
    return found if isinstance(found, Source) else None


def examples_of(model: ir.Model) -> tuple[dict[str, np.ndarray[Any, Any]], ...]:
    """The inputs that a traced model was traced on, as arrays by input name; else nothing."""
    found: tuple[dict[str, np.ndarray[Any, Any]], ...] = model.graph.meta.get(EXAMPLES, ())
    return found


def set_aside(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """Types of inputs and outputs that `onnx_ir` cannot represent, by name."""
    found: dict[str, onnx.TypeProto] = model.graph.meta.get(_TYPES, {})
    return found


def declare_tensor(model: ir.Model, name: str) -> None:
    """Let an output that was set aside be the tensor that it has become: another interface."""
    model.graph.meta[_TYPES] = {n: t for n, t in set_aside(model).items() if n != name}


def graphs_of(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, those of functions, and every subgraph of them."""
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        yield from all_graphs(graph)


def read_model(path: Path) -> ir.Model:
    """The model in an ONNX file; its weights stay there, mapped.

    Raises:
        ModelError: what is wrong with the file, without its name.
    """
    with resting_collector():
        return _read(path)


def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """The model in a protobuf, which is not changed; checked and mended as a file's is.

    Raises:
        ModelError: what is wrong with it; weights in files of their own are not there.
    """
    own = onnx.ModelProto()
    own.CopyFrom(proto)
    token = f"graphopt-{secrets.token_hex(8)}:"

    def absent(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        raise ModelError(
            f"the data of '{tensor.name}' lies in the file '{tensor.location}': give the path of "
            "the model, or load it with its data (onnx.load)"
        )

    with resting_collector():
        model, notes = _made(own, token, absent)
    model.graph.meta[NOTES] = tuple(notes)
    return model


def _read(path: Path) -> ir.Model:
    file = _open(path)
    if not file.view:
        raise ModelError("the file is empty")
    token = f"graphopt-{secrets.token_hex(8)}:"
    try:
        skeleton, spans = strip(file.view, THRESHOLD, lambda k: f"{token}{k}")
        proto = onnx.ModelProto.FromString(skeleton)
    except Truncated as error:
        raise ModelError(looks_like(file) or f"the file is cut off: {error}") from error
    except TooDeep as error:
        raise ModelError(str(error)) from error
    except (Malformed, DecodeError) as error:
        raise ModelError(looks_like(file) or "this is not an ONNX model") from error
    hint = None if proto.HasField("graph") else looks_like(file)
    if hint is not None:
        raise ModelError(hint)
    opened: dict[Path, MappedFile] = {}

    def attach(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        location = str(tensor.location)
        if not location.startswith(token):
            return map_external(tensor, path, opened)
        span = spans[int(location.removeprefix(token))]
        return mapped(tensor, file, span.offset, span.length, external=False)

    model, notes = _made(proto, token, attach)
    files = frozenset({file.identity, *(f.identity for f in opened.values())})
    model.graph.meta[SOURCE] = Source(path, files, tuple(opened), tuple(notes))
    return model


def _made(
    proto: onnx.ModelProto, token: str, attach: Callable[[ir.ExternalTensor], ir.TensorProtocol]
) -> tuple[ir.Model, list[str]]:
    """The model of a protobuf, which is changed, and what was set right in it.

    Args:
        proto: as it came.
        token: starts the place of what was put aside; nothing else does.
        attach: finds the data of a tensor that lies elsewhere.
    """
    if not proto.HasField("graph"):
        raise ModelError("it holds no graph: this is not an ONNX model")
    notes = mend(proto)
    check_versions(proto)
    unordered = check_structure(proto)
    notes += unordered
    sparse: list[onnx.SparseTensorProto] = []
    _take_sparse(proto.graph, token, sparse)
    types = take_maps(proto)
    model = _build(proto)
    model.graph.meta[_TYPES] = types

    def data_of(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        index = str(tensor.location).removeprefix(f"{token}sparse:")
        return SparseTensor(sparse[int(index)]) if index != tensor.location else attach(tensor)

    for graph in graphs_of(model):
        _attach(graph, data_of)
    if unordered:
        for graph in (model.graph, *(f.graph for f in model.functions.values())):
            graph.sort()
    return model, notes


def _open(path: Path) -> MappedFile:
    if path.is_dir():
        inside = sorted(p.name for p in path.glob("*.onnx"))
        found = f", e.g. {path / inside[0]}" if inside else ""
        raise ModelError(f"this is a folder; name the .onnx file in it{found}")
    try:
        return MappedFile(path)
    except FileNotFoundError:
        raise ModelError("no such file") from None
    except OSError as error:
        raise ModelError(f"the file cannot be read: {error.strerror}") from error


def looks_like(file: MappedFile) -> str | None:
    """What a file that is not an ONNX model seems to be, with what to do about it."""
    head = bytes(file.view[:512])
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the model: run `git lfs pull`"
    if head.startswith(b"PK\x03\x04"):
        return (
            "this is a zip file, not an ONNX model. A PyTorch program (torch.export.save) ends in "
            ".pt2; a checkpoint holds weights alone: give FILE.py:FUNCTION, a function that builds "
            "the module, loads them and returns (module, example_inputs)"
        )
    if head.lstrip()[:1] == b"<":
        return "this is a web page or XML, not an ONNX model: was the download complete?"
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return None
    if all(c.isprintable() or c in "\r\n\t" for c in text):
        return "this is a text file, not an ONNX model"
    return None


def _take_sparse(graph: onnx.GraphProto, token: str, found: list[onnx.SparseTensorProto]) -> None:
    """Put a placeholder initializer for each sparse one, which `onnx_ir` would drop."""
    for sparse in graph.sparse_initializer:
        tensor = graph.initializer.add(
            name=sparse.values.name,
            data_type=sparse.values.data_type,
            dims=sparse.dims,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value=f"{token}sparse:{len(found)}")
        found.append(sparse)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _take_sparse(attribute.g, token, found)
            for inner in attribute.graphs:
                _take_sparse(inner, token, found)


def _build(proto: onnx.ModelProto) -> ir.Model:
    try:
        model: ir.Model = ir.from_proto(proto)
    except ir.serde.SerdeError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        first = (str(cause) or type(cause).__name__).splitlines()[0]
        raise ModelError(f"onnx_ir cannot represent it: {first}") from error
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        if "ai.onnx" in graph.opset_imports:
            graph.opset_imports[""] = graph.opset_imports.pop("ai.onnx")
    return model


def _attach(graph: ir.Graph, attach: Callable[[ir.ExternalTensor], ir.TensorProtocol]) -> None:
    for value in graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = attach(value.const_value)
        elif isinstance(value.const_value, ir.TensorProtoTensor):
            value.const_value = ProtoTensor(value.const_value.raw)
    for node in graph:
        for name, one in node.attributes.items():
            if one.type == ir.AttributeType.TENSOR and isinstance(one.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(
                    name, attach(one.value), doc_string=one.doc_string
                )
            elif one.type == ir.AttributeType.TENSORS and one.value is not None:
                tensors = [
                    attach(t) if isinstance(t, ir.ExternalTensor) else t for t in one.as_tensors()
                ]
                node.attributes[name] = ir.AttrTensors(name, tensors, doc_string=one.doc_string)
