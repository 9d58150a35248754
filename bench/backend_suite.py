"""Every single-operator case of the ONNX backend suite through a pipeline, its outputs unchanged.

    python bench/backend_suite.py [--spec clean,fold,fuse] [--target cpu] [--sample N] [--out FILE]

Each case runs as it is, with all tensor inputs turned into initializers, and with one at a time,
so that folding and fusion act. Outputs of the original and of the result come from the same
evaluator: ONNX Runtime without its own optimizations or, for what it cannot run, ONNX's reference.
Where neither runs the case, the result is checked by the ONNX checker alone.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator

from graphopt import Context, Target, parse
from graphopt.backend import find_target

#: Cases whose outputs differ from run to run: only types and shapes can be compared.
RANDOM = ("bernoulli", "random", "multinomial", "dropout_", "training_dropout")
UNAVAILABLE = tuple(
    getattr(ort.capi.onnxruntime_pybind11_state, name)
    for name in ("NotImplemented", "InvalidGraph", "Fail", "InvalidArgument", "RuntimeException")
)


def load_cases() -> list[Any]:
    """The suite's node cases: a model and its inputs each."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return list(load_model_tests(kind="node"))


def variants(case: Any) -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """(name, model, feeds): as it is, all inputs constant, one input constant."""
    names = [i.name for i in case.model.graph.input]
    feeds = dict(zip(names, case.data_sets[0][0], strict=False))
    yield "as it is", case.model, feeds
    tensors = [n for n in feeds if tensor_of(feeds[n]) is not None]
    if tensors:
        yield "all constant", *bound(case.model, feeds, tensors)
    if len(tensors) > 1:
        for name in tensors:
            yield f"{name} constant", *bound(case.model, feeds, [name])


def tensor_of(x: Any) -> onnx.TensorProto | None:
    if isinstance(x, onnx.TensorProto):
        return x
    if isinstance(x, (np.ndarray, np.generic)):
        return onnx.numpy_helper.from_array(np.asarray(x))
    return None


def bound(
    model: onnx.ModelProto, feeds: dict[str, Any], names: list[str]
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model with these inputs as initializers, and the feeds that are left."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    kept = [i for i in copy.graph.input if i.name not in names]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    for name in names:
        tensor = onnx.TensorProto()
        made = tensor_of(feeds[name])
        assert made is not None
        tensor.CopyFrom(made)
        tensor.name = name
        assert not kinds[name] or tensor.data_type == kinds[name], (name, kinds[name])
        copy.graph.initializer.append(tensor)
    copy.ir_version = max(copy.ir_version, 4)
    return copy, {k: v for k, v in feeds.items() if k not in names}


def by_runtime(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    given = {k: plain(v) for k, v in feeds.items()}
    return list(session.run(None, given))


def plain(x: Any) -> Any:
    """A feed as the runtime's Python interface takes it."""
    if isinstance(x, list):
        return [plain(e) for e in x]
    array = onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)
    if array.dtype.name not in KNOWN and array.dtype.kind not in "OSU":
        raise TypeError(f"no feed of type {array.dtype}")
    return array


KNOWN = {f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)} | {
    *("float16", "float32", "float64", "bool", "object")
}


def by_reference(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    given = {
        k: onnx.numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v
        for k, v in feeds.items()
    }
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(ReferenceEvaluator(model).run(None, given))


def evaluate(model: onnx.ModelProto, feeds: dict[str, Any]) -> tuple[str, list[Any] | None, Any]:
    """(evaluator, outputs, it): ONNX Runtime, else the reference, else nothing."""
    try:
        return "runtime", by_runtime(model, feeds), by_runtime
    except (*UNAVAILABLE, TypeError, ValueError, RuntimeError):
        pass
    try:
        return "reference", by_reference(model, feeds), by_reference
    except Exception:  # the reference evaluator raises whatever its Python code raises
        return "neither", None, None


def difference(a: Any, b: Any, random: bool) -> str | None:
    """What differs between two outputs, or None: relative L2 1e-5 (float16: its epsilon, 1e-3)."""
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return f"{len(a)} elements became {len(b)}"
        return next((d for x, y in zip(a, b, strict=True) if (d := difference(x, y, random))), None)
    if a is None or b is None:
        return None if a is b else "None"
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"{x.dtype}{x.shape} became {y.dtype}{y.shape}"
    if random:
        return None
    if x.dtype.kind in "OSU":
        return None if (x == y).all() else "text differs"
    if x.dtype.kind in "iub":
        return None if np.array_equal(x, y) else "integers differ"
    p, q = x.astype(np.complex128), y.astype(np.complex128)
    finite = np.isfinite(p)
    if not np.array_equal(finite, np.isfinite(q)) or not np.array_equal(np.isnan(p), np.isnan(q)):
        return "NaN or Inf moved"
    norm = float(np.linalg.norm(p[finite]))
    error = float(np.linalg.norm(p[finite] - q[finite])) / max(norm, 1e-30)
    small = x.dtype.itemsize < 4
    return f"relative L2 {error:.2g}" if error > (1e-3 if small else 1e-5) else None


def check_case(case: Any, spec: str, target: Target) -> Iterator[dict[str, Any]]:
    """One record per variant: how it was evaluated, edits made, what went wrong."""
    random = any(word in case.name for word in RANDOM)
    for name, model, feeds in variants(case):
        how, expected, evaluator = evaluate(model, feeds)
        record: dict[str, Any] = {"case": case.name, "variant": name, "evaluator": how}
        try:
            result = ir.from_proto(model)
            edits = 0
            for one in parse(spec):
                edits += one.run(result, Context(result, target=target, pass_name=str(one)))
            proto = ir.to_proto(result)
            record["edits"] = edits
            record["nodes"] = [len(model.graph.node), len(proto.graph.node)]
            if evaluator is None:
                if valid(model):
                    onnx.checker.check_model(proto)
            else:
                got = evaluator(proto, feeds)
                problem = difference(expected, got, random)
                if problem:
                    record["problem"] = problem
        except Exception as error:  # whatever is raised is the finding
            record["problem"] = f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"
        yield record


def valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def run(spec: str, target: Target, sample: int = 0) -> list[dict[str, Any]]:
    """Records of all cases, or of every n-th so that about `sample` are run."""
    cases = load_cases()
    if sample:
        cases = cases[:: max(1, len(cases) // sample)]
    return [record for case in cases for record in check_case(case, spec, target)]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts per variant and evaluator."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for r in records:
        kind = r["variant"] if r["variant"] in ("as it is", "all constant") else "one constant"
        counts[kind][r["evaluator"]] += 1
        counts[kind]["edited"] += bool(r.get("edits"))
        counts[kind]["problems"] += "problem" in r
    return {k: dict(v) for k, v in counts.items()}


def as_text(
    spec: str, target: str, cases: int, records: list[dict[str, Any]], seconds: float
) -> str:
    lines = [
        "# The ONNX backend suite through the exact passes",
        "",
        f"`python bench/backend_suite.py --spec {spec} --target {target}`: {cases} single-operator "
        f"cases of onnx {onnx.__version__}, {len(records)} runs in {seconds:.0f} s. Outputs of the "
        "original and of the result by the same evaluator; equal means relative L2 at most 1e-5 "
        "(1e-3 for 16-bit and smaller floats), NaN and Inf in the same places.",
        "",
        "| inputs | runs | ONNX Runtime | reference | neither (checker only) | edited | changed |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, c in summary(records).items():
        runs = sum(c.get(k, 0) for k in ("runtime", "reference", "neither"))
        cells = [kind, runs, *(c.get(k, 0) for k in ("runtime", "reference", "neither"))]
        lines.append("| " + " | ".join(map(str, [*cells, c["edited"], c["problems"]])) + " |")
    problems = [r for r in records if "problem" in r]
    if problems:
        lines += ["", "Changed or failed:", ""]
        lines += [f"* {r['case']}, {r['variant']}: {r['problem']}" for r in problems]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", default="clean,fold,fuse")
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write FILE.md and FILE.json")
    args = parser.parse_args()
    target = find_target(args.target)
    start = time.perf_counter()
    records = run(args.spec, target, args.sample)
    seconds = time.perf_counter() - start
    cases = len({r["case"] for r in records})
    text = as_text(args.spec, args.target, cases, records, seconds)
    print(text)
    if args.out:
        args.out.with_suffix(".md").write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps(summary(records), indent=1) + "\n")
    return any("problem" in r for r in records)


if __name__ == "__main__":
    sys.exit(main())
