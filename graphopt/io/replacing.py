"""Putting finished files in place: written aside, synced, then renamed.

At every moment, a kill included, the name holds the old file, the new one, or nothing; never a
part. Files written aside are hidden (`.NAME.*.tmp`), locked while they are written, removed on any
error, and swept by the next save to the same name if a kill left them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from graphopt.errors import ModelError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: stray files stay until removed by hand
    fcntl = None

__all__ = ["replace_files"]

Chunk = bytes | memoryview
_GATHER = 1 << 16


def replace_files(contents: Sequence[tuple[Path, Iterable[Chunk]]]) -> None:
    """Write each file and put all in place, the last one being what makes the others count.

    If several are replaced, the last is taken away before the others change, so that it never
    stands beside files of another version.

    Raises:
        ModelError: a file cannot be written (no such folder, no permission, disk full); nothing
            has changed then.
    """
    for path, _ in contents:
        _sweep(path)
    staged: list[tuple[Path, Path]] = []
    handles: list[int] = []
    try:
        for path, chunks in contents:
            try:
                aside, handle = _create(path)
                staged.append((aside, path))
                handles.append(handle)
                _write(handle, chunks)
                os.fsync(handle)
            except OSError as error:
                raise ModelError(
                    f"{path} cannot be written: {error.strerror or error}; nothing was changed"
                ) from error
        main = contents[-1][0]
        try:
            if len(contents) > 1:
                main.unlink(missing_ok=True)
            while staged:
                os.replace(*staged[0])
                staged.pop(0)
        except OSError as error:
            raise ModelError(f"{main} cannot be written: {error.strerror or error}") from error
        _sync_folder(main.parent)
    finally:
        for handle in handles:
            os.close(handle)
        for aside, _ in staged:
            aside.unlink(missing_ok=True)


def _create(path: Path) -> tuple[Path, int]:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    handle = os.open(aside, flags, 0o666)
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
    return aside, handle


def _write(handle: int, chunks: Iterable[Chunk]) -> None:
    """Write all of `chunks`, small ones gathered."""
    gathered = bytearray()
    for chunk in chunks:
        if len(chunk) < _GATHER:
            gathered += chunk
            if len(gathered) < _GATHER:
                continue
            chunk = b""
        _write_out(handle, gathered)
        gathered = bytearray()
        _write_out(handle, chunk)
    _write_out(handle, gathered)


def _write_out(handle: int, chunk: bytes | bytearray | memoryview) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(handle, view) :]


def _stray(path: Path) -> Iterator[Path]:
    for entry in path.parent.glob(f".{path.name.replace('[', '[[]')}.*.tmp"):
        middle = entry.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if len(middle) == 8 and all(c in "0123456789abcdef" for c in middle):
            yield entry


def _sweep(path: Path) -> None:
    """Remove what killed saves to `path` left aside; files still locked belong to a live one."""
    if fcntl is None:
        return
    for entry in _stray(path):
        with contextlib.suppress(OSError), open(entry, "rb") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            entry.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
