"""What is known of the edits of exact passes, what it costs, and whether broken rewrites get by.

    python bench/proof.py --models DIR [--models DIR ...] [--mutants 2000] [--out FILE]

Per folder: edits of `clean,fold,fuse` proved, checked and assumed, and the seconds of evidence
beside those of the passes. Then the regions that those edits changed are broken on purpose, one
fault at a time: a proof of a broken one is a failure. A mutant whose outputs are the same bits as
those of the region it was made of, on every input tried, is none and is not counted.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from graphopt.backends import cpu
from graphopt.passes.clean import Clean
from graphopt.passes.fold import Fold
from graphopt.passes.fuse import Fuse
from proof_mutations import MUTATIONS, Unfit

from graphopt import Context
from graphopt.analyses.shapes.symbolic import Expr
from graphopt.formats import load
from graphopt.proving.evidence import examine
from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of

TARGET = cpu.TARGETS["cpu-avx512-vnni"]
#: Elements of constants above which a region is not broken.
LARGEST = 1 << 18
#: Mutants per process.
CHUNK = 100


def steps(path):
    """(graph before, after, edits, seconds) of each pass."""
    model = load(path)
    for one in (Clean, Fold, Fuse):
        before = model.clone()
        ctx = Context(model, pass_name=one.__name__, target=TARGET)
        start = time.perf_counter()
        one().run(model, ctx)
        yield before, model, ctx.edits, time.perf_counter() - start


def judged(folder, windows):
    """Verdicts of a folder's edits; regions are added to `windows`."""
    verdicts, seconds, models = collections.Counter(), [0.0, 0.0], 0
    for path in sorted(folder.glob("*.onnx")):
        models += 1
        for before, after, edits, spent in steps(path):
            seconds[0] += spent
            if not edits:
                continue
            start = time.perf_counter()
            found = examine(before, after, edits)
            seconds[1] += time.perf_counter() - start
            verdicts.update(found.counts)
            for window in found.windows:
                if window.verdict == "proved":
                    made = extracted(window)
                    if made is not None:
                        windows.setdefault(fingerprint(made), made)
    return models, verdicts, seconds


def fingerprint(pair):
    return tuple(
        str([(n.op_type, list(n.input), str(n.attribute)) for n in m.graph.node])
        + str([(list(t.dims), t.data_type) for t in m.graph.initializer])
        for m in pair
    )


# --- a region as two models ------------------------------------------------------------------


def extracted(window):
    """Both sides of a window as models over its leaves; None where that cannot be written."""
    names = {t: f"x{k}" for k, t in enumerate(window.leaves)}
    try:
        return tuple(
            side_model(names, top, set(inner))
            for top, inner in zip((window.before, window.after), window.inner, strict=True)
        )
    except Unfit:
        return None


def side_model(leaves, top, inner):
    names, nodes, tensors = dict(leaves), [], []

    def name(term):
        if term is None:
            return ""
        if term in names:
            return names[term]
        label = names[term] = f"v{len(names)}"
        if term.op == "const":
            if np.prod(term.array().shape) > LARGEST or term.array().dtype.num >= 256:
                raise Unfit("a large constant")
            tensors.append(onnx.numpy_helper.from_array(np.array(term.array()), label))
        elif term.op == "data":
            nodes.extend(sizes(term, label, leaves))
        elif term in inner and term.node is not None and term.op not in ("If", "Loop", "Scan"):
            inputs = [name(a) for a in term.args][: len(term.node.inputs) or None]
            node = onnx.NodeProto(op_type=term.node.op_type, domain=term.node.domain)
            node.attribute.extend(
                ir.serde.serialize_attribute(a) for a in term.node.attributes.values()
            )
            node.input.extend(inputs)
            node.output.extend([""] * term.output + [label])
            node.name = f"n_{label}"
            nodes.append(node)
        else:
            raise Unfit(term.op)
        return label

    if top in leaves:
        nodes.append(onnx.helper.make_node("Identity", [leaves[top]], ["y"], name="n_y"))
    else:
        last = name(top)
        for node in nodes:
            node.output[:] = ["y" if o == last else o for o in node.output]
    opset = max((t.opset for t in inner | {top}), default=0) or 20
    graph = onnx.helper.make_graph(
        nodes, "region", [info(n, t) for t, n in leaves.items()], [info("y", top)], tensors
    )
    imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)


def info(name, term):
    if term.dtype is None or term.dims is None:
        raise Unfit("an unknown shape")
    dims = [d if isinstance(d, int) else d.name for d in term.dims]
    if name != "y" and None in dims:
        raise Unfit("a size that is no name")
    return onnx.helper.make_tensor_value_info(name, term.dtype.value, dims)


def sizes(term, label, leaves):
    """Nodes for shape data whose symbolic elements are sizes of leaves."""
    parts = []
    for k, e in enumerate(term.attributes["elements"]):
        part = f"{label}_{k}"
        if not isinstance(e, Expr):
            one = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [1], [e])
            parts.append(onnx.helper.make_node("Constant", [], [part], value=one))
            continue
        found = [(n, j) for t, n in leaves.items() for j, d in enumerate(t.dims or ()) if d == e]
        if not found:
            raise Unfit("a size of no leaf")
        leaf, axis = found[0]
        parts.append(onnx.helper.make_node("Shape", [leaf], [part], start=axis, end=axis + 1))
    inputs = [p.output[0] for p in parts]
    joined = onnx.helper.make_node("Concat", inputs, [f"{label}_c"], axis=0)
    back = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(term.dims)], term.dims)
    shape = onnx.helper.make_node("Constant", [], [f"{label}_s"], value=back)
    shaped = onnx.helper.make_node("Reshape", [f"{label}_c", f"{label}_s"], [label])
    return [*parts, joined, shape, shaped]


# --- mutants ---------------------------------------------------------------------------------


def runs(model):
    """Outputs on inputs of several kinds and sizes, None where it does not run."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception:
        return None
    found = []
    rng = np.random.default_rng(5)
    for size in (2, 5, 67):
        for scale in (1.0, 8.0, 1e-3, 1e10):
            feeds, sized = {}, {}
            for value in model.graph.input:
                kind = value.type.tensor_type
                shape = [
                    d.dim_value or sized.setdefault(d.dim_param, size + len(sized))
                    for d in kind.shape.dim
                ]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
                drawn = rng.standard_normal(shape) * scale
                if dtype.kind != "f":
                    drawn = rng.integers(0, 2, shape)
                feeds[value.name] = drawn.astype(dtype)
            try:
                found.append(session.run(["y"], feeds)[0])
            except Exception:
                found.append(None)
    return found if any(x is not None for x in found) else None


def same(a, b):
    return all(
        (x is None) == (y is None)
        and (x is None or (x.shape == y.shape and x.tobytes() == y.tobytes()))
        for x, y in zip(a, b, strict=True)
    )


def broken(pairs, count, seed):
    """(fault, verdict, means, both models) of so many mutants, and how many were none."""
    rng = random.Random(seed)
    fine, seen, found, none = {}, set(), [], collections.Counter()
    for _ in range(40 * count):
        if len(seen) == count:
            break
        k = rng.randrange(len(pairs))
        before, after = map(onnx.load_from_string, pairs[k])
        fault = rng.choice(list(MUTATIONS))
        mutant = onnx.load_from_string(pairs[k][1])
        key = MUTATIONS[fault](mutant, rng) and (k, mutant.SerializeToString())
        if not key or key in seen:
            continue
        seen.add(key)
        if k not in fine:
            fine[k] = runs(after)
        got = runs(mutant)
        if fine[k] is None or got is None:
            none["do not run"] += 1
        elif same(fine[k], got):
            none["compute the same bits"] += 1
        else:
            difference = windows_of(numbered(ir.from_proto(before)), ir.from_proto(mutant), check)
            last = {w.verdict for w in difference.windows}
            verdict = "refuted" if "refuted" in last else "assumed"
            if not difference.open:
                verdict = "checked" if "checked" in last else "proved"
            means = difference.windows[-1].means if difference.windows else "no window"
            found.append((fault, verdict, means, pairs[k][0], key[1]))
    return found, none


def chunks(pairs, count, seed):
    """Mutants in processes of their own: some bring the runtime down."""
    for start in range(0, count, CHUNK):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                yield pool.submit(broken, pairs, CHUNK, seed + start).result()
            except BrokenProcessPool:
                yield [], collections.Counter({"were lost as the runtime crashed": CHUNK})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=Path, action="append", required=True)
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where mutants go that are not refuted")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    windows = {}
    rows = ["| models | edits | proved | checked | assumed | passes | evidence |", "|" + "---|" * 7]
    for folder in args.models:
        models, v, (passes, evidence) = judged(folder, windows)
        rows.append(
            f"| {folder.name}: {models} | {sum(v.values())} | {v['proved']} | {v['checked']} | "
            f"{v['assumed']} | {passes:.1f} s | {evidence:.1f} s |"
        )
        print(rows[-1], flush=True)
    pairs = [tuple(m.SerializeToString() for m in pair) for pair in windows.values()]
    table, none = collections.defaultdict(collections.Counter), collections.Counter()
    for found, missing in chunks(pairs, args.mutants, args.seed):
        none += missing
        for k, (fault, verdict, means, before, mutant) in enumerate(found):
            table[fault][verdict] += 1
            if verdict != "refuted":
                print(f"{verdict}: {fault}: {means}", flush=True)
            if verdict != "refuted" and args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                name = f"{sum(table[fault].values())}-{k}-{fault}-{verdict}"
                (args.keep / f"{name}.before.onnx").write_bytes(before)
                (args.keep / f"{name}.mutant.onnx").write_bytes(mutant)
    kinds = ("proved", "checked", "assumed", "refuted")
    rows += ["", "| fault | mutants | proved | checked | assumed | refuted |", "|" + "---|" * 6]
    total = sum(table.values(), collections.Counter())
    for fault, v in [*sorted(table.items()), ("all", total)]:
        rows.append(
            f"| {fault} | {sum(v.values())} | " + " | ".join(str(v[k]) for k in kinds) + " |"
        )
    rows += ["", f"{len(pairs)} regions; of further mutants {dict(none)}."]
    print("\n".join(rows))
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")
    return 1 if total["proved"] else 0


if __name__ == "__main__":
    sys.exit(main())
