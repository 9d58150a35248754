"""Residual branches as choices of a search: priced, taken out, and nothing chosen inside them."""

import dataclasses

import numpy as np
import pytest

from graphopt import Budget, load, optimize, save, search
from graphopt.analyses.cost import cost
from graphopt.backend import find_target
from graphopt.context import Context, silent
from graphopt.measuring.gauge import Gauge
from graphopt.pipeline.prepare import prepare
from graphopt.pipeline.run import run
from graphopt.searching import correction
from graphopt.searching.cost import CostModel
from graphopt.searching.space import passes_for, space_of
from graphopt.searching.table import Table
from graphopt.testing import parse_model

TARGET = dataclasses.replace(find_target("cpu-avx512-vnni"), measured=False)
BLOCK = (
    "h{0} = MatMul({1}, w{0})  r{0} = Relu(h{0})  f{0} = MatMul(r{0}, v{0})  {2} = Add({1}, f{0})  "
)


@pytest.fixture
def blocks(folder):
    """Three residual blocks, the middle one of which does next to nothing; and samples."""
    rng = np.random.default_rng(0)
    text = BLOCK.format("a", "x", "p") + BLOCK.format("b", "p", "q") + BLOCK.format("c", "q", "s")
    weights = {"u": rng.standard_normal((32, 8))}
    for name, scale in (("a", 1), ("b", 0.01), ("c", 1)):
        weights[f"w{name}"] = rng.standard_normal((32, 64)) / 6
        weights[f"v{name}"] = scale * rng.standard_normal((64, 32)) / 8
    constants = {k: v.astype(np.float32) for k, v in weights.items()}
    model = parse_model(text + "y = MatMul(s, u)", inputs={"x": ("N", 32)}, constants=constants)
    save(model, "blocks.onnx")
    np.savez("samples.npz", x=rng.standard_normal((64, 32)).astype(np.float32))
    return folder


@pytest.fixture
def made(blocks):
    setting = prepare("blocks.onnx", target=TARGET, samples="samples.npz", measure=False)
    setting = dataclasses.replace(setting, guard=None)
    base, steps = passes_for("depth, prune, int8")
    space = space_of(base, steps, setting)
    plain = run(setting, space.passes(space.nothing)).model
    return setting, space, CostModel(setting, space, Table(TARGET, None), TARGET, plain)


def taken(space, **wanted):
    found = tuple(
        next((k for k, o in enumerate(g.options) if str(o) == wanted.get(g.name)), 0)
        for g in space.groups
    )
    assert sum(map(bool, found)) == len(wanted)
    return found


def sums(setting):
    return [n.name for n in setting.source.model.graph if n.op_type == "Add"]


def test_what_a_branch_costs_is_saved_with_it(made):
    setting, space, model = made
    middle = sums(setting)[1]
    for wanted in ({middle: "removed"}, {middle: "removed", "wa": "prune 50%"}):
        choice = taken(space, **wanted)
        predicted = model.predict(choice)
        built = run(setting, space.passes(choice)).model
        real = cost(Context(built, shapes=setting.shapes))
        assert "wb" not in built.graph.initializers
        assert predicted.macs == pytest.approx(real.macs, rel=0.02)
        before = cost(Context(setting.source.model, shapes=setting.shapes)).param_bytes
        saved = setting.source.bytes - predicted.size
        assert saved == pytest.approx(before - real.param_bytes, rel=0.05)
    around = model.around(choice)
    for g, group in enumerate(space.groups):
        for k in range(len(group.options)):
            alone = model.predict((*choice[:g], k, *choice[g + 1 :]))
            assert around[g][k].macs == pytest.approx(alone.macs)
            assert around[g][k].size == pytest.approx(alone.size)


def test_nothing_is_chosen_inside_of_a_branch_that_goes(made):
    setting, space, _ = made
    middle = sums(setting)[1]
    inside = [n.name for n in setting.source.model.graph if n.op_type == "MatMul"][2]
    choice = taken(space, **{middle: "removed", "wb": "prune 50%", inside: "int8 dynamic"})
    assert space.spec(choice) == space.spec(taken(space, **{middle: "removed"}))
    run(setting, space.passes(choice))


def test_whole_models_without_branches_correct_the_costs_too(made, monkeypatch):
    setting, space, model = made
    monkeypatch.setattr(Gauge, "quicker", lambda *_: (2.0, 1.0))
    setting = dataclasses.replace(setting, cache=None)
    pairs = correction.correct(model, setting, find_target("cpu"), silent)
    every = list(dict.fromkeys(correction.spread_out(space)))
    assert any(space.gone(choice) for choice in every)
    assert len(pairs) == len(every), "each was built"


def test_a_search_takes_out_the_branch_that_does_nothing(blocks):
    found = search(
        "blocks.onnx",
        samples="samples.npz",
        budget=Budget(max_error=0.05),
        minimize="macs",
        passes="depth",
        trials=4,
        measure_seconds=0.1,
    )
    assert found.met
    assert {"wb", "vb"}.isdisjoint(found.result.model.graph.initializers)
    assert {"wa", "vc"} <= set(found.result.model.graph.initializers)
    assert [b.option for b in found.report.layers] == ["removed"]
    assert found.report.layers[0].saved == pytest.approx(2 * 64 / (6 * 64 + 8), rel=0.01)
    found.result.write("out.onnx")
    again = optimize(
        load("blocks.onnx"), found.report.spec, samples="samples.npz", replay=found.result.recipe
    )
    assert again.report.after.macs == found.result.report.after.macs
