"""Regions with loops and branches: each turn and each branch counts for itself."""

import onnx
import onnx_ir as ir
import pytest

from graphopt.proving.numbering import numbered
from graphopt.proving.regions import check
from graphopt.proving.windows import windows_of

HEAD = '<ir_version: 10, opset_import: ["": 20]>\n'


def verdict(before, after):
    old, new = (ir.from_proto(onnx.parser.parse_model(HEAD + t)) for t in (before, after))
    found = windows_of(numbered(old), new, check)
    if found.open:
        return "refuted" if any(w.verdict == "refuted" for w in found.windows) else "assumed"
    lasting = {w.verdict for w in found.windows} & {"proved", "checked"}
    return "checked" if "checked" in lasting else "proved"


def loop(turns=3, step="Add", after="Tanh", start="x", limit="int64 n"):
    """h = after(h step i), so many times."""
    return f"""net (float[a,4] x, float[a,4] z) => (float[a,4] y)
        <{limit} = {{{turns}}}, bool yes = {{1}}> {{
        s = Identity({start})
        y = Loop(n, yes, s) <body = b (int64 i, bool c, float[a,4] h)
            => (bool d, float[a,4] g) {{
            d = Identity(c)  k = Cast<to=1>(i)  q = {step}(h, k)  g = {after}(q) }}> }}"""


@pytest.mark.parametrize("turns", [3, 20])
def test_a_loop_equals_itself(turns):
    assert verdict(loop(turns), loop(turns)) == "proved"


@pytest.mark.parametrize("turns", [3, 20])
def test_what_a_turn_counts_is_seen_in_every_turn(turns):
    # the first turn adds 0: only the later ones tell these apart
    assert verdict(loop(turns), loop(turns, step="Sub")) == "refuted"


@pytest.mark.parametrize(("turns", "others"), [(2, 1), (3, 2), (1, 2), (20, 19), (18, 12)])
def test_one_turn_more_or_less(turns, others):
    assert verdict(loop(turns, after="Sin"), loop(others, after="Sin")) == "refuted"


def test_another_start_and_another_body():
    assert verdict(loop(20, after="Sin"), loop(20, after="Sin", start="z")) == "refuted"
    assert verdict(loop(20), loop(20, after="Sin")) == "refuted"


def test_a_body_reads_what_is_outside():
    def reading(value):
        return f"""net (float[a,4] x, float[a,4] z) => (float[a,4] y)
            <int64 n = {{20}}, bool yes = {{1}}, float half = {{0.5}}> {{
            t = Sin(z)  u = Cos(z)
            y = Loop(n, yes, x) <body = b (int64 i, bool c, float[a,4] h)
                => (bool d, float[a,4] g) {{
                d = Identity(c)  k = Mul(h, half)  g = Add(k, {value}) }}> }}"""

    assert verdict(reading("t"), reading("u")) == "refuted"


def test_what_each_turn_gives_is_stacked():
    def collecting(op):
        return f"""net (float[4] x) => (float[s,4] y) <int64 n = {{20}}, bool yes = {{1}}> {{
            h, y = Loop(n, yes, x) <body = b (int64 i, bool c, float[4] h)
                => (bool d, float[4] g, float[4] o) {{
                d = Identity(c)  g = Sin(h)  o = {op}(g) }}> }}"""

    assert verdict(collecting("Exp"), collecting("Exp")) == "proved"
    assert verdict(collecting("Exp"), collecting("Neg")) == "refuted"


def branches(condition, then="Exp", other="Neg"):
    return f"""net (float[a,4] x, bool flag) => (float[a,4] y)
        <float limit = {{3.0}}, float never = {{-1.0}}> {{
        q = Mul(x, x)  m = ReduceMax<keepdims=0>(q)  {condition}
        y = If(c) <then_branch = p () => (float[a,4] t) {{ t = {then}(x) }},
                   else_branch = r () => (float[a,4] e) {{ e = {other}(x) }}> }}"""


FLAG, RARE = "c = Identity(flag)", "c = Greater(m, limit)"


@pytest.mark.parametrize("condition", [FLAG, RARE])
def test_branches_are_run_both_ways(condition):
    assert verdict(branches(condition), branches(condition)) == "proved"
    assert verdict(branches(condition), branches(condition, "Neg", "Exp")) == "refuted"
    assert verdict(branches(condition), branches(condition, "Exp", "Abs")) == "refuted"
    assert verdict(branches(condition), branches(condition, "Sin", "Neg")) == "refuted"


def test_another_condition():
    assert verdict(branches(FLAG), branches("c = Not(flag)")) == "refuted"


def test_a_branch_that_no_input_takes_is_not_checked():
    # the square of a number is never below -1, and the normal form does not know it
    before, after = branches("c = Less(m, never)"), branches("c = Less(m, never)", "Sin")
    assert verdict(before, after) in ("assumed", "refuted")


def inside(convolved, output="y", node="pick"):
    """A convolution in a branch, of what has one rank or another: no inference tells which."""
    return f"""net (float[a,2,b] x, float[4,2,3] w, bool flag, bool deep) => (float[n,4,l] y) {{
        [{node}] {output} = If(flag) <then_branch = p () => (float t) {{
            v = Relu(x)
            u = If(deep) <then_branch = q () => (float g) {{ g = Sin(v) }},
                          else_branch = r () => (float h) {{ h = Squeeze(v) }}>
            s = Relu(u)  {convolved} }},
            else_branch = z () => (float e) {{ k = Relu(x)  e = Conv(k, w) }}>
        {"" if output == "y" else f"y = Identity({output})"} }}"""


PLAIN = "c = Conv(s, w)  t = Relu(c)"
SHIFTED = "c = Conv<pads=[1,1]>(s, w)  t = Relu(c)"
SAME = "m = Transpose<perm=[0,1,2]>(s)  c = Conv(m, w)  t = Relu(c)"


def test_what_is_convolved_has_as_many_axes_as_the_weights():
    assert verdict(inside(PLAIN), inside(SAME)) == "proved"
    assert verdict(inside(PLAIN), inside(SHIFTED)) != "proved"
    # the new side's own convolution says nothing of the source
    assert verdict(inside("t = Relu(s)"), inside("c = Conv(s, w)  t = Relu(s)")) == "proved"


def test_values_of_a_branch_keep_their_names_where_its_output_loses_its_own():
    assert verdict(inside(PLAIN, "o"), inside(SAME)) == "proved"


def test_sizes_in_a_branch_have_one_name():
    """Of a convolution whose size nothing tells, in a branch, part of part."""
    ends = "<int64[1] i = {0}, int64[1] j = {9223372036854775807}, int64[1] k = {1}>"

    def part(text):
        return f"""net (float[a,2,b] x, float[4,2,3] w, bool flag) => (float[n,4,l] y) {ends} {{
            y = If(flag) <then_branch = p () => (float t) {{ c = Conv<strides=[2]>(x, w) {text} }},
                else_branch = z () => (float e) {{ e = Conv(x, w) }}> }}"""

    assert (
        verdict(part("s = Slice(c, i, j, i)  t = Slice(s, i, k, k)"), part("t = Slice(c, i, k, k)"))
        == "proved"
    )


def test_a_loop_whose_body_is_written_otherwise():
    """Its sizes change from turn to turn, so that no normal form of it is known."""

    def growing(flag):
        return f"""net (float[a] x, bool[1] z) => (float[b] y)
            <int64 n = {{20}}, bool yes = {{1}}, int64[1] one = {{1}}, int64[1] all = {{-1}}> {{
            y = Loop(n, yes, x) <body = t (int64 i, bool c, float[u] h)
                => (bool d, float[v] g) {{
                d = Identity(c)  {flag}
                g = If(r) <then_branch = p () => (float[m] q) {{ q = Concat<axis=0>(h, h) }},
                    else_branch = e () => (float[o] s) {{ s = Tanh(h) }}> }}> }}"""

    before = growing("k = Cast<to=6>(z)  j = Cast<to=9>(k)  r = Reshape(j, one)")
    assert verdict(before, growing("r = Reshape(z, all)")) == "proved"
