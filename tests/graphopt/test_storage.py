"""Where a file's bytes are: by tensor, by who reads it, sparse and shared ones as they are held."""

import json

import numpy as np
import pytest
from graphopt.passes.sparsify import Sparsify

from graphopt.analyses.storage import by_cause, stored
from graphopt.cli import main
from graphopt.context import Context
from graphopt.entropy.weighing import weighed
from graphopt.errors import ModelError
from graphopt.io.writing import write_model
from graphopt.packing.lossless import pack_lossless
from graphopt.testing import parse_model

W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def model():
    constants = {"w": W, "v": W[:, :10].copy(), "b": W[0, :10].copy()}
    return parse_model(
        "h = MatMul(x, w)  y = Gemm(h, v, b)", inputs={"x": ("N", 64)}, constants=constants
    )


def test_the_largest_come_first_with_their_readers():
    found = stored(model())
    assert [(s.name, s.bytes, s.readers) for s in found] == [
        ("w", 64 * 64 * 4, ("MatMul",)),
        ("v", 64 * 10 * 4, ("Gemm",)),
        ("b", 40, ("Gemm",)),
    ]


def test_causes_add_up_to_the_file():
    causes = by_cause(stored(model()), 20_000)
    assert causes == {"FLOAT of MatMul": 16384, "FLOAT of Gemm": 2600, "graph": 20_000 - 18984}


def test_sparse_tensors_count_with_their_indices():
    made = model()
    Sparsify(ratio=0.9).run(made, Context(made))
    (largest,) = [s for s in stored(made) if s.name == "w"]
    left = np.count_nonzero(made.graph.initializers["w"].const_value.numpy())
    assert (largest.dtype, largest.bytes) == ("sparse FLOAT", 12 * left)


def test_inspect_shows_them(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    write_model(model(), path)
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert sum(said["bytes_by_cause"].values()) == said["bytes"] == path.stat().st_size
    assert said["tensors"][0]["name"] == "w"
    with pytest.raises(SystemExit):
        main(["inspect", str(path)])
    assert "FLOAT of MatMul" in capsys.readouterr().out


def test_a_pack_tells_what_its_own_bytes_are(tmp_path, capsys):
    pytest.importorskip("constriction")
    path, pack = tmp_path / "m.onnx", tmp_path / "m.gopt"
    write_model(model(), path)
    pack_lossless(path, pack)
    with pytest.raises(SystemExit):
        main(["inspect", str(pack), "--json"])
    said = json.loads(capsys.readouterr().out)
    causes = said["bytes_by_cause"]
    assert sum(causes.values()) == said["bytes"] == pack.stat().st_size
    floats = 4 * (64 * 64 + 64 * 10)  # the bias is with the graph
    assert next(iter(causes)) == f"FLOAT, exact ({floats:,} bytes)"
    assert 0.7 * floats < next(iter(causes.values())) < 0.9 * floats
    cut = tmp_path / "cut.gopt"
    cut.write_bytes(pack.read_bytes()[:-40])
    with pytest.raises(ModelError, match="cut off"):
        weighed(cut)
