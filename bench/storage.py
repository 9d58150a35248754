"""Storage: bytes, ratio, accuracy and time to load of packed models, beside zstd -19.

python bench/storage.py lossless --models DIR [--models DIR ...] --out FILE.json
python bench/storage.py rounded --glyphs DIR --out FILE.json
python bench/storage.py damage --model FILE [--trials 100000]
python bench/storage.py table --out bench/results/storage
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import zstandard

from graphopt.entropy.container import read_pack, unpack
from graphopt.errors import GraphOptError
from graphopt.packing.lossless import pack_lossless


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


def damage(given):
    """Flipped, cut, spliced: each must be refused, or read as the very same model."""
    import io
    import resource

    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder, "m.gopt")
        pack_lossless(Path(given.model), pack)
        data = pack.read_bytes()
    rng = np.random.default_rng(0)
    refused = same = 0
    for trial in range(given.trials):
        bad = bytearray(data)
        at, other = (int(v) for v in rng.integers(len(bad), size=2))
        size = int(rng.integers(1, 2000))
        if trial % 3 == 0:
            bad[at] ^= 1 << int(rng.integers(8))
        elif trial % 3 == 1:
            del bad[at:]
        else:
            bad[at : at + size] = data[other : other + size]
        try:
            for stored in read_pack(io.BytesIO(bytes(bad))):
                for _ in stored.content:
                    pass
            assert bytes(bad) == data, f"trial {trial}: a wrong model"
            same += 1
        except GraphOptError:
            refused += 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{given.trials} trials: {refused} refused, {same} unchanged; {memory} MiB at most")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("lossless")
    one.add_argument("--models", action="append", required=True)
    one.add_argument("--out", required=True)
    one.add_argument("--seconds", type=float, default=240)
    one.set_defaults(run=lossless)
    one = commands.add_parser("damage")
    one.add_argument("--model", required=True)
    one.add_argument("--trials", type=int, default=100_000)
    one.set_defaults(run=damage)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
