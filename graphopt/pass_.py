"""Pass: one named transformation of a model; its dataclass fields are its options."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from graphopt import plugins
from graphopt.context import Context

__all__ = ["Pass", "format_pass"]


@dataclasses.dataclass(frozen=True)
class Pass(InPlacePass):
    """One transformation of a model, in place.

    Subclass it as a frozen dataclass whose fields are scalars or tuples, and write `run`.
    A `Pass` is also an `onnx_ir` pass: it runs in `onnx_ir.passes.Sequential` unchanged.

    Class attributes:
        lossy: the pass may change outputs; the budget judges it instead of the equality rule.
        speeds_up: the pass claims the model gets faster, so the step is timed and undone if slower.
        needs: what must be there, from {"samples", "torch", "onnxsim"}.
        preserves: analyses whose result stays true after the pass edited the model.
    """

    lossy: ClassVar[bool] = False
    speeds_up: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset()
    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = ()

    @abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Transform `model` in place; return the number of edits made (0: untouched)."""

    def call(self, model: ir.Model) -> PassResult:
        """Run outside a pipeline, with a default context (the `onnx_ir` pass protocol)."""
        return PassResult(model, modified=self.run(model, Context(model)) > 0)

    def __str__(self) -> str:

        return format_pass(self)


_FILES: dict[type[Any], str] = {}


def format_pass(one: Any) -> str:
    """One pass as it is written in a spec, options at their default left out."""
    if not isinstance(one, Pass):
        return type(one).__name__
    given = []
    for field in dataclasses.fields(one):
        value = getattr(one, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            given.append(f"{field.name}={value!r}")
    return _spelling(type(one)) + (f"({', '.join(given)})" if given else "")


def _spelling(cls: type[Pass]) -> str:
    if cls in _FILES:
        return f"{_FILES[cls]}:{cls.__qualname__}"
    named = plugins.name_of(plugins.PASSES, cls)
    if named is not None:
        return named
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{file}:{cls.__qualname__}" if file else cls.__qualname__
