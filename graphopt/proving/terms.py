"""Terms: values as what computes them, in one table where equal terms are one object.

Hash-consing decides what congruence decides (Downey, Sethi and Tarjan, 1980); tensors of equal
contents are one constant.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.facts import Fact
from graphopt.analyses.shapes.symbolic import Dim

__all__ = ["Term", "Terms"]

#: Tensors up to this many bytes are told apart by their bytes at once.
SMALL = 1 << 12
#: Constants up to this many elements are looked through for one that all of them are.
LARGEST_UNIFORM = 1 << 22
#: Operators that make infinities, or no number, of finite numbers.
INFINITE = frozenset(
    """Acos Acosh Asin Atanh Div If Log Loop Mod Pow Reciprocal ReduceLogSum Scan Sqrt
    bound""".split()  # noqa: SIM905
)
FLOATS = frozenset(
    (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
)


@dataclasses.dataclass(eq=False, slots=True)
class Term:
    """A value as what computes it.

    Attributes:
        op: operator with its domain; "input", "const", "data" and "bound" are made by no node.
        args: the terms of its inputs.
        attributes: of its node, defaults left out.
        output: which output of the node.
        dims, dtype: its shape and element type, where they are known.
        tensor: what a constant holds.
        node: a node that computes it.
        opset: the version of the standard that its node is of.
    """

    op: str
    args: tuple[Term | None, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    output: int = 0
    dims: tuple[Dim, ...] | None = None
    dtype: ir.DataType | None = None
    tensor: ir.TensorProtocol | None = None
    node: ir.Node | None = None
    opset: int = 0
    serial: int = dataclasses.field(default_factory=itertools.count().__next__)
    #: Whether the elements of a constant were looked at, and what else was asked.
    read: bool = False
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)
    _known: dict[str, Any] = dataclasses.field(default_factory=dict)

    def array(self) -> np.ndarray[Any, Any]:
        """The elements of a constant."""
        assert self.tensor is not None
        self.read = True
        return self.tensor.numpy()

    def forget(self) -> None:
        """Let nothing have been looked at or asked."""
        self.read = False
        self.asked = {}

    def answer(self, question: str) -> Any:
        """What is so of a term whatever window it is in: "finite" or "uniform"."""
        if question not in self._known:
            self._known[question] = QUESTIONS[question](self)
        return self._known[question]

    @property
    def finite(self) -> bool:
        """Whether finite inputs make it finite, overflow aside."""
        made = self.asked["finite"] = self.answer("finite")
        return bool(made)

    @property
    def uniform(self) -> Any:
        """The number that every element of a constant is, None if they differ."""
        made = self.asked["uniform"] = self.answer("uniform")
        return made


def _finite(top: Term) -> bool:
    stack = [top]
    while stack:
        term = stack[-1]
        inner = [a for a in term.args if a is not None]
        inner = inner[:1] if term.op == "Gather" else inner
        waiting = [a for a in inner if "finite" not in a._known]
        if term.op == "const" or (term.dtype is not None and term.dtype not in FLOATS):
            waiting = []
        if waiting:
            stack += waiting
            continue
        stack.pop()
        if term.dtype is not None and term.dtype not in FLOATS:
            known = True
        elif term.op == "const":
            assert term.tensor is not None
            known = bool(np.isfinite(np.asarray(term.tensor.numpy(), np.float64)).all())
        else:
            ordinary = term.op not in INFINITE or _divides_by_a_number(term)
            known = ordinary and all(a._known["finite"] for a in inner)
        term._known["finite"] = known
    return bool(top._known["finite"])


def _divides_by_a_number(term: Term) -> bool:
    by = term.args[1] if term.op == "Div" else None
    if by is None or by.op != "const" or by.tensor is None:
        return False
    return bool(by.tensor.numpy().all())


def _uniform(term: Term) -> Any:
    assert term.tensor is not None
    array = term.tensor.numpy().reshape(-1)
    if not 0 < array.size <= LARGEST_UNIFORM or (array[: 1 << 6] != array[0]).any():
        return None
    return array[0] if (array == array[0]).all() else None


QUESTIONS: Mapping[str, Callable[[Term], Any]] = {"finite": _finite, "uniform": _uniform}


class Terms:
    """The table of all terms."""

    def __init__(self) -> None:
        self._known: dict[Any, Term] = {}
        self._by_object: dict[int, Term] = {}
        self._alike: dict[Any, list[Term]] = {}
        self._kept: list[Any] = []
        #: Of an operator, inputs and attributes: its outputs, and the facts of their values.
        self.made: dict[Any, tuple[list[Term], list[Fact]]] = {}
        #: What is known of two terms that were compared: their window, where both are equal.
        self.joined: dict[tuple[Term, Term], Any] = {}
        #: Numbers of the sizes that nothing tells: each is another size, in whichever graph.
        self.unknowns = itertools.count(1)
        #: Some of them by what they follow from.
        self.sizes: dict[Any, Dim] = {}

    def named(self, key: Any, make: Callable[[], Term]) -> Term:
        """The term of `key`, made if it is new."""
        term = self._known.get(key)
        if term is None:
            term = self._known[key] = make()
        return term

    def constant(self, tensor: ir.TensorProtocol) -> Term:
        """The term of a tensor: one for equal contents."""
        known = self._by_object.get(id(tensor))
        if known is None:
            known = self._by_object[id(tensor)] = self._constant(tensor)
            self._kept.append(tensor)
        return known

    def _constant(self, tensor: ir.TensorProtocol) -> Term:
        shape = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
        made = Term("const", dims=shape, dtype=tensor.dtype, tensor=tensor)
        if tensor.dtype is ir.DataType.STRING:
            return self.named(
                ("text", shape, tuple(np.ravel(tensor.numpy()).tolist())), lambda: made
            )
        if tensor.nbytes <= SMALL:
            return self.named(("small", shape, tensor.dtype, tensor.tobytes()), lambda: made)
        array = tensor.numpy()
        sample = array.reshape(-1)[:: max(1, array.size // 64)].tobytes()
        alike = self._alike.setdefault((shape, tensor.dtype, sample), [])
        for term in alike:
            if term.tensor is not None and _same_bits(term.tensor.numpy(), array):
                return term
        alike.append(made)
        return made


def _same_bits(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a is b:
        return True
    return (
        a.tobytes() == b.tobytes()
        if a.nbytes < 1 << 20
        else bool(np.array_equal(_bits(a), _bits(b)))
    )


def _bits(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(a).view(np.uint8)
