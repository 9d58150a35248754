"""Damaged packs: flipped, cut, spliced; each must be refused, or be read as the very same model.

    python bench/storage_damage.py [--trials 100000] [--first 0] [--model FILE.gopt ...]

Small packs of every kind of content, and those given. A quarter of the trials is damaged under
checksums that are made right again, so that the decoders see the damage. What is not a refusal (an
error of another kind, a crash, 10 seconds, 1 GB more than at the start) ends the run at its trial,
which `--first` repeats.
"""

import argparse
import contextlib
import faulthandler
import io
import resource
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt import load
from graphopt.deploy.packed import decoded
from graphopt.entropy.container import MAGIC, read_pack
from graphopt.entropy.integers import Rounded, counts_of, tables_of
from graphopt.entropy.weighing import weighed
from graphopt.errors import GraphOptError
from graphopt.packing.coding import Coded, write
from graphopt.packing.lossless import pack_lossless

SECONDS, MEMORY = 10, 1 << 30
WAYS = ("flipped", "cut", "spliced", "flipped under right checksums")


def weights():
    """Arrays of every kind that is coded by itself."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    return {
        "floats": normal((40, 30)).astype("f4"),
        "scaled": (normal((24, 512)) * np.exp2(np.arange(24) - 12)[:, None]).astype("f4"),
        "halves": normal((20, 30)).astype("f2").astype("f4"),
        "f2": normal((20, 30)).astype("f2"),
        "f8": normal(200),
        "i1": np.clip(np.rint(3 * normal((30, 20))), -127, 127).astype("i1"),
        "constant": np.full((8, 40), 0.5, "f4"),
        "text": np.arange(300),
    }


def saved(arrays, path, **external):
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [300])
    held = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    nodes = [helper.make_node("Identity", ["text"], ["y"])]
    graph = helper.make_graph(nodes, "g", [], [out], held)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path, **external
    )


def rounded(model):
    """The model with four tensors as integers: matrices, one turned, a kernel, large magnitudes."""
    rng, pieces = np.random.default_rng(1), {}
    for name, taps, spread, turned in (
        ("floats", 8, 1, False),
        ("scaled", 8, 0.4, True),
        ("halves", 9, 2, False),
        ("constant", 8, 40, False),
    ):
        held = model.graph.initializers[name]
        shape = held.const_value.shape.numpy()
        rows, columns = reversed(shape) if turned else shape
        q = np.rint(spread * rng.standard_normal((rows, columns))).astype(np.int32)
        levels = [rng.integers(0, 33, n, dtype=np.uint8) for n in (rows, -(-columns // taps))]
        pieces[name] = [Rounded(q, np.float32(0.01), *levels, taps, turned)]
        held.const_value = ir.Tensor(pieces[name][0].values(), name=name)
    return Coded(model, pieces, tables_of(counts_of(p) for (p,) in pieces.values()), {}, [])


def packs(folder):
    """Bytes of small packs: exact, with external data, rounded."""
    arrays, made = weights(), []
    for name, external in (
        ("exact", {}),
        ("beside", {"save_as_external_data": True, "location": "w.bin", "size_threshold": 64}),
    ):
        saved(arrays, folder / f"{name}.onnx", **external)
        pack_lossless(folder / f"{name}.onnx", folder / f"{name}.gopt")
        made.append((folder / f"{name}.gopt").read_bytes())
    write(rounded(load(folder / "exact.onnx")), folder / "rounded.gopt")
    return [*made, (folder / "rounded.gopt").read_bytes()]


def contents(data):
    """The bytes of each file (names have no checksum but the records')."""
    return [b"".join(bytes(c) for c in f.content) for f in read_pack(io.BytesIO(data))]


def damaged(data, others, way, rng):
    """`data` damaged in one way; pieces are of itself or of another pack."""
    bad = bytearray(data)
    at, size = int(rng.integers(len(bad))), int(rng.integers(1, 2000))
    if way == "cut":
        del bad[at:]
    elif way == "spliced":
        donor = others[rng.integers(len(others))]
        other = int(rng.integers(len(donor)))
        end = at + (size if rng.integers(2) else int(rng.integers(2000)))
        bad[at:end] = donor[other : other + size]
    else:
        bad[at] ^= 1 << int(rng.integers(8))
    return resealed(data, bad) if way == WAYS[3] else bytes(bad)


def resealed(data, bad):
    """`bad` with the records' checksums made right, where `data` has them."""
    at, crc = len(MAGIC) + 2, zlib.crc32(MAGIC)
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at + 1)
        end = at + 5 + length
        crc = zlib.crc32(bad[at:end], crc)
        bad[end : end + 4] = struct.pack("<I", crc)
        at = end + 4
    return bytes(bad)


def refused(read, expected):
    """Whether `read` refuses, in one line; what it reads otherwise must be `expected`."""
    try:
        found = read()
    except GraphOptError as error:
        found = str(error)
    if isinstance(found, str):
        assert "\n" not in found
        return True
    assert found == expected, "a wrong model"
    return False


def in_memory(pack):
    """What a session is opened with."""
    found = decoded(pack)
    return found and (found[0], {n: a.tobytes() for n, a in found[1].items()})


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(given, [*packs(folder), *(Path(m).read_bytes() for m in given.model)], folder / "bad")


def run(given, datas, file):
    whole, opened = [contents(d) for d in datas], []
    for data in datas:
        file.write_bytes(data)
        opened.append(in_memory(file))
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY,) * 2)
    began, longest = time.process_time(), 0.0
    same = dict.fromkeys(WAYS, 0)
    for trial in range(given.first, given.first + given.trials):
        rng, k = np.random.default_rng(trial), trial % len(datas)
        way = WAYS[trial // len(datas) % len(WAYS)]
        bad = damaged(datas[k], datas, way, rng)
        start = time.process_time()
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            no = refused(lambda: contents(bad), whole[k])  # noqa: B023
            if trial % 10 == 0 and opened[k]:  # None: external data, which is unpacked instead
                file.write_bytes(bad)
                assert refused(lambda: in_memory(file), opened[k]) == no
                with contextlib.suppress(GraphOptError):
                    weighed(file)
        except BaseException:
            print(f"trial {trial}: {way}", flush=True)
            raise
        faulthandler.cancel_dump_traceback_later()
        same[way] += not no
        longest = max(longest, time.process_time() - start)
    spent = time.process_time() - began
    sizes = ", ".join(f"{len(d):,}" for d in datas)
    print(f"{given.trials:,} trials on packs of {sizes} bytes, {given.trials / 4:,.0f} of each way")
    print(f"refused: all but {same}, which are the same model")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{spent:.0f} s, {longest:.2f} s of one at most, {memory} MiB at most")


if __name__ == "__main__":
    main()
