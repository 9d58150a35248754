"""Random graphs through the exact passes, their outputs unchanged.

    python bench/random_graphs.py --graphs 20000 [--seed 0] --out bench/results/random_graphs

`graphs` is a hypothesis strategy: opsets 9 to 21, static and named dimensions, broadcasting,
constants of neutral and random values, shared and absent inputs, branches and loops, and the forms
in which exporters write norms, activations, attention and computed shapes. A graph's outputs
before and after `clean,fold,fuse` come from ONNX Runtime without its own optimizations. Equal
means: NaN and Inf in the same places and a relative L2 difference of at most 1e-5, or 4 times what
the runtime's own optimizations, or a change of the inputs by 1e-6, make on the same graph.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from onnx import helper
from random_steps import STEPS, Graph

from graphopt import Context, parse
from graphopt.backend import find_target

PASSES = parse("clean,fold,fuse")
TARGETS = {name: find_target(name) for name in ("onnx", "cpu")}


@dataclasses.dataclass(frozen=True)
class Case:
    """A drawn model with inputs for it, and the target it is rewritten for."""

    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    target: str


@st.composite
def graphs(draw: Any, most: int = 10) -> Case:
    """A valid model of 1 to `most` steps (a step is one operator or one exporters' form)."""
    opset = draw(st.sampled_from([9, 11, 12, 13, 15, 17, 18, 20, 21]))
    g = Graph(draw, opset, np.random.default_rng(draw(st.integers(0, 2**16))))
    for _ in range(draw(st.integers(1, 2))):
        g.add_input()
    for _ in range(draw(st.integers(1, most))):
        step = draw(st.sampled_from(STEPS))
        step(g)
    outputs = g.unused() or [g.values[-1]]
    extra = draw(st.sampled_from([None, *g.values[len(g.inputs) :]]))
    if extra is not None and extra not in outputs:
        outputs.append(extra)
    graph = helper.make_graph(
        g.nodes,
        "drawn",
        [helper.make_tensor_value_info(v.name, v.kind, v.declared) for v in g.inputs],
        [helper.make_tensor_value_info(v.name, v.kind, [None] * len(v.shape)) for v in outputs],
        g.initializers,
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    feeds = {v.name: g.sample(v) for v in g.inputs}
    return Case(model, feeds, draw(st.sampled_from(list(TARGETS))))


def run(model: onnx.ModelProto, feeds: dict[str, Any], optimize: bool = False) -> list[Any]:
    levels = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def rewritten(case: Case) -> tuple[onnx.ModelProto, int]:
    """The model after the passes, and how many edits they made."""
    model = ir.from_proto(case.model)
    edits = 0
    for one in PASSES:
        edits += one.run(model, Context(model, target=TARGETS[case.target], pass_name=str(one)))
    return ir.to_proto(model), edits


def compare(case: Case, result: onnx.ModelProto, expected: list[Any]) -> str | None:
    """What differs, or None."""
    got = run(result, case.feeds)
    errors = [difference(a, b) for a, b in zip(expected, got, strict=True)]
    if max(errors, default=0.0) <= 1e-5:
        return None
    noise = run(case.model, case.feeds, optimize=True)
    nudged = {
        k: v * np.float32(1 + 1e-6) if v.dtype == np.float32 else v for k, v in case.feeds.items()
    }
    moved = run(case.model, nudged)
    for k, error in enumerate(errors):
        allowed = max(difference(expected[k], noise[k]), difference(expected[k], moved[k]))
        if error > max(1e-5, 4 * allowed) and not np.isinf(allowed):
            return f"output {k}: relative L2 {error:.3g}"
    return None


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Relative L2; infinite where type, shape, or the places of NaN and Inf differ."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind != "f":
        return 0.0 if np.array_equal(a, b) else float("inf")
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)) or not np.array_equal(np.isnan(x), np.isnan(y)):
        return float("inf")
    norm = float(np.linalg.norm(x[finite]))
    return float(np.linalg.norm(x[finite] - y[finite])) / max(norm, 1e-30)


def check(case: Case, expected: list[Any] | None = None) -> int:
    """Rewrite and compare; the number of edits. AssertionError says what differs."""
    result, edits = rewritten(case)
    onnx.checker.check_model(result)
    problem = compare(case, result, expected or run(case.model, case.feeds))
    assert problem is None, problem
    return edits


def survey(count: int, start_seed: int, failed: Path) -> tuple[dict[str, int], list[str]]:
    """Check `count` graphs: counts of what was seen, and the different failures."""
    counts: collections.Counter[str] = collections.Counter()
    failures: list[str] = []

    @seed(start_seed)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs())
    def one(case: Case) -> None:
        counts.update(seen(case))
        try:
            expected = run(case.model, case.feeds)
        except Exception:  # the drawn model itself is refused by the runtime
            counts["refused by the runtime as drawn"] += 1
            return
        try:
            edits = check(case, expected)
            counts.update({"edits": edits, "graphs edited": edits > 0})
        except Exception as error:  # whatever is raised is the finding
            name = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            counts["failed"] += 1
            if name not in failures:
                failures.append(name)
                keep(case, failed / f"{start_seed}-{len(failures)}")

    one()
    return dict(counts), failures


def seen(case: Case) -> dict[str, int]:
    """What a drawn graph adds to the counts."""
    nodes, inputs = case.model.graph.node, case.model.graph.input
    named = any(d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim)
    return {
        "graphs": 1,
        f"graphs for target {case.target}": 1,
        "graphs with subgraphs": any(n.op_type in ("If", "Loop") for n in nodes),
        "graphs with named dimensions": named,
        "nodes": len(nodes),
        "failed": 0,
    }


def keep(case: Case, path: Path) -> None:
    """Write a failing case: the model, its inputs, and what was raised."""
    path.parent.mkdir(exist_ok=True)
    onnx.save(case.model, path.with_suffix(".onnx"))
    np.savez(path.with_suffix(".npz"), **case.feeds)
    text = onnx.printer.to_text(case.model)
    path.with_suffix(".txt").write_text(f"{case.target}\n{traceback.format_exc(limit=-4)}\n{text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--failed", type=Path, default=Path("random_graphs_failed"))
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    args = parser.parse_args()
    start = time.perf_counter()
    counts: collections.Counter[str] = collections.Counter()
    failures: set[str] = set()
    share = max(1, min(250, args.graphs // args.processes))
    shares = -(-args.graphs // share)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        seeds = [args.seed * 1_000_003 + k for k in range(shares)]
        for found, names in pool.map(survey, [share] * shares, seeds, [args.failed] * shares):
            counts.update(found)
            failures.update(names)
            print(counts["graphs"], "graphs", counts["failed"], "failed", flush=True)
            if args.out:
                text = as_text(args, counts, failures, time.perf_counter() - start)
                args.out.with_suffix(".md").write_text(text)
                args.out.with_suffix(".json").write_text(json.dumps(dict(counts), indent=1) + "\n")


def as_text(args: Any, counts: dict[str, int], failures: set[str], seconds: float) -> str:
    lines = [
        "# Random graphs through the exact passes",
        "",
        f"`python bench/random_graphs.py --graphs {args.graphs} --seed {args.seed}`: what is drawn "
        "and what counts as equal stands at the head of that file. "
        f"{seconds:.0f} s in {args.processes} processes.",
        "",
        *(f"* {k}: {v}" for k, v in sorted(counts.items())),
        *(f"* failure: {k}" for k in sorted(failures)),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
