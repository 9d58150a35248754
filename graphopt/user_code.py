"""User code by path: a function or class of a Python file, `FILE.py:NAME`; the import path.

Code runs where a user names its file, and nowhere else: `import_path` is `sys.path` without the
working folder, where a `json.py` of a downloaded archive would be imported for Python's own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
import sysconfig
import types
from functools import cache
from pathlib import Path
from typing import Any

from graphopt.blame import described
from graphopt.errors import UsageError, nearest

__all__ = ["digest_of", "import_path", "load_attribute", "names_code"]


def import_path() -> list[str]:
    """`sys.path` without the working folder, unless it was installed there or holds graphopt.

    Python puts it first for `python -m` and `python -c`, and for an empty or relative part of
    PYTHONPATH; after the standard library come the folders that installed packages named.
    """
    own = str(Path(__file__).resolve().parents[1])
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was deleted
        here = ""
    standard = sysconfig.get_path("stdlib")
    end = sys.path.index(standard) if standard in sys.path else len(sys.path)
    given = [p for p in sys.path[:end] if os.path.isabs(p) and os.path.realpath(p) != here]
    kept = [*given, *(p for p in sys.path[end:] if os.path.isabs(p))]
    return kept if own != here or here not in sys.path else [*kept, own]


def load_attribute(path: str, attribute: str, what: str) -> Any:
    """`attribute` of the Python file at `path`. Raises UsageError if either is missing."""
    module = _load_file(str(Path(path).resolve()), path)
    if not hasattr(module, attribute):
        names = [n for n in vars(module) if not n.startswith("_")]
        raise UsageError(f"{path} has no {what} '{attribute}'{nearest(attribute, names)}")
    return getattr(module, attribute)


def names_code(text: str) -> bool:
    """Whether a spec, or another option's value, would have a file's code run."""
    return ".py:" in text or re.search(r"(^|,)[^,()\"']*:\s*[A-Za-z_]", text) is not None


def digest_of(code: str) -> str:
    """A digest of the file that `FILE.py:NAME` names; "" for text that names none."""
    path = Path(code.rpartition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.suffix == ".py" else ""


@cache
def _load_file(resolved: str, shown: str) -> types.ModuleType:
    path = Path(resolved)
    if not path.is_file():
        raise UsageError(f"{shown}: no such file")
    name = f"_graphopt_{path.stem}_{hashlib.sha256(resolved.encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UsageError(f"{shown} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(f"{shown} cannot be loaded: {described(error)}") from error
    return module
