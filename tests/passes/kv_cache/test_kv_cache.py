"""Caches in integers: what the runtime computes with them, who feeds them, what stays as it was."""

import json

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from graphopt.passes.kv_cache import KvCache

import graphopt
from graphopt.backend import find_target
from graphopt.budget import Budget
from graphopt.cli import cli
from graphopt.context import Context
from graphopt.execution.caches import quantized_caches
from graphopt.execution.runtime import run
from graphopt.measuring.decoding import decode
from graphopt.samples import open_samples

RNG = np.random.default_rng(0)
HEADS, KV, SIZE, VOCABULARY = 4, 2, 32, 50
WIDTH = HEADS * SIZE
TEXT = f"""<ir_version: 9, opset_import: ["": 18, "com.microsoft": 1]>
    g (int64[batch, sequence] input_ids, int64[batch, total] attention_mask,
       ELEMENT[batch, {KV}, past, {SIZE}] past_key_values_0_key,
       ELEMENT[batch, {KV}, past, {SIZE}] past_key_values_0_value)
    => (ELEMENT[batch, sequence, {VOCABULARY}] logits,
        ELEMENT[batch, {KV}, total, {SIZE}] present_0_key,
        ELEMENT[batch, {KV}, total, {SIZE}] present_0_value) {{
        x = Gather(table, input_ids)
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        lengths = ReduceSum<keepdims = 0>(attention_mask, axis)
        before = Sub(lengths, one)
        seqlens = Cast<to = 6>(before)
        shape = Shape(attention_mask)
        length = Gather(shape, place)
        total_length = Cast<to = 6>(length)
        y, present_0_key, present_0_value = com.microsoft.GroupQueryAttention
            <num_heads = {HEADS}, kv_num_heads = {KV}>
            (q, k, v, past_key_values_0_key, past_key_values_0_value, seqlens, total_length)
        logits = MatMul(y, head)
    }}"""


def decoder(dtype=np.float32):
    def drawn(*dims):
        return (RNG.standard_normal(dims) / np.sqrt(dims[0])).astype(dtype)

    constants = {
        "table": drawn(VOCABULARY, WIDTH) * dtype(7),
        "wq": drawn(WIDTH, WIDTH),
        "wk": drawn(WIDTH, KV * SIZE) * np.geomspace(0.01, 3, KV * SIZE).astype(dtype),
        "wv": drawn(WIDTH, KV * SIZE),
        "head": drawn(WIDTH, VOCABULARY),
        "axis": np.array([1]),
        "one": np.array(1),
        "place": np.array(1),
    }
    model = ir.from_onnx_text(TEXT.replace("ELEMENT", dtype.__name__.replace("32", "")))
    for name, array in constants.items():
        value = next(v for n in model.graph for v in n.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def tokens(count=8, length=24):
    return {"input_ids": RNG.integers(0, VOCABULARY, (count, length))}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_runtime_computes_with_integers_what_floats_say(dtype):
    model = decoder(dtype)
    samples = open_samples(tokens(), model)
    made = model.clone()
    ctx = Context(made, target=find_target("cpu"), samples=samples)
    assert KvCache().run(made, ctx) == 1
    held = [
        v for v in (*made.graph.inputs, *made.graph.outputs) if "key" in v.name or "value" in v.name
    ]
    assert [v.dtype for v in held] == [ir.DataType.INT8] * 4
    feed = next(iter(open_samples(tokens(), model)))
    a, b = (run(m, feed, optimize=True) for m in (model, made))
    x, y = (o["logits"].astype(np.float64).ravel() for o in (a, b))
    assert x @ y / np.linalg.norm(x) / np.linalg.norm(y) > 0.9999
    assert not np.array_equal(x, y)
    scales = quantized_caches(made)["present_0_key"]
    assert scales.shape == (1, KV, 1, SIZE)  # channels differ by 300 times: each has its own
    assert scales.max() > 50 * scales.min()
    off = np.abs(a["present_0_key"].astype(np.float32) - b["present_0_key"].astype(np.float32))
    assert (off <= 0.5 * scales * 1.2 + 2e-3 * (dtype is np.float16)).mean() > 0.99
    assert b["present_0_key"].dtype == dtype


def test_a_pipeline_judges_it_in_floats_and_the_file_holds_integers(tmp_path):
    model = decoder()
    graphopt.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "tokens.npz", **tokens())
    given = {"samples": tmp_path / "tokens.npz", "cache": "off", "measure_seconds": 0.2}
    budget = Budget(max_drop=0.5, evaluate="perplexity")
    result = graphopt.optimize(tmp_path / "m.onnx", "kv_cache", budget=budget, **given)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert result.report.after.metric == pytest.approx(result.report.before.metric, rel=0.01)
    result.write(tmp_path / "o.onnx")
    assert graphopt.load(tmp_path / "o.onnx").graph.inputs[2].dtype == ir.DataType.INT8
    float_, whole = (decode(tmp_path / n, prompt=8, new=8, threads=1) for n in ("m.onnx", "o.onnx"))
    assert len(whole.tokens) == len(float_.tokens)
    more = ["--samples", str(tmp_path / "tokens.npz"), "--eval", "greedy", "--no-measure", "--json"]
    argv = ["compare", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), *more]
    said = json.loads(CliRunner().invoke(cli, argv, obj=[]).stdout)
    assert said["outputs"]["logits"]["cosine"] > 0.9999
    assert said["a"]["metric"] == 1
    again = graphopt.optimize(tmp_path / "o.onnx", "kv_cache", **given)
    assert again.report.steps[0].status == "unchanged"


@pytest.mark.parametrize("reason", ["target", "read elsewhere", "no attention"])
def test_what_stays_as_it_is(reason):
    model = decoder()
    target = find_target("onnx" if reason == "target" else "cpu")
    if reason == "read elsewhere":
        made = ir.Node("", "Identity", [model.graph.inputs[2]])
        made.outputs[0].name = "copy"
        model.graph.append(made)
    if reason == "no attention":
        model = ir.from_onnx_text(
            '<ir_version: 9, opset_import: ["": 18]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
        )
    before = ir.to_proto(model)
    assert KvCache().run(model, Context(model, target=target)) == 0
    assert ir.to_proto(model) == before


@pytest.mark.parametrize("spec", ["clean,fold,fuse", "weight_only(bits=8)", "kv_cache"])
def test_sliding_windows_stay(spec, tmp_path):
    """A window of 6 tokens: what is before it counts neither in the prompt nor one by one."""
    model = decoder()
    (attention,) = (n for n in model.graph if n.op_type == "GroupQueryAttention")
    plain = model.clone()
    attention.attributes["local_window_size"] = ir.AttrInt64("local_window_size", 6)
    given = {"samples": tokens(), "cache": "off", "measure": False}
    given["budget"] = Budget(max_disagreement=float("inf"))  # of random weights no token is sure
    result = graphopt.optimize(model, spec, **given)
    assert result.report.steps[-1].status != "undone"
    result.write(tmp_path / "o.onnx")
    made = graphopt.load(tmp_path / "o.onnx")
    (kept,) = (n for n in made.graph if n.op_type == "GroupQueryAttention")
    assert kept.attributes["local_window_size"].as_int() == 6
    feed = next(iter(open_samples(tokens(1, 16), model)))
    wanted, got, unlike = (run(m, feed)["logits"] for m in (model, made, plain))
    near = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert near < 0.02 < 0.1 < np.linalg.norm(unlike - wanted) / np.linalg.norm(wanted)
    decoded = [decode(save(m, tmp_path / "d.onnx"), prompt=12, new=8) for m in (model, made)]
    assert len(decoded[1].tokens) == len(decoded[0].tokens) == 9


def save(model, path):
    graphopt.save(model, path)
    return path
