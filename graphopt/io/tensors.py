"""Tensors whose bytes stay in a file, and the raw bytes of any tensor in chunks."""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

__all__ = ["MappedFile", "MappedTensor", "ProtoTensor", "SparseTensor", "chunks", "share_key"]

Array = np.ndarray[Any, Any]
_CHUNK = 8 << 20


class MappedFile:
    """A file mapped read-only into memory: pages are read when touched and cost no private memory.

    The mapping holds the file as it was opened: replacing the file by rename leaves it intact.

    Attributes:
        path: where it was opened.
        identity: device and inode, which tell the same file under another name.
        view: its bytes.

    Raises:
        OSError: it cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # a pipe without a writer would be waited for: it opens at once and is refused
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            self.identity = (status.st_dev, status.st_ino)
            size = status.st_size
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.view = memoryview(self._map)


class MappedTensor(ir.LazyTensor):
    """A tensor whose little-endian bytes lie at `offset` of a mapped file, maybe unaligned.

    `numpy()` is a read-only array over the file itself; element types below 8 bits are unpacked.
    """

    __slots__ = ("_nbytes", "external", "file", "offset")

    def __init__(
        self,
        file: MappedFile,
        offset: int,
        dtype: ir.DataType,
        shape: ir.Shape,
        *,
        name: str | None,
        external: bool,
        doc_string: str | None = None,
        metadata_props: dict[str, str] | None = None,
    ) -> None:
        super().__init__(
            self._over_file,
            dtype,
            shape,
            name=name,
            doc_string=doc_string,
            metadata_props=metadata_props,
        )
        shape.freeze()
        self._nbytes = super().nbytes
        self.file = file
        self.offset = offset
        self.external = external

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self._nbytes

    @property
    def view(self) -> memoryview:
        """The bytes in the file, without a copy."""
        return self.file.view[self.offset : self.offset + self.nbytes]

    def _over_file(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < 8:
            packed = np.frombuffer(self.view, dtype=np.uint8)
            return ir.PackedTensor(packed, self.dtype, shape=self.shape)
        kind = self.dtype.numpy().newbyteorder("<")
        array = np.frombuffer(self.view, dtype=kind).reshape(self.shape.numpy())
        return ir.Tensor(array, self.dtype, shape=self.shape)

    def tofile(self, file: Any) -> None:
        """Write the bytes to a binary file, a chunk at a time."""
        for chunk in chunks(self):
            file.write(chunk)

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, offset={self.offset})"


class ProtoTensor(ir.TensorProtoTensor):
    """A small tensor as it lies in protobuf, decoded once; its array is read-only."""

    __slots__ = ("_array", "_dtype", "_shape", "_size")

    def __init__(self, proto: onnx.TensorProto) -> None:
        super().__init__(proto)
        self._dtype, self._shape = super().dtype, super().shape
        self._size: int = math.prod(proto.dims)
        self._array: Array | None = None

    @property
    def dtype(self) -> ir.DataType:  # type: ignore[override]  # no supertype's is ever written
        """The element type."""
        return self._dtype

    @property
    def shape(self) -> ir.Shape:  # type: ignore[override]
        """The shape, frozen."""
        return self._shape

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._size

    def numpy(self) -> Array:
        """The elements."""
        if self._array is None:
            self._array = super().numpy()
            self._array.flags.writeable = False
        return self._array


class SparseTensor(ir.LazyTensor):
    """A `sparse_initializer`: passes see the dense array, saving writes it sparse again."""

    __slots__ = ("proto",)

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        dtype, shape = ir.DataType(proto.values.data_type), ir.Shape(proto.dims, frozen=True)
        super().__init__(self._dense, dtype, shape, name=proto.values.name)
        self.proto = proto

    @classmethod
    def of(cls, array: Array, name: str) -> SparseTensor | None:
        """A float32 array with linear indices, if that is smaller than it is dense."""
        flat = np.ascontiguousarray(array, np.float32).reshape(-1)
        index = np.flatnonzero(flat)
        if len(index) * (8 + 4) >= 4 * flat.size:
            return None
        return cls(
            onnx.SparseTensorProto(
                values=onnx.numpy_helper.from_array(flat[index], name),
                indices=onnx.numpy_helper.from_array(index.astype(np.int64)),
                dims=array.shape,
            )
        )

    def _dense(self) -> ir.TensorProtocol:
        """`values` at `indices` (linear, or one column per axis), 0 elsewhere."""
        values = ir.from_proto(self.proto.values).numpy()
        indices = ir.from_proto(self.proto.indices).numpy()
        shape = self.shape.numpy()
        dense = np.zeros(math.prod(shape), values.dtype)
        dense[np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices] = (
            values
        )
        return ir.Tensor(dense.reshape(shape), self.dtype, shape=self.shape)

    def __repr__(self) -> str:
        return f"{self._repr_base()}(name={self.name!r}, nonzero={self.proto.values.dims[0]})"


def chunks(tensor: ir.TensorProtocol) -> Iterator[memoryview]:
    """The tensor's raw bytes as ONNX stores them, a few MiB at a time.

    Mapped and in-memory tensors are not copied; others are made whole one at a time.
    """
    view = _bytes_of(tensor)
    for at in range(0, len(view), _CHUNK):
        yield view[at : at + _CHUNK]


def share_key(tensor: ir.TensorProtocol) -> object:
    """Equal for tensors that are the same bytes in the same place."""
    if isinstance(tensor, MappedTensor):
        return (tensor.file.identity, tensor.offset, tensor.nbytes)
    if isinstance(tensor, ir.ExternalTensor):
        return (tensor.path, tensor.offset, tensor.nbytes)
    return id(tensor)


def _bytes_of(tensor: ir.TensorProtocol) -> memoryview:
    if tensor.dtype == ir.DataType.STRING:  # lengths before them tell ["ab"] from ["a", "b"]
        texts = [bytes(t) for t in tensor.string_data()]  # type: ignore[attr-defined]
        return memoryview(b"".join(len(t).to_bytes(8, "little") + t for t in texts))
    if isinstance(tensor, MappedTensor):
        return tensor.view
    if isinstance(tensor, ir.LazyTensor):
        return _bytes_of(tensor.raw())
    if isinstance(tensor, ir.ExternalTensor) and tensor.size:
        tensor.numpy()
        assert tensor.raw is not None
        start = tensor.offset or 0
        return memoryview(tensor.raw)[start : start + tensor.nbytes]
    if isinstance(tensor, ir.Tensor) and isinstance(tensor.raw, np.ndarray):
        array = tensor.raw
        if array.dtype.isnative and tensor.dtype.bitwidth >= 8 and array.flags.c_contiguous:
            return array.reshape(-1).view(np.uint8).data
    return memoryview(tensor.tobytes())
