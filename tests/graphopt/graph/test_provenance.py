import onnx_ir as ir

from graphopt.graph import provenance


def node(name):
    return ir.node("Relu", [ir.Value(name="x")], name=name)


def model_of(nodes):
    return ir.Model(ir.Graph([], [], nodes=nodes, opset_imports={"": 20}), ir_version=10)


def test_an_untouched_node_comes_from_itself_and_nobody():
    one = node("conv 1")
    assert provenance.sources(one) == ("conv 1",)
    assert provenance.made_by(one) == ()
    assert provenance.why(one) == ""


def test_what_stands_for_several_nodes_comes_from_all_through_every_pass():
    a, b, first, second = (node(n) for n in ("a", "b c%", "first", "second"))
    provenance.derive([first], [a, b], "fuse")
    provenance.derive([second], [first, a], "int8")
    assert provenance.sources(second) == ("a", "b c%")
    assert provenance.made_by(second) == ("fuse", "int8")


def test_a_node_of_no_source_has_none():
    made = node("made")
    provenance.derive([made], [], "fuse")
    assert provenance.sources(made) == ()
    assert provenance.made_by(made) == ("fuse",)


def test_a_mark_is_made_once():
    one = node("a")
    for name in ("svd", "prune", "svd", ""):
        provenance.mark(one, name)
    assert provenance.made_by(one) == ("svd", "prune")
    assert provenance.sources(one) == ("a",)


def test_strip_leaves_nothing_of_ours_and_all_of_others():
    one = node("a")
    one.metadata_props["theirs"] = "1"
    model = model_of([one])
    model.metadata_props.update({provenance.RECIPE: "{}", provenance.KEPT: "{}", "theirs": "2"})
    provenance.mark(one, "svd")
    provenance.explain([one], "svd: rank 4")
    provenance.strip(model)
    assert dict(one.metadata_props) == {"theirs": "1"}
    assert dict(model.metadata_props) == {"theirs": "2"}


def test_over_its_share_it_goes_from_every_node_but_what_a_second_run_must_know_stays():
    one, other = node("a"), node("b")
    model = model_of([one, other])
    model.metadata_props[provenance.RECIPE] = "{}"
    provenance.mark(one, "svd")
    provenance.explain([one], "svd: rank 4 of 64")
    assert not provenance.trim(model, 1 << 20)
    assert provenance.trim(model, 1000)
    assert provenance.made_by(one) == ()
    assert provenance.why(one) == "svd"
    assert model.metadata_props[provenance.TRIMMED] == "nodes"
    assert model.metadata_props[provenance.RECIPE] == "{}"
