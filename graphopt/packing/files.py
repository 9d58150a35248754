"""The files of an ONNX model as runs of numbers: what a pack codes, and how each is to be coded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from graphopt.entropy.container import Run
from graphopt.entropy.integers import Rounded
from graphopt.errors import ModelError
from graphopt.io.external import data_path
from graphopt.io.reading import looks_like
from graphopt.io.skeleton import tensors_of
from graphopt.io.tensors import MappedFile
from graphopt.wire import Malformed, strip

__all__ = ["files_of"]

#: Tensors of fewer bytes are coded with the graph.
SMALLEST = 64
_TOKEN = "\0graphopt-run:"
_Types = onnx.TensorProto
_KINDS = {
    _Types.DOUBLE: "f8",
    _Types.FLOAT: "f4",
    _Types.FLOAT16: "f2",
    _Types.BFLOAT16: "f2",
    _Types.INT8: "i1",
    _Types.UINT8: "i1",
    _Types.INT4: "i1",
    _Types.UINT4: "i1",
}
_WIDTHS = {"f8": 8, "f4": 4, "f2": 2, "i1": 1}


#: Where a run begins, its length (-1: to the end), its kind, and its name if it is rounded.
_Part = tuple[int, int, str, str]
#: Rounded tensors by name, in pieces.
Pieces = Mapping[str, Sequence[Rounded]]


def files_of(path: Path, rounded: Pieces | None = None) -> list[tuple[str, list[Run]]]:
    """The model's external data files and the file at `path`, last, as runs by name.

    Args:
        path: the model.
        rounded: tensors by name that are coded as integers, in pieces as they are stored.

    Raises:
        ModelError: it is no ONNX model, or its external data is not there.
    """
    try:
        file = MappedFile(path)
        skeleton, spans = strip(file.view, SMALLEST, lambda k: f"{_TOKEN}{k}")
        proto = onnx.ModelProto.FromString(skeleton)
    except OSError as error:
        raise ModelError(f"{path}: the file cannot be read: {error.strerror}") from error
    except (Malformed, DecodeError) as error:
        raise ModelError(f"{path}: {looks_like(file) or 'this is not an ONNX model'}") from error
    if not proto.HasField("graph"):
        raise ModelError(f"{path}: it holds no graph: this is not an ONNX model")
    rounded = rounded or {}
    inside: list[_Part] = []
    beside: dict[str, list[_Part]] = {}
    for number, tensor in enumerate(tensors_of(proto)):
        if tensor.data_location != _Types.EXTERNAL:
            continue
        said = {e.key: e.value for e in tensor.external_data}
        kind, location = _KINDS.get(tensor.data_type, "text"), said.get("location", "")
        weight = number < len(proto.graph.initializer)  # a node's may have the same name
        name = tensor.name if weight and tensor.name in rounded else ""
        if location.startswith(_TOKEN):
            span = spans[int(location.removeprefix(_TOKEN))]
            inside.append((span.offset, span.length, kind, name))
        else:
            offset, length = int(said.get("offset", 0)), int(said.get("length", -1))
            beside.setdefault(os.path.normpath(location), []).append((offset, length, kind, name))
    files = []
    for location, parts in beside.items():
        held = _data(location, path)
        files.append((location, _runs(held.view, parts, rounded)))
    return [*files, (path.name, _runs(file.view, inside, rounded))]


def _data(location: str, model: Path) -> MappedFile:
    what = f"{model}: its external data '{location}'"
    try:
        return MappedFile(data_path(location, model, what))
    except OSError as error:
        raise ModelError(f"{what} cannot be read: {error.strerror}") from error


def _runs(view: memoryview, parts: list[_Part], rounded: Pieces) -> list[Run]:
    """Numbers where `parts` say, and what is between as text."""
    runs: list[Run] = []
    at = 0
    for offset, length, kind, name in sorted(set(parts)):
        end = len(view) if length < 0 else min(offset + length, len(view))
        if offset < at or end <= offset or kind == "text":  # shared with the one before
            continue
        end -= (end - offset) % _WIDTHS[kind]
        runs.append(Run("text", view[at:offset]))
        at = offset
        for piece in rounded.get(name, ()):
            runs.append(Run("rounded", view[at : at + 4 * piece.q.size], piece))
            at += 4 * piece.q.size
        runs.append(Run(kind, view[at:end]))
        at = end
    return [r for r in (*runs, Run("text", view[at:])) if len(r.data)]
