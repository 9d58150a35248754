import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt import optimize
from graphopt.differing.difference import difference
from graphopt.graph.provenance import strip

HEAD = '<ir_version: 10, opset_import: ["" : 20]>\n'


def model(body, weights=(), **shapes):
    """A model of one input x and one output y; `weights` are drawn, of the shapes given."""
    proto = onnx.parser.parse_model(f"{HEAD}net (float[n, 8] x) => (float[n, 8] y) {{ {body} }}")
    rng = np.random.default_rng(0)
    for name in weights or sorted(shapes):
        array = rng.normal(size=shapes.get(name, (8, 8))).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return ir.from_proto(proto)


def layers(n, prefix=""):
    """n layers of the same shape, each with a weight of its own; node names begin with `prefix`."""
    lines, last = [], "x"
    for k in range(n):
        out = "y" if k == n - 1 else f"{prefix}r{k}"
        lines += [f"{prefix}h{k} = MatMul({last}, w{k})", f"{out} = Relu({prefix}h{k})"]
        last = out
    return model("\n".join(lines), [f"w{k}" for k in range(n)])


def fates(found, side="before"):
    flow = found.match.a if side == "before" else found.match.b
    return {name: e.fate for name, e in zip(flow.names, getattr(found, side), strict=True)}


def reasons(found, side="before"):
    flow = found.match.a if side == "before" else found.match.b
    return {name: e.reason for name, e in zip(flow.names, getattr(found, side), strict=True)}


def test_a_model_equals_itself_and_itself_under_other_names():
    assert difference(layers(6), layers(6)).equal
    found = difference(layers(6), layers(6, prefix="other_"))
    assert found.equal
    assert found.match.to == list(range(12))


def test_names_that_mislead_lose_to_weights():
    a = layers(6)
    shifted = model(
        "h1 = MatMul(x, w0) r1 = Relu(h1) h2 = MatMul(r1, w1) r2 = Relu(h2) "
        "h3 = MatMul(r2, w2) r3 = Relu(h3) h4 = MatMul(r3, w3) r4 = Relu(h4) "
        "h5 = MatMul(r4, w4) r5 = Relu(h5) h6 = MatMul(r5, w5) y = Relu(h6)",
        [f"w{k}" for k in range(6)],
    )
    assert difference(a, shifted).match.to == list(range(12))


def test_a_layer_in_the_middle_is_found_to_be_new():
    b = layers(6)
    a = model(
        "h0 = MatMul(x, w0) r0 = Relu(h0) h1 = MatMul(r0, w1) r1 = Relu(h1) "
        "h4 = MatMul(r1, w4) r4 = Relu(h4) h5 = MatMul(r4, w5) y = Relu(h5)",
        [f"w{k}" for k in range(6)],
    )
    found = difference(a, b)
    assert [found.match.b.names[y] for y in found.match.to] == [
        "h0", "r0", "h1", "r1", "h4", "r4", "h5", "y",
    ]  # fmt: skip
    assert {n for n, f in fates(found, "after").items() if f in ("added", "replaced")} == {
        "h2", "r2", "h3", "r3",
    }  # fmt: skip


def test_what_a_simplifier_takes_away_has_its_reason():
    a = model(
        "i = Identity(x) c = Constant<value = float {2.0}>() d = Add(c, c) h = Mul(i, d) "
        "g = Mul(i, d) unread = Exp(x) s = Add(h, g) y = Relu(s)"
    )
    two = "<float two = {4.0}>"
    proto = onnx.parser.parse_model(
        f"{HEAD}net (float[n, 8] x) => (float[n, 8] y) {two} "
        "{ h = Mul(x, two) s = Add(h, h) y = Relu(s) }"
    )
    found = difference(a, ir.from_proto(proto))
    told = reasons(found)
    assert told["i"] == "it only passed its input on"
    assert told["c"] == told["d"] == "constant: computed ahead"
    assert told["unread"] == "no output needs it"
    assert told["g"] == "the same as h"
    assert fates(found)["y"] == fates(found)["s"] == "same" or fates(found)["s"] == "rewired"


def test_nodes_that_give_way_to_one_are_named_with_it():
    a = model("s = Sigmoid(x) m = Mul(x, s) y = Relu(m)")
    b = model("m = Gelu(x) y = Relu(m)")
    found = difference(a, b)
    assert fates(found) == {"s": "replaced", "m": "replaced", "y": "same"}
    assert reasons(found)["m"] == "gave way to m (Gelu)"
    assert reasons(found, "after")["m"] == "for s, m"
    (region,) = found.regions
    assert (region.before, region.after) == ((0, 1), (0,))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("Softmax<axis = 1>(x)", "Softmax<axis = 0>(x)", "axis 1 -> 0"),
        ("Softmax<axis = -1>(x)", "Softmax(x)", ""),
        ("LeakyRelu(x)", "LeakyRelu<alpha = 0.5>(x)", "alpha default -> 0.5"),
    ],
)
def test_attributes_are_compared_as_the_standard_reads_them(before, after, told):
    found = difference(model(f"y = {before}"), model(f"y = {after}"))
    assert reasons(found)["y"] == told
    assert found.equal == (not told)


def test_weights_are_compared_in_numbers():
    a, b = layers(2), layers(2)
    held = b.graph.initializers["w1"]
    held.const_value = ir.tensor(held.const_value.numpy() * np.float32(1.5), name="w1")
    found = difference(a, b)
    (change,) = found.weights.changed
    assert (change.name, change.node, change.before) == ("w1", "h1", "FLOAT 8x8")
    assert change.rel_l2 == pytest.approx(0.5)
    assert change.share == 1.0
    assert found.weights.same == 1
    assert fates(found)["h1"] == "changed"


def test_metadata_and_interface_are_compared():
    a, b = layers(2), layers(2)
    b.metadata_props["author"] = "me"
    b.graph.inputs[0].name = "z"
    found = difference(a, b)
    assert found.metadata == {"author": (None, "me")}
    assert found.interface == {
        "input x": ("FLOAT nx8, number 1", None),
        "input z": (None, "FLOAT nx8, number 1"),
    }
    assert not found.equal
    assert {*fates(found).values()} == {"same"}


def test_subgraphs_are_compared_node_by_node():
    text = """
    c = ReduceMax<keepdims = 0>(x)
    z = Constant<value = float {0.0}>()
    p = Greater(c, z)
    y = If (p) <
        then_branch = then () => (float[n, 8] t) { t = %s(x) },
        else_branch = else () => (float[n, 8] e) { e = Neg(x) }
    >
    """
    found = difference(model(text % "Exp"), model(text % "Abs"))
    assert fates(found)["t"] == "replaced"
    assert {n for n, f in fates(found).items() if f == "same"} == {"c", "z", "p", "y", "e"}


@pytest.fixture(scope="module")
def optimized():
    """A chain, and what prune and fuse made of it, with its provenance."""
    a = model(
        "h0 = MatMul(x, w0) a0 = Add(h0, b0) r0 = Relu(a0) h1 = MatMul(r0, w1) "
        "a1 = Add(h1, b1) i = Identity(a1) y = Relu(i)",
        w0=(8, 1024), b0=(1024,), w1=(1024, 8), b1=(8,),
    )  # fmt: skip
    samples = {"x": np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)}
    options = {"samples": samples, "measure": False, "verify": "graph"}
    return a, optimize(a, "prune(ratio=0.3), fuse", **options).model


def test_provenance_tells_what_passes_made_of_a_node(optimized):
    found = difference(*optimized)
    assert {e.fate for e in found.before} <= {"changed", "replaced", "removed", "same"}
    by = {p for e in found.before for p in e.by}
    assert "fuse" in by
    explained = [e for e in (*found.before, *found.after) if e.fate == "same" or e.reason]
    assert len(explained) == len(found.before) + len(found.after)


def test_without_provenance_every_node_is_explained_too(optimized):
    a, b = optimized
    bare = b.clone()
    strip(bare)
    found = difference(a, bare)
    assert all(e.fate == "same" or e.reason for e in (*found.before, *found.after))
    back = difference(bare, a)
    assert len(back.before) == len(found.after)
