"""A pack opened without a file: the graph, and weights that ONNX Runtime takes where they lie.

Each weight is decoded into memory of its own, which goes when the runtime has it in its own form:
nothing is written to disk, read again and parsed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from bisect import bisect_right
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from graphopt.entropy.container import Stored, read_pack
from graphopt.errors import ModelError
from graphopt.wire import Hole, Malformed, fill, strip

__all__ = ["decoded"]

Array = np.ndarray[Any, Any]

#: Tensors of fewer bytes stay in the graph, where shapes may be made of them.
SMALLEST = 1 << 16
_TOKEN = "\0graphopt-weight:"
#: Types whose arrays are the bytes of a tensor.
_PLAIN = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
}


def decoded(pack: Path) -> tuple[bytes, dict[str, Array]] | None:
    """The model in `pack`, and weights by name that its graph says are in a file.

    None if the pack holds external data, of models that may be too large for memory.

    Raises:
        ModelError: it is no pack or damaged, holds no ONNX model, or more than there is memory for.
    """
    with pack.open("rb") as file:
        files = read_pack(file)
        if len(files) > 1:
            return None
        image = _Image(files[0])
    try:
        graph, spans = strip(image.view, SMALLEST, lambda k: f"{_TOKEN}{k}")
        proto = onnx.ModelProto.FromString(graph)
    except (Malformed, DecodeError) as error:
        raise ModelError("what is in the pack is no ONNX model") from error
    weights = {}
    for tensor in proto.graph.initializer:
        location = tensor.external_data[0].value if tensor.external_data else ""
        if not location.startswith(_TOKEN):
            continue
        span = spans[int(location.removeprefix(_TOKEN))]
        array = _array(tensor, image.bytes_at(span.offset, span.length))
        if array is not None:
            weights[tensor.name] = array
            tensor.external_data[0].value = "held"
    pieces = fill(proto.SerializeToString(), _TOKEN.encode(), [s.length for s in spans])
    left = [
        image.bytes_at(spans[p.index].offset, p.length) if isinstance(p, Hole) else p
        for p in pieces
    ]
    return b"".join(left), weights


class _Image:
    """A file in memory: text where it lies in `view`, large runs of numbers beside it."""

    def __init__(self, stored: Stored) -> None:
        size = sum(n for _, n in stored.runs)
        parts = iter(stored.content)
        self._starts: list[int] = []
        self._held: list[memoryview] = []
        at = 0
        try:
            # pages that nothing is written to, where the numbers would be, take no memory
            self.view = memoryview(mmap.mmap(-1, size) if size else b"")
            for kind, length in _whole(stored.runs):
                held = self.view[at : at + length]
                if kind != "text" and length >= SMALLEST:
                    held = _room(length)
                    self._starts.append(at)
                    self._held.append(held)
                _fill(held, parts)
                at += length
        except (MemoryError, OverflowError, OSError, ValueError) as error:
            raise ModelError("what is in the pack is more than there is memory for") from error
        for _ in parts:  # nothing is left: the whole is checked
            raise AssertionError

    def bytes_at(self, offset: int, length: int) -> memoryview:
        """A part of the file."""
        k = bisect_right(self._starts, offset) - 1
        if k >= 0 and offset + length <= self._starts[k] + len(self._held[k]):
            return self._held[k][offset - self._starts[k] :][:length]
        made = bytearray(self.view[offset : offset + length])
        for start, part in zip(self._starts, self._held, strict=True):
            low, high = max(start, offset), min(start + len(part), offset + length)
            if low < high:
                made[low - offset : high - offset] = part[low - start : high - start]
        return memoryview(made)


def _whole(runs: Iterator[tuple[str, int]] | tuple[tuple[str, int], ...]) -> Iterator[Any]:
    """Kinds and bytes of runs; a large rounded tensor is several, which become one."""
    for kind, alike in groupby(runs, key=lambda run: run[0]):
        sizes = [n for _, n in alike]
        yield from ((kind, n) for n in ([sum(sizes)] if kind == "rounded" else sizes))


def _room(size: int) -> memoryview:
    """Zeros in pages of their own, which go back to the system when they are freed."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return memoryview(mmap.mmap(-1, size))
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not on every system
        made.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(made)


def _fill(held: memoryview, parts: Iterator[bytes | memoryview]) -> None:
    at = 0
    while at < len(held):
        part = next(parts)
        held[at : at + len(part)] = part
        at += len(part)


def _array(tensor: onnx.TensorProto, data: memoryview) -> Array | None:
    """The tensor as the runtime takes it, or None: its type or size is not one that it takes so."""
    if tensor.data_type not in _PLAIN:
        return None
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if len(data) != dtype.itemsize * math.prod(tensor.dims):
        return None
    return np.require(np.frombuffer(data, dtype).reshape(tensor.dims), requirements="A")
