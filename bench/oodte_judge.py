"""Whether two models compute the same: the judge of bench/oodte.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from random_graphs import difference

from graphopt import load
from graphopt.analyses.binding import bind_shapes
from graphopt.samples.inputs import inputs_of
from graphopt.samples.synthetic import synthetic

#: What float outputs may differ by at least (relative L2), and in units of what it does to them to
#: move float inputs by `NUDGE` and to round the weights once more.
ALLOWED, NUDGES, NUDGE, ROUNDING = 1e-4, 10, 1e-6, 2.0**-23
Array = np.ndarray[Any, Any]
#: Sizes of dynamic axes from the axis and the size at first.
OTHERS: tuple[Callable[[int, int], int], ...] = (
    lambda axis, size: 3 if size == 1 else size,
    lambda axis, size: 3 * size if axis == 0 else size,
    lambda axis, size: 2 * size if axis == 0 else max(1, size // 2),
)


def judged(source: Path, result: Path) -> dict[str, Any]:
    """`changed` (what differs, or ""), `runs` that were compared, `nodes` of the result."""
    reference = _reference(source)
    nodes = count(onnx.load(result, load_external_data=False).graph)
    answer = {"runs": len(reference.runs), "sizes": reference.sizes, "nodes": nodes}
    return {**answer, "changed": _changed(reference, result)}


class _Reference:
    """What the source computes, and how far that moves when its inputs do."""

    def __init__(self, source: Path) -> None:
        self.runs: list[tuple[dict[str, Array], list[Array], list[Array]]] = []
        self.error, self.names = "", []
        try:
            session, rounded = opened(str(source)), opened(_rounded(source))
        except Exception as error:
            self.error = str(error)[:200]
            return
        self.names = [o.name for o in session.get_outputs()]
        for draws in drawn(source):
            for feeds in draws:
                try:
                    expected = session.run(None, feeds)
                    moved = rounded.run(None, {k: _nudged(v) for k, v in feeds.items()})
                    again = session.run(None, feeds)
                except Exception as error:
                    self.error = str(error)[:200]
                    break
                if any(_apart(a, b) for a, b in zip(expected, again, strict=True)):
                    self.error = "it draws random numbers"
                    break
                self.runs.append((feeds, expected, moved))

    @property
    def sizes(self) -> int:
        """How many assignments of sizes were run."""
        return len({tuple(v.shape for v in feeds.values()) for feeds, _, _ in self.runs})


_last: tuple[Path, _Reference] | None = None


def _reference(source: Path) -> _Reference:
    """The same for every result of one source."""
    global _last
    if _last is None or _last[0] != source:
        _last = source, _Reference(source)
    return _last[1]


def drawn(source: Path) -> Iterator[list[dict[str, Array]]]:
    """Runs by assignment of the dynamic axes: recorded, drawn, and at other sizes."""
    recorded = source.with_suffix(".npz")
    model = load(source)
    names = [i.name for i in inputs_of(model)]
    if recorded.exists():
        with np.load(recorded) as data:
            held = {k.removeprefix("in:"): data[k] for k in data.files}
            if set(names) <= set(held):
                yield [{n: held[n] for n in names}]
    first, _ = bind_shapes(model)
    yield list(synthetic(model, seed=11, shapes=first, runs=3))
    free = {
        i.name: {k for k, d in enumerate(i.dims or ()) if not isinstance(d, int)}
        for i in inputs_of(model)
    }

    for other in OTHERS:
        shapes = {
            name: tuple(other(k, size) if k in free[name] else size for k, size in enumerate(shape))
            for name, shape in first.items()
        }
        if shapes != first:
            yield list(synthetic(model, seed=12, shapes=shapes, runs=2))


def opened(model: str | bytes) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _rounded(source: Path) -> bytes:
    """The model with its weights rounded once more."""
    model = onnx.load(source)
    rng = np.random.default_rng(3)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor)
            moved = array * (1 + ROUNDING * rng.uniform(-1, 1, array.shape))
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.float32), tensor.name))
    return model.SerializeToString()


def _nudged(array: Array) -> Array:
    return array * array.dtype.type(1 + NUDGE) if array.dtype in (np.float32, np.float64) else array


def _apart(a: Any, b: Any) -> float:
    """`difference` of what need not be tensors."""
    if isinstance(a, list):
        if not isinstance(b, list) or len(a) != len(b):
            return float("inf")
        return max((_apart(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if not isinstance(a, np.ndarray):
        return 0.0 if a == b else float("inf")
    return difference(a, b)


def _changed(reference: _Reference, result: Path) -> str:
    if not reference.runs:
        return ""
    try:
        session = opened(str(result))
    except Exception as error:
        return f"does not load: {str(error)[:160]}"
    if [o.name for o in session.get_outputs()] != reference.names:
        return "other outputs, or in another order"
    for feeds, expected, moved in reference.runs:
        try:
            got = session.run(None, feeds)
        except Exception as error:
            return f"does not run: {str(error)[:160]}"
        for name, a, b, c in zip(reference.names, expected, got, moved, strict=True):
            error, noise = _apart(a, b), _apart(a, c)
            if error > max(ALLOWED, NUDGES * noise):
                return f"output {name}: {error:.2g}"
    return ""


def count(graph: Any) -> int:
    """Nodes with those of branches and bodies, Constants left out."""
    found = 0
    for node in graph.node:
        found += node.op_type != "Constant"
        for a in node.attribute:
            found += sum(count(g) for g in [*a.graphs, a.g])
    return found
