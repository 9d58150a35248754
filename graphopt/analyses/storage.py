"""Storage: the bytes of a model's file by tensor and by cause: who reads them, in which type."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.graph.traverse import all_graphs
from graphopt.io.tensors import SparseTensor, share_key

__all__ = ["Stored", "by_cause", "stored"]


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in the file.

    Attributes:
        name: of the initializer.
        dtype: element type, as "FLOAT", "UINT8"; with "sparse " before where it is.
        shape: of the tensor.
        bytes: of its numbers in the file, indices of a sparse one with them.
        readers: the operators that read it, sorted, as "Conv" or "com.microsoft:MatMulNBits".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    readers: tuple[str, ...]


def stored(model: ir.Model) -> list[Stored]:
    """The initializers of all graphs, the largest first; numbers that several share count once."""
    found: list[Stored] = []
    seen: set[object] = set()
    for graph in all_graphs(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            size, dtype = int(tensor.nbytes), tensor.dtype.name
            if isinstance(tensor, SparseTensor):
                parts = (tensor.proto.values, tensor.proto.indices)
                size, dtype = sum(ir.from_proto(p).nbytes for p in parts), f"sparse {dtype}"
            key = share_key(tensor)
            size = 0 if key in seen else size
            seen.add(key)
            readers = sorted({_title(u.node) for u in value.uses()})
            shape = tuple(int(d) for d in tensor.shape.numpy())
            found.append(Stored(value.name or "", dtype, shape, size, tuple(readers)))
    return sorted(found, key=lambda s: (-s.bytes, s.name))


def by_cause(tensors: Sequence[Stored], file: int) -> dict[str, int]:
    """Bytes by cause, "FLOAT of Conv", the most first; "graph": what of the file is no tensor."""
    causes: Counter[str] = Counter()
    for one in tensors:
        causes[f"{one.dtype} of {', '.join(one.readers) or 'nothing'}"] += one.bytes
    causes["graph"] = max(file - causes.total(), 0)
    return dict(causes.most_common())


def _title(node: ir.Node) -> str:
    return f"{node.domain}:{node.op_type}" if node.domain else node.op_type
