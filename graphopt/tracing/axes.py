"""Dynamic axes: what the user asked for, what the trace allows, and where it was narrowed.

Whatever names or ranges are given, `torch.export` is asked to find out itself (`Dim.AUTO`): it then
says with every restriction which line made it, where named dimensions fail without one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from graphopt.blame import is_users, shown
from graphopt.errors import UsageError
from graphopt.tracing.torch_side import leaves

__all__ = [
    "Axis",
    "Guard",
    "Wanted",
    "axes_of",
    "guards_on",
    "names_of_symbols",
    "split",
    "user_inputs",
    "wanted_axes",
]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One axis that was asked to be dynamic; `low`, `high` are the user's own bounds, or None."""

    name: str | None
    low: int | None = None
    high: int | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """A dynamic axis of the traced program: which input, which axis, which symbol stands for it."""

    input: str
    axis: int
    symbol: str
    wanted: Wanted
    size: int

    def __str__(self) -> str:
        named = f" ('{self.wanted.name}')" if self.wanted.name else ""
        return f"axis {self.axis} of '{self.input}'{named}"


@dataclasses.dataclass(frozen=True)
class Guard:
    """A condition on sizes that the trace relies on, and the line that made it."""

    condition: str
    where: str


def split(given: Any) -> tuple[Any, Any]:
    """Dynamic shapes as `torch.export` takes them, and the same with `Wanted` at dynamic axes.

    Args:
        given: as for `torch.export.export`: by input name or position, nested as the inputs are;
            per axis a name, a `torch.export.Dim`, `Dim.DYNAMIC`, `Dim.AUTO`, None or a size.
    """
    if isinstance(given, Mapping):
        pairs = {k: split(v) for k, v in given.items()}
        return {k: a for k, (a, _) in pairs.items()}, {k: b for k, (_, b) in pairs.items()}
    if isinstance(given, (list, tuple)):
        both = [split(v) for v in given]
        return type(given)(a for a, _ in both), type(given)(b for _, b in both)
    return _one(given)


def _one(dim: Any) -> tuple[Any, Wanted | None]:
    from torch.export import Dim

    if dim is None or isinstance(dim, int):
        return dim, None
    if isinstance(dim, str):
        return Dim.AUTO, Wanted(dim)
    if isinstance(dim, Dim):
        if not re.fullmatch(r"\w+", dim.__name__) or type(dim) is not Dim:
            raise UsageError(
                f"dynamic_shapes: {dim.__name__} is computed from another dimension; name each "
                'axis itself, for example {0: "batch"}: relations are found by tracing'
            )
        low = dim.min if dim.min > 1 else None
        high = dim.max if isinstance(dim.max, int) and dim.max < 2**31 else None
        return Dim.AUTO(min=low, max=high), Wanted(dim.__name__, low, high)
    kind = getattr(getattr(dim, "type", None), "name", "")
    if kind == "STATIC":
        return dim, None
    if kind == "AUTO":
        return dim, None
    if kind == "DYNAMIC":
        return Dim.AUTO(min=dim.min, max=dim.max), Wanted(None, dim.min, dim.max)
    raise UsageError(
        f"dynamic_shapes: {dim!r} is no axis size; give a name, a torch.export.Dim or None"
    )


def wanted_axes(marks: Any, given: Any, inputs: list[Any]) -> list[dict[int, Wanted]]:
    """Per flat input, its axes that were asked to be dynamic.

    Args:
        marks: the second result of `split`, per argument of `forward`.
        given: the arguments, by name or position as `marks` has them.
        inputs: all flat inputs, in order.

    Raises:
        UsageError: an axis that an input does not have.
    """
    found: list[dict[int, Wanted]] = [{} for _ in inputs]
    places = {id(v): k for k, v in reversed(list(enumerate(inputs)))}
    for tensor, axis, mark in _marked(marks, given, "dynamic_shapes"):
        found[places[id(tensor)]][axis] = mark
    return found


def _marked(marks: Any, value: Any, where: str) -> Iterator[tuple[Any, int, Wanted]]:
    """Each tensor in `value` with the axes that `marks`, nested like it, holds a `Wanted` for."""
    if marks is None:
        return
    if hasattr(value, "ndim"):
        for axis, mark in marks.items() if isinstance(marks, Mapping) else enumerate(marks):
            if not isinstance(axis, int) or not -value.ndim <= axis < value.ndim:
                raise UsageError(f"{where}: an input of shape {list(value.shape)} has no {axis!r}")
            if isinstance(mark, Wanted):
                yield value, axis % value.ndim, mark
    elif isinstance(marks, Mapping) and isinstance(value, Mapping):
        for key, mark in marks.items():
            if key not in value:
                names = ", ".join(map(str, value)) or "none"
                raise UsageError(f"{where}: there is no input '{key}'. There are: {names}")
            yield from _marked(mark, value[key], f"{where}[{key!r}]")
    else:
        inside = value if isinstance(value, (list, tuple)) else leaves(value)
        for k, (mark, one) in enumerate(zip(marks, inside, strict=False)):
            yield from _marked(mark, one, f"{where}[{k}]")


def axes_of(program: Any, wanted: list[dict[int, Wanted]]) -> tuple[list[Axis], list[Axis]]:
    """The dynamic axes of `program`, and those that were asked to be dynamic and are fixed."""
    free, fixed = [], []
    for (name, value), marks in zip(user_inputs(program), wanted, strict=True):
        for axis, size in enumerate(value.shape if value is not None else ()):
            expression: Any = size if isinstance(size, int) else size.node.expr
            constant = isinstance(expression, int) or expression.is_number
            hint = int(expression) if constant else size.node.hint
            one = Axis(name, axis, str(expression), marks.get(axis, Wanted(None)), hint)
            if not constant:
                free.append(one)
            elif axis in marks:
                fixed.append(one)
    return free, fixed


def user_inputs(program: Any) -> list[tuple[str, Any]]:
    """Name and example value of every flat input; None for one that is no tensor."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            value = values.get(spec.arg.name)
            found.append((spec.arg.name, value if hasattr(value, "ndim") else None))
    return found


def guards_on(program: Any, symbol: str | None) -> list[Guard]:
    """Conditions that mention `symbol` (None: any), with file and line where PyTorch knows them."""
    for _, value in user_inputs(program):
        mode = getattr(value, "fake_mode", None)
        if mode is not None and mode.shape_env is not None:
            return [
                Guard(str(g.expr), _place(g.sloc))
                for g in mode.shape_env.guards
                if symbol is None or symbol in {str(s) for s in g.expr.free_symbols}
            ]
    return []


def _place(location: Any) -> str:
    """File and line of the module's code that made a guard; "" where PyTorch's own code did."""
    frame: Any = getattr(location, "framework_loc", None)
    if not hasattr(frame, "filename") or not is_users(frame.filename):
        return ""
    return f"{shown(frame.filename)}:{frame.lineno}"


def names_of_symbols(axes: list[Axis]) -> dict[str, str]:
    """Symbol -> the name the user gave it."""
    names: dict[str, str] = {}
    for axis in axes:
        if axis.wanted.name and re.fullmatch(r"\w+", axis.symbol):
            names.setdefault(axis.symbol, axis.wanted.name)
    return names
