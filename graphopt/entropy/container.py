"""The .gopt file: the files of a model as runs of bytes, each coded as what it is.

    magic, version
    record*         kind u8, length u32, body, crc32 of it all and of the records before

The first record says which files there are and of what runs they consist, in order: (kind, bytes).
Runs of one kind make one stream, cut into chunks of at most `CHUNK` bytes. A chunk's record comes
where the first byte of it is needed, so that a pack is written and read in one go, a chunk of each
kind in memory. The last record holds the SHA-256 of every file: what is unpacked is what was packed
or an error. Nothing in a pack is executed, and no path leaves the folder that it is unpacked into.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from graphopt.entropy.integers import Rounded, pack_integers, unpack_integers
from graphopt.entropy.planes import pack_numbers, unpack_numbers
from graphopt.entropy.text import compressed, decompressed
from graphopt.errors import ModelError, UsageError
from graphopt.replacing import check_replaceable, replace_files

__all__ = ["KINDS", "LAST", "Run", "Stored", "is_pack", "read_pack", "unpack", "write_pack"]

MAGIC, VERSION = b"\x89gopt\r\n\x1a\n", 4
#: Bytes of a chunk, before it is coded; those of the first record, decoded.
CHUNK, _HEAD = 16 << 20, 64 << 20
#: Kinds of runs: the bytes of one number where they are floats or small integers; 0: other.
KINDS = {"text": 0, "f8": 8, "f4": 4, "f2": 2, "i1": 1, "rounded": 0}
_KINDS = tuple(KINDS)
_FIRST, LAST = 254, 255
_LEVEL = 19


@dataclasses.dataclass(frozen=True)
class Run:
    """Bytes of a file that are coded alike; those of kind "rounded" are a tensor's values."""

    kind: str
    data: memoryview | bytes
    tensor: Rounded | None = None


@dataclasses.dataclass(frozen=True)
class Stored:
    """A file in a pack: its name, runs as (kind, bytes), and its bytes in order."""

    name: str
    runs: tuple[tuple[str, int], ...]
    content: Iterator[bytes | memoryview]


def is_pack(path: Path) -> bool:
    """Whether the file at `path` begins as a pack does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def write_pack(
    files: Sequence[tuple[str, Sequence[Run]]],
    tables: bytes = b"",
    progress: Callable[[str, int, int], None] = lambda text, done, total: None,
) -> Iterator[bytes]:
    """The bytes of a pack of these files, the model's last.

    Args:
        files: names and runs.
        tables: what the runs of kind "rounded" were coded by (`graphopt.entropy.integers`).
        progress: called with (text, done, total).
    """
    yield MAGIC + struct.pack("<H", VERSION)
    layout = [{"name": name, "runs": [[r.kind, len(r.data)] for r in runs]} for name, runs in files]
    head = json.dumps(layout, separators=(",", ":")).encode()
    seal = _Seal()
    sizes = struct.pack("<II", len(head), len(tables))
    yield seal.record(_FIRST, sizes + compressed(head + tables, _LEVEL))
    chunks = _Chunks([r for _, runs in files for r in runs], tables)
    digests = []
    done, total = 0, sum(len(r.data) for _, runs in files for r in runs)
    for _, runs in files:
        digest = hashlib.sha256()
        for run in runs:
            for kind, body in chunks.needed(run):
                yield seal.record(_KINDS.index(kind), body)
            digest.update(run.data)
            done += len(run.data)
            progress("coding", done >> 10, total >> 10)
        digests.append(digest.digest())
    yield seal.record(LAST, b"".join(digests))


class _Chunks:
    """The chunks of all streams, each coded when its first byte is needed."""

    def __init__(self, runs: Sequence[Run], tables: bytes) -> None:
        self._tables = tables
        self._runs = {k: [r for r in runs if r.kind == k] for k in KINDS}
        self._next = dict.fromkeys(KINDS, 0)  # the first run that is not in a chunk yet
        self._offset = dict.fromkeys(KINDS, 0)  # in it
        self._ready = dict.fromkeys(KINDS, 0)  # bytes that are coded, and not used yet

    def needed(self, run: Run) -> Iterator[tuple[str, bytes]]:
        left = len(run.data)
        while left > self._ready[run.kind]:
            left -= self._ready[run.kind]
            if run.kind == "rounded":
                size, body = self._take_rounded()
            else:
                data = self._take(run.kind)
                size, body = len(data), _encoded(run.kind, data)
            self._ready[run.kind] = size
            yield run.kind, struct.pack("<I", size) + body
        self._ready[run.kind] -= left

    def _take(self, kind: str) -> bytes:
        taken = bytearray()
        runs = self._runs[kind]
        while self._next[kind] < len(runs) and len(taken) < CHUNK:
            data = memoryview(runs[self._next[kind]].data)
            part = data[self._offset[kind] :][: CHUNK - len(taken)]
            taken += part
            self._offset[kind] += len(part)
            if self._offset[kind] == len(data):
                self._next[kind], self._offset[kind] = self._next[kind] + 1, 0
        return bytes(taken)

    def _take_rounded(self) -> tuple[int, bytes]:
        """As many rounded runs as fit into a chunk: their bytes, and what they are coded as."""
        size, tensors = 0, []
        for run in self._runs["rounded"][self._next["rounded"] :]:
            if size and size + len(run.data) > CHUNK:
                break
            assert run.tensor is not None
            size += len(run.data)
            tensors.append(run.tensor)
        self._next["rounded"] += len(tensors)
        return size, pack_integers(tensors, self._tables)


def _encoded(kind: str, data: bytes) -> bytes:
    return pack_numbers(data, KINDS[kind]) if KINDS[kind] else compressed(data, _LEVEL)


def _decoded(kind: str, body: memoryview, size: int, tables: bytes) -> bytes | memoryview:
    if kind == "rounded":
        return unpack_integers(body, size, tables)
    if not KINDS[kind]:
        return decompressed(body, size)
    if size % KINDS[kind]:
        raise ModelError("a chunk does not hold whole numbers")
    return unpack_numbers(body, KINDS[kind], size)


class _Seal:
    """Records, each with the checksum of itself and of all before it."""

    def __init__(self) -> None:
        self._crc = zlib.crc32(MAGIC)

    def add(self, head: bytes, body: bytes | memoryview) -> int:
        self._crc = zlib.crc32(body, zlib.crc32(head, self._crc))
        return self._crc

    def record(self, kind: int, body: bytes) -> bytes:
        head = struct.pack("<BI", kind, len(body))
        return head + body + struct.pack("<I", self.add(head, body))


def read_pack(file: BinaryIO) -> list[Stored]:
    """The files of a pack; their contents must be read in order, each to its end.

    Raises:
        ModelError: it is none, is damaged or cut off, or of another version; also while contents
            are read. What was read until then is not to be used.
    """
    start = file.read(len(MAGIC) + 2)
    if start[: len(MAGIC)] != MAGIC:
        raise ModelError("this is not a pack (.gopt)")
    if len(start) < len(MAGIC) + 2:
        raise _damaged("it ends early")
    (version,) = struct.unpack("<H", start[len(MAGIC) :])
    if version != VERSION:
        writer = "later" if version > VERSION else "earlier"
        raise ModelError(
            f"this pack is of format {version}, and this graphopt reads format {VERSION}: unpack "
            f"it with the {writer} graphopt that wrote it"
        )
    records = _Records(file)
    body = records.next(_FIRST)
    layout, tables = _layout(body)
    reader = _Reader(records, tables)
    digests: list[bytes] = []

    def content(number: int, runs: Sequence[tuple[str, int]]) -> Iterator[memoryview]:
        digest = hashlib.sha256()
        for kind, size in runs:
            for part in reader.take(kind, size):
                digest.update(part)
                yield part
        digests.append(digest.digest())
        if number == len(layout) - 1:
            if bytes(records.next(LAST)) != b"".join(digests):
                raise _damaged("it holds another model than was packed")
            if file.read(1):
                raise _damaged("something follows its end")

    return [Stored(name, runs, content(k, runs)) for k, (name, runs) in enumerate(layout)]


def unpack(pack: Path, target: Path) -> list[Path]:
    """Put the model in `pack` at `target`, its external data beside it; what was written.

    Raises:
        ModelError: `pack` is none or damaged, or a file cannot be written; nothing changed then.
        UsageError: a file of external data would replace the model's.
    """
    try:
        file = pack.open("rb")
    except OSError as error:
        raise ModelError(f"the pack cannot be read: {error.strerror}") from error
    with file:
        files = read_pack(file)
        paths = [*(target.parent / f.name for f in files[:-1]), target]
        if target in paths[:-1]:
            raise UsageError(
                f"{target.name} is the name of the model's external data: name another"
            )
        check_replaceable(target)
        if sum(n for f in files for _, n in f.runs) > shutil.disk_usage(target.parent).free:
            raise ModelError(f"what is in the pack is more than {target.parent} has room for")
        for path in paths[:-1]:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_files([(p, f.content) for p, f in zip(paths, files, strict=True)])
    return paths


def _damaged(why: str) -> ModelError:
    return ModelError(f"the pack is damaged or cut off ({why}): copy it again")


class _Records:
    """The records of a file, in order."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._seal = file, _Seal()

    def next(self, kind: int) -> memoryview:
        head = self._file.read(5)
        if len(head) < 5:
            raise _damaged("it ends early")
        found, length = struct.unpack("<BI", head)
        if length > 2 * CHUNK + _HEAD:
            raise _damaged("a record is too long")
        whole = self._file.read(length + 4)  # of no more than there is
        if len(whole) < length + 4:
            raise _damaged("it ends early")
        body = memoryview(whole)[:length]
        if self._seal.add(head, body) != struct.unpack_from("<I", whole, length)[0]:
            raise _damaged("a checksum is wrong")
        if found != kind:
            raise _damaged("a record is in another's place")
        return body


class _Reader:
    """Streams by kind, a chunk of each in memory."""

    def __init__(self, records: _Records, tables: bytes) -> None:
        self._records, self._tables = records, tables
        self._left = {k: memoryview(b"") for k in KINDS}

    def take(self, kind: str, size: int) -> Iterator[memoryview]:
        while size:
            if not self._left[kind]:
                self._left[kind] = memoryview(self._chunk(kind))
            part = self._left[kind][:size]
            self._left[kind] = self._left[kind][len(part) :]
            size -= len(part)
            yield part

    def _chunk(self, kind: str) -> bytes | memoryview:
        body = self._records.next(_KINDS.index(kind))
        size = struct.unpack_from("<I", body)[0] if len(body) >= 4 else 0
        if not 0 < size <= CHUNK:
            raise _damaged("a chunk has no size")
        try:
            return _decoded(kind, body[4:], size, self._tables)
        except ModelError as error:
            raise _damaged(str(error)) from error


def _layout(body: memoryview) -> tuple[list[tuple[str, tuple[tuple[str, int], ...]]], bytes]:
    """Names and runs of the files, and the tables of rounded tensors."""
    size, tables = struct.unpack_from("<II", body) if len(body) >= 8 else (_HEAD, 1)
    try:
        if size + tables > _HEAD:
            raise ModelError("its head is too long")
        head = decompressed(body[8:], size + tables)
        layout: Any = json.loads(head[:size])
        found = [(f["name"], tuple((k, n) for k, n in f["runs"])) for f in layout]
    except (ModelError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged("its head cannot be read") from error
    for name, runs in found:
        proper = isinstance(name, str) and name and not name.startswith(("/", "\\"))
        if not proper or ".." in Path(name).parts or "\0" in name:
            raise _damaged("a file in it has no proper name")
        if any(k not in KINDS or type(n) is not int or n < 0 for k, n in runs):
            raise _damaged("its head cannot be read")
    if not found or len({name for name, _ in found}) < len(found):
        raise _damaged("its head cannot be read")
    return found, head[size:]
