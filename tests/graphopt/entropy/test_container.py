"""Packs: what goes in comes out; what is damaged is refused, in bounded memory."""

import io
import tracemalloc

import numpy as np
import pytest

from graphopt.entropy.container import VERSION, Run, read_pack, write_pack
from graphopt.entropy.integers import Rounded, counts_of, tables_of
from graphopt.errors import ModelError

pytest.importorskip("constriction")


def floats(n, seed=0):
    return np.random.default_rng(seed).standard_normal(n).astype("<f4").tobytes()


def packed(seed=0, n=3000):
    runs = [Run("text", b"graph " * 40), Run("f4", floats(n, seed)), Run("text", b"x" * 9)]
    data = [Run("f4", floats(200, seed + 1)), Run("text", bytes(64)), Run("i1", bytes(range(256)))]
    return [("model.data", data), ("model.onnx", runs)]


def whole(files):
    return [(name, b"".join(bytes(r.data) for r in runs)) for name, runs in files]


def read(data):
    return [(f.name, b"".join(bytes(c) for c in f.content)) for f in read_pack(io.BytesIO(data))]


def test_round_trip_and_size():
    files = packed()
    data = b"".join(write_pack(files))
    assert read(data) == whole(files)
    assert len(data) < 0.85 * sum(len(c) for _, c in whole(files))


def test_a_pack_is_the_same_every_time():
    assert b"".join(write_pack(packed())) == b"".join(write_pack(packed()))


def test_streams_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr("graphopt.entropy.container.CHUNK", 4096)
    files = packed(n=5000)
    assert read(b"".join(write_pack(files))) == whole(files)


def rounded(tensors):
    tables = tables_of(map(counts_of, tensors))
    return [Run("rounded", t.values().tobytes(), t) for t in tensors], tables


def test_small_rounded_tensors_share_records(monkeypatch):
    rng = np.random.default_rng(5)
    tensors = [
        Rounded(rng.integers(-3, 4, (4, 9)), np.float32(0.1), levels[:4], levels[:1], 9, False)
        for levels in rng.integers(0, 9, (12, 4), dtype=np.uint8)
    ]
    runs, tables = rounded(tensors)
    parts = [r for run in runs for r in (run, Run("text", b"."))]
    sizes = []
    for chunk in (1 << 20, 500, 144):
        monkeypatch.setattr("graphopt.entropy.container.CHUNK", chunk)
        data = b"".join(write_pack([("m.onnx", parts)], tables))
        assert read(data) == whole([("m.onnx", parts)])
        sizes.append(len(data))
    more = np.diff(sizes) / [3, 8]  # a record, and a stream's last words
    assert (more >= 13).all()
    assert (more <= 13 + 8).all()


def refused(data):
    """Why a pack is refused, or ""."""
    try:
        read(data)
    except ModelError as error:
        return str(error)
    return ""


def test_damaged_cut_and_spliced_packs_are_refused():
    rng = np.random.default_rng(18)
    data = b"".join(write_pack(packed()))
    other = b"".join(write_pack(packed(seed=5)))
    tracemalloc.start()
    for trial in range(600):
        bad = bytearray(data)
        at = int(rng.integers(len(bad)))
        match trial % 4:
            case 0:
                bad[at] ^= 1 << int(rng.integers(8))
            case 1:
                del bad[at:]
            case 2:
                end = min(at + int(rng.integers(1, 400)), len(other))
                bad[at:end] = other[at:end]
            case 3:
                bad[at:at] = rng.bytes(int(rng.integers(1, 50)))
        if bytes(bad) != data:
            assert refused(bytes(bad)).count("\n") == 0 < len(refused(bytes(bad)))
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_records_of_two_packs_do_not_mix():
    """Each record is right by itself; the checksum goes over all before it."""
    one, two = (b"".join(write_pack(packed(seed=s))) for s in (0, 5))
    for at in range(60, min(len(one), len(two)), 97):
        mixed = one[:at] + two[at:]
        assert mixed in (one, two) or refused(mixed)


def test_what_follows_the_end_is_refused():
    with pytest.raises(ModelError, match="follows its end"):
        read(b"".join(write_pack(packed())) + b"\0")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", ""])
def test_names_stay_in_the_folder(name):
    with pytest.raises(ModelError, match="no proper name"):
        read(b"".join(write_pack([(name, [Run("text", b"x")])])))


@pytest.mark.parametrize(("version", "which"), [(VERSION + 1, "later"), (VERSION - 1, "earlier")])
def test_another_version_says_so(version, which):
    data = b"".join(write_pack(packed()))
    assert data[9:11] == bytes([VERSION, 0])
    with pytest.raises(ModelError, match=f"of format {version}.* with the {which} graphopt"):
        read(data[:9] + bytes([version, 0]) + data[11:])
