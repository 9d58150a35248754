"""Decoders: what they write, one token after another, is what the runtime says in one go."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

import graphopt
from graphopt.cli import cli
from graphopt.errors import ModelError
from graphopt.execution.runtime import run
from graphopt.measuring.decoding import decode

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((97, 16)).astype(np.float32)
HEAD = RNG.standard_normal((16, 97)).astype(np.float32)
#: The mean of what was read, and the last of it, say what comes next.
DECODER = """<ir_version: 9, opset_import: ["": 18]>
    g (int64[batch, sequence] input_ids, float[batch, past, 16] past.0)
        => (float[batch, sequence, 97] logits, float[batch, total, 16] present.0) {
        e = Gather(table, input_ids)
        present.0 = Concat<axis = 1>(past.0, e)
        m = ReduceMean<keepdims = 1>(present.0, axis)
        s = Add(e, m)
        logits = MatMul(s, head)
    }"""


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    model = ir.from_onnx_text(DECODER.replace("past.0", "past_0").replace("present.0", "present_0"))
    for name, array in {"table": TABLE, "head": HEAD, "axis": np.array([1])}.items():
        value = next(v for n in model.graph for v in n.inputs if v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    path = tmp_path_factory.mktemp("decoder") / "d.onnx"
    graphopt.save(model, path)
    return path


def test_tokens_are_those_of_the_whole_sequence(decoder):
    found = decode(decoder, prompt=12, new=5, threads=1)
    model, ids = graphopt.load(decoder), [*range(1, 13)]
    for token in found.tokens:
        none = np.zeros((1, 0, 16), np.float32)
        logits = run(model, {"input_ids": np.array([ids]), "past_0": none})["logits"]
        assert int(logits[0, -1].argmax()) == token
        ids.append(token)
    assert len(found.tokens) == 6
    assert found.weight_bytes == HEAD.nbytes + 8  # of the table a token reads one row
    assert found.roofline == pytest.approx(found.bandwidth / found.weight_bytes)


def test_the_command_tells_tokens_a_second(decoder):
    done = CliRunner().invoke(cli, ["bench", str(decoder), "--tokens", "3", "--json"], obj=[])
    (row,) = json.loads(done.stdout)["rows"]
    assert row["new_per_second"] > 0
    assert len(row["tokens"]) == 4


def test_what_is_no_decoder_is_refused_in_a_line(tmp_path):
    text = '<ir_version: 9, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = Relu(x) }'
    graphopt.save(ir.from_onnx_text(text), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no decoder that keeps caches"):
        decode(tmp_path / "m.onnx")
