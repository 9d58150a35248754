"""Opening what a path names: a program in a .pt2 file, or a function that builds a module."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import GraphOptError, ModelError, UsageError
from graphopt.io.reading import SOURCE, Source
from graphopt.tracing.torch_side import import_torch, quiet

__all__ = ["EXTRA", "build_model", "load_program"]

#: In a .pt2 file that graphopt wrote: the model's names and metadata, which a program lacks.
EXTRA = "graphopt.json"


def load_program(path: Path) -> ir.Model:
    """The model of a program that `torch.export.save` wrote.

    Raises:
        MissingExtra: PyTorch is not installed.
        ModelError: no such file, or not such a program.
    """
    if not path.is_file():
        raise ModelError("no such file" if not path.exists() else "this is a folder")
    torch = import_torch(f"reading {path.name}")
    from graphopt.tracing.capture import captured_program
    from graphopt.tracing.trace import model_of

    try:
        extra = {EXTRA: ""}
        with quiet():
            program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise ModelError(_not_a_program(path, error)) from error
    told = json.loads(extra[EXTRA] or "{}")
    model = model_of(captured_program(program, told.get("names")), name=path.stem)
    model.metadata_props.update(told.get("metadata", {}))
    status = path.stat()
    files = frozenset({(status.st_dev, status.st_ino)})
    model.graph.meta[SOURCE] = Source(path, files)
    return model


#: How a module becomes a file that is read.
_EXPORT = (
    "where the module is at hand, write "
    "torch.export.save(torch.export.export(module, example_inputs), 'NAME.pt2')"
)


def _not_a_program(path: Path, error: Exception) -> str:
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if any("/code/" in n for n in names):
        return f"this is a TorchScript program, not one of torch.export: {_EXPORT}"
    if any(n.endswith("data.pkl") for n in names) and not any("models/" in n for n in names):
        return (
            "this is a PyTorch checkpoint (weights without a graph), not a program written by "
            "torch.export.save: give FILE.py:build_model, a function that returns the module with "
            "these weights loaded and example inputs"
        )
    if not names:
        return f"this is not a program written by torch.export.save: {_EXPORT}"
    lines = [t for t in str(error).splitlines() if t.strip()] or [type(error).__name__]
    return f"PyTorch cannot read this program: {lines[0][:300]}"


def build_model(path: str, name: str) -> ir.Model:
    """The model of what function `name` in the Python file at `path` returns.

    It returns a module with example inputs, `(module, example_inputs)` or
    `(module, example_inputs, dynamic_shapes)` as `graphopt.trace` takes them; a model; or a module
    alone, if that brings its inputs (`dummy_inputs`, `example_input_array`) or takes none.

    Raises:
        ModelError: it raises, or returns something else.
        UsageError: there is no such file or function.
    """
    from graphopt.user_code import load_attribute

    function = load_attribute(path, name, "function")
    if not callable(function):
        raise UsageError(f"{path}:{name} is not a function but {type(function).__name__}")
    try:
        built = function()
    except GraphOptError:
        raise
    except ImportError as error:
        if error.name == "torch":
            import_torch(f"{path}:{name}")
        raise ModelError(f"{name}() raised ImportError: {error}") from error
    except Exception as error:
        from graphopt.blame import line_of

        place = line_of(error)
        where = f" at {place}" if place else ""
        raise ModelError(f"{name}() raised {type(error).__name__}{where}: {error}") from error
    if isinstance(built, ir.Model):
        return built
    from graphopt.tracing.trace import trace

    torch = import_torch(f"{path}:{name}")
    parts = tuple(built) if isinstance(built, (tuple, list)) else (built,)
    if not 1 <= len(parts) <= 3 or not isinstance(
        parts[0], (torch.nn.Module, torch.export.ExportedProgram)
    ):
        raise ModelError(
            f"{name}() returned {_described(built)}; it should return (module, example_inputs) or "
            "(module, example_inputs, dynamic_shapes)"
        )
    if len(parts) == 1:
        parts = (built, _own_inputs(built, name))
    return trace(*parts)


def _described(built: Any) -> str:
    if isinstance(built, (tuple, list)):
        return f"({', '.join(type(p).__name__ for p in built)})"
    return type(built).__name__


def _own_inputs(module: Any, name: str) -> Any:
    """Example inputs that a module knows itself (Transformers, Lightning), or none if it has none.

    Raises ModelError if it takes inputs and has no examples of them.
    """
    import inspect

    for attribute in ("dummy_inputs", "example_input_array"):
        found = getattr(module, attribute, None)
        if found is not None:
            return found
    needed = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if needed and not hasattr(module, "graph_signature"):
        raise ModelError(
            f"{name}() returned a module without example inputs ({', '.join(needed)}): return "
            "(module, example_inputs)"
        )
    return ()
