"""Storage: bytes, ratio, accuracy and time to load of packed models, beside zstd -19.

python bench/storage.py lossless --models DIR [--models DIR ...] --out FILE.json
python bench/storage.py rounded --glyphs DIR --out FILE.json
python bench/storage.py curve --trials NAME=FILE.json ... --out FILE.png
python bench/storage.py opening --model FILE.onnx
python bench/storage.py table --rounded FILE.json --lossless FILE.json
"""

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import zstandard

from graphopt import load, session
from graphopt.budget import Budget
from graphopt.entropy.container import read_pack, unpack
from graphopt.entropy.integers import Rounded, counts_of, tables_of
from graphopt.errors import GraphOptError
from graphopt.packing.coding import Coded, pieces_of, write
from graphopt.packing.lossless import pack_lossless
from graphopt.packing.lossy import pack_rounded


def lossless(given):
    out = Path(given.out)
    rows = json.loads(out.read_text()) if out.exists() else {}
    found = sorted({p for d in given.models for p in Path(d).rglob("*.onnx")})
    began = time.monotonic()
    for path in found:
        if str(path) in rows or time.monotonic() - began > given.seconds:
            continue
        rows[str(path)] = one_lossless(path)
        out.write_text(json.dumps(rows, indent=1))
    print(len(rows), "of", len(found))


def one_lossless(path):
    with tempfile.TemporaryDirectory() as folder:
        pack, back = Path(folder, "m.gopt"), Path(folder, "back", "m.onnx")
        back.parent.mkdir()
        try:
            began = time.perf_counter()
            packed = pack_lossless(path, pack)
            middle = time.perf_counter()
            written = unpack(pack, back)
            end = time.perf_counter()
        except GraphOptError as error:
            return {"error": str(error)}
        sources = [path if w == back else path.parent / w.relative_to(back.parent) for w in written]
        same = all(w.read_bytes() == s.read_bytes() for w, s in zip(written, sources, strict=True))
    zstd = None
    if packed.before < 4 << 20:
        coder = zstandard.ZstdCompressor(level=19)
        zstd = sum(len(coder.compress(s.read_bytes())) for s in sources)
    return {
        "bytes": packed.before,
        "packed": packed.after,
        "zstd": zstd,
        "kinds": packed.kinds,
        "same": same,
        "pack_s": middle - began,
        "unpack_s": end - middle,
    }


def rounded(given):
    """Each glyph model within the budget, judged on all 4,000 validation glyphs as decoded."""
    out, folder = Path(given.out), Path(given.glyphs)
    rows = json.loads(out.read_text()) if out.exists() else {}
    with np.load(folder / "glyphs.npz") as held:
        x, y = prepared(held["x_val"]), held["y_val"]
        samples = prepared(held["x_train"][: given.samples])

    def accuracy(predict, upto=None):
        right = [
            (next(iter(predict({"x": x[k : k + 50]}).values())).argmax(1) == y[k : k + 50]).sum()
            for k in range(0, upto or len(x), 50)
        ]
        return 100 * float(sum(right)) / (upto or len(x))

    for name in given.only.split(","):
        if name in rows:
            continue
        path, pack = folder / f"{name}.onnx", out.with_name(f"{name}.gopt")
        budget = Budget(evaluate=lambda p: accuracy(p, given.judged), max_drop=given.drop)
        began = time.perf_counter()
        made = pack_rounded(
            load(path),
            pack,
            samples={"x": samples},
            budget=budget,
            before=path.stat().st_size,
            passes=given.passes,
            recover=given.recover,
        )
        rows[name] = {**dataclasses.asdict(made), "pack_s": time.perf_counter() - began}
        rows[name] |= opened(pack, path)
        rows[name]["accuracy"] = [accuracy(session(path)), accuracy(session(pack))]
        out.write_text(json.dumps(rows, indent=1))


def opened(pack, path):
    """Seconds to open pack and source, and to decode; zstd -19 of the source."""
    times = []
    for one in (pack, path):
        began = time.perf_counter()
        session(one, threads=1)
        times.append(time.perf_counter() - began)
    began = time.process_time()
    with pack.open("rb") as file:
        size = sum(len(c) for stored in read_pack(file) for c in stored.content)
    decode = time.process_time() - began
    zstd = len(zstandard.ZstdCompressor(level=19).compress(path.read_bytes()))
    return {"open_s": times, "decode_mb_s": size / 1e6 / decode, "zstd": zstd}


def opening(given):
    """Seconds to open a model's packs, lossless and every weight to the nearest of its tensor's.

    Steps are 0.7 of the root mean square of a tensor: about 1.7 bits of weights that are normal.
    """
    path = Path(given.model)
    with tempfile.TemporaryDirectory() as folder:
        packs = [Path(folder, "lossless.gopt"), Path(folder, "rounded.gopt")]
        pack_lossless(path, packs[0])
        write(nearest(load(path)), packs[1])
        for pack in packs:
            row = opened(pack, path)
            print(
                f"| {path.stem}, {pack.stem} | {path.stat().st_size:,} | {pack.stat().st_size:,}"
                f" | {row['open_s'][0]:.2f} ({row['open_s'][1]:.2f}) | {row['decode_mb_s']:.0f} |"
            )


def nearest(model):
    """The model with all matrices rounded at one step each."""
    pieces = {}
    for name, held in model.graph.initializers.items():
        w = held.const_value.numpy()
        if w.dtype == np.float32 and w.size >= 1024:
            step = np.float32(0.7 * np.sqrt(np.square(w, dtype=np.float64).mean()))
            columns = w.shape[-1]
            row, column = (np.zeros(n, np.uint8) for n in (w.size // columns, -(-columns // 8)))
            q = np.rint(w.reshape(-1, columns) / step).astype(np.int32)
            whole = Rounded(q, step, row, column, 8, False)
            held.const_value = ir.Tensor(whole.values().reshape(w.shape), name=name)
            pieces[name] = pieces_of(whole)
    tables = tables_of(counts_of(p) for parts in pieces.values() for p in parts)
    return Coded(model, pieces, tables, {}, [])


def prepared(images):
    return ((images / 255 - 0.5) / 0.25).astype(np.float32).reshape(-1, 1, 32, 32)


def table(given):
    """Markdown of what the other commands wrote."""
    lines = []
    if given.rounded:
        lines += [
            "| model | float | pack | ratio | accuracy | drop | bits | below H0 | zstd -19 |"
            " open, s | decode |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
    for path in given.rounded or ():
        for name, row in json.loads(Path(path).read_text()).items():
            weights = sum(t["before"] for t in row["tensors"]) / 4
            coded = sum(t["after"] for t in row["tensors"])
            alone = sum(t["entropy"] * t["before"] / 32 for t in row["tensors"])
            before, after = row["accuracy"]
            lines.append(
                f"| {name} | {row['before']:,} | {row['after']:,}"
                f" | {row['before'] / row['after']:.1f} x"
                f" | {before:.2f} to {after:.2f} | {before - after:.2f} | {8 * coded / weights:.2f}"
                f" | {1 - coded / alone:.1%} | {row['zstd'] / row['before']:.3f}"
                f" | {row['open_s'][0]:.2f} ({row['open_s'][1]:.2f} as ONNX)"
                f" | {row['decode_mb_s']:.0f} MB/s |"
            )
    for path in given.lossless or ():
        rows = {k: r for k, r in json.loads(Path(path).read_text()).items() if "error" not in r}
        failed = [k for k, r in json.loads(Path(path).read_text()).items() if "error" in r]
        large = {k: r for k, r in rows.items() if r["kinds"].get("f4", 0) > 0.5 * r["bytes"]}
        ratios = sorted(r["packed"] / r["bytes"] for r in large.values())
        known = [r for r in rows.values() if r["zstd"]]
        size = sum(r["bytes"] for r in known) or 1
        ours, theirs = (sum(r[k] for r in known) / size for k in ("packed", "zstd"))
        over = [k for k, r in large.items() if r["packed"] > 0.84 * r["bytes"]]
        lines += [
            f"{len(rows)} files, {sum(r['bytes'] for r in rows.values()) / 1e6:.0f} MB;"
            f" {sum(r['same'] for r in rows.values())} byte-identical; {len(failed)} not packed.",
            f"{len(large)} mostly float32: ratio {ratios[0]:.3f} to {ratios[-1]:.3f}, median"
            f" {ratios[len(ratios) // 2]:.3f}; over 0.84: {len(over)} {over[:5]}",
            f"{len(known)} small ones: {ours:.3f} of their bytes, zstd -19 {theirs:.3f}.",
        ]
    print("\n".join(lines))


def curve(given):
    """A picture of bytes against accuracy, of all trials that `graphopt pack --json` told."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 4))
    for k, item in enumerate(given.trials):
        name, path = item.split("=")
        row = json.loads(Path(path).read_text())
        ratios = [row["before"] / (size + row["graph"]) for _, size, *_ in row["trials"]]
        drops = [row["metric"][0] - metric for *_, metric, _ in row["trials"]]
        axis.plot(ratios, drops, "o-", color=f"C{k}", label=name)
    axis.axhline(0.5, color="0.7", lw=1)
    axis.set(xlabel="times smaller than the float file", ylabel="points of accuracy lost")
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(given.out, dpi=90)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("lossless")
    one.add_argument("--models", action="append", required=True)
    one.add_argument("--out", required=True)
    one.add_argument("--seconds", type=float, default=240)
    one.set_defaults(run=lossless)
    one = commands.add_parser("rounded")
    one.add_argument("--glyphs", required=True)
    one.add_argument("--out", required=True)
    one.add_argument("--only", default="resnet20,transformer,lstm,vgg16,mobilenetv2")
    one.add_argument("--samples", type=int, default=1024)
    one.add_argument("--judged", type=int, help="validation glyphs that trials are judged on")
    one.add_argument("--drop", type=float, default=0.5)
    one.add_argument("--passes", default="")
    one.add_argument("--recover", action="store_true")
    one.set_defaults(run=rounded)
    one = commands.add_parser("opening")
    one.add_argument("--model", required=True)
    one.set_defaults(run=opening)
    one = commands.add_parser("curve")
    one.add_argument("--trials", action="append", required=True, metavar="NAME=FILE.json")
    one.add_argument("--out", required=True)
    one.set_defaults(run=curve)
    one = commands.add_parser("table")
    one.add_argument("--rounded", action="append")
    one.add_argument("--lossless", action="append")
    one.set_defaults(run=table)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
