"""Pass: one named transformation of a model; its dataclass fields are its options."""

from __future__ import annotations

import dataclasses
import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

from graphopt import plugins
from graphopt.blas import one_thread
from graphopt.context import Context
from graphopt.errors import MissingExtra, UsageError

__all__ = ["Pass", "check_needs", "format_pass"]


@dataclasses.dataclass(frozen=True)
class Pass(InPlacePass):
    """One transformation of a model, in place.

    Subclass it as a frozen dataclass whose fields are scalars or tuples, and write `run`.
    A `Pass` is also an `onnx_ir` pass: it runs in `onnx_ir.passes.Sequential` unchanged.

    Class attributes:
        lossy: the pass may change outputs; the budget judges it instead of the equality rule.
        speeds_up: the pass claims the model gets faster, so the step is timed and undone if slower.
        compresses: the pass claims the model gets smaller or faster: a step that brought neither
            is undone.
        needs: what must be there, or a run is refused before it starts: "samples", or the name of
            an extra ("torch", "onnxsim").
        recovers: the pass wins back what lossy ones before it lost, so that those are judged
            after it, together.
        preserves: analyses whose result stays true after the pass edited the model.
    """

    lossy: ClassVar[bool] = False
    speeds_up: ClassVar[bool] = True
    compresses: ClassVar[bool] = False
    recovers: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset()
    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = ()

    @abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Transform `model` in place; return the number of edits made (0: untouched)."""

    def weaker(self) -> Pass | None:
        """The same with half its strength, tried where the outputs would say something else."""
        return None

    def choices(self, model: ir.Model, ctx: Context) -> dict[str, tuple[Any, ...]]:
        """What a search may choose: by name of a layer, the values `layers` may give it.

        The mildest come first; a layer may also stay as it is. {} if there is nothing to choose.
        """
        return {}

    def removes(self, model: ir.Model, ctx: Context) -> dict[str, tuple[str, ...]]:
        """By name of a layer of `choices`, the nodes that go with it where it is taken at all."""
        return {}

    def only(self, layers: tuple[tuple[str, Any], ...], others: Sequence[str] = ()) -> Pass:
        """The same pass on these (pattern, value) pairs alone.

        All other layers stay as they are; `others` names those that there was a choice for.
        """
        raise NotImplementedError(f"{self} has no layers= to choose by")

    def call(self, model: ir.Model) -> PassResult:
        """Run outside a pipeline, with a default context (the `onnx_ir` pass protocol)."""
        with one_thread():
            return PassResult(model, modified=self.run(model, Context(model)) > 0)

    def __str__(self) -> str:
        return format_pass(self)


def check_needs(one: Any, *, samples: bool) -> None:
    """Refuse a pass whose `needs` are not there.

    Raises:
        MissingExtra: an extra is not installed.
        UsageError: there are no samples.
    """
    for need in sorted(getattr(one, "needs", ())):
        if need == "samples" and not samples:
            raise UsageError(f"{format_pass(one)} needs samples: give --samples")
        if need != "samples" and find_spec(need) is None:
            raise MissingExtra(need, format_pass(one))


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
