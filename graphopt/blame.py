"""Blame: the line of the user's code that an exception came from, and the exception in one line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

__all__ = ["chain", "described", "is_users", "line_of", "place_of", "shown"]

#: Packages whose code is not the user's.
_PACKAGES = (
    *("graphopt", "graphopt.passes", "graphopt.backends", "numpy", "onnx", "onnx_ir"),
    *("onnxruntime", "onnxscript", "sympy", "torch"),
)


def described(error: BaseException) -> str:
    """`KeyError: 'x' (score.py:8)`: what was raised, and the line of the user's it came from."""
    place = line_of(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {text}' if text else ''}{f' ({place})' if place else ''}"


def line_of(error: BaseException) -> str:
    """File and line of the user's code that an error came from; "" if there is none."""
    for one in chain(error):
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(one.__traceback__)]
        place = place_of(frames)
        if place:
            return place
    return ""


def place_of(frames: list[tuple[str, int]]) -> str:
    """The innermost line of the user's; of an installed package's, with the user's that led there.

    Frames are outermost first. Those above the module's `forward` (the script that traces) are the
    caller's and are left out by `forward` being called from PyTorch.
    """
    entered = next((k for k, (f, _) in enumerate(frames) if not is_users(f)), 0)
    inside = [(f, n) for f, n in frames[entered:] if is_users(f)] or [
        (f, n) for f, n in frames if is_users(f) and entered == 0
    ]
    if not inside:
        return ""
    file, line = inside[-1]
    text = f"{shown(file)}:{line}"
    if "site-packages" in Path(file).parts:
        own = [(f, n) for f, n in inside if "site-packages" not in Path(f).parts]
        if own:
            text += f" (from {shown(own[-1][0])}:{own[-1][1]})"
    return text


def is_users(file: str) -> bool:
    """Whether a file is neither Python's, nor graphopt's, nor of a package below a model."""
    path = os.path.realpath(file)
    if not os.path.isfile(path):
        return False
    library = f"{Path(os.path.realpath(str(traceback.__file__))).parent}{os.sep}"
    if path.startswith(library) and "site-packages" not in Path(path).parts:
        return False
    roots = (Path(str(sys.modules[n].__file__)).parent for n in _PACKAGES if n in sys.modules)
    return not any(path.startswith(f"{os.path.realpath(root)}{os.sep}") for root in roots)


def shown(file: str) -> str:
    """A path as it is shown: from the working directory, if it is inside."""
    path = Path(os.path.realpath(file))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the cause first."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        one = one.__cause__ or one.__context__
    yield from reversed(seen)
