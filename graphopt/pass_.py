"""Pass: one named transformation of a model; its dataclass fields are its options."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import onnx_ir as ir
from onnx_ir.passes import InPlacePass, PassResult

if TYPE_CHECKING:
    from graphopt.context import Context

__all__ = ["Pass"]


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
        from graphopt.context import Context

        return PassResult(model, modified=self.run(model, Context(model)) > 0)

    def __str__(self) -> str:
        from graphopt.spec import format_pass

        return format_pass(self)
