"""Putting finished files in place: written aside, synced, then renamed.

At every moment, a kill included, the name holds the old file, the new one, or nothing; never a
part. Files written aside are hidden (`.NAME.*.tmp`), locked while they are written, removed on any
error, and swept by the next save to the same name if a kill left them. Only plain files are
replaced, never a device, a pipe or a folder; a link stays and what it names is replaced. Where
several processes write into a folder, each set of files is put in place as a whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from graphopt.errors import ModelError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system: stray files stay until removed by hand
    fcntl = None

__all__ = ["alone_in", "check_replaceable", "replace_files", "was_interrupted"]

Chunk = bytes | memoryview
_GATHER = 1 << 16


def check_replaceable(path: Path) -> None:
    """Raise unless a file can be put at `path`: its folder is there, and nothing else than a file.

    Raises:
        ModelError: it cannot, and why.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe, not a plain file"
        raise ModelError(f"{path} is {kind}: name the file to write")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise ModelError(
            f"{path} cannot be written: there is no folder {folder}; create it or name another"
        )


#: Folders that this process is alone in, so that it does not wait for itself.
_HELD: set[str] = set()


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process puts files in place in `folder`, and keep others waiting."""
    name = os.path.realpath(folder)
    if fcntl is None or name in _HELD or not os.path.isdir(name):
        yield
        return
    handle = os.open(name, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        _HELD.add(name)
        yield
    finally:
        _HELD.discard(name)
        os.close(handle)


def replace_files(
    contents: Sequence[tuple[Path, Iterable[Chunk]]],
    check: Callable[[Path], None] = lambda written: None,
) -> None:
    """Write each file and put all in place, the last one being what makes the others count.

    If several are replaced, the last is taken away before the others change, so that it never
    stands beside files of another version. `check` is given the last one as it lies aside; what it
    raises is raised, and nothing has changed then.

    Raises:
        ModelError: a file cannot be written (no such folder, no permission, disk full, not a plain
            file); nothing has changed then.
    """
    contents = [(Path(os.path.realpath(path)), chunks) for path, chunks in contents]
    for path, _ in contents:
        check_replaceable(path)
    staged: list[tuple[Path, Path]] = []
    handles: list[int] = []
    try:
        try:
            for path, _ in contents:
                handles.append(_create(path, staged))
            for path, _ in contents:  # not before: `was_interrupted` tells by what lies aside
                _sweep(path)
            for handle, (path, chunks) in zip(handles, contents, strict=True):  # noqa: B007
                _write(handle, chunks)
                os.fsync(handle)
        except OSError as error:
            raise ModelError(
                f"{path} cannot be written: {error.strerror or error}; nothing was changed"
            ) from error
        check(staged[-1][0])
        main = contents[-1][0]
        try:
            with alone_in(main.parent):
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


def _create(path: Path, staged: list[tuple[Path, Path]]) -> int:
    """A new file beside `path`, listed in `staged` before it exists, and open."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    while True:
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        staged.append((aside, path))
        handle = os.open(aside, flags, 0o666)
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:
            return handle
        staged.pop()  # another process swept it before it was locked
        os.close(handle)


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


def was_interrupted(path: Path) -> bool:
    """Whether a save to `path` was killed: what lies beside it may be without it."""
    return any(True for _ in _stray(path))


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
