import numpy as np
import onnx
import onnx_ir as ir

from graphopt.differing.difference import difference
from graphopt.differing.flow import Digests, Flow
from graphopt.drawing.grouping import repeated_blocks
from graphopt.drawing.scene import KINDS, Strings, scene_of

LAYER = """
    a{k} = MatMul({x}, w)
    b{k} = Add(a{k}, v)
    c{k} = Relu(b{k})
    d{k} = Mul(c{k}, b{k})
    r{k} = Add(d{k}, {x})
"""


def flow(body, out="y"):
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        f"net (float[4, 8] x) => (float[4, 8] {out}) {{ {body} }}"
    )
    for name, shape in (("w", (8, 8)), ("v", (8,))):
        array = np.ones(shape, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return Flow(ir.from_proto(proto), Digests())


def residual(n, tail=""):
    last, lines = "x", []
    for k in range(n):
        lines.append(LAYER.format(k=k, x=last))
        last = f"r{k}"
    return flow("\n".join(lines) + tail.format(last=last))


def items(scene, level=0):
    plan = scene.data["plans"][level]
    return [(KINDS[kind], ref) for kind, ref, *_ in plan["items"]]


def test_layers_that_come_again_are_blocks():
    made = residual(4, "y = Softmax({last})")
    blocks = repeated_blocks(made, set())
    assert [g.label for g in blocks] == [f"block {k} of 4" for k in (1, 2, 3, 4)]
    assert [g.nodes for g in blocks] == [tuple(range(5 * k, 5 * k + 5)) for k in range(4)]


def test_numbered_modules_are_blocks():
    made = residual(2, "y = Softmax({last})")
    for k, node in enumerate(made.nodes[:10]):
        node.name = f"/net/layers.{k // 5}/x{k}".replace("layers.", "layers/")
    assert [g.label for g in repeated_blocks(made, set())] == ["net.layers.0", "net.layers.1"]


def test_every_node_stands_in_one_plan_and_edges_join_items():
    made = residual(
        3,
        "k = Constant<value_floats = [1.0, 2.0]>() t = Neg(k) s = ReduceSum(t) y = Add({last}, s)",
    )
    strings = Strings()
    scene = scene_of(made, strings)
    found = [i for level in range(len(scene.data["plans"])) for i in items(scene, level)]
    nodes = [ref for kind, ref in found if kind == "node"]
    assert sorted(nodes) == list(range(len(made.nodes)))
    assert sorted(ref for kind, ref in found if kind == "group") == list(range(len(scene.groups)))
    for plan in scene.data["plans"]:
        for a, b, _, *way in plan["edges"]:
            assert plan["items"][a][2] < plan["items"][b][2] or way == [-1]
    assert {g.kind for g in scene.groups} == {"block", "constant"}
    assert strings.all[scene.data["nodes"]["op"][0]] == "MatMul"


def test_what_became_of_a_block_is_a_block():
    a, b = residual(3, "y = Softmax({last})"), residual(3, "z = Exp({last}) y = Softmax(z)")
    found = difference(a.model, b.model)
    first = scene_of(found.match.a, Strings())
    second = scene_of(found.match.b, Strings(), fates=found.after, blocks=first.groups)
    assert [g.label for g in second.groups] == [g.label for g in first.groups]
    assert ("node", 15) in items(second)


def test_a_block_around_a_node_outside_of_it_is_dissolved():
    a = residual(2, "y = Softmax({last})")
    found = difference(a.model, a.model)
    first = scene_of(found.match.a, Strings())
    fates = list(found.after)
    fates[2] = type(fates[2])("added", "new", "new")  # between two nodes of the first block
    fates[3] = type(fates[3])("same", others=(8,))
    second = scene_of(found.match.b, Strings(), fates=fates, blocks=first.groups)
    assert [sorted(g.nodes) for g in second.groups] in ([], [[3, 5, 6, 7, 8, 9]], [[5, 6, 7, 8, 9]])


def test_what_is_inside_of_a_branch_stands_in_a_box_before_it():
    made = flow(
        """
        c = ReduceMax<keepdims = 0>(x)
        z = Constant<value = float {0.0}>()
        p = Greater(c, z)
        h = If (p) <
            then_branch = then () => (float[4, 8] t) { u = Exp(x) t = Neg(u) },
            else_branch = else () => (float[4, 8] e) { e = Abs(x) }
        >
        y = Relu(h)
        """
    )
    scene = scene_of(made, Strings())
    assert [(g.label, [made.nodes[k].op_type for k in g.nodes]) for g in scene.groups] == [
        ("inside If", ["Exp", "Neg", "Abs"]),
        ("1 constant", ["Constant"]),
    ]
    plan = scene.data["plans"][0]
    box, branch = (items(scene).index(i) for i in (("group", 0), ("node", 3)))
    assert [box, branch] in [edge[:2] for edge in plan["edges"]]
    assert plan["items"][box][2] < plan["items"][branch][2]
