"""Wrong passes through the whole pipeline: none may leave a trace in what comes out.

    python bench/wrong_passes.py [--only NAME ...] [--out FILE]

Each of `wrong_edits` claims to be exact and is run on its model (`wrong_models`), without samples
and with 64 of them. Whether what comes out is the source is told by running both on inputs that
neither the pipeline nor the samples have seen: other batches, ties, zeros of both signs, numbers
that are large, tiny or none. An edit that these inputs cannot tell from the source is named: it is
no test.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from wrong_edits import EDITS
from wrong_models import MODELS

from graphopt import Context, GraphOptError, Pass, optimize

KINDS = ("normal", "large", "far", "tiny", "zeros", "ties", "edges")
BATCHES = (1, 3, 7, 400)


@dataclasses.dataclass(frozen=True)
class Wrong(Pass):
    """A pass that makes one wrong edit and calls it exact."""

    name: str = ""

    def run(self, model, ctx):
        _, edit, reports = EDITS[self.name]
        place = "elsewhere" if reports == "elsewhere" else "model"
        if reports != "nothing" and not ctx.edit(self.name, place):
            return 0
        edit(model, ctx)
        return 0 if reports == "nothing" else 1


def session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def tests(small):
    """Inputs that nothing else draws."""
    rng = np.random.default_rng(99)
    for batch in (*BATCHES, 0) if "[n," in small.text else BATCHES:
        for kind in KINDS:
            yield f"{kind} {batch}", small.feeds(rng, batch, kind)


def difference(small, source, result):
    """What tells two models apart, "" if nothing does."""
    try:
        a, b = session(source), session(result)
    except Exception as error:
        return f"does not load: {str(error)[:80]}"
    for what in ("get_inputs", "get_outputs"):
        x, y = ([(v.name, v.type, v.shape) for v in getattr(s, what)()] for s in (a, b))
        if x != y:
            return f"interface: {x} became {y}"
    if len(source.graph.initializer) and overridable(source) != overridable(result):
        return f"interface: {overridable(source)} may be given, {overridable(result)} now"
    for name, feeds in tests(small):
        try:
            want = a.run(None, feeds)
        except Exception:
            continue  # the source itself does not take it
        try:
            got = b.run(None, feeds)
        except Exception:
            return f"{name}: does not run"
        if not all(map(equal, want, got)):
            return name
    return ""


def overridable(model):
    return sorted({t.name for t in model.graph.initializer} & {v.name for v in model.graph.input})


def equal(want, got):
    if want.shape != got.shape or want.dtype != got.dtype:
        return False
    if want.dtype.kind != "f":
        return bool(np.array_equal(want, got))
    infinite = np.isinf(want)
    if not np.array_equal(want[infinite], got[infinite]):
        return False
    finite = np.isfinite(want)
    want, got = want[finite], got[finite]
    usual = float(np.median(np.abs(want))) if want.size else 0.0
    return bool(np.allclose(want, got, rtol=3e-5, atol=3e-6 * usual))


def tried(name, given):
    """(verdict, what the pipeline or the inputs say) of one wrong pass."""
    small = MODELS[EDITS[name][0]]
    source = small.proto()
    rng = np.random.default_rng(1)
    samples = [small.feeds(rng, 64, "normal")] if given else None
    try:
        result = optimize(small.proto(), [Wrong(name)], samples=samples, measure=False)
    except GraphOptError as error:
        return "caught", f"{type(error).__name__}: {error}"
    apart = difference(small, source, ir.to_proto(result.model))
    step = result.report.steps[0]
    said = "; ".join([step.status, step.reason, *(u.reason for u in step.undone)])
    if apart:
        return "escaped", f"{apart} ({said}; {step.evidence})"
    return "caught" if "undone" in said else "kept, the same", said


def is_wrong(name):
    """Whether the edit by itself changes what the inputs show."""
    small = MODELS[EDITS[name][0]]
    model = ir.from_proto(small.proto())
    ctx = Context(model, source=ir.from_proto(small.proto()))
    EDITS[name][1](model, ctx)
    return difference(small, small.proto(), ir.to_proto(ctx.model))


def main():
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = ["| wrong pass | model | without samples | with samples | by which |", "|" + "---|" * 5]
    counts = collections.Counter()
    for name in args.only or EDITS:
        shown = is_wrong(name)
        verdicts = [tried(name, given) for given in (False, True)]
        counts.update(v for v, _ in verdicts)
        counts["no test"] += not shown
        why = verdicts[1][1].replace("|", "/")[:150]
        rows.append(
            f"| {name} | {EDITS[name][0]} | {verdicts[0][0]} | {verdicts[1][0]} | {why} |"
            + ("" if shown else " the inputs do not show it |")
        )
        print(rows[-1], flush=True)
    rows += ["", f"{len(args.only or EDITS)} wrong passes, each run twice: {dict(counts)}."]
    print(rows[-1])
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")
    return 1 if counts["escaped"] else 0


if __name__ == "__main__":
    sys.exit(main())
