"""Merging: shared inputs, weights and sub-graphs; combined outputs; ties that last."""

import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import UsageError
from graphopt.execution.runtime import run
from graphopt.graph.traverse import all_nodes
from graphopt.io.writing import write_model
from graphopt.testing import parse_model
from graphopt.verification.merged import merged_error

RNG = np.random.default_rng(0)
TRUNK = RNG.standard_normal((8, 64)).astype(np.float32)
TEXT = "a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  y = Softmax(c)"


def head(seed, inputs=None, text=TEXT):
    v = np.random.default_rng(seed).standard_normal((64, 5)).astype(np.float32)
    shapes = {"x": ("n", 8)} if inputs is None else inputs
    return parse_model(text, inputs=shapes, constants={"w": TRUNK, "v": v})


def shared(models, combine="none", passes="clean"):
    return graphopt.optimize(graphopt.merge(models, combine), passes, measure=False).model


def operators(model):
    return sorted(n.op_type for n in all_nodes(model.graph))


def test_a_common_trunk_runs_once_and_is_stored_once():
    one = shared([head(1), head(2)])
    assert operators(one) == ["MatMul"] * 3 + ["Relu"] + ["Softmax"] * 2
    sizes = [v.const_value.shape.numpy() for v in one.graph.initializers.values()]
    assert sorted(sizes) == [(8, 64), (64, 5), (64, 5)]
    assert [v.name for v in one.graph.inputs] == ["x"]
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    parts = [run(m, {"x": x})["y"] for m in (head(1), head(2))]
    assert all(
        np.array_equal(a, b) for a, b in zip(parts, run(one, {"x": x}).values(), strict=True)
    )


@pytest.mark.parametrize("combine", ["mean", "vote", "concat", "none"])
def test_outputs_are_combined(combine):
    models = [head(k) for k in (1, 2, 3)]
    one = shared(models, combine)
    assert merged_error(models, one, combine) < 1e-6
    x = RNG.standard_normal((6, 8)).astype(np.float32)
    found = list(run(one, {"x": x}).values())
    ys = np.stack([run(m, {"x": x})["y"] for m in models])
    if combine == "vote":
        votes = np.stack([(ys.argmax(-1) == k).mean(0) for k in range(5)], -1)
        assert np.allclose(found[0], votes)
    elif combine == "mean":
        assert np.allclose(found[0], ys.mean(0), atol=1e-6)
    elif combine == "concat":
        assert np.array_equal(found[0], np.concatenate(list(ys), -1))
        assert list(one.graph.outputs[0].shape)[-1] == 15
    else:
        assert len(found) == 3
    assert one.graph.outputs[0].name == "y"


def test_a_model_with_itself_is_one_model_with_two_outputs():
    one = shared([head(1), head(1)])
    assert operators(one).count("MatMul") == 2
    assert len(one.graph.outputs) == 2


@pytest.mark.parametrize("passes", ["fuse", "fold,fuse", "int8, clean", "half"])
def test_ties_last_through_passes(passes, tmp_path):
    """The trunk is stored once, whatever becomes of it."""
    merged = graphopt.merge([head(1), head(2)])
    alone = graphopt.optimize(head(1), passes, measure=False, verify="graph").model
    one = graphopt.optimize(merged, f"clean, {passes}", measure=False, verify="graph").model
    sizes = []
    for model in (alone, one):
        write_model(model, tmp_path / "m.onnx")
        weights = [v.const_value for v in model.graph.initializers.values()]
        sizes.append(sum(w.nbytes for w in weights if w.shape.numpy()[:1] in ((8,), (64,))))
    assert sizes[1] < sizes[0] + 64 * 5 * 4 + 256


def test_names_that_meet_and_inputs_that_only_one_has():
    two = head(2, {"x": ("n", 8), "z": ("n", 5)}, TEXT.replace("y = Softmax(c)", "y = Add(c, z)"))
    one = graphopt.merge([head(1), two])
    assert [v.name for v in one.graph.inputs] == ["x", "z"]
    names = [v.name for n in all_nodes(one.graph) for v in n.outputs]
    assert len(names) == len(set(names))
    assert merged_error([head(1), two], one, "none") == 0


def test_subgraphs_keep_their_outer_values():
    text = """m = ReduceMax <keepdims=0> (x)  t = Cast <to=9> (m)
    y = If <then_branch = g () => (float[n, 8] p) { p = Relu(x) },
            else_branch = h () => (float[n, 8] q) { q = Neg(x) }> (t)"""
    models = [parse_model(text, inputs={"x": ("n", 8)}) for _ in range(2)]
    one = graphopt.merge(models)
    x = -np.ones((2, 8), np.float32)
    assert [y.tolist() for y in run(one, {"x": x}).values()] == [
        run(models[0], {"x": x})["y"].tolist()
    ] * 2


@pytest.mark.parametrize(
    ("models", "combine", "message"),
    [
        ([head(1)], "none", "nothing to merge"),
        ([head(1), parse_model("y = Relu(x)", inputs={"x": (2, 3, 4)})], "none", "input x is"),
        ([head(1), parse_model("y = Relu(x)", inputs={"x": ("n", 9)})], "none", "input x is"),
        ([parse_model("y = ArgMax(x)")] * 2, "mean", "no floating-point"),
        (
            [head(1), parse_model("y = Relu(x)  z = Neg(x)", inputs={"x": ("n", 8)})],
            "mean",
            "numbers of",
        ),
        *(
            (
                [parse_model(f"y = Softmax(x{k})", inputs={f"x{k}": ("n", k)}) for k in (2, 3)],
                combine,
                r"output y is \[n,2\] in one model and \[n,3\] in another",
            )
            for combine in ("mean", "vote")
        ),
        (
            [parse_model(f"y = Softmax(x{k})", inputs={f"x{k}": (k, 2)}) for k in (2, 3)],
            "concat",
            r"output y is \[2,2\] in one",
        ),
    ],
)
def test_what_cannot_be_merged(models, combine, message):
    with pytest.raises(UsageError, match=message):
        graphopt.merge(models, combine)


def test_opsets_are_raised_to_the_newest():
    old = ir.from_proto(ir.to_proto(head(1)))
    old.graph.opset_imports[""] = 13
    one = graphopt.merge([old, head(2)])
    assert one.graph.opset_imports[""] == 20


def test_the_command(tmp_path):
    for k in (1, 2):
        graphopt.save(head(k), tmp_path / f"{k}.onnx")
    command = [sys.executable, "-m", "graphopt", "merge", "1.onnx", "2.onnx", "-o"]
    done = subprocess.run(
        [*command, "out.onnx", "--combine", "mean"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "and 9 nodes became 5.59 kB and 7 nodes" in done.stdout
    x = RNG.standard_normal((3, 8)).astype(np.float32)
    mean = sum(run(head(k), {"x": x})["y"] for k in (1, 2)) / 2
    assert np.allclose(run(graphopt.load(tmp_path / "out.onnx"), {"x": x})["y"], mean, atol=1e-6)
    over = subprocess.run([*command, "2.onnx"], cwd=tmp_path, capture_output=True, text=True)
    assert over.returncode == 2
