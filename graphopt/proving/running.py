"""Interpreter of terms: a value computed node by node, floating point in one type throughout.

No optimizer of a runtime is between; an operator without a kernel for float64 is run in float32. A
Cast to a narrower type rounds to it. Of an If the branch that is taken is computed; a Loop is
followed turn by turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.evaluation import (
    Inputs,
    Kernel,
    deterministic,
    kernel_of,
    known_shape,
    quick,
)
from graphopt.graph.numpy_kernels import MOVES
from graphopt.proving.rounding import SINGLE
from graphopt.proving.terms import Term

__all__ = ["Fails", "Run", "Shared", "Unrunnable", "size_at"]

Array = np.ndarray[Any, Any]
STANDARD = ("", "ai.onnx")
#: Elements of everything in a window, above which it is not run.
LARGEST = 1 << 23
TOO_LARGE = "it is too large to be run"
#: Turns of a loop.
TURNS = 64
#: Operators whose elements are those of their first operand.
MOVED = (MOVES | {"Cast"}) - {"Concat"}
#: Roundings by which what a Cast rounds is moved, so that numbers at a tie go either way.
EDGE = 64
#: Inputs that are float32 whatever the type that the operator computes in.
ALWAYS_SINGLE = {"Resize": (1, 2), "Upsample": (1,)}


class Unrunnable(Exception):
    """No kernel, sizes that do not fit, or values that no run of the model has."""


class Fails(Unrunnable):
    """A kernel that is there fails on these inputs."""


def size_at(e: Dim, sizes: Mapping[str, int]) -> int:
    """A size as a number. Raises Unrunnable if the sizes do not say it."""
    found = e if isinstance(e, int) else e.at(sizes)
    if found is None or found < 0:
        raise Unrunnable("a size that depends on data")
    return found


class Shared:
    """What the runs of a window share: nodes opened in ONNX Runtime, and branches taken."""

    def __init__(self) -> None:
        self.branches: set[tuple[Term, bool]] = set()
        #: Each node once for every type and shape that it is told of its inputs.
        self._known: dict[Any, Kernel | None] = {}

    def kernel(self, term: Term, node: ir.Node, inputs: Inputs) -> Kernel | None:
        """What runs one node on such inputs; None if nothing does."""
        key = (node, *(None if x is None else (x.dtype, *known_shape(x)) for x in inputs))
        if key not in self._known:
            opsets = {"": term.opset, node.domain: term.opset if node.domain in STANDARD else 1}
            self._known[key] = kernel_of(node, inputs, opsets)
        return self._known[key]


class Run:
    """Values of terms for given inputs.

    Args:
        shared: what other runs know already.
        sizes: of the dynamic axes.
        rng, unit: constants are moved by about one rounding of this size; by its sign, numbers at a
            tie of a Cast are rounded up or down.
        wide: the type that is computed in.
        plain: by NumPy alone (kernels of a runtime have died of an empty axis).

    Attributes:
        narrow: something had no kernel for that type.
    """

    def __init__(
        self,
        shared: Shared,
        sizes: Mapping[str, int],
        rng: np.random.Generator | None = None,
        unit: float = 0.0,
        wide: Any = np.float64,
        plain: bool = False,
    ) -> None:
        self.shared = shared
        self.sizes, self.rng, self.unit, self.dtype = sizes, rng, unit, wide
        self.plain = plain
        self.narrow = False

    def wide(self, x: Array) -> Array:
        """Floating point in the type that this run computes in. Raises Unrunnable: too large."""
        if x.size > LARGEST:  # a broadcast one takes no memory yet
            raise Unrunnable(TOO_LARGE)
        return x.astype(self.dtype) if x.dtype.kind == "f" else x

    def rounded(self, x: Array) -> Array:
        """Each number moved by about one rounding; of a subnormal one that is a larger part."""
        if self.rng is None or x.dtype.kind != "f":
            return x
        part = self.rng.uniform(-1, 1, x.shape)
        moved: Array = x * (1 + self.unit * part) + np.where(x == 0, 0, SINGLE.least * part)
        return moved

    def __call__(self, top: Term, feeds: Mapping[Term, Array]) -> Array:
        """The value of `top`. Raises Unrunnable."""
        return self._value(top, dict(feeds), {})

    def _value(self, top: Term, values: dict[Term, Array], made: dict[Any, list[Array]]) -> Array:
        """`values` are what is known; `made`, outputs by node and what it reads."""
        held = sum(v.size for v in values.values())
        stack = [top]
        while stack:
            term = stack[-1]
            waiting = [] if term in values else self._waiting(term, values)
            if waiting:
                stack += waiting
                continue
            stack.pop()
            if term not in values:
                values[term] = self._made(term, values, made)
                held += values[term].size
            if held > LARGEST:
                raise Unrunnable(TOO_LARGE)
        return values[top]

    def _waiting(self, term: Term, values: dict[Term, Array]) -> list[Term]:
        """What a term reads and is not known yet; of an If, the branch that is taken."""
        args = [a for a in term.args if a is not None]
        if term.op == "If":
            args = [args[0]] if args[0] not in values else [self._taken(term, values)]
        return [a for a in args if a not in values]

    def _taken(self, term: Term, values: Mapping[Term, Array]) -> Term:
        condition, *branches = (a for a in term.args if a is not None)
        truth = bool(values[condition].ravel()[0])
        self.shared.branches.add((term, truth))
        return branches[0 if truth else 1]

    def _made(self, term: Term, values: dict[Term, Array], made: dict[Any, list[Array]]) -> Array:
        if term.op in ("const", "data"):
            return self._known(term)
        if term.op == "If":
            return values[self._taken(term, values)]
        node = term.node
        if node is None:
            raise Unrunnable(f"{term.op} cannot be run")
        key = (node, term.args)  # the turns of a loop have one node
        if key not in made:
            inputs = [None if a is None else values[a] for a in term.args]
            if term.op == "Loop":
                made[key] = self._loop(term, inputs, values)
            else:
                made[key] = self._outputs(term, node, inputs[: len(node.inputs)])
        if term.output >= len(made[key]):
            raise Unrunnable(f"{term.op} gives too few outputs")
        return made[key][term.output]

    def _known(self, term: Term) -> Array:
        """A constant, or shape data."""
        if term.op == "const":
            array = term.array()
            if term.dtype is not None and term.dtype.is_floating_point():
                array = array.astype(np.float64)  # bfloat16 is no type of NumPy's own
            if array.dtype.num >= 256 or array.dtype.kind not in "fiub":
                raise Unrunnable(f"a constant of type {array.dtype}")
            return self.rounded(self.wide(array)) if array.size > 1 else self.wide(array)
        assert term.dtype is not None
        elements = term.attributes["elements"]
        numbers = [e if isinstance(e, int) else size_at(e, self.sizes) for e in elements]
        shape = [d for d in term.dims or () if isinstance(d, int)]
        return np.array(numbers, term.dtype.numpy()).reshape(shape)

    def _loop(
        self, term: Term, inputs: list[Array | None], values: Mapping[Term, Array]
    ) -> list[Array]:
        """The outputs of a Loop: its state after the last turn, then what each turn gave."""
        assert term.node is not None
        (body,) = term.attributes["\0graphs"]
        limit, start, *state = inputs[: len(body.inputs)]
        going = start is None or bool(start.all())
        given: list[list[Array]] = []
        turns = TURNS + 1 if limit is None else int(limit.ravel()[0])
        turn = 0
        while going and turn < turns:
            if turn == TURNS:
                raise Unrunnable("a loop of too many turns")
            arrays = [np.array(turn), np.array(True), *state]
            bound = {leaf: x for leaf, x in zip(body.inputs, arrays, strict=True) if x is not None}
            known = {**values, **bound}
            made: dict[Any, list[Array]] = {}
            again, *found = [self._value(t, known, made) for t in body.outputs]
            going = bool(again.ravel()[0])
            given.append(found[len(state) :])
            state = [*found[: len(state)]]
            turn += 1
        if not given and len(body.outputs) > 1 + len(state):
            raise Unrunnable("a loop of no turns that gives what each turn did")
        if any(x is None for x in state):
            raise Unrunnable("a loop without a state to start from")
        stacked = [np.stack(x) for x in zip(*given, strict=True)]
        return [*(x for x in state if x is not None), *stacked]

    def _outputs(self, term: Term, node: ir.Node, inputs: list[Array | None]) -> list[Array]:
        if node.domain in STANDARD and not deterministic(node):
            raise Unrunnable(f"{node.op_type} cannot be run alone")
        x = inputs[0] if inputs else None
        if node.op_type == "Cast" and x is not None and x.dtype.kind == "f":
            to = ir.DataType(node.attributes["to"].value)
            if to.is_floating_point():
                return [x if _holds(to, term.args[0]) else self._narrowed(x, to)]
        found = quick(node, inputs)
        if found is None and not self.plain:
            found = self._by_runtime(term, node, inputs)
        if found is None:
            raise Unrunnable(f"{node.op_type} of no elements")
        return [self.wide(np.asarray(x)) for x in found]

    def _narrowed(self, x: Array, to: ir.DataType) -> Array:
        """Rounded to a narrower type."""
        if to.bitwidth < 16:
            raise Unrunnable(f"a Cast to {to.name}")
        moved = x if self.rng is None else x * (1 + EDGE * self.unit)
        with np.errstate(over="ignore"):
            return moved.astype(to.numpy()).astype(self.dtype)

    def _by_runtime(self, term: Term, node: ir.Node, inputs: list[Array | None]) -> list[Array]:
        """One node in ONNX Runtime: in float64, else in float32."""
        single = ALWAYS_SINGLE.get(node.op_type, ())
        there = False
        for dtype in dict.fromkeys((self.dtype, np.float32)):
            given = [
                None
                if x is None
                else np.asarray(x, np.float32 if k in single else dtype)
                if x.dtype.kind == "f"
                else np.asarray(x)  # one of rank 0 may have become a number
                for k, x in enumerate(inputs)
            ]
            kernel = self.shared.kernel(term, node, given)
            found = kernel(given) if kernel is not None else None
            there = there or kernel is not None
            if found is not None:
                self.narrow = self.narrow or dtype is not np.float64
                made = iter(found)
                return [next(made) if o.name else np.zeros(0) for o in node.outputs]
        if there:
            raise Fails(f"{node.op_type} fails")
        raise Unrunnable(f"no kernel runs {node.op_type}")


def _holds(to: ir.DataType, x: Term | None) -> bool:
    """Whether a type has every number of `x`, which may come from a narrower one by moves alone."""
    while x is not None and x.dtype is not None:
        if x.dtype is to or x.dtype.bitwidth < to.bitwidth:
            return True
        if x.op not in MOVED:
            return False
        x = x.args[0]
    return False
