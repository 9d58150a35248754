"""Trial: a converted file run in a process of its own, which it may crash."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from graphopt.backends.devices.process import run_function

from graphopt.backend import Arrays, find_target, named_backend
from graphopt.errors import GraphOptError, ModelError
from graphopt.target import Target

__all__ = ["run_apart"]

MARK = "graphopt: "


def run_apart(path: Path, target: Target, feeds: Sequence[Arrays]) -> list[Arrays]:
    """Outputs of the file at `path` for each of `feeds`, on one thread.

    Raises ModelError: it does not open or run, or its runtime crashed.
    """
    folder = path.parent
    for k, one in enumerate(feeds):
        _keep(folder / f"{k}.feeds.npz", one)
    try:
        given = [path, target.name, str(len(feeds))]
        said = run_function(__name__, "main", given, folder, f"the runtime of '{target.name}'")
        for line in said.splitlines():
            if line.startswith(MARK):
                raise ModelError(line.removeprefix(MARK))
        return [_arrays(folder / f"{k}.made.npz") for k in range(len(feeds))]
    finally:
        for file in (*folder.glob("*.feeds.npz"), *folder.glob("*.made.npz")):
            file.unlink()


def _keep(path: Path, arrays: Arrays) -> None:
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(path, **plain)


def _arrays(path: Path) -> Arrays:
    with np.load(path) as data:
        return {name: data[name] for name in data.files}


def main() -> None:
    """The file, target and number of feeds named by the arguments of this process."""
    file, name, count = sys.argv[1:]
    target = find_target(name)
    backend = named_backend(target.backend)
    assert backend is not None
    path = Path(file)
    try:
        session = backend.session(path, target)
        for k in range(int(count)):
            made = session(_arrays(path.parent / f"{k}.feeds.npz"))
            _keep(path.parent / f"{k}.made.npz", made)
    except GraphOptError as error:
        sys.stdout.write(f"\n{MARK}{error}\n")
