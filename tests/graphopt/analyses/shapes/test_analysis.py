import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.analyses.shapes.analysis import bound_shapes, infer, shapes
from graphopt.analyses.shapes.symbolic import floordiv, maximum, minimum, nonnegative, symbol
from graphopt.context import Context


def model(text: str) -> ir.Model:
    head = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    return ir.from_proto(onnx.parser.parse_model(f"{head} {text}"))


def found(text: str, name: str):
    m = model(text)
    facts = infer(m)
    value = next(v for n in m.graph.all_nodes() for v in n.outputs if v.name == name)
    return facts.fact(value)


def shown(fact) -> list[str] | None:
    return None if fact.dims is None else [str(d) for d in fact.dims]


def test_polynomials():
    n, s = symbol("n"), symbol("s")
    assert n * s * 4 - s * n * 4 == 0
    assert (n + 1) * (n + 1) == n * n + 2 * n + 1
    assert floordiv(n * s * 12, n * 4) == s * 3
    assert floordiv(n, 0) is None
    assert str(floordiv(n + 1, 2)) == "floor(n+1/2)" or floordiv(n + 1, 2) == floordiv(n + 1, 2)
    assert maximum(n + 2, n) == n + 2
    assert minimum(n + 2, n) == n
    assert maximum(n, s) == maximum(s, n)
    assert not nonnegative(n - 1)
    assert not nonnegative(symbol("~1"))


def test_a_symbolic_shape_goes_through_shape_gather_concat_reshape():
    text = """g (float[N, S, 768] x) => (y) {
        shape = Shape(x)
        i0 = Constant<value_int = 0>()  i1 = Constant<value_int = 1>()
        n = Gather(shape, i0)  s = Gather(shape, i1)
        zero = Constant<value_ints = [0]>()
        n1 = Unsqueeze(n, zero)  s1 = Unsqueeze(s, zero)
        tail = Constant<value_ints = [12, 64]>()
        target = Concat<axis = 0>(n1, s1, tail)
        y = Reshape(x, target)
    }"""
    assert shown(found(text, "y")) == ["N", "S", "12", "64"]
    assert [str(e) for e in found(text, "target").data] == ["N", "S", "12", "64"]


def test_minus_one_is_the_exact_quotient():
    text = """g (float[N, S, 768] x) => (y) {
        t = Constant<value_ints = [0, 12, -1]>()
        y = Reshape(x, t)
    }"""
    assert shown(found(text, "y")) == ["N", "12", "64*S"]


def test_broadcasting_two_names_is_unknown_and_a_number_wins():
    text = "g (float[N, 1, A] x, float[5, B] z) => (y) { y = Add(x, z) }"
    dims = shown(found(text, "y"))
    assert dims is not None
    assert dims[:2] == ["N", "5"]
    assert dims[2].startswith("?")


def test_a_capped_size_beside_the_size_itself_agrees_with_it():
    """Position tables are cut to min(length, 512): longer inputs fail, so the length it is."""
    text = """g (float[N, S] x) => (y) {
        shape = Shape(x)
        k = Constant<value_ints = [1]>()
        zero = Constant<value_ints = [0]>()
        size = Gather(shape, k)
        table = Constant<value = float[1, 4] {1, 2, 3, 4}>()
        part = Slice(table, zero, size, k)
        y = Add(x, part) }"""
    assert shown(found(text, "y")) == ["N", "S"]


def test_a_size_capped_to_one_may_broadcast():
    text = """g (float[N, S] x) => (y) {
        shape = Shape(x)
        k = Constant<value_ints = [1]>()
        zero = Constant<value_ints = [0]>()
        size = Gather(shape, k)
        table = Constant<value = float[3, 1, 1] {1, 2, 3}>()
        part = Slice(table, zero, size, zero)
        y = Mul(x, part) }"""
    dims = shown(found(text, "y"))
    assert dims is not None
    assert dims[1:] == ["N", "S"]


def test_expand_by_where_equal_minus_one():
    """How exporters write expand(-1, ...): a size is never -1."""
    text = """g (float[N, 1] x, float[N, S] r) => (y) {
        shape = Shape(r)
        m = Constant<value_ints = [-1, -1]>()
        eq = Equal(shape, m)
        ones = Constant<value_ints = [1, 1]>()
        t = Where(eq, ones, shape)
        y = Expand(x, t)
    }"""
    assert shown(found(text, "y")) == ["N", "S"]


@pytest.mark.parametrize(
    ("starts", "ends", "steps", "want"),
    [
        ([1], [9223372036854775807], [1], "max(-1+N,0)"),
        ([0], [-1], [1], "max(-1+N,0)"),
        ([0], [9223372036854775807], [1], "N"),
        ([-3], [9223372036854775807], [1], None),
    ],
)
def test_slice_of_a_symbolic_size(starts, ends, steps, want):
    text = f"""g (float[N] x) => (y) {{
        a = Constant<value_ints = {starts}>()  b = Constant<value_ints = {ends}>()
        c = Constant<value_ints = [0]>()  d = Constant<value_ints = {steps}>()
        y = Slice(x, a, b, c, d)
    }}"""
    dims = shown(found(text, "y"))
    assert dims is not None
    assert want is None or dims == [want]


@pytest.mark.parametrize(
    ("start", "end", "step"),
    [(-1, -9223372036854775807, -1), (3, -10, -2), (0, 100, 2), (-2, 2, 1), (4, 0, -1)],
)
def test_slice_agrees_with_numpy(start, end, step):
    text = f"""g (float[5] x) => (y) {{
        a = Constant<value_ints = [{start}]>()  b = Constant<value_ints = [{end}]>()
        c = Constant<value_ints = [0]>()  d = Constant<value_ints = [{step}]>()
        y = Slice(x, a, b, c, d)
    }}"""
    stop = None if end < -5 and step < 0 else end
    assert shown(found(text, "y")) == [str(len(np.arange(5)[start:stop:step]))]


@pytest.mark.parametrize(
    ("node", "want"),
    [
        ("Pad(x, p)", ["3+N", "M"]),
        ("Pad(x, r, , a)", ["3+N", "M"]),
        ("Pad(x, q)", ["?1", "M"]),
        ("Pad(x, r, , z)", None),
        ("Split<num_outputs = 1>(x)", ["N", "M"]),
    ],
)
def test_padded_and_undivided_sizes(node, want):
    text = f"""g (float[N, M] x, int64[2] z) => (y) {{
        p = Constant<value_ints = [1, 0, 2, 0]>()  r = Constant<value_ints = [1, 2]>()
        q = Constant<value_ints = [-1, 0, 0, 0]>()  a = Constant<value_ints = [0]>()
        y = {node}
    }}"""
    dims = shown(found(text, "y"))
    assert dims == want


def test_bound_inputs_make_everything_static():
    m = model(
        """g (float[N, 3, H, W] x) => (y) {
        y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }"""
    )
    facts = bound_shapes(m, {"x": (1, 3, 224, 200)})
    assert facts.static(m.graph.outputs[0]) == (1, 3, 112, 100)


def test_a_wrong_annotation_is_not_believed():
    """A model made dynamic by hand keeps the shapes of the batch it was exported with."""
    m = model("g (float[N, 3] x, float[M] i) => (y) <float[1, 3] a> { a = Relu(x) y = Neg(a) }")
    facts = infer(m)
    assert [str(d) for d in facts.shape(m.graph.outputs[0]) or ()] == ["N", "3"]


@pytest.mark.parametrize(
    ("maker", "rank"),
    [
        ("y = Unsqueeze(x, n)", None),
        ("y = Expand(x, n)", None),
        ("y = Reshape(x, n)", None),
        ("y = Tile(x, n)", 3),
        ("y = Pad(x, n)", 3),
        ("y = ConstantOfShape(n)", None),
        ("y = Slice(x, n, n)", 3),
        ("y = TopK(x, n)", None),
    ],
)
def test_what_depends_on_data_is_not_known_because_a_file_says_so(maker, rank):
    """Axes, sizes and counts that are inputs: the annotation is of one run."""
    said = "<float[3, 4, 5] y>"
    facts = infer(
        m := model(f"g (float[3, 4, 5] x, int64[K] n) => (z) {said} {{ {maker} z = Neg(y) }}")
    )
    value = next(iter(m.graph)).outputs[0]
    dims = facts.shape(value)
    assert dims is None or not all(isinstance(d, int) for d in dims)
    assert rank is None or len(dims) == rank


def test_an_unknown_operator_is_described_by_its_annotation():
    m = model(
        "g (float[N, 3] x) => (y) <float[N, 3] a> { a = com.microsoft.Mystery(x) y = Neg(a) }"
    )
    assert [str(d) for d in infer(m).shape(m.graph.outputs[0]) or ()] == ["N", "3"]
    m = model("g (float[N, 3] x) => (y) { a = com.microsoft.Mystery(x) y = Neg(a) }")
    assert infer(m).shape(m.graph.outputs[0]) is None


def test_branches_agree_on_what_they_share():
    text = """g (bool c, float[N, 3] x) => (y) {
        y = If(c) <
            then_branch = t () => (a) { a = Relu(x) },
            else_branch = e () => (b) { b = Concat<axis = 1>(x, x) }
        >
    }"""
    dims = shown(found(text, "y"))
    assert dims is not None
    assert dims[0] == "N"
    assert dims[1].startswith("?")


def test_a_value_made_later_is_found_when_asked():
    m = model("g (float[N, 3] x) => (y) { y = Relu(x) }")
    ctx = Context(m)
    facts = ctx.get(shapes)
    node = ir.node("Transpose", [m.graph.inputs[0]])
    m.graph.append(node)
    assert [str(d) for d in facts.shape(node.outputs[0]) or ()] == ["3", "N"]


def test_fused_operators_of_the_runtime():
    text = """g (float[B, S, 64] q, float[B, L, 64] k, float[B, L, 96] v) => (y) {
        y = com.microsoft.MultiHeadAttention<num_heads = 4>(q, k, v) }"""
    assert shown(found(text, "y")) == ["B", "S", "96"]
    text = """g (float[B, S, 64] x, float[B, S, 32] z) => (y) {
        y = com.microsoft.FusedMatMul<transA = 1>(x, z) }"""
    assert shown(found(text, "y")) == ["B", "64", "32"]


def test_axes_of_no_name_are_not_tied():
    """`?` is what exporters write for every axis they do not know."""
    m = model("g (float[n, 2, q, q] x) => (float[n, 2, q, q] y) { y = Relu(x) }")
    for name, tied in (("s", True), ("?", False), ("", False)):
        for value in (*m.graph.inputs, *m.graph.outputs):
            value.shape = ir.Shape(["n", 2, name, name])
        for known in (shapes(Context(m)), bound_shapes(m, {"x": (1, 2, 3, 3)})):
            dims = known.shape(m.graph[0].outputs[0])
            assert dims is not None
            assert (dims[2] == dims[3]) is (tied or dims[2] == 3)
    assert bound_shapes(m, {"x": (1, 2, 3, 5)}).static(m.graph[0].outputs[0]) == (1, 2, 3, 5)


def test_a_copy_is_known_as_its_source_is():
    source = model(
        """g (float[n, 3] x, bool c) => (float[n, 6] y, float[n, 3] z)
        <int64[2] to = {0, 3}> {
            a = Concat<axis = 1>(x, x)
            y = Relu(a)
            z = If(c) <then_branch = t () => (float[n, 3] u) { u = Reshape(x, to) },
                       else_branch = e () => (float[n, 3] v) { v = Neg(x) }>
        }"""
    )
    known = infer(source)
    copied = source.clone()
    moved, walked = known.of_copy(copied), infer(copied)
    values = [v for n in copied.graph.all_nodes() for v in n.outputs]
    assert len(values) == 5
    assert [shown(moved.fact(v)) for v in values] == [shown(walked.fact(v)) for v in values]
    assert moved.certain is walked.certain is True
    assert moved.data(copied.graph.initializers["to"]).tolist() == [0, 3]
    fresh = ir.Value(name="w", shape=ir.Shape(["n", 9]), type=ir.TensorType(ir.DataType.FLOAT))
    assert shown(moved.fact(fresh)) == ["n", "9"], "values made later can be asked for"
    assert known.of_copy(copied) == walked


@pytest.mark.parametrize(
    ("node", "dims"),
    [
        ("s = Shape(x)  y = Resize(z, , , s)", ["n", "3", "h", "w"]),
        ("y = Resize(x, , up)", ["n", "3", "2*h", "4*w"]),
        ("y = Resize <axes = [2, 3]> (x, , two)", None),
        ('y = Resize <coordinate_transformation_mode = "tf_crop_and_resize"> (x, r, up)', None),
    ],
)
def test_sizes_of_a_resize(node, dims):
    fact = found(
        f"""f (float[n, 3, h, w] x, float[n, 3, 5, 5] z, float[8] r) => (float[a, b, c, d] y)
            <float[4] up = {{1, 1, 2, 4}}, float[2] two = {{2, 2}}> {{ {node} }}""",
        "y",
    )
    if dims is None:
        assert not {"2*h", "4*w", "2*w"} & set(shown(fact) or [])
    else:
        assert shown(fact) == dims
