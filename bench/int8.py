"""INT8 beside ONNX Runtime's quantizers, onnxsim and NNCF, on the same models in the same run.

    python bench/int8.py --models DIR [--models DIR ...] [--glyphs DIR] --out bench/results/int8
    python bench/int8.py ... --only vgg16 --keep FOLDER --prepare    makes the variants, times none
    python bench/int8.py ... --only vgg16 --keep FOLDER              times them, adds to the results

DIR holds NAME.onnx with NAME.npz (arrays `in:INPUT`). Every variant is made in a process of its
own (seconds and peak memory are that process's), then all are opened side by side and timed in
interleaved rounds. Output error is the worst output's relative L2 against the float model.
The glyph models are calibrated on 256 training images and judged on the validation images.
Results of models that are not run again stay in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

CALIBRATION = 256
#: Tells the processes that make the variants.
NO_MEASURE = "GRAPHOPT_BENCH_NO_MEASURE"


# --- variants: each writes `out` from `source` and a folder of samples ---------------------------


def _optimized(source, out, feeds, passes):
    from graphopt.formats import save
    from graphopt.pipeline.optimize import optimize
    from graphopt.samples import Samples

    result = optimize(
        source,
        passes,
        target="cpu",
        samples=Samples(feeds, "bench"),
        measure=NO_MEASURE not in os.environ,
    )
    save(result.model, out)
    step, facts = result.report.steps[-1], result.recipe.steps[-1].facts
    return {
        "status": step.status,
        "notes": [*step.notes, step.reason],
        "float": sorted(k for k, ratio in facts.get("faster", {}).items() if ratio > 1),
    }


def graphopt(source, out, feeds):
    return _optimized(source, out, feeds, "clean, fold, fuse, int8")


def graphopt_int8(source, out, feeds):
    return _optimized(source, out, feeds, "int8")


def fused(source, out, feeds):
    return _optimized(source, out, feeds, "clean, fold, fuse")


def _reader(feeds):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(feeds)

        def get_next(self):
            return next(self.left, None)

    return Reader()


def _prepared(source, out):
    """The model after ONNX Runtime's own preparation, or itself where that fails.

    Intermediate shapes are dropped first: its dynamic quantizer takes stale ones for errors.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = str(Path(out).with_suffix(".pre.onnx"))
    bare = str(Path(out).with_suffix(".bare.onnx"))
    model = onnx.load(source)
    del model.graph.value_info[:]
    onnx.save(model, bare)
    source = bare
    try:
        quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
    except Exception as error:  # its failures are of every kind; the plain model still counts
        print(f"    quant_pre_process: {type(error).__name__}: {str(error)[:120]}")
        return str(source)
    return prepared


def _static(source, out, feeds, activation):
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    quantize_static(
        _prepared(source, out),
        str(out),
        _reader(feeds),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=(activation and getattr(QuantType, activation)) or QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )


def ort_s8s8(source, out, feeds):
    from onnxruntime.quantization import quantize_static

    quantize_static(_prepared(source, out), str(out), _reader(feeds))


def ort_u8s8(source, out, feeds):
    _static(source, out, feeds, "QUInt8")


def ort_dynamic(source, out, feeds):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(source, out), str(out), per_channel=True)


def ort_dynamic_default(source, out, feeds):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(source, out), str(out))


def onnxsim_static(source, out, feeds):
    import onnx
    import onnxsim

    model = onnxsim.quantize_static(onnx.load(source), list(feeds))
    onnx.save(model, str(out))


def nncf_openvino(source, out, feeds):
    import nncf
    import openvino as ov

    nncf.set_log_level(40)
    quantized = nncf.quantize(
        ov.convert_model(source), nncf.Dataset(list(feeds)), subset_size=len(feeds)
    )
    ov.save_model(quantized, str(Path(out).with_suffix(".xml")), compress_to_fp16=False)
    folded = Path(out).with_suffix(".bin")
    shutil.copy(folded, out)  # what is weighed; the .xml beside it names the operators


VARIANTS = {
    "graphopt": graphopt,
    "graphopt_int8": graphopt_int8,
    "ort_s8s8": ort_s8s8,
    "ort_u8s8": ort_u8s8,
    "ort_dynamic": ort_dynamic,
    "ort_dynamic_default": ort_dynamic_default,
    "onnxsim": onnxsim_static,
    "nncf_openvino": nncf_openvino,
    "fused": fused,
}
DEFAULT = [v for v in VARIANTS if v not in ("graphopt_int8", "fused")]


def make(variant, source, out, feeds):
    """Run one variant in its own process: seconds, peak memory above the start, or the error."""
    ends, begins = multiprocessing.get_context("spawn").Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(
        target=_child, args=(variant, source, out, feeds, begins)
    )
    process.start()
    begins.close()
    try:
        result = ends.recv()
    except EOFError:
        result = {"error": "the process died"}
    process.join()
    return result


def _peak():
    """Peak resident megabytes of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _child(variant, source, out, feeds, pipe):
    import logging
    import warnings

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    os.nice(5)
    began = time.perf_counter()
    try:
        extra = VARIANTS[variant](source, out, feeds) or {}
        result = {**extra, "seconds": time.perf_counter() - began}
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
    result["peak_mb"] = _peak()
    pipe.send(result)


# --- measuring -----------------------------------------------------------------------------------


def open_model(path, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OpenVino:
    """An OpenVINO model with the two methods of a session that are used here."""

    def __init__(self, path, threads):
        import openvino as ov

        config = {"PERFORMANCE_HINT": "LATENCY"}
        if threads:
            config["INFERENCE_NUM_THREADS"] = threads
        self.request = ov.Core().compile_model(str(path), "CPU", config).create_infer_request()

    def get_inputs(self):
        return self.request.model_inputs

    def run(self, names, feeds):
        return [a.copy() for a in self.request.infer(feeds).values()]


def shares(path, feeds, threads):
    """Share of the time by operator, as the runtime ran them."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(6):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    times, kinds = {}, {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"], []).append(event["dur"])
            kinds[event["name"]] = event["args"]["op_name"]
    out = {}
    for name, values in times.items():
        out[kinds[name]] = out.get(kinds[name], 0.0) + float(np.median(values[1:]))
    total = sum(out.values())
    return {k: round(v / total, 3) for k, v in sorted(out.items(), key=lambda i: -i[1])[:6]}


def latency(sessions, feeds, seconds, cpu_time):
    """Speed-up over the float model with its interval, and milliseconds."""
    from graphopt.measuring.statistics import interleave, interval

    names = list(sessions)
    runs = [lambda s=s: s.run(None, feeds) for s in sessions.values()]
    times = _cpu_times(runs, seconds) if cpu_time else interleave(runs, seconds)
    base = times[:, names.index("float")]
    out = {}
    for k, name in enumerate(names):
        mean, low, high = interval(np.log(times[:, k] / base))
        out[name] = {
            "ms": float(np.median(times[:, k])),
            "speedup": math.exp(-mean),
            "ci": [math.exp(-high), math.exp(-low)],
        }
    return out


def _cpu_times(runs, seconds):
    """Milliseconds of processor time of this thread: what others do on the machine counts less."""
    rows, end = [], time.perf_counter() + seconds
    for run in runs:
        run()
    while len(rows) < 7 or time.perf_counter() < end:
        row = []
        for run in runs:
            began = time.thread_time()
            run()
            row.append((time.thread_time() - began) * 1e3)
        rows.append(row)
    return np.maximum(np.array(rows), 1e-6)


def error(expected, got):
    worst = 0.0
    for a, b in zip(expected, got, strict=True):
        if a.dtype.kind == "f" and a.size:
            a64, b64 = a.astype(np.float64), b.astype(np.float64)
            worst = max(worst, float(np.linalg.norm(a64 - b64) / max(np.linalg.norm(a64), 1e-30)))
    return worst


def bench(source, feeds, probe, args, accuracy=None):
    """One model: every variant's row."""
    rows = {}
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        paths = {"float": source}
        for variant in args.variants:
            out = Path(folder, f"{variant}.onnx")
            kept = args.keep and Path(args.keep, f"{source.parent.name}-{source.stem}-{out.name}")
            if kept and kept.exists() and variant not in args.again:
                shutil.copy(kept, out)
                if kept.with_suffix(".xml").exists():
                    shutil.copy(kept, out.with_suffix(".bin"))
                    shutil.copy(kept.with_suffix(".xml"), out.with_suffix(".xml"))
                rows[variant] = json.loads(kept.with_suffix(".json").read_text())
            else:
                rows[variant] = make(variant, source, out, feeds)
                if kept and "error" not in rows[variant]:
                    shutil.copy(out, kept)
                    if out.with_suffix(".xml").exists():
                        shutil.copy(out.with_suffix(".xml"), kept.with_suffix(".xml"))
                    kept.with_suffix(".json").write_text(json.dumps(rows[variant]))
            if "error" not in rows[variant]:
                paths[variant] = out
        if args.prepare:
            return rows
        rows["float"] = {}
        sessions = {}
        for name, path in paths.items():
            try:
                if path.with_suffix(".xml").exists():
                    sessions[name] = OpenVino(path.with_suffix(".xml"), args.threads)
                else:
                    sessions[name] = open_model(path, args.threads)
            except Exception as failure:
                rows[name]["error"] = f"does not open: {str(failure)[:150]}"
                continue
            rows[name]["bytes"] = Path(path).stat().st_size
        expected = sessions["float"].run(None, probe)
        for name, session in sessions.items():
            rows[name]["error_l2"] = error(expected, session.run(None, probe))
            if accuracy is not None:
                rows[name]["accuracy"] = accuracy(session)
        for name, figures in latency(sessions, probe, args.seconds, args.cpu_time).items():
            rows[name].update(figures)
        if "graphopt" in sessions:
            rows["graphopt"]["shares"] = shares(paths["graphopt"], probe, args.threads)
    return rows


# --- models and report ---------------------------------------------------------------------------


def zoo(folders, only):
    for folder in folders:
        for path in sorted(Path(folder).glob("*.onnx")):
            if only and path.stem not in only:
                continue
            arrays = np.load(path.with_suffix(".npz"))
            feeds = {k[3:]: arrays[k] for k in arrays.files if k.startswith("in:")}
            yield f"{path.parent.name}/{path.stem}", path, [feeds], feeds, None


def glyphs(folder, only):
    data = np.load(Path(folder, "glyphs.npz"))

    def images(x):
        return ((x / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).astype(np.float32)

    train, val = images(data["x_train"][:CALIBRATION]), images(data["x_val"])
    for path in sorted(Path(folder).glob("*.onnx")):
        if only and path.stem not in only:
            continue

        import onnx

        name = onnx.load(path, load_external_data=False).graph.input[0].name

        def accuracy(session, name=name):
            hits = [
                session.run(None, {name: val[k : k + 250]})[0].argmax(1)
                == data["y_val"][k : k + 250]
                for k in range(0, len(val), 250)
            ]
            return float(np.concatenate(hits).mean())

        feeds = [{name: train[k : k + 8]} for k in range(0, len(train), 8)]
        yield f"glyphs/{path.stem}", path, feeds, {name: val[:1]}, accuracy


def table(results):
    lines = [
        "| model | variant | ms | speed-up | bytes | error | accuracy | seconds | peak MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model, rows in results.items():
        base = rows["float"].get("bytes", 1)
        for name in ["float", *(n for n in rows if n != "float")]:
            row = rows[name]
            if "ms" not in row:
                lines.append(f"| {model} | {name} | {row.get('error', '')} | | | | | | |")
                continue
            lines.append(
                f"| {model} | {name} | {row['ms']:.3g} | {row['speedup']:.2f} | "
                f"{row['bytes'] / base:.3f} | {row['error_l2']:.4f} | "
                f"{row['accuracy']:.4f} | ".replace("nan", "")
                if "accuracy" in row
                else f"| {model} | {name} | {row['ms']:.3g} | {row['speedup']:.2f} | "
                f"{row['bytes'] / base:.3f} | {row['error_l2']:.4f} | | "
            )
            lines[-1] += f"{row.get('seconds', 0):.1f} | {row.get('peak_mb', 0):.0f} |"
    return "\n".join(lines)


def summary(results):
    """Our speed-up over the best of ONNX Runtime's variants, per model and in the mean."""
    lines, logs = [], []
    for model, rows in results.items():
        mine = rows["graphopt"].get("speedup")
        peers = {
            n: r["speedup"] for n, r in rows.items() if n.startswith("ort_") and "speedup" in r
        }
        if mine is None or not peers:
            lines.append(f"{model}: not comparable")
            continue
        best = max(peers, key=peers.__getitem__)
        logs.append(math.log(mine / peers[best]))
        lines.append(
            f"{model:32s} ours {mine:5.2f}  best {best:12s} {peers[best]:5.2f}  "
            f"ratio {mine / peers[best]:5.2f}  error {rows['graphopt']['error_l2']:.4f} "
            f"against {rows[best]['error_l2']:.4f}"
        )
    if logs:
        lines.append(
            f"geometric mean of ours / best of ONNX Runtime: {math.exp(np.mean(logs)):.3f}"
        )
    return "\n".join(lines)


def bounds(results):
    """What each of our models spends its time on."""
    lines = ["What bounds ours: share of the time by operator, as ONNX Runtime ran it.", ""]
    for model, rows in results.items():
        spent = rows["graphopt"].get("shares", {})
        text = ", ".join(f"{op} {share:.0%}" for op, share in spent.items() if share >= 0.01)
        lines.append(f"* {model}: {text}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", action="append", default=[], help="a folder of models")
    parser.add_argument("--glyphs", help="the folder of glyph models and data")
    parser.add_argument("--only", nargs="*", help="model names")
    parser.add_argument("--variants", nargs="*", default=DEFAULT)
    parser.add_argument("--seconds", type=float, default=5.0, help="timing per model")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="one thread, its processor time: for shared machines",
    )
    parser.add_argument(
        "--no-measure", action="store_true", help="graphopt decides by the target's data alone"
    )
    parser.add_argument("--scratch", help="folder for temporary models")
    parser.add_argument("--keep", help="folder that keeps the peers' models between runs")
    parser.add_argument("--again", nargs="*", default=[], help="variants to make anew")
    parser.add_argument("--prepare", action="store_true", help="make the variants, time nothing")
    parser.add_argument("--out", help="write OUT.md and OUT.json")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads = 1
    if args.no_measure:
        os.environ[NO_MEASURE] = "1"
    results = {}
    stored = Path(args.out).with_suffix(".json") if args.out else None
    if stored and stored.exists():
        results = json.loads(stored.read_text())
    models = list(zoo(args.models, args.only))
    if args.glyphs:
        models += list(glyphs(args.glyphs, args.only))
    for name, path, feeds, probe, accuracy in models:
        made = bench(path, feeds, probe, args, accuracy)
        if args.prepare:
            print(
                name,
                {k: r.get("error", round(r["seconds"], 1)) for k, r in made.items()},
                flush=True,
            )
            continue
        results[name] = made
        print(summary({name: results[name]}).splitlines()[0], flush=True)
        if stored:
            stored.write_text(json.dumps(results, indent=1))
    if args.prepare:
        return
    print(table(results))
    print(summary(results))
    if args.out:
        head = Path(f"{args.out}_notes.md")
        text = head.read_text() + "\n" if head.exists() else ""
        text += f"{table(results)}\n\n```\n{summary(results)}\n```\n\n{bounds(results)}\n"
        Path(args.out).with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
