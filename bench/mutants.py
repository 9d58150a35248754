"""Mutation testing of the proofs: rewrites broken on purpose, none of which may be proved.

    python bench/mutants.py --work DIR --models ZOO [--models ...] [--random 3000]
        [--mutants 10000] [--seed 0] [--jobs 2] [--seconds 570] [--out FILE]
    python bench/mutants.py --work DIR --again                    those not refuted once more
    python bench/mutants.py --work DIR --only 1234 --keep DIR     one mutant, written out

A mutant is made from its number alone: a region (`proof_regions`), in which one fault
(`proof_mutations`) is put. It is judged in a child process that says which one it judges, so that
one that brings the runtime down costs itself alone. Verdicts are appended to DIR/mutants.jsonl, and
a campaign goes on where the last one stopped.

Broken is what differs. A mutant is not counted where it does not run, where it gives the region's
own bits on every input tried, or where it differs by rounding alone: on inputs of 1e-30 to 1e30, in
float32 and in float64, by no more than 8 times what float32 (at its worst element), and inputs
moved by a rounding, cost the region itself; or, where float64 gives the same to 1e-12, by 1e-5 of
the values in float32.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from proof_mutations import MUTATIONS
from proof_regions import gathered, verdict_of

#: Sizes of the dynamic axes, and how the inputs are drawn.
SIZES = ((2, 3, 4), (5, 1, 2), (1, 9, 3))
DRAWS = (1.0, "near", 8.0, 1e-3, "ones", 1e10, 1e-30, 1e30, "zeros")
#: Mutants given to a child at a time, and seconds after which one is given up.
CHUNK, PATIENCE = 40, 60
#: How far apart is rounding alone: times what rounding costs the region itself, and of a value; or
#: in float32, where the values in float64 are the same.
COST, ROUNDING = 8, 5e-7
SAME, FAR, SLACK = 1e-12, 1e-5, 1 / 64
#: Tries at a region that has a place for a fault.
TRIES = 60


# --- one mutant ------------------------------------------------------------------------------


def mutant(regions, seed, number):
    """(region, the broken model, fault, what it did) of a number; None if no region has a place."""
    rng = random.Random(f"{seed}:{number}")
    fault = rng.choice(list(MUTATIONS))
    for _ in range(TRIES):
        region = rng.choice(regions[rng.choice(list(regions))])
        model = onnx.load_from_string(region.equal)
        said = MUTATIONS[fault](model, rng)
        if said and model.SerializeToString() != region.equal:
            return region, model, fault, said
    return None


def session(model):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def inputs(model):
    """Feeds of several sizes and magnitudes."""
    centres = np.unique([0.0, *(abs(x) for t in model.graph.initializer for x in numbers(t))])
    rng = np.random.default_rng(5)
    for row in SIZES:
        for kind in DRAWS:
            sizes, feeds = {}, {}
            for value in model.graph.input:
                tensor = value.type.tensor_type
                shape = [
                    d.dim_value
                    or sizes.setdefault(d.dim_param or f"{value.name}{k}", row[len(sizes) % 3])
                    for k, d in enumerate(tensor.shape.dim)
                ]
                dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
                feeds[value.name] = drawn(rng, shape, dtype, kind, centres)
            yield feeds


def numbers(tensor):
    array = onnx.numpy_helper.to_array(tensor)
    plain = array.dtype.kind == "f" and array.dtype.num < 256
    return array.ravel()[:64][np.abs(array.ravel()[:64]) < 1e6].tolist() if plain else []


def drawn(rng, shape, dtype, kind, centres):
    if dtype.kind != "f":
        return rng.integers(0, 4 if kind == "near" else 2, shape).astype(dtype)
    if kind == "ones":
        return np.ones(shape, dtype)
    if kind == "zeros":
        return rng.choice([-0.0, 0.0], shape).astype(dtype)
    if kind == "near":
        near = rng.choice(centres, shape) * rng.choice([-1, 1], shape)
        return (near + rng.standard_normal(shape) * np.maximum(0.3, np.abs(near) / 4)).astype(dtype)
    with np.errstate(over="ignore"):
        return (rng.standard_normal(shape) * kind).astype(dtype)


def outputs(runner, feeds):
    """A model's outputs, None where it does not run."""
    try:
        return runner.run(None, feeds)
    except Exception:
        return None


def same(a, b):
    if a is None or b is None:
        return a is b
    return all(
        x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()
        for x, y in zip(a, b, strict=True)
    )


def differs(region, model):
    """Whether it computes other bits than the region; None if it does not run at all."""
    try:
        own, other = session(onnx.load_from_string(region.equal)), session(model)
    except Exception:
        return None
    ran = False
    for feeds in inputs(onnx.load_from_string(region.equal)):
        want, got = outputs(own, feeds), outputs(other, feeds)
        ran = ran or got is not None
        if want is not None and not same(want, got) and (ran or got is not None):
            return True
    return False if ran else None


# --- rounding alone --------------------------------------------------------------------------


def widened(model):
    """The model in float64."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graphs = [wide.graph]
    for graph in graphs:
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
                value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
        for tensor in graph.initializer:
            widen(tensor)
        for node in graph.node:
            for a in node.attribute:
                if a.type == a.TENSOR:
                    widen(a.t)
                elif a.type == a.GRAPH:
                    graphs.append(a.g)
                elif a.name == "to" and a.i == onnx.TensorProto.FLOAT:
                    a.i = onnx.TensorProto.DOUBLE
    return wide


def widen(tensor):
    if tensor.data_type == onnx.TensorProto.FLOAT:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def by_rounding(region, model):
    """Whether it differs from the region by rounding alone, where that can be told."""
    equal = onnx.load_from_string(region.equal)
    try:
        own, other = session(equal), session(model)
        exact, wide = ReferenceEvaluator(widened(equal)), ReferenceEvaluator(widened(model))
    except Exception:
        return False
    told = 0
    for feeds in inputs(equal):
        runs = [outputs(m, feeds) for m in (own, other)]
        if runs == [None, None]:
            continue
        doubles = {k: v.astype(np.float64) if v.dtype == "f4" else v for k, v in feeds.items()}
        rng = np.random.default_rng(7)
        with np.errstate(all="ignore"):
            runs += [outputs(m, doubles) for m in (exact, wide)]
            runs += [outputs(exact, rounded(doubles, rng)) for _ in range(3)]
        if any(r is None for r in runs):
            return False
        told += 1
        if not all(map(near, *runs)):
            return False
    return told > 1


def rounded(feeds, rng):
    """Inputs moved by one rounding of float32, up or down."""
    return {
        k: v * (1 + 2.0**-24 * rng.choice((-1, 1), v.shape)) if v.dtype == "f8" else v
        for k, v in feeds.items()
    }


def near(own, other, exact, wide, *again):
    """Whether two outputs differ by rounding alone.

    They are the same function in float64 (and float32 is not far off), or differ in neither by
    more than float32 costs the region itself.
    """
    if not own.shape == other.shape == exact.shape == wide.shape:
        return False
    if own.dtype.kind != "f":
        return bool(np.array_equal(own, other) and np.array_equal(exact, wide))
    told = np.isfinite(own) & np.isfinite(exact)  # the reference overflows in its own places
    if not (np.isfinite(other[told]).all() and np.isfinite(wide[told]).all()):
        return False
    moved = np.max([np.abs(x - exact) for x in again], axis=0)[told]
    own, other, exact, wide = (x[told].astype(np.float64) for x in (own, other, exact, wide))
    size, moved = np.abs(exact), np.nan_to_num(moved)
    single, double = np.abs(own - other), np.abs(exact - wide)
    cost = np.abs(own - exact).max(initial=0)  # a kernel's own error is anywhere
    allowed = COST * (cost + moved) + ROUNDING * size
    if (double <= SAME * (size + moved / ROUNDING)).all():
        return bool((single <= FAR * size + allowed / SLACK).all())
    return bool((single <= allowed).all() and (double <= allowed).all())


def judged(regions, seed, number, seen):
    """What became of one mutant; `seen` are marks of those that were judged before."""
    made = mutant(regions, seed, number)
    if made is None:
        return {"outcome": "no place"}
    region, model, fault, said = made
    mark = hashlib.sha256(region.trusted + region.equal + model.SerializeToString()).hexdigest()
    line = {"fault": fault, "said": said, "form": region.form[:200], "mark": mark[:16]}
    if line["mark"] in seen:
        return {**line, "outcome": "met before"}
    seen.add(line["mark"])
    apart = differs(region, model)
    if apart is None:
        return {**line, "outcome": "does not run"}
    start = time.perf_counter()
    try:
        verdict, means = verdict_of(onnx.load_from_string(region.trusted), model)
    except Exception as error:  # the pipeline undoes a step whose evidence fails
        verdict, means = "refuted", f"raises {type(error).__name__}: {error}"
    line |= {"verdict": verdict, "means": means, "seconds": round(time.perf_counter() - start, 3)}
    if not apart:
        return {**line, "outcome": "the same bits"}
    if verdict != "refuted" and by_rounding(region, model):
        return {**line, "outcome": "rounding alone"}
    return {**line, "outcome": "counted"}


# --- a campaign ------------------------------------------------------------------------------


def child(pipe, cache, seed, seen):
    regions = gathered((), 0, cache)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    while (numbers_ := pipe.recv()) is not None:
        for number in numbers_:
            pipe.send(("begin", number))
            pipe.send(("end", judged(regions, seed, number, seen)))
        pipe.send(("more", None))


class Judge:
    """A child process, and the mutants that it was given."""

    def __init__(self, cache, seed, seen):
        self.cache, self.seed, self.seen = cache, seed, seen
        self.waiting, self.current, self.since = [], None, time.monotonic()
        self.start()

    def start(self):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=child, args=(theirs, self.cache, self.seed, self.seen))
        self.process.daemon = True
        self.process.start()
        theirs.close()
        if self.waiting:
            self.pipe.send(self.waiting)

    def give(self, numbers_):
        self.waiting = list(numbers_)
        self.since = time.monotonic()
        self.pipe.send(self.waiting)

    def lost(self, outcome):
        """The line of the mutant that ended the process; the rest goes to a new one."""
        self.process.kill()
        self.process.join()
        number, self.current = self.current, None
        self.start()
        return [] if number is None else [(number, {"outcome": outcome})]

    def lines(self, ready):
        """(number, line) of what was judged since; None once it needs more."""
        if not ready:
            stuck = self.current is not None and time.monotonic() - self.since > PATIENCE
            return self.lost("takes too long") if stuck else []
        try:
            what, value = self.pipe.recv()
        except (EOFError, ConnectionError):
            return self.lost("crashes the runtime")
        self.since = time.monotonic()
        if what == "more":
            return None
        if what == "begin":
            self.current = value
            self.waiting.remove(value)
            return []
        number, self.current = self.current, None
        return [(number, value)]


def judged_before(path, seed):
    """The lines of a campaign by number; the last of a number counts."""
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    return {x["number"]: x for x in lines if x["seed"] == seed}


def again(path, regions, seed):
    """Judge those once more that were counted and not refuted."""
    known = judged_before(path, seed)
    with path.open("a") as file:
        for number, line in sorted(known.items()):
            if line["outcome"] == "counted" and line["verdict"] != "refuted":
                found = {"number": number, "seed": seed, **judged(regions, seed, number, set())}
                known[number] = found
                file.write(json.dumps(found) + "\n")
                if found["outcome"] == "counted" and found["verdict"] != "refuted":
                    print(number, found["verdict"], found["fault"], found["said"], flush=True)
    return known


def campaign(path, cache, args):
    """Judge mutants until so many are counted, or the time is over."""
    known = judged_before(path, args.seed)
    end = time.monotonic() + args.seconds
    left = (n for n in range(sys.maxsize) if n not in known)
    marks = {x["mark"] for x in known.values() if x["outcome"] == "counted"}
    seen = {x["mark"] for x in known.values() if "mark" in x}
    judges = [Judge(cache, args.seed, seen) for _ in range(args.jobs)]
    for judge in judges:
        judge.give([next(left) for _ in range(CHUNK)])
    with path.open("a") as file:
        while len(marks) < args.mutants and time.monotonic() < end:
            ready = wait([j.pipe for j in judges], timeout=1.0)
            for judge in judges:
                lines = judge.lines(judge.pipe in ready)
                if lines is None:
                    judge.give([next(left) for _ in range(CHUNK)])
                for number, line in lines or ():
                    found = {"number": number, "seed": args.seed, **line}
                    known[number] = found
                    file.write(json.dumps(found) + "\n")
                    file.flush()
                    if line["outcome"] == "counted" and line["mark"] not in marks:
                        marks.add(line["mark"])
                        if line["verdict"] != "refuted":
                            print(number, line["verdict"], line["fault"], line["said"], flush=True)
    for judge in judges:
        judge.process.kill()
    return known


def table(known):
    """The counts by fault, each mutant once."""
    first = {}
    for number in sorted(known):
        line = known[number]
        if line["outcome"] != "met before":
            first.setdefault(line.get("mark", number), line)
    kinds = ("proved", "checked", "assumed", "refuted")
    counts, aside = collections.defaultdict(collections.Counter), collections.Counter()
    for line in first.values():
        if line["outcome"] == "counted":
            counts[line["fault"]][line["verdict"]] += 1
        else:
            aside[line["outcome"]] += 1
    total = sum(counts.values(), collections.Counter())
    rows = ["| fault | mutants | proved | checked | assumed | refuted |", "|" + "---|" * 6]
    for fault, v in [*sorted(counts.items()), ("all", total)]:
        rows.append(
            f"| {fault} | {sum(v.values())} | " + " | ".join(str(v[k]) for k in kinds) + " |"
        )
    rows += ["", f"Not counted: {dict(aside)}; {len(known) - len(first)} met twice."]
    return rows, total


def show(regions, args):
    """Judge one mutant again, and write it."""
    made = mutant(regions, args.seed, args.only)
    print(json.dumps(judged(regions, args.seed, args.only, set()), indent=1))
    if made and args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        region, model, *_ = made
        (args.keep / f"{args.only}.trusted.onnx").write_bytes(region.trusted)
        (args.keep / f"{args.only}.equal.onnx").write_bytes(region.equal)
        onnx.save(model, args.keep / f"{args.only}.mutant.onnx")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=Path, action="append", default=[])
    parser.add_argument("--random", type=int, default=3000)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--only", type=int)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cache = args.work / "regions.pickle"
    regions = gathered(args.models, args.random, cache)
    if args.only is not None:
        show(regions, args)
        return 0
    path = args.work / "mutants.jsonl"
    known = again(path, regions, args.seed) if args.again else campaign(path, cache, args)
    rows, total = table(known)
    rows.append(f"{sum(map(len, regions.values()))} regions of {len(regions)} forms.")
    print("\n".join(rows))
    if args.out:
        args.out.write_text("\n".join(rows) + "\n")
    return 1 if total["proved"] else 0


if __name__ == "__main__":
    sys.exit(main())
