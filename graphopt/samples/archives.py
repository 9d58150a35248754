"""Archives of arrays (.npz): mapped where they are stored, streamed where they are compressed."""

from __future__ import annotations

import contextlib
import itertools
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from graphopt.errors import SamplesError
from graphopt.samples.inputs import Input

__all__ = ["MAPPED", "read_npz"]

Array = np.ndarray[Any, Any]
#: Compressed arrays of more bytes than this are read in parts, of about as many rows as fit.
PART = 64 << 20
#: Smaller arrays are read, not mapped: a process may keep only so many files open.
MAPPED = 1 << 20
#: Rows of a part are a multiple of this, so that batches come out as from the whole.
ROWS = 96
#: Bytes that one compressed array may open to where it cannot be read in parts.
LARGEST = 8 << 30
#: What is packed more tightly than so many to one is no samples (deflate ends at 1032 to one) ...
DENSEST = 200
#: ... where it opens to more bytes than this.
DOUBTED = 256 << 20


def read_npz(path: Path, inputs: Sequence[Input]) -> Iterator[dict[str, Array]]:
    """The arrays the model may need, as one item, or in parts along their first axis if large.

    Raises:
        SamplesError: it is no such archive, an array claims more than the archive holds, or the
            arrays open to hundreds of times their size in it.
    """
    wanted = {n for i in inputs for n in (i.name, f"in:{i.name}", "arr_0")}
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with contextlib.ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [n.removesuffix(".npy") for n in archive.namelist()]
            members = {
                n: stack.enter_context(contextlib.closing(_Member(path, archive, f"{n}.npy")))
                for n in names
                if n in wanted
            }
            _check_density(path, list(members.values()))
            if members and _in_parts(list(members.values()), inputs):
                yield from _parts(members)
                return
            found = {n: m.whole() for n, m in members.items()}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SamplesError(f"samples {path}: {str(error).splitlines()[0]}") from error
    yield found or {n: np.zeros(0) for n in itertools.islice(names, 20)}


class _Member:
    """One array of an archive: its header is read, its elements are not."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, name: str) -> None:
        self._path = path
        self._info = archive.getinfo(name)
        self._archive = archive
        self._file: IO[bytes] | None = None
        with archive.open(self._info) as file:
            version = np.lib.format.read_magic(file)
            reader = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            self.shape, self.fortran, self.dtype = reader(file)
            self._header = file.tell()
        if self.dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, not numbers or text")
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        if self.nbytes != self._info.file_size - self._header:
            raise ValueError(
                f"{name} claims {self.nbytes} bytes for its shape {list(self.shape)} and holds "
                f"{self._info.file_size - self._header}"
            )

    @property
    def packed(self) -> int:
        """Bytes of the file that it takes, by what the archive says."""
        return self._info.compress_size

    @property
    def stored(self) -> bool:
        """Whether it lies in the file as it is, and is worth mapping."""
        return self.nbytes > MAPPED and self._info.compress_type == zipfile.ZIP_STORED

    def whole(self) -> Array:
        """The array: mapped if it is stored, else read."""
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        if self.stored:
            with open(self._path, "rb") as file:
                file.seek(self._info.header_offset + 26)
                lengths = np.frombuffer(file.read(4), "<u2")
            start = self._info.header_offset + 30 + int(lengths.sum()) + self._header
            return np.memmap(
                self._path, self.dtype, "r", offset=start, shape=self.shape, order=order
            )
        if self.nbytes > LARGEST:
            raise ValueError(
                f"{self._info.filename} opens to {self.nbytes / 1e9:.0f} GB: store it without "
                "compression (numpy.savez), then it is mapped"
            )
        return self._read(self.nbytes).reshape(self.shape, order=order)

    def rows(self, count: int) -> Array:
        """The next rows along the first axis."""
        size = count * math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(size).reshape((count, *self.shape[1:]))

    def _read(self, size: int) -> Array:
        if self._file is None:
            self._file = self._archive.open(self._info)
            self._file.read(self._header)
        data = bytearray(size)
        view, at = memoryview(data), 0
        while at < size:
            part = self._file.read(min(size - at, 1 << 24))
            if not part:
                raise EOFError(f"{self._info.filename} is cut off")
            view[at : at + len(part)] = part
            at += len(part)
        return np.frombuffer(data, self.dtype)

    def close(self) -> None:
        """Let go of the archive."""
        if self._file is not None:
            self._file.close()


def _check_density(path: Path, members: Sequence[_Member]) -> None:
    """Raise ValueError for an archive made to fill memory or time: nothing is decompressed."""
    opened = sum(m.nbytes for m in members)
    packed = max(min(path.stat().st_size, sum(m.packed for m in members)), 1)
    if opened > max(DOUBTED, DENSEST * packed):
        raise ValueError(
            f"it opens to {opened / packed:.0f} times its size ({opened / 1e9:.1f} GB): samples of "
            "one value? Store them without compression (numpy.savez), or fewer of them"
        )


def _in_parts(members: Sequence[_Member], inputs: Sequence[Input]) -> bool:
    """Whether they are large, compressed, and all hold samples along their first axis."""
    large = any(not m.stored and m.nbytes > PART for m in members)
    plain = not any(m.fortran for m in members)
    same = len({m.shape[:1] for m in members}) == 1 and members[0].shape[:1] > (ROWS,)
    return large and plain and same and all(i.batch != 0 for i in inputs)


def _parts(members: dict[str, _Member]) -> Iterator[dict[str, Array]]:
    total = next(iter(members.values())).shape[0]
    row = max(m.nbytes for m in members.values()) // total
    step = max(PART // max(row, 1) // ROWS, 1) * ROWS
    for at in range(0, total, step):
        count = min(step, total - at)
        yield {n: m.rows(count) for n, m in members.items()}
