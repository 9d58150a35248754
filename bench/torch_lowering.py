"""What torch computes for lowered models, beside ONNX Runtime; and lowered node cases of the suite.

    python bench/torch_lowering.py --models DIR [--models DIR ...] [--nodes] \
        --out bench/results/torch_lowering.md

DIR holds NAME.onnx and NAME.npz beside it (arrays `in:INPUT`). Every model is lowered as it is and
as optimized for this machine's CPU by each of SPECS (nothing is timed, so nothing is left out
because it is slow). A difference is the worst output's relative L2, the runtime's own optimizations
off, one thread (the runtime's dynamic LSTM finds a range per thread). Beside it stands the
difference that the runtime's own optimizations make: where integers are involved, a sum that
differs in the last bit may round to the next integer, in either.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch
from graphopt.backends.torch_fx import lower

from graphopt import Context, Samples, load, parse, save
from graphopt.backend import find_target
from graphopt.errors import GraphOptError

SPECS = ("clean,fold,fuse", "fuse,int8", "prune,fuse,int8", "svd,fuse")
Arrays = dict[str, np.ndarray[Any, Any]]


def runtime(path: Path, feeds: Arrays, optimize: bool) -> Arrays:
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def difference(expected: Arrays, got: Arrays) -> float:
    worst = 0.0
    for name, want in expected.items():
        have = got[name]
        assert have.shape == want.shape, f"{name}: {want.shape} became {have.shape}"
        assert have.dtype == want.dtype, f"{name}: {want.dtype} became {have.dtype}"
        a, b = want.astype(np.float64), have.astype(np.float64)
        finite = np.isfinite(a)
        assert (finite == np.isfinite(b)).all(), f"{name}: NaN or Inf moved"
        norm = max(float(np.linalg.norm(a[finite])), 1e-30)
        worst = max(worst, float(np.linalg.norm((a - b)[finite])) / norm)
    return worst


def compare(model: ir.Model, feeds: Arrays) -> tuple[float, float]:
    """The difference of the lowered model, and that of the runtime's own optimizations."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        save(model, path)
        expected = runtime(path, feeds, False)
        own = difference(expected, runtime(path, feeds, True))
    module = lower(model)
    with torch.no_grad():
        given = [torch.from_numpy(feeds[n].copy()) for n in module.meta["graphopt.inputs"]]
        outputs = module(*given)
    names = module.meta["graphopt.outputs"]
    got = {n: t.numpy() for n, t in zip(names, outputs, strict=True)}
    return difference(expected, got), own


def rows(path: Path, specs: tuple[str, ...]) -> Iterator[tuple[str, int, float, float]]:
    target = dataclasses.replace(find_target("cpu"), measured=False)
    with np.load(path.with_suffix(".npz")) as held:
        feeds = {k[3:]: held[k] for k in held.files if k.startswith("in:")}
    for spec in ("", *specs):
        model = load(path)
        for one in parse(spec) if spec else ():
            one.run(model, Context(model, target=target, samples=Samples([feeds])))
        yield spec, len(list(model.graph)), *compare(model, feeds)


def node_cases() -> dict[str, int]:
    """Node cases of the ONNX suite: how many are equal, refused, or neither."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        cases = list(load_model_tests(kind="node"))
    counts: collections.Counter[str] = collections.Counter()
    for case in cases:
        counts[node_case(case)] += 1
    return dict(counts)


def node_case(case: Any) -> str:
    inputs, outputs = case.data_sets[0]
    arrays = (np.ndarray, np.generic)
    if any(not isinstance(a, arrays) for a in (*inputs, *outputs)):
        return "no plain arrays"
    try:
        module = lower(ir.from_proto(case.model))
        given = [torch.from_numpy(np.array(a)) for a in inputs]
    except (GraphOptError, TypeError):
        return "refused"
    try:
        with torch.no_grad():
            done = [t.numpy() for t in module(*given)]
        for want, have in zip(outputs, done, strict=True):
            assert want.dtype == have.dtype
            np.testing.assert_allclose(have, want, rtol=1e-3, atol=1e-5)
    except NotImplementedError:
        return "an element type torch has no kernel for"
    except AssertionError:
        print("different:", case.name, flush=True)
        return "different"
    return "equal"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--models", action="append", default=[], type=Path)
    options.add_argument("--plain", action="append", default=[], type=Path, help="no SPECS")
    options.add_argument("--nodes", action="store_true")
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    torch.set_num_threads(1)
    table = ["| model | " + " | ".join(("as it is", *SPECS)) + " |", "|---" * 6 + "|"]
    worst: dict[str, list[tuple[float, float]]] = {}
    for folder, specs in [*((f, SPECS) for f in given.models), *((f, ()) for f in given.plain)]:
        for path in sorted(folder.glob("*.onnx")):
            cells = []
            for spec, nodes, error, own in rows(path, specs):
                worst.setdefault(spec, []).append((error, own))
                cells.append(f"{nodes}: {error:.1e}" + (f" ({own:.0e})" if error > 1e-4 else ""))
                print(path, spec, cells[-1], flush=True)
            cells += ["" for _ in range(1 + len(SPECS) - len(cells))]
            table.append(f"| {path.parent.name}/{path.stem} | " + " | ".join(cells) + " |")
    text = ["# Lowered to torch, beside ONNX Runtime", "", "".join(__doc__.split("\n\n")[2]), ""]
    text += ["| | models | within 1e-4 | worst |", "|---|---|---|---|"]
    for spec, found in worst.items():
        fine = sum(e <= 1e-4 for e, _ in found)
        name = spec or "as it is"
        text.append(f"| {name} | {len(found)} | {fine} | {max(e for e, _ in found):.1e} |")
    if given.nodes:
        counts = node_cases()
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))
        text += ["", f"Node cases of the ONNX suite: {listed}."]
    note = "Nodes and difference; in brackets what the runtime's own optimizations change."
    given.out.write_text("\n".join([*text, "", note, "", *table]) + "\n")


if __name__ == "__main__":
    main()
