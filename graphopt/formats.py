"""Model formats: load and save by what a path ends in, from the entry points `graphopt.formats`.

An entry point's name is the ending without its dot; it names a `Format`. Built-in are `onnx`, `pt2`
(programs of `torch.export`) and `py` (`FILE.py:FUNCTION`, which builds a model); models of other
frameworks are converted (graphopt/converting). A path that ends in none of them is read and written
as ONNX. A folder is a SavedModel of TensorFlow (`savedmodel`), or one of onnxruntime-genai
(`genai`), which stands for its decoder.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Protocol, runtime_checkable

import onnx_ir as ir

from graphopt import plugins
from graphopt.errors import ModelError, UsageError

__all__ = ["Format", "format_of", "load", "save"]


@runtime_checkable
class Format(Protocol):
    """How models of one kind of file are read and written."""

    def load(self, path: str) -> ir.Model:
        """The model at `path`. Raises ModelError, without the path: what is wrong, what to do."""
        ...

    def save(self, model: ir.Model, path: Path, *, external: bool | None = None) -> None:
        """Write `model`, so that `path` holds all of it or what it held before.

        `external` asks for weights beside the graph, where the format can; None leaves it to it.
        Raises UsageError if `path` is a file the model was read from, or cannot be written so.
        """
        ...


def load(path: str | os.PathLike[str], *, trust: str = "") -> ir.Model:
    """Read a model: an ONNX file of opset 7 or later, a PyTorch program or module, traced, or a
    model of another framework, converted (docs/from-other-frameworks.md).

    Weights of an ONNX file are mapped, not read: it must stay as it is while the model is in use.
    External data is looked for in the folder of the file, and only there.

    Args:
        path: an .onnx file; a .pt2 file that `torch.export.save` wrote; or `FILE.py:FUNCTION`, a
            function that returns a module with example inputs (docs/from-pytorch.md), which is
            run; a folder of onnxruntime-genai, which stands for its decoder.
            Other endings belong to installed formats.
        trust: "pickle" if a file may be a pickle, which runs what it says as it is read.

    Raises:
        ModelError: one line that says what is wrong, where, and what to do.
        UsageError: it is a pickle, and nothing says that it may be.
        MissingExtra: what reads this format is not installed.
    """
    found = format_of(path)
    if getattr(found, "pickle", False) and trust != "pickle":
        raise UsageError(
            f"{Path(path)} is a pickle, which can run anything as it is read: if you trust whoever "
            "made it, give --trust pickle (in Python: load(path, trust='pickle'))"
        )
    try:
        return found.load(os.fspath(path))
    except ModelError as error:
        raise ModelError(f"{Path(path)}: {error}") from error.__cause__


def save(model: ir.Model, path: str | os.PathLike[str], *, external: bool | None = None) -> None:
    """Write `model` to `path`, which then holds all of it or, on any failure, what it held before.

    Args:
        model: any model, however it was made or read.
        path: the file; what it ends in says which format. A link is followed; the file it names is
            replaced. A folder (`name/`) takes the decoder of a model that was read from one of
            onnxruntime-genai, and what lay beside it.
        external: put weights into `NAME.onnx.data` beside an .onnx file. None: if the model is too
            large for one file (about 1.9 GB).

    Raises:
        UsageError: `path` is one of the files the model was read from, or cannot be written to.
        ModelError: it cannot be written (no such folder, disk full), or is too large for one file.
        MissingExtra: what writes this format is not installed.
    """
    format_of(path).save(model, Path(os.path.realpath(path)), external=external)


def format_of(path: str | os.PathLike[str]) -> Format:
    """The format that a path's ending names; ONNX if none does.

    Raises:
        UsageError: what is installed under this ending is no format.
    """
    text = os.fspath(path)
    file, _, function = text.rpartition(":")
    ending = "py" if file.endswith(".py") and function.isidentifier() else Path(text).suffix[1:]
    if text.endswith(os.sep) or os.path.isfile(os.path.join(text, "genai_config.json")):
        ending = "genai"
    elif os.path.isfile(os.path.join(text, "saved_model.pb")):
        ending = "savedmodel"
    elif ending == "json" and _is_paddle(text):
        ending = "pdmodel"
    elif ending == "py" and _is_jax(file):
        ending = "jax"
    known = plugins.find(plugins.FORMATS)
    entry = known.get(ending.lower(), known["onnx"])
    found = entry.load()
    if not isinstance(found, Format):
        raise UsageError(f"the entry point '{entry.name}' ({entry.value}) is not a graphopt format")
    return found


def _is_paddle(file: str) -> bool:
    """Whether a JSON file is a program of PaddlePaddle: weights lie beside it, or it says so."""
    if os.path.isfile(file.removesuffix("json") + "pdiparams"):
        return True
    try:
        with open(file, "rb") as held:
            return b'"magic":"pir"' in held.read(256)
    except OSError:
        return False  # whoever reads it says so


def _is_jax(file: str) -> bool:
    """Whether a Python file builds a function of JAX: it imports that, and no PyTorch."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False  # whoever reads it says so
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    roots = {name.split(".")[0] for name in names}
    return "jax" in roots and "torch" not in roots
