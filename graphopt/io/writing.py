"""Writing a model: the graph through `onnx_ir`, the weights streamed from where they are.

No more than one tensor that is not mapped is ever made whole, and mapped ones never are, so saving
costs memory for the graph alone. The same model gives the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.graph.collector import resting_collector
from graphopt.io.reading import graphs_of, read_model, source_of
from graphopt.io.skeleton import TOKEN, Skeleton, locate, skeleton_of
from graphopt.io.tensors import MappedTensor, chunks, share_key
from graphopt.replacing import check_replaceable, replace_files, was_interrupted
from graphopt.wire import Hole, Piece, fill

__all__ = [
    "check_data",
    "check_writable",
    "place_weights",
    "size_of",
    "weights_beside",
    "write_model",
]

#: Above this many bytes weights get a file of their own (protobuf ends at 2 GiB).
_EMBED_LIMIT = 1_900_000_000
_PROTOBUF_LIMIT = 2**31 - 1
#: Where `place_weights` leaves its choice in `model.graph.meta` (it survives `model.clone()`).
_PLACED = "graphopt.external"
#: Weights in their own file start on these boundaries: pages where large, vectors where small.
_PAGE, _VECTOR, _LARGE = 4096, 64, 1 << 20


def write_model(model: ir.Model | Skeleton, target: Path, *, external: bool | None = None) -> None:
    """Write an ONNX file at `target`, which no link names; see `graphopt.formats.save`."""
    with resting_collector():
        plan = _plan(model, target.name, external)
    files: list[tuple[Path, Iterable[bytes | memoryview]]] = [(target, plan.model_bytes())]
    data = target.with_name(plan.data_name)
    check_writable(model, target, [data] if plan.data else ())
    if plan.data:
        check_data(target, data)
        files.insert(0, (data, plan.data_bytes()))
    replace_files(files)


def check_data(target: Path, data: Path) -> None:
    """Raise UsageError if a file at `data` is not the external data of a model at `target`."""
    if not data.exists() or was_interrupted(target):
        return
    with contextlib.suppress(ModelError):
        source = source_of(read_model(target))
        if source is not None and any(data.samefile(used) for used in source.data):
            return
    raise UsageError(
        f"{data} holds no weights of {target.name} and would be overwritten: remove it, or choose "
        "another output path"
    )


def size_of(
    model: ir.Model | Skeleton, name: str = "model.onnx", *, external: bool | None = None
) -> int:
    """Bytes that `save(model, name, external=external)` would write, external data included."""
    plan = _plan(model, name, external)
    return plan.model_size + plan.data_size


@dataclasses.dataclass
class _Plan:
    """What goes where. `data`: tensors with their offset in the data file, in order."""

    pieces: list[Piece]
    embedded: list[ir.TensorProtocol]
    data_name: str
    data: list[tuple[int, ir.TensorProtocol]]

    @property
    def model_size(self) -> int:
        return sum(p.length if isinstance(p, Hole) else len(p) for p in self.pieces)

    @property
    def data_size(self) -> int:
        return self.data[-1][0] + self.data[-1][1].nbytes if self.data else 0

    def model_bytes(self) -> Iterator[bytes | memoryview]:
        for piece in self.pieces:
            if isinstance(piece, Hole):
                yield from chunks(self.embedded[piece.index])
            else:
                yield piece

    def data_bytes(self) -> Iterator[bytes | memoryview]:
        at = 0
        for offset, tensor in self.data:
            yield bytes(offset - at)
            yield from chunks(tensor)
            at = offset + tensor.nbytes


def _plan(model: ir.Model | Skeleton, name: str, external: bool | None) -> _Plan:
    skeleton = skeleton_of(model)
    if external is None:
        external = weights_beside(skeleton)
    data: list[tuple[int, ir.TensorProtocol]] = []
    data_name = f"{name}.data"
    offsets: dict[object, int] = {}
    embedded: list[ir.TensorProtocol] = []
    proto = skeleton.proto
    if external and skeleton.held:
        proto = onnx.ModelProto()
        proto.CopyFrom(skeleton.proto)
        for tensor, one in skeleton.places(proto):
            if one.owner == "attribute":
                embedded.append(one.tensor)
                locate(tensor, f"{TOKEN}{len(embedded) - 1}")
                continue
            key = share_key(one.tensor)
            if key not in offsets:
                end = data[-1][0] + data[-1][1].nbytes if data else 0
                step = _PAGE if one.tensor.nbytes >= _LARGE else _VECTOR
                offsets[key] = -(-end // step) * step
                data.append((offsets[key], one.tensor))
            locate(tensor, data_name, offsets[key], one.tensor.nbytes)
    else:
        embedded = [one.tensor for one in skeleton.held]
    serialized = proto.SerializeToString(deterministic=True)
    pieces = fill(serialized, TOKEN.encode(), [t.nbytes for t in embedded])
    plan = _Plan(pieces, embedded, data_name, data)
    if plan.model_size > _PROTOBUF_LIMIT:
        raise ModelError(
            f"{name} would have {plan.model_size / 1e9:.1f} GB, and one ONNX file cannot exceed "
            "2.1 GB: save it with external data (--external-data)"
        )
    return plan


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in graphs_of(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield attribute.value


def place_weights(model: ir.Model, external: bool) -> ir.Model:
    """A copy of `model` that is written with its weights beside it, or inside."""
    model = model.clone()
    model.graph.meta[_PLACED] = external
    return model


def weights_beside(model: ir.Model | Skeleton) -> bool:
    """Whether weights go to a file of their own: as `place_weights` chose, or if it must be."""
    whole = model.model if isinstance(model, Skeleton) else model
    placed: bool | None = whole.graph.meta.get(_PLACED)
    if placed is not None:
        return placed
    large = (one.tensor for one in model.held) if isinstance(model, Skeleton) else _tensors(model)
    return sum(t.nbytes for t in large if t.dtype != ir.DataType.STRING) > _EMBED_LIMIT


def check_writable(model: ir.Model | Skeleton, target: Path, beside: Iterable[Path] = ()) -> None:
    """Raise unless `target`, and what is written beside it, is a file that may be replaced."""
    used = _files_of(model.model if isinstance(model, Skeleton) else model)
    for path in (target, *beside):
        check_replaceable(path)
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in used:
                raise UsageError(
                    f"{path} is a file the model was read from, and the input is never "
                    "overwritten: choose another output path"
                )


def _files_of(model: ir.Model) -> set[tuple[int, int]]:
    """Device and inode of every file that the model's weights lie in."""
    source = source_of(model)
    used = set(source.files) if source is not None else set()
    paths = set()
    for tensor in _tensors(model):
        if isinstance(tensor, MappedTensor):
            used.add(tensor.file.identity)
        elif isinstance(tensor, ir.ExternalTensor):
            paths.add(tensor.path)
    for path in paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            used.add((status.st_dev, status.st_ino))
    return used
