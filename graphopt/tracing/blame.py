"""What stood in the way of a trace, in one line: which line of the user's code, what to do next."""

from __future__ import annotations

import re
from typing import Any

from graphopt.blame import chain, line_of, place_of
from graphopt.errors import ModelError
from graphopt.tracing.torch_side import quiet

__all__ = ["capture_failed", "conversion_failed", "line_of_node"]

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
    text = " ".join(str(e) for e in chain(error))
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
    return place_of([(f, int(n)) for f, n in frames])


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


def _summary(error: BaseException) -> str:
    """The first sentence of the innermost error."""
    for one in chain(error):
        lines = [t.strip() for t in str(one).splitlines() if t.strip()]
        if lines:
            return re.sub(r"\x1b\[\d+m", "", lines[0])[:300].rstrip(".")
    return type(error).__name__


def _title(module: Any) -> str:
    return f"module {type(module).__name__}"
