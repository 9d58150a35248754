"""What stood in the way of a trace, in one line: which line of the user's code, what to do next."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from graphopt.errors import ModelError
from graphopt.tracing.torch_side import quiet

__all__ = ["capture_failed", "conversion_failed", "is_users", "line_of", "line_of_node", "shown"]

#: Start of PyTorch's error -> what it means and what to do; the first that fits is taken.
_KNOWN = (
    (
        r"GuardOnDataDependentSymNode|PendingUnbackedSymbolNotFound",
        "the code branches (or takes a size) from the values of a tensor, which are not known "
        "while tracing. Write the branch with torch.cond or torch.where",
    ),
    (
        r"TensorifyScalarRestartAnalysis|DynamicOutputShapeException|DataDependentOutputException",
        "the code takes a number or a size from the values of a tensor, which are not known while "
        "tracing. Keep it a tensor, or compute it outside the module",
    ),
    (
        r"RuntimeError: Found <class .* in (output|input)",
        "its inputs and outputs must be tensors in tuples, lists and dicts. Return tensors alone "
        "(a Transformers model: config.use_cache = False)",
    ),
)


def capture_failed(error: BaseException, module: Any) -> ModelError:
    """The error for a module that `torch.export` cannot trace."""
    kind = type(error).__name__
    place = line_of(error)
    told = f"{kind}: {error}"
    advice = next((text for pattern, text in _KNOWN if re.match(pattern, told)), "")
    if not advice:
        advice = (
            f"{kind}: {_summary(error)}. Change that line, or make the example inputs such as "
            "the module takes"
        )
    where = f" at {place}" if place else ""
    return ModelError(f"{_title(module)} cannot be traced{where}: {advice}")


def conversion_failed(error: BaseException, program: Any) -> ModelError:
    """The error for a traced program that has no form in ONNX."""
    text = " ".join(str(e) for e in _chain(error))
    match = re.search(r"%(\w+)\s*:", text)
    nodes = {n.name: n for n in program.graph.nodes}
    node = nodes.get(match[1]) if match else None
    named = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text)
    target = named[1] if named else str(getattr(node, "target", "")) if node is not None else ""
    operator = f"operator {target}" if target else "it"
    place = line_of_node(node) if node is not None else _target_line(program, target)
    where = f" at {place}" if place else ""
    reason = "has no form in ONNX" if named else f"cannot be written as ONNX ({_summary(error)})"
    return ModelError(
        f"{operator}{where} {reason}. Write that line with other operators, or export the .onnx "
        "file yourself with torch.onnx.export(custom_translation_table=...) and give graphopt that"
    )


def line_of_node(node: Any) -> str:
    """File and line of the module's code that made a node of a traced program; "" if unknown."""
    trace = str(node.meta.get("stack_trace") or "")
    frames = re.findall(r'File "([^"]+)", line (\d+)', trace)
    return _pick([(f, int(n)) for f, n in frames])


def is_users(file: str) -> bool:
    """Whether a file is neither PyTorch's, nor Python's, nor graphopt's."""
    path = os.path.realpath(file)
    return os.path.isfile(path) and not any(path.startswith(root) for root in _roots())


def shown(file: str) -> str:
    """A path as it is shown: from the working directory, if it is inside."""
    path = Path(os.path.realpath(file))
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _roots() -> list[str]:
    """Folders whose code is not the user's."""
    packages = [Path(str(sys.modules[n].__file__)).parent for n in _PACKAGES if n in sys.modules]
    library = Path(str(traceback.__file__)).parent
    inside = [library / n for n in ("importlib", "site-packages/torch", "site-packages/onnxscript")]
    plain = [str(p) for p in library.glob("*.py")]
    return [f"{os.path.realpath(p)}{os.sep}" for p in (*packages, *inside)] + plain


_PACKAGES = ("torch", "onnxscript", "onnx_ir", "graphopt", "sympy")


def line_of(error: BaseException) -> str:
    """File and line of the user's code that an error came from; "" if there is none."""
    for one in _chain(error):
        frames = [(f.filename, f.lineno or 0) for f in traceback.extract_tb(one.__traceback__)]
        place = _pick(frames)
        if place:
            return place
    return ""


def _pick(frames: list[tuple[str, int]]) -> str:
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


def _target_line(program: Any, target: str) -> str:
    """The line that uses an operator, in the program or in what PyTorch makes of it."""
    import torch

    name = target.replace("::", ".")
    if not name:
        return ""
    with quiet(), torch.no_grad():
        programs = [program, program.run_decompositions()]
    lines = (
        line_of_node(n) for p in programs for n in p.graph.nodes if str(n.target).startswith(name)
    )
    return next((line for line in lines if line), "")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the cause first."""
    seen: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in seen:
        seen.append(one)
        one = one.__cause__ or one.__context__
    yield from reversed(seen)


def _summary(error: BaseException) -> str:
    """The first sentence of the innermost error."""
    for one in _chain(error):
        lines = [t.strip() for t in str(one).splitlines() if t.strip()]
        if lines:
            return re.sub(r"\x1b\[\d+m", "", lines[0])[:300].rstrip(".")
    return type(error).__name__


def _title(module: Any) -> str:
    return f"module {type(module).__name__}"
