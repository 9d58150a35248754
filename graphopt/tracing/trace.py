"""`graphopt.trace`: the steps from a module to a model, in order."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.io.reading import EXAMPLES, NOTES
from graphopt.tracing.axes import names_of_symbols
from graphopt.tracing.capture import Captured, capture, captured_program
from graphopt.tracing.checks import check_against_torch, check_state, example_feeds
from graphopt.tracing.convert import convert
from graphopt.tracing.torch_side import import_torch

__all__ = ["model_of", "trace"]


def trace(module: Any, example_inputs: Any = (), dynamic_shapes: Any = None) -> ir.Model:
    """The model of a PyTorch module, traced with `torch.export` in evaluation mode.

    The module is not changed, and its weights are copied. Example inputs decide which way branches
    on shapes go; they are kept with the model for checks and measurements where no samples are
    given.

    Args:
        module: a `torch.nn.Module`, or a `torch.export.ExportedProgram` (which brings its inputs).
        example_inputs: a tuple of positional inputs, a dict of inputs by name, or one tensor.
        dynamic_shapes: axes whose size may change, by input name or position:
            `{"x": {0: "batch"}}`. What `torch.export.export` takes is taken too.

    Raises:
        MissingExtra: PyTorch or its ONNX exporter's package is not installed.
        UsageError: the inputs or the dynamic axes do not fit the module.
        ModelError: it cannot be traced or has no form in ONNX, with file and line; or the model
            computes something else than the module.
    """
    torch = import_torch()
    if isinstance(module, torch.export.ExportedProgram):
        return model_of(captured_program(module))
    return model_of(capture(module, example_inputs, dynamic_shapes), name=type(module).__name__)


def model_of(captured: Captured, name: str = "") -> ir.Model:
    """The model of a traced program, compared with what was traced."""
    model, program = convert(captured.program, names_of_symbols(captured.axes), captured.names)
    notes = check_state(program)
    if name:
        model.graph.name = name
    notes += check_against_torch(model, captured)
    feeds = example_feeds(model, captured)
    model.graph.meta[NOTES] = tuple(notes)
    model.graph.meta[EXAMPLES] = (feeds,) if feeds is not None else ()
    return model
