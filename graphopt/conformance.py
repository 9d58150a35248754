"""Conformance: what every backend promises, checked on a small model.

from graphopt.conformance import check_backend
check_backend(BACKEND)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.backend import Arrays, Backend
from graphopt.errors import MissingExtra, ModelError
from graphopt.execution.runtime import run
from graphopt.target import Target

__all__ = ["check_backend"]

_TEXT = """
<ir_version: 8, opset_import: ["": 17]>
net (float[2, 8] x) => (float[2, 4] y)
<float[8, 4] w = {WEIGHTS}>
{ a = MatMul(x, w)  b = Relu(a)  y = Softmax(b) }
"""


def check_backend(backend: Backend, *, tolerance: float = 1e-5) -> None:
    """Check the promises of `graphopt.backend.Backend` for every target of a backend.

    Every target is data and every model is lowered for it, here or not. Targets that are measured
    on this machine are run as well: outputs are ONNX Runtime's, two runs don't share memory, a
    model is as fast as itself within reason, a profile names nodes, and a file that is no model
    is refused with a ModelError.

    Args:
        backend: the object that the entry point names.
        tolerance: largest relative L2 difference of outputs; state what the precision implies.

    Raises:
        AssertionError: naming what does not hold.
    """
    assert isinstance(backend, Backend), "a method of graphopt.backend.Backend is missing"
    assert backend.name, "a backend needs a name, that of its entry point"
    names = list(backend.targets())
    assert names, "targets() names none"
    model = _model()
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)}
    for name in names:
        try:
            target = backend.target(name)
        except MissingExtra:
            continue
        assert target.name == name, f"target('{name}') is called '{target.name}'"
        assert target.backend == backend.name, f"target '{name}' names backend '{target.backend}'"
        assert target == backend.target(name), f"target '{name}' changes from call to call"
        with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
            before = ir.to_proto(model).SerializeToString()
            path = backend.lower(model, target, Path(folder, "model.onnx"))
            assert path.exists(), f"lower() says {path}, which it did not write"
            assert ir.to_proto(model).SerializeToString() == before, "lower() changed the model"
            if target.measured:
                _check_running(backend, target, model, path, feeds, tolerance)


def _check_running(
    backend: Backend,
    target: Target,
    model: ir.Model,
    path: Path,
    feeds: Arrays,
    tolerance: float,
) -> None:
    expected = run(model, feeds)["y"]
    for beside in (False, True):
        session = backend.session(path, target, beside=beside)
        first = session(feeds)
        assert list(first) == ["y"], f"outputs are called {list(first)}, not ['y']"
        error = float(np.linalg.norm(first["y"] - expected) / np.linalg.norm(expected))
        assert error <= tolerance, f"outputs are off by {error:.2g} (relative L2)"
        kept = first["y"].copy()
        session({"x": -feeds["x"]})
        assert (first["y"] == kept).all(), "a second run overwrote the outputs of the first"
    timing = backend.measure(path, path, feeds, target, 0.05)
    low, high = timing.ci
    assert low <= timing.ratio <= high, f"the ratio {timing.ratio} is outside its interval"
    assert timing.pairs > 0, "nothing was timed"
    assert timing.a_ms > 0, "a run took no time"
    times = backend.profile(path, feeds, target)
    assert times, "the profile is empty"
    assert all(t >= 0 for t in times.values()), "the profile has negative times"
    broken = path.with_name("broken.onnx")
    broken.write_text("this is no model")
    try:
        backend.session(broken, target)
    except ModelError:
        return
    raise AssertionError("a file that is no model was opened")


def _model() -> ir.Model:
    weights = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    return ir.from_onnx_text(_TEXT.replace("WEIGHTS", ", ".join(f"{w:.6f}" for w in weights)))
