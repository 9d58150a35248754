"""A process of its own for models that can kill the runtime: integer divisions by -1.

ONNX Runtime divides 32- and 64-bit integers with the processor's instruction, which raises SIGFPE
for the smallest number by -1. Models in which that cannot be ruled out run in a process that may
die; what it says, or that it died, comes back. Every other model runs here, without its cost.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir

from graphopt.children import child_command
from graphopt.errors import ModelError
from graphopt.graph.constants import constant_value
from graphopt.io.reading import graphs_of

__all__ = ["Guarded", "fatal_division", "guarded", "serve"]

#: Types that are divided so, and operators whose results have one of them whatever they read.
_DIVIDED = frozenset({ir.DataType.INT32, ir.DataType.INT64})
_COUNTING = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})
#: Operators of whose elements none is below zero if none of their data is: inputs that are data.
_KEEPING: dict[str, slice] = {
    **dict.fromkeys(("Add", "Concat", "Div", "Max", "Min", "Mod", "Mul", "Sum"), slice(None)),
    **dict.fromkeys(("Cast", "Expand", "Flatten", "Gather", "Identity", "ReduceMax"), slice(1)),
    **dict.fromkeys(("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Slice"), slice(1)),
    **dict.fromkeys(("Squeeze", "Tile", "Transpose", "Unsqueeze"), slice(1)),
    "Where": slice(1, None),
}
#: How far back values are followed, and how many elements of a constant are looked at.
_FAR, _SMALL = 20, 4096


def fatal_division(model: ir.Model) -> str:
    """A division that may kill the runtime, by operator and name; "" if there is none."""
    for graph in graphs_of(model):
        for node in graph:
            unshaped = [v for v in node.inputs[:1] if v is not None and v.shape is None]
            if node.op_type == "DFT" and unshaped:  # of a scalar the runtime aborts
                return f"DFT '{node.name or node.outputs[0].name}' of any rank"
            if node.op_type != "Div" or node.domain not in ("", "ai.onnx"):
                continue
            dtypes = {_dtype(v, _FAR) for v in node.inputs}
            if dtypes - {None} <= _DIVIDED and not any(
                _never_negative(v, _FAR) for v in node.inputs
            ):
                return f"Div '{node.name or node.outputs[0].name}'"
    return ""


def _dtype(value: ir.Value | None, far: int) -> ir.DataType | None:
    """Its element type: declared, or that of what it is made from."""
    if value is None or value.dtype is not None or far == 0:
        return None if value is None else value.dtype
    if value.const_value is not None:
        return value.const_value.dtype
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type in _COUNTING:
        return ir.DataType.INT64
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return tensor.dtype
    data = node.inputs[1:2] if node.op_type == "Where" else node.inputs[:1]
    return _dtype(data[0], far - 1) if data else None


def _never_negative(value: ir.Value | None, far: int) -> bool:
    """Whether no element is below zero: constants and sizes, and what is computed from such."""
    if value is None or far == 0:
        return False
    tensor = constant_value(value)
    if tensor is not None:
        return tensor.size <= _SMALL and bool((tensor.numpy() >= 0).all())
    node = value.producer()
    if node is None:
        return False
    if node.op_type in _COUNTING:
        return True
    data = node.inputs[_KEEPING[node.op_type]] if node.op_type in _KEEPING else ()
    return bool(data) and all(_never_negative(v, far - 1) for v in data)


class Guarded:
    """A model that runs in another process.

    Args:
        process: which answers as `serve` does.
        title: what to call the model and its fault in errors.
    """

    def __init__(self, process: subprocess.Popen[bytes], title: str) -> None:
        self._process, self._title = process, title

    def ask(self, request: object) -> Any:
        """The answer to a request. Raises ModelError if there is an error, or no answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(request, self._process.stdin)
            self._process.stdin.flush()
            kind, answer = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ModelError(f"ONNX Runtime died ({how}) on {self._title}") from error
        if kind == "error":
            raise ModelError(answer)
        return answer

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Outputs by name. Raises ModelError if the runtime refuses them or dies."""
        outputs: dict[str, np.ndarray[Any, Any]] = self.ask(dict(feeds))
        return outputs


@contextlib.contextmanager
def guarded(path: Path, optimize: bool, division: str) -> Iterator[Guarded]:
    """The model file at `path`, opened in a process of its own.

    Raises:
        ModelError: the runtime cannot load it, or dies of it.
    """
    command = child_command("graphopt.execution.runtime", "serve_guarded")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes) as process:
        try:
            made = Guarded(process, f"the model, for its {division}")
            made.ask((str(path), optimize))
            yield made
        finally:
            process.kill()


def serve(
    open_model: Callable[[Path, bool], Callable[[Any], Any]], requests: BinaryIO, answers: BinaryIO
) -> None:
    """Open the model that the first request names, then answer feeds with outputs."""
    predict: Callable[[Any], Any] | None = None
    while True:
        try:
            request = pickle.load(requests)
        except EOFError:
            return
        try:
            if predict is None:
                predict, answer = open_model(Path(request[0]), request[1]), None
            else:
                answer = predict(request)
            reply = ("value", answer)
        except ModelError as error:
            reply = ("error", str(error))
        pickle.dump(reply, answers)
        answers.flush()
