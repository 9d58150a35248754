"""Destinations: the files a command writes, checked before it works and told when it fails.

A command never writes over a file that it reads, over a file that graphopt did not write, or over
anything but a plain file, and never two files to one path.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graphopt.errors import GraphOptError, ModelError, UsageError

__all__ = ["Destinations", "is_model", "is_page", "is_plot", "is_report"]

#: What a plot begins with (`graphopt.cli.plot`).
PLOT_MARK = b"<!-- graphopt bench -->"

#: What a page begins with (`graphopt.page.document`).
PAGE_MARK = b"<!-- graphopt page -->"

#: Device and inode: the same file under any name.
_Identity = tuple[int, int]


class Destinations:
    """The files that one run will write.

    Args:
        inputs: files that the run reads, as named: paths, `FILE.py:NAME`, folders, None.
        identities: device and inode of others.
    """

    def __init__(
        self, inputs: Iterable[str | Path | None], identities: Iterable[_Identity] = ()
    ) -> None:
        self._read = set(identities)
        for named in inputs:
            for text in {str(named), str(named).rpartition(":")[0]} if named else ():
                if (found := _identity(text)) is not None:
                    self._read.add(found)
        self._before: dict[Path, Any] = {}
        self._named: dict[str, str] = {}

    def add(self, path: str | Path, option: str, ours: Callable[[Path], bool]) -> Path:
        """The path, which will be written.

        Args:
            path: the file.
            option: what names it, for messages.
            ours: whether graphopt wrote the file that is there now.

        Raises:
            UsageError: it must not be overwritten, or another file of this run goes there.
        """
        path, real = Path(path), os.path.realpath(path)
        if real in self._named:
            raise UsageError(
                f"{option} and {self._named[real]} both name {path}; name another file"
            )
        try:
            self._check(path, option, ours)
        except ModelError as error:
            raise UsageError(f"{option}: {error}") from error
        self._named[real] = option
        self._before[path] = _state(path)
        return path

    def _check(self, path: Path, option: str, ours: Callable[[Path], bool]) -> None:
        from graphopt.replacing import check_replaceable

        check_replaceable(path)
        if _identity(path) in self._read:
            raise UsageError(f"{path} is the input, or belongs to it; name another with {option}")
        if path.exists() and path.stat().st_size and not ours(path):
            raise UsageError(
                f"{path} exists and is not graphopt's: name another file with {option}, or remove "
                "that one"
            )

    def named(self) -> list[Path]:
        """All of them, in order."""
        return list(self._before)

    def written(self) -> list[Path]:
        """Those that hold something else than before the run."""
        return [p for p, before in self._before.items() if _state(p) not in (before, None)]

    @contextmanager
    def told(self) -> Iterator[None]:
        """Whatever ends the block early has a note of what was written until then."""
        try:
            yield
        except BaseException as error:
            if names := ", ".join(map(str, self.written())):
                error.add_note(f"written until then: {names}")
            raise


def is_model(path: Path) -> bool:
    """Whether graphopt wrote the model at `path`: a pack, or with a recipe, or in its manifest."""
    from graphopt.deploy.manifest import is_signed
    from graphopt.entropy.container import is_pack
    from graphopt.graph.provenance import RECIPE

    if is_pack(path) or is_signed(path):
        return True
    if zipfile.is_zipfile(path):
        from graphopt.tracing import EXTRA

        with suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"extra/{EXTRA}") for name in archive.namelist())
        return False
    from graphopt.io.reading import read_model

    with suppress(GraphOptError):
        return RECIPE in read_model(path).metadata_props
    return False


def is_report(path: Path) -> bool:
    """Whether the file at `path` is a report of `graphopt optimize` or `compare`."""
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    known = {"schema", "graphopt", "steps", "recipe"}, {"a", "b", "outputs", "equal", "missed"}
    return isinstance(data, dict) and any(keys <= data.keys() for keys in known)


def is_page(path: Path) -> bool:
    """Whether the file at `path` is a page of graphopt."""
    with path.open("rb") as file:
        return file.read(len(PAGE_MARK)) == PAGE_MARK


def is_plot(path: Path) -> bool:
    """Whether the file at `path` is a plot of `graphopt bench`."""
    with path.open("rb") as file:
        return file.read(len(PLOT_MARK)) == PLOT_MARK


def _identity(path: str | Path) -> _Identity | None:
    with suppress(OSError, ValueError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _state(path: Path) -> Any:
    with suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    return None
