"""What makes files smaller composes with what makes models smaller."""

import math

import numpy as np
import pytest

from graphopt import Budget, optimize
from graphopt.execution.runtime import run
from graphopt.io.writing import write_model
from graphopt.testing import parse_model

WIDTH, INNER, TOKENS, CLASSES = 64, 128, 16, 10


def weight(rng, rows, columns, scale=1.0):
    """A matrix with a falling spectrum, as trained ones have."""
    u, v = rng.standard_normal((rows, rows)), rng.standard_normal((rows, columns))
    return (scale * u @ (np.geomspace(1, 0.01, rows)[:, None] * v) / rows).astype(np.float32)


def network():
    """A table of positions, four residual blocks and a head; x has some directions in common."""
    rng = np.random.default_rng(0)
    text, constants = "h0 = Add(x, p)\n", {"p": rng.standard_normal((TOKENS, WIDTH))}
    for k in range(4):
        text += f"""a{k} = MatMul(h{k}, w{k})  b{k} = Relu(a{k})  c{k} = MatMul(b{k}, v{k})
            h{k + 1} = Add(h{k}, c{k})\n"""
        constants |= {f"w{k}": weight(rng, WIDTH, INNER), f"v{k}": weight(rng, INNER, WIDTH, 0.3)}
    text += "m = ReduceMean<keepdims = 0>(h4, axis)  y = MatMul(m, head)"
    constants |= {"head": weight(rng, WIDTH, CLASSES), "axis": np.array([1])}
    held = {n: c.astype(np.float32) if c.dtype == float else c for n, c in constants.items()}
    return parse_model(text, inputs={"x": ("N", TOKENS, WIDTH)}, constants=held)


DRAWN = np.random.default_rng(1)
X = DRAWN.standard_normal((96, TOKENS, 8)) @ DRAWN.standard_normal((8, WIDTH))
X = X.astype(np.float32)


PRUNE, SVD, SPARSIFY, CODEBOOK = (
    "prune(ratio=0.4)",
    "svd(ratio=0.3)",
    "sparsify(ratio=0.8)",
    "codebook(bits=8)",
)
DISTILL = "distill(epochs=8, lr=1e-4)"
ROUGH = "prune(ratio=0.4, compensate=False)"  # what training wins back


@pytest.mark.parametrize(
    ("spec", "most"),
    [
        (f"depth, {PRUNE}", 0.56),
        (f"depth, {SVD}", 0.56),
        ("depth, int8", 0.23),
        (f"depth, {ROUGH}, {DISTILL}", 0.56),
        (f"{PRUNE}, {SPARSIFY}", 0.44),
        (f"{SVD}, {SPARSIFY}", 0.5),
        (f"{SPARSIFY}, int8", 0.3),
        (f"{SPARSIFY}, {DISTILL}", 0.62),
        (f"{PRUNE}, {CODEBOOK}", 0.25),
        (f"{SVD}, {CODEBOOK}", 0.35),
        (f"int8, {CODEBOOK}", 0.29),
        (f"{ROUGH}, {DISTILL}, {CODEBOOK}", 0.28),
        (f"{PRUNE}, half", 0.38),
        (f"{SVD}, half", 0.42),
        ("int8, half", 0.29),
        (f"{ROUGH}, {DISTILL}, half", 0.38),
    ],
)
def test_passes_compose(spec, most, tmp_path):
    model = network()
    write_model(model, tmp_path / "before.onnx")
    free = Budget(max_disagreement=math.inf)
    result = optimize(model, spec, samples={"x": X}, budget=free, measure=False, cache="off")
    write_model(result.model, tmp_path / "after.onnx")
    before, after = ((tmp_path / f"{n}.onnx").stat().st_size for n in ("before", "after"))
    # integers are no entries of a codebook: nothing is left to do
    last = "unchanged" if spec == f"int8, {CODEBOOK}" else "kept"
    assert [s.status for s in result.report.steps][-1] == last
    assert {s.status for s in result.report.steps[:-1]} == {"kept"}
    assert after < most * before, after / before
    was, now = (run(m, {"x": X})["y"] for m in (model, result.model))
    assert now.shape == was.shape
    assert np.linalg.norm(now - was) < 0.05 * np.linalg.norm(was)
