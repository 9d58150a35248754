import base64
import hashlib
import re

import onnx_ir as ir
import pytest

from graphopt import Context, load, optimize, view
from graphopt.differing.flow import Digests, Flow
from graphopt.page.charts import front, histogram, waterfall
from graphopt.page.facts import facts_of
from graphopt.page.model import model_page
from graphopt.page.run import Watched
from graphopt.page.search import search_section
from graphopt.pipeline.prepare import named


def test_the_page_holds_what_the_report_does(run):
    result, page = run
    text = page.decode()
    assert "<h1>net.onnx</h1>" in text
    for step in result.report.steps:
        assert step.spec.replace("'", "&#x27;") in text
        assert f">{step.status}</span>" in text
    assert "Size of the file" in text
    assert result.report.versions["onnx"] in text
    assert text.count("<canvas") == 2


def test_the_policy_allows_its_own_style_and_scripts_and_nothing_else(run):
    _, page = run
    text = page.decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    allowed = set(re.findall(r"'(sha256-[^']*)'", policy))
    inline = re.findall(r"<script>(.*?)</script>|<style>(.*?)</style>", text, re.DOTALL)
    hashes = {
        "sha256-" + base64.b64encode(hashlib.sha256((a or b).encode()).digest()).decode()
        for a, b in inline
    }
    assert allowed == hashes
    assert len(hashes) == 4
    static = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(src|href|style|on\w+)=", static)
    assert "://" not in static


def test_every_stage_is_drawn_and_joined_to_the_source(run, unpacked):
    result, page = run
    data = unpacked(page)
    kept = [s.spec.partition("(")[0] for s in result.report.steps if s.status == "kept"]
    assert [s["label"] for s in data["stages"]] == ["source", *kept]
    counts = [len(s["graph"]["nodes"]["op"]) for s in data["stages"]]
    assert counts[0] == 21
    for stage, count in zip(data["stages"][1:], counts[1:], strict=True):
        fates = stage["left"]["fate"]
        reasons = stage["left"].get("reason") or [0] * len(fates)
        names = [data["strings"][f] for f in fates]
        assert len(names) == 21
        assert all(n == "same" or data["strings"][r] for n, r in zip(names, reasons, strict=True))
        assert {k for others in stage["left"]["others"] for k in others} <= set(range(count))
    assert data["passes"] == kept
    assert [g[0] for g in data["stages"][0]["graph"]["groups"]] == ["block"] * 4


def test_the_table_adds_up(run, unpacked):
    result, page = run
    table = unpacked(page)["layers"]
    titles = [c["title"] for c in table["columns"]]
    macs = titles.index("MACs")
    assert sum(r[str(macs)] for r in table["rows"]) == result.report.before.macs
    assert sum(r[str(macs + 1)] for r in table["rows"]) == result.report.after.macs
    cuts = {r["0"]: r["10"] for r in table["rows"]}
    assert any(" of " in cut for cut in cuts.values())


def test_names_that_are_markup_stay_text(source, unpacked):
    model = named(load(source))
    evil = "</script><img src=x onerror=alert(1)>"
    for node in model.graph:
        node.name = f"{node.name}{evil}"
    page = model_page(evil, model, {"x": (1, 64)})
    assert b"<img" not in page
    assert unpacked(page)["strings"].count(f"h0{evil}") == 1


def test_a_notebook_shows_results_and_models(run, source):
    result, _ = run
    table = result._repr_html_()
    assert table.count("<tr") == 3 + len(result.report.steps)
    assert result.report.gain in table
    assert result.report._repr_html_() == table
    shown = view(source, shapes={"x": (2, 64)})
    assert shown._repr_html_().startswith('<iframe sandbox="allow-scripts"')
    assert b"default-src 'none'" in shown.page
    assert repr(shown).startswith("<View of net.onnx, ")


def test_an_empty_graph_has_a_page(source):
    x = ir.val("x", ir.DataType.FLOAT, (2,))
    graph = ir.Graph([x], [x], nodes=[], opset_imports={"": 20}, name="nothing")
    assert b"<h1>nothing</h1>" in model_page("nothing", ir.Model(graph, ir_version=10), {"x": (2,)})


def test_a_waterfall_shows_levels_and_what_took_them_away():
    rows = [("source", 100.0, None), ("prune", 60.0, (55.0, 65.0)), ("int8", 80.0, None)]
    chart = waterfall("Latency", [*rows, ("result", 80.0, None)], lambda v: f"{v:.0f} ms")
    assert re.findall(r'<rect class="(\w+)"', chart) == ["whole", "down", "up", "whole"]
    assert "Latency: source 100 ms; prune 60 ms; int8 80 ms; result 80 ms" in chart
    assert waterfall("Latency", [("source", None, None)], str) == ""


def test_a_histogram_says_what_is_clipped():
    chart = histogram("h", [0.0, 1.0, 2.0, 3.0], [50, 40, 10], 0.0, 2.0)
    inside, clipped = re.findall(r'<path class="(?:inside|clipped)" d="([^"]*)"', chart)
    assert (inside.count("M"), clipped.count("M")) == (2, 1)
    assert "10.00% clipped" in chart


@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_front_has_a_point_for_every_trial(limit):
    chart = front(
        [(1, 0.1), (2, 0.2), (3, 0.0)], [(1, 0.1), (3, 0.0)], (1, 0.1), ("ms", "drop"), limit
    )
    assert chart.count('class="dot"') == 3
    assert chart.count('class="best"') == 1
    assert ('class="limit"' in chart) == (limit is not None)
    assert front([], [], None, ("ms", "drop"), limit) == ""


def test_times_find_their_nodes_under_the_names_of_the_runtime(source):
    model = named(load(source))
    flow = Flow(model, Digests())
    for node in model.graph:
        node.outputs[0].name = f"{node.outputs[0].name}_out"
    ms = {"h0": 1.0, "g1_out": 2.0, "g2_out_nchwc": 4.0, "reorder": 8.0}
    found = facts_of(flow, Context(model, shapes={"x": (1, 64)}), ms)
    assert {n: f.ms for n, f in found.items() if f.ms} == {"h0": 1.0, "g1": 2.0, "g2": 4.0}
    assert found["h0"].weights == "64×128 float"
    assert (found["h0"].macs, found["h0"].bytes) == (64 * 128, 4 * 64 * 128)


def test_a_search_shows_its_front_and_its_choice():
    rows = [
        {"loss": 0.1, "latency_ms": 2.0},
        {"loss": 0.3, "latency_ms": 1.0},
        {"loss": None, "latency_ms": None},
    ]
    told = {
        "minimize": "latency",
        "loss": "drop",
        "limit": 0.2,
        "best": rows[0],
        "trials": rows,
        "front": rows[:2],
        "layers": [{"layer": "<conv>", "option": "prune 50%", "saved": 0.25, "loss": 0.1}],
        "next": "nothing more to buy",
    }
    text = search_section(told)
    assert "2 candidates evaluated, 2 on the front; nothing more to buy" in text
    assert text.count('class="dot"') == 2
    assert "&lt;conv&gt;" in text
    assert "25.0%" in text


def test_of_several_targets_the_page_is_of_the_one_that_was_chosen(source, unpacked):
    watched = Watched()
    options = {"measure": False, "verify": "graph", "watch": watched.watch}
    chosen = optimize(source, "fuse", target="cpu", **options)
    optimize(source, "prune(ratio=0.2), fuse", target="onnx", **options)
    data = unpacked(watched.page(chosen.report))
    assert [s["label"] for s in data["stages"]] == ["source", "fuse"]
