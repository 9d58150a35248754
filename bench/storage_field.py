"""Real models of bench/field.py packed exactly, and rounded on what their clients fed them.

    python bench/storage_field.py --work DIR --model NAME=FILE ... --out FILE.json

DIR is where bench/field.py keeps its models' inputs. Judged as `graphopt pack MODEL --samples DIR`
judges, and beside that on held-out inputs, by the guard; zstd, onnxsim and ONNX Runtime's dynamic
quantizer beside it. Prints a table of all that FILE.json has.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zstandard

from graphopt import load, session
from graphopt.budget import Budget
from graphopt.calibration.sensitivity import movement
from graphopt.cli.demo import DATA
from graphopt.errors import GraphOptError
from graphopt.packing.lossless import pack_lossless
from graphopt.packing.lossy import pack_rounded
from graphopt.verification.guard import Guard


def one_field(path, work, pack):
    exact = pack_lossless(path, pack)
    row = {"bytes": exact.before, "lossless": exact.after}
    row["zstd"] = len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))
    model, held = load(path), [dict(np.load(p)) for p in sorted((work / "held").glob("*.npz"))]
    before = list(map(session(path), held))
    guard = Guard(model, before, held)

    def said(made):
        try:
            after = list(map(session(made), held))
        except GraphOptError as error:
            return {"error": str(error)}
        worst = max(guard.judge(after).values(), key=lambda one: one.over)
        about = {"kind": worst.kind, "n": worst.n, "figure": worst.figure, "over": worst.over}
        return {**about, "bytes": made.stat().st_size, "error": movement(before, after) ** 0.5}

    try:
        samples = work / "calibration"
        trials = pack_rounded(model, pack, samples=samples, budget=Budget(), before=exact.before)
        row["rounded"] = {**said(pack), "trials": len(trials.trials)}
    except GraphOptError as error:
        row["rounded"] = {"error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.onnx")
        for peer, run in PEERS.items():
            try:
                run(path, made)
                row[peer] = said(made)
            except Exception as error:  # whatever a peer raises
                row[peer] = {"error": repr(error)[:200]}
    row["opened"] = {p.suffix: in_child(p) for p in (path, pack)}
    return row


def onnxsim(path, made):
    import onnx
    from onnxsim import simplify

    onnx.save(simplify(onnx.load(path))[0], made)


def ort_dynamic(path, made):
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(path, made)


PEERS = {"onnxsim": onnxsim, "ort-dynamic": ort_dynamic}


def in_child(path):
    """Seconds and resident bytes that a session of this file takes in a process of its own."""
    command = [sys.executable, __file__, "--opened", str(path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(said)


def open_file(path):
    def memory():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    session(DATA / "digits.onnx", threads=1)  # imports
    before, began = memory(), time.perf_counter()
    held = session(path, threads=1)
    print(json.dumps({"s": time.perf_counter() - began, "memory": memory() - before}))
    del held


def judged(row):
    """What the guard says of held-out inputs."""
    if "figure" not in row:
        return row["error"]
    what = {"embedding": "1 - cosine", "values": "of the spread"}.get(row["kind"], "differ")
    return f"{row['figure']:.2%} {what} of {row['n']:,}{' (over)' * (row['over'] > 1)}"


def said(row, size):
    return f"{row['bytes'] / size:.3f}, {judged(row)}" if "figure" in row else "fails"


def table(rows):
    """Markdown."""
    lines = [
        "| model | float | zstd -19 | lossless | rounded | ratio | held-out inputs"
        " | opened, s | memory, MB | onnxsim | ORT dynamic |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        onnx, pack = row["opened"][".onnx"], row["opened"][".gopt"]
        size = row["bytes"]
        rounded, *peers = (row[k] for k in ("rounded", *PEERS))
        shares = [said(p, size) for p in peers]
        packed = rounded.get("bytes")
        lines.append(
            f"| {name} | {size:,} | {row['zstd'] / size:.3f} | {row['lossless'] / size:.3f}"
            f" | {f'{packed:,}' if packed else 'no'} | {f'{size / packed:.1f} x' if packed else ''}"
            f" | {judged(rounded)} | {pack['s']:.2f} ({onnx['s']:.2f})"
            f" | {pack['memory'] / 1e6:.0f} ({onnx['memory'] / 1e6:.0f}) | {' | '.join(shares)} |"
        )
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", help="folder of bench/field.py's runs")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--out")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--opened", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.opened:
        open_file(given.opened)
        return
    out = Path(given.out)
    rows = json.loads(out.read_text()) if out.exists() else {}
    began = time.monotonic()
    for item in given.model:
        name, path = item.split("=")
        if name in rows or time.monotonic() - began > given.seconds:
            continue
        rows[name] = one_field(Path(path), Path(given.work, name), out.with_name(f"{name}.gopt"))
        out.write_text(json.dumps(rows, indent=1))
    table(rows)


if __name__ == "__main__":
    main()
