"""Inference on ONNX Runtime's CPU provider, the model as it is: what outputs are compared by.

Weights are handed to the runtime where they lie (mapped files, arrays) and are not copied: a
session costs memory for its activations. Kernels use them as they are (no prepacking), for the same
arithmetic whatever the size. Random operators draw the same numbers in every model: what differs
between two of them is not noise.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.deploy.runtime import BESIDE, open_cpu, session_options
from graphopt.errors import ModelError
from graphopt.execution.caches import Caches
from graphopt.execution.guard import fatal_division, guarded, serve
from graphopt.execution.parts import copied_bytes, parts_of, proto_of
from graphopt.graph.evaluation import RANDOM
from graphopt.graph.spill import SPILLED, spill
from graphopt.io.skeleton import Placed, Skeleton, skeleton_of
from graphopt.io.tensors import chunks

__all__ = ["in_parts", "open_session", "opened", "run", "run_each", "runtime_errors", "seeded"]

Arrays = Mapping[str, np.ndarray[Any, Any]]
#: Bytes of weights that one session may copy.
IN_PARTS = 1 << 30
#: Runs that go through one part of such a model before the next part is opened.
TOGETHER = 16
_Outputs = dict[str, np.ndarray[Any, Any]]
_Predict = Callable[[Arrays], _Outputs]
_Stream = Callable[[Iterable[Arrays]], Iterator[_Outputs]]


def open_session(path: Path, *, optimize: bool = False) -> Any:
    """An `onnxruntime.InferenceSession` for the model file at `path`.

    Its threads leave the processor alone between runs; else it is what any user would open.

    Args:
        path: the .onnx file.
        optimize: let the runtime apply its own graph optimizations.

    Raises:
        ModelError: the runtime cannot load the model; one line, with the operator if it names one.
    """
    with runtime_errors(str(path)):
        return open_cpu(path, session_options(optimize=optimize, config=BESIDE))


def run_each(
    model: ir.Model | Skeleton, feeds: Iterable[Arrays], *, optimize: bool = False
) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Outputs by name for each of `feeds`, one session for all of them.

    A model that runs in parts takes a few of them at a time, so that its weights are read once for
    all of these.

    Raises:
        ModelError: the runtime cannot load or run the model.
    """
    with _streaming(model, optimize) as stream:
        yield from stream(feeds)


def run(
    model: ir.Model, feeds: Arrays, *, optimize: bool = False
) -> dict[str, np.ndarray[Any, Any]]:
    """Outputs by name for one set of feeds (input name -> array)."""
    return next(iter(run_each(model, [feeds], optimize=optimize)))


@contextlib.contextmanager
def opened(model: ir.Model | Skeleton, *, optimize: bool = True) -> Iterator[_Predict]:
    """A function that runs the model; with the runtime's own optimizations it is as users run it.

    A model of whose weights a session would copy over `IN_PARTS` bytes is run in parts; one that
    may kill the runtime runs in a process of its own.

    Raises:
        ModelError: the runtime cannot load or run the model.
    """
    with _streaming(model, optimize) as stream:
        yield lambda feeds: next(stream([feeds]))


@contextlib.contextmanager
def _streaming(model: ir.Model | Skeleton, optimize: bool) -> Iterator[_Stream]:
    skeleton = skeleton_of(model)
    proto, large = skeleton.runnable
    proto = seeded(proto)
    division = fatal_division(skeleton.model)
    caches = Caches(skeleton.model)
    if in_parts(skeleton, optimize=optimize):
        together = _together(proto, large, optimize, division)

        def stream(feeds: Iterable[Arrays]) -> Iterator[_Outputs]:
            held = map(caches.held, feeds)
            while runs := list(itertools.islice(held, TOGETHER)):
                yield from map(caches.floats, together(runs))

        yield stream
    else:
        with _opened(proto, large, optimize, division) as predict:
            in_floats = caches.around(predict)
            yield lambda feeds: map(in_floats, feeds)


def in_parts(skeleton: Skeleton, *, optimize: bool = False) -> bool:
    """Whether a model is run in parts: each run then reads all of its weights again."""
    proto, large = skeleton.runnable
    constant = {t.name for t in proto.graph.initializer} & {o.name for o in proto.graph.output}
    return copied_bytes(large, optimize) > IN_PARTS and not constant


@contextlib.contextmanager
def _opened(
    proto: onnx.ModelProto, large: Sequence[Placed], optimize: bool, division: str
) -> Iterator[_Predict]:
    """One session.

    Large weights stay where they are, or in a file that the runtime maps: the graph says that they
    lie in an external file. As it is, the runtime takes the values given by `add_initializer`
    instead, but insists that the file exists: a hole without blocks stands there. Its own graph
    optimizations read the file, so with `optimize` it is really written. The runtime maps it when
    it opens, after which the name can go.
    """
    in_file = optimize or bool(division)
    config = {} if optimize else {"session.disable_prepacking": "1"}
    options = session_options(optimize=optimize, config={**BESIDE, **config})
    # the runtime does not copy these values: they live as long as the session
    kept = [(one.name, _ort_value(one.tensor)) for one in large if not in_file]
    for name, value in kept:
        options.add_initializer(name, value)
    guards = contextlib.ExitStack()
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder, runtime_errors():
            path = Path(folder, "model.onnx")
            path.write_bytes(proto.SerializeToString())
            with open(path.with_name("weights"), "wb") as file:
                for one in large if in_file else ():
                    file.seek(one.offset)
                    file.writelines(chunks(one.tensor))
                file.truncate(large[-1].offset + large[-1].tensor.nbytes if large else 0)
            if division:
                guard = guards.enter_context(guarded(path, optimize, division))
            else:
                session = open_cpu(path, options)
    except OSError as error:
        raise ModelError(
            f"the model cannot be run: temporary files cannot be written ({error.strerror}); "
            "TMPDIR names another folder for them"
        ) from error
    with guards:
        yield guard.run if division else _predictor(session)


def _together(
    proto: onnx.ModelProto, large: Sequence[Placed], optimize: bool, division: str
) -> Callable[[list[_Outputs]], Iterator[_Outputs]]:
    """Takes runs through the model's parts one after another, each opened when its turn comes."""
    parts = parts_of(proto, large, optimize, IN_PARTS // 4)
    outputs = [o.name for o in proto.graph.output]

    def together(runs: list[_Outputs]) -> Iterator[_Outputs]:
        for part in parts:
            held = [one for one in large if one.name in part.reads]
            with _opened(proto_of(proto, part, runs[0]), held, optimize, division) as run_part:
                for known in runs:
                    made = run_part({n: a for n, a in known.items() if n in part.reads})
                    known.update((n, _on_disk(a)) for n, a in made.items())
                    for name in part.last - set(outputs):
                        known.pop(name, None)
        return ({name: run[name] for name in outputs} for run in runs)

    return together


def _on_disk(array: Any) -> Any:
    """What a part gives, mapped from a temporary file if it is large."""
    if not isinstance(array, np.ndarray) or array.dtype.hasobject or array.nbytes < SPILLED:
        return array
    return spill(ir.Tensor(array)).numpy()


def seeded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with a seed, of what it makes, in every random node of its own graphs without one.

    Each session then draws anew from the start, so that two models agree run by run.
    """
    if not any(_unseeded(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for node in _unseeded(copy.graph):
        seed = float(zlib.crc32(node.output[0].encode()) % (1 << 20))
        node.attribute.append(onnx.helper.make_attribute("seed", seed))
    return copy


def _unseeded(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Random nodes without a seed, of subgraphs too."""
    for node in graph.node:
        if node.op_type in RANDOM and not any(a.name == "seed" for a in node.attribute):
            yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _unseeded(attribute.g)


def _predictor(session: Any) -> _Predict:
    """Runs a session; copies its outputs, which else keep all that the session ever allocated."""
    names = [o.name for o in session.get_outputs()]

    def predict(feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        with runtime_errors():
            outputs = session.run(names, dict(feeds))
        copied = (a.copy() if isinstance(a, np.ndarray) else a for a in outputs)
        return dict(zip(names, copied, strict=True))

    return predict


@contextlib.contextmanager
def runtime_errors(where: str = "the model") -> Iterator[None]:
    """Turn errors of ONNX Runtime into ModelError: their first line, without codes and paths."""
    from onnxruntime.capi import onnxruntime_pybind11_state as states

    kinds: tuple[type[Exception], ...] = (ValueError, RuntimeError)
    kinds += tuple(
        k for k in vars(states).values() if isinstance(k, type) and issubclass(k, Exception)
    )
    try:
        yield
    except kinds as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{where} does not run on ONNX Runtime: {_first_line(error)}") from error


def _ort_value(tensor: ir.TensorProtocol) -> Any:
    """The tensor as a runtime value over its own memory."""
    import onnxruntime as ort

    array = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape.numpy())
    if array.dtype.kind in "biufc":
        return ort.OrtValue.ortvalue_from_numpy(array)
    same_size = array.view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(same_size, int(tensor.dtype))


def _first_line(error: BaseException) -> str:
    text = next((s for s in str(error).splitlines() if s.strip()), type(error).__name__)
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed: ?", "", text)  # from a file of our own
    return re.sub(r"\S*/onnxruntime/\S+ ", "", text)


def serve_guarded() -> None:
    """The process of a guarded model (`graphopt.execution.guard`)."""
    serve(
        lambda path, optimize: _predictor(open_session(path, optimize=optimize)),
        sys.stdin.buffer,
        sys.stdout.buffer,
    )
