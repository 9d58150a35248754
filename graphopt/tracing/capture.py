"""From a module and example inputs to a program of `torch.export`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from graphopt.blame import line_of
from graphopt.errors import GraphOptError, ModelError, UsageError
from graphopt.tracing.axes import (
    Axis,
    Wanted,
    axes_of,
    guards_on,
    split,
    user_inputs,
    wanted_axes,
)
from graphopt.tracing.blame import capture_failed
from graphopt.tracing.recurrent import any_number_of_steps
from graphopt.tracing.torch_side import evaluating, leaves, quiet

__all__ = ["Captured", "capture", "captured_program", "resized"]


@dataclasses.dataclass(frozen=True)
class Captured:
    """A traced program with what it was traced on.

    Attributes:
        program: the `torch.export.ExportedProgram`.
        axes: its dynamic axes.
        args, kwargs: the example inputs; None if there are none.
        call: runs what was traced, in evaluation mode; changes neither its inputs nor its buffers.
        names: where what was traced was a model before, that model's `inputs` and `outputs` in
            order, its `weights` by path, and its `axes` by input.
    """

    program: Any
    axes: list[Axis]
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]
    call: Any
    names: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def capture(module: Any, example_inputs: Any, dynamic_shapes: Any) -> Captured:
    """Trace `module` in evaluation mode on `example_inputs`.

    Raises:
        UsageError: it is no module, or the arguments do not fit together.
        ModelError: `torch.export` cannot trace it.
    """
    import torch
    from torch.fx.experimental import _config

    module = _unwrapped(module)
    args, kwargs = _arguments(module, example_inputs)
    given, marks = split(dynamic_shapes) if dynamic_shapes is not None else (None, None)
    named = _by_name(module, args, kwargs)
    if isinstance(given, Mapping):  # inputs that are not named are static
        given = {**dict.fromkeys(named), **given}
    wanted = wanted_axes(
        marks, args if isinstance(marks, (tuple, list)) else named, leaves((args, kwargs))
    )
    # sizes of 0 and 1 are not taken for fixed, as in PyTorch's own ONNX exporter
    general = _config.patch(backed_size_oblivious=True)
    try:
        with evaluating(module), quiet(), general, torch.no_grad(), any_number_of_steps():
            program = torch.export.export(module, args, kwargs, dynamic_shapes=given, strict=False)
    except GraphOptError:
        raise
    except Exception as error:
        raise capture_failed(error, module) from error

    axes, fixed = axes_of(program, wanted)
    args, kwargs = program.example_inputs
    captured = Captured(program, axes, args, kwargs, _calling(module), _names_of(module))
    if fixed:
        raise ModelError(_cannot_be_dynamic(captured, fixed[0]))
    return captured


def captured_program(program: Any, names: Mapping[str, Any] | None = None) -> Captured:
    """What `capture` gives, for a program that was traced before (a .pt2 file)."""
    names = names or {}
    sizes = names.get("axes", {})
    wanted = [
        {k: Wanted(name) for k, name in enumerate(sizes.get(one, ())) if isinstance(name, str)}
        for one in names.get("inputs", [n for n, _ in user_inputs(program)])
    ]
    axes, _ = axes_of(program, wanted)
    args, kwargs = program.example_inputs or (None, {})
    return Captured(
        program, axes, args, dict(kwargs or {}), _calling(program.module(), exported=True), names
    )


def resized(captured: Captured, axis: Axis, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs, cut or repeated to `size` along `axis` and every axis tied to it."""
    import torch
    import torch.utils._pytree as pytree

    tied = {
        (a.input, a.axis)
        for a in [*captured.axes, axis]
        if a.symbol == axis.symbol or (axis.wanted.name and a.wanted.name == axis.wanted.name)
    }
    flat, spec = pytree.tree_flatten((captured.args, captured.kwargs))
    changed = []
    for (name, _), value in zip(user_inputs(captured.program), flat, strict=True):
        for k in range(getattr(value, "ndim", 0)):
            if (name, k) in tied:
                rows = torch.arange(size, device=value.device) % value.shape[k]
                value = value.index_select(k, rows)
        changed.append(value)
    args, kwargs = pytree.tree_unflatten(changed, spec)
    return tuple(args), dict(kwargs)


def _calling(module: Any, exported: bool = False) -> Callable[..., Any]:
    """A function that runs `module` in evaluation mode on copies of its inputs and buffers.

    A module of an exported program is in the mode that it was exported in.
    """
    import torch
    import torch.utils._pytree as pytree

    def call(*args: Any, **kwargs: Any) -> Any:
        held = dict(module.named_buffers()), args, kwargs
        buffers, args, kwargs = pytree.tree_map_only(
            torch.Tensor, lambda t: t.detach().clone(), held
        )
        mode = contextlib.nullcontext() if exported else evaluating(module)
        with mode, torch.no_grad():
            return torch.func.functional_call(module, buffers, args, kwargs)

    return call


def _cannot_be_dynamic(captured: Captured, axis: Axis) -> str:
    """Why an axis is fixed: the line that took its size, or fails with another."""
    place = next((g.where for g in reversed(guards_on(captured.program, None)) if g.where), "")
    why = f"the module works with other sizes, but tracing it takes size {axis.size} for granted"
    try:
        args, kwargs = resized(captured, axis, axis.size + 1)
        captured.call(*args, **kwargs)
    except Exception as error:
        place = line_of(error) or place
        why = f"the module works with size {axis.size} alone"
    where = f" at {place}" if place else ""
    return (
        f"{axis} cannot be dynamic: {why}{where}. Leave it out of dynamic_shapes, or write that "
        "line for any size"
    )


def _names_of(module: Any) -> dict[str, Any]:
    """The names of the model that a module was lowered from (`graphopt.backends.torch_fx`)."""
    meta = getattr(module, "meta", None)
    if not isinstance(meta, dict) or "graphopt.outputs" not in meta:
        return {}
    weights = meta.get("graphopt.parameters", {})
    return {
        "inputs": list(meta["graphopt.inputs"]),
        "outputs": list(meta["graphopt.outputs"]),
        "weights": {path: weight.name for path, weight in weights.items()},
    }


def _unwrapped(module: Any) -> Any:
    """The module inside torch.compile's, DataParallel's and DistributedDataParallel's wrappers."""
    import torch

    while not isinstance(module, torch.jit.ScriptModule):
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(module, torch.nn.Module):
            return module
        else:
            raise UsageError(
                f"a torch.nn.Module can be traced, not {type(module).__name__}; put a function "
                "into the forward of a module"
            )
    raise UsageError("a TorchScript module cannot be traced: give the module it was made from")


def _arguments(module: Any, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of `forward`, checked against its signature."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(given, Mapping):
        kwargs = dict(given)
    elif isinstance(given, (tuple, list)):
        args = tuple(given)
    else:
        args = (given,)
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"example inputs do not fit {type(module).__name__}.forward{signature}: {error}. Give "
            "a tuple of positional inputs or a dict of inputs by name"
        ) from error
    return args, kwargs


def _by_name(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
