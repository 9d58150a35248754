"""What timing allows to say, and what it decides: the stopwatch is replaced by known figures."""

import io
import re
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphopt.passes.fuse import Fuse
from rich.console import Console

from graphopt import Budget, optimize
from graphopt.backend import Timing
from graphopt.deploy.processors import extensions, processor, processors
from graphopt.errors import BudgetMissed, UsageError
from graphopt.measuring.gauge import Gauge
from graphopt.measuring.session_options import Tuned
from graphopt.pass_ import Pass
from graphopt.pipeline import result as results
from graphopt.reporting.text import report_table, report_text

FASTER = Timing(4.0, 2.0, 0.5, (0.49, 0.51), 0.01, 50)
SLOWER = Timing(4.0, 6.0, 1.5, (1.45, 1.55), 0.01, 50)
NOISY = Timing(4.0, 2.0, 0.5, (0.3, 0.9), 0.4, 50)


@pytest.fixture
def path(tmp_path):
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[2, 16] x) => (float[2, 4] y) { h = MatMul(x, w)  y = Add(h, b) }
    """)
    for name, shape in (("w", (16, 4)), ("b", (4,))):
        array = np.ones(shape, np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "a.onnx")
    return tmp_path / "a.onnx"


class _Untimed(Fuse):
    """Fuse, whose steps are not timed: the result is."""

    speeds_up = False


def timed(path, monkeypatch, timing, passes=None, **budget):
    calls = []

    def ratio(self, a, b, feeds):
        calls.append((a, b))
        return timing

    monkeypatch.setattr(Gauge, "ratio", ratio)
    found = optimize(path, passes or [_Untimed()], budget=Budget(**budget))
    return found, calls


@dataclass(frozen=True)
class _Pads(Pass):
    """Appends an Identity, for the sake of bytes or time as it says."""

    lossy = True
    compresses = True

    def run(self, model, ctx):
        if not ctx.edit(self, "model"):
            return 0
        (last,) = model.graph.outputs
        name, last.name = last.name, "inner"
        made = ir.node("Identity", [last], outputs=[ir.Value(name=name, type=last.type)])
        made.outputs[0].shape = last.shape
        model.graph.append(made)
        model.graph.outputs[0] = made.outputs[0]
        return 1


@pytest.mark.parametrize(
    ("timing", "reason"),
    [(FASTER, ""), (NOISY, "and no faster"), (SLOWER, "slower on the target"), (None, "not timed")],
)
def test_compression_that_saves_neither_bytes_nor_time_is_undone(path, monkeypatch, timing, reason):
    found, _ = timed(path, monkeypatch, timing, passes=[_Pads()])
    (step,) = found.report.steps
    assert step.status == ("undone" if reason else "kept"), step.reason
    assert reason in step.reason
    known = timing.a_ms if timing else None  # the source's latency, whatever became of the step
    assert found.report.before.latency_ms == known
    if reason:
        assert found.report.after.latency_ms == known
    if "and" in reason:
        assert re.fullmatch(r"no smaller \(1\.\d+x the bytes\) and no faster", step.reason)
    if not reason:  # a replay times nothing: it believes the recipe
        monkeypatch.undo()
        again = optimize(path, [_Pads()], replay=found.recipe)
        assert again.report.steps[0].status == "kept"


def test_compression_that_adds_more_bytes_than_it_saves_time_is_undone(path, monkeypatch):
    @dataclass(frozen=True)
    class Grows(_Pads):
        def run(self, model, ctx):
            edits = super().run(model, ctx)
            list(model.graph)[-1].doc_string = "x" * (3 << 20)
            return edits

    found, _ = timed(path, monkeypatch, FASTER, passes=[Grows()])
    (step,) = found.report.steps
    assert step.status == "undone"
    assert re.fullmatch(r"not worth it: [\d.e+]+x the bytes for 0\.5x the latency", step.reason), (
        step.reason
    )


def test_compression_that_saves_bytes_needs_no_timing(path, monkeypatch):
    class Drops(_Pads):
        def run(self, model, ctx):
            if not ctx.edit(self, "model"):
                return 0
            for node in model.graph:
                node.metadata_props.clear()
            model.graph.doc_string = None
            return 1

    proto = onnx.load(path)
    proto.graph.doc_string = "as long as the records of the run are, and longer " * 20
    onnx.save(proto, path)
    found, _ = timed(path, monkeypatch, NOISY, passes=[Drops()])
    assert found.report.steps[0].status == "kept", found.report.steps[0].reason


def test_a_slower_result_says_so_and_is_red(path, monkeypatch):
    found, _ = timed(path, monkeypatch, SLOWER)
    assert found.report.verdict == "slower"
    said = "the result is slower on the target: 1.500x the latency (95 %: 1.450-1.550)"
    assert said in found.report.notes
    assert "0.67x speed" in found.report.gain
    stream = io.StringIO()
    Console(file=stream, force_terminal=True, width=140).print(report_table(found.report))
    last = stream.getvalue().splitlines()[-1]
    assert "31m" in last
    assert "32m" not in last


def test_a_faster_result_is_green(path, monkeypatch):
    found, _ = timed(path, monkeypatch, FASTER)
    assert found.report.verdict == "faster"
    assert "2.00x speed" in found.report.gain
    assert not any("slower" in n for n in found.report.notes)


def test_no_ratio_stands_beside_no_verdict(path, monkeypatch):
    found, _ = timed(path, monkeypatch, NOISY, passes="fuse")
    assert found.report.verdict == found.report.steps[0].verdict == "noisy"
    text = report_text(found.report)
    assert "no verdict on speed: the machine's noise is 40%" in text
    assert "speed" not in found.report.gain
    assert "x speed" not in text + repr(found.report.steps[0])
    assert found.met


@pytest.mark.parametrize("limit", [{"require_verdict": True}, {"max_latency": "0.6x"}])
def test_noise_misses_a_budget_that_needs_a_verdict(path, monkeypatch, limit, tmp_path):
    found, _ = timed(path, monkeypatch, NOISY, **limit)
    assert not found.met
    with pytest.raises(BudgetMissed, match="cannot be judged: timing is too noisy for a verdict"):
        found.write(tmp_path / "b.onnx")
    assert timed(path, monkeypatch, FASTER, **limit)[0].met


@pytest.mark.parametrize("limit", ["0.4x", "1ms"])
def test_a_latency_over_the_limit_is_missed(path, monkeypatch, limit):
    found, _ = timed(path, monkeypatch, FASTER, max_latency=limit)
    assert not found.met
    assert any("latency 2 ms is over --max-latency" in n for n in found.report.notes)


@pytest.mark.parametrize("limit", [{"require_verdict": True}, {"max_latency": "5ms"}])
@pytest.mark.parametrize("how", [{"measure": False}, {"target": "onnx"}])
def test_what_is_judged_by_timing_is_refused_at_once_without(path, limit, how):
    with pytest.raises(UsageError, match="is judged by timing: leave --no-measure and --replay"):
        optimize(path, "fuse", budget=Budget(**limit), **how)


def test_nothing_is_timed_or_tuned_when_nothing_changed(path, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "tune", lambda *a, **k: pytest.fail("was tuned"))
    found, calls = timed(path, monkeypatch, FASTER, passes="clean", require_verdict=True)
    assert calls == []
    assert found.met
    assert found.write(tmp_path / "b.onnx").report.tuned == ()
    # a limit on latency asks for the source's own
    found, calls = timed(path, monkeypatch, FASTER, passes="clean", max_latency="3ms")
    assert [a is b for a, b in calls] == [True]
    assert found.met


def test_the_report_says_where_and_with_what(path, monkeypatch, tmp_path):
    tried = (Tuned("threads=1", FASTER, True), Tuned("no spinning", SLOWER, False))
    monkeypatch.setattr(results, "tune", lambda *a, **k: tried)
    found, _ = timed(path, monkeypatch, FASTER)
    data = found.write(tmp_path / "b.onnx").report.to_json()
    assert data["machine"] == {
        "processor": processor(),
        "extensions": list(extensions()),
        "processors": processors(),
        "threads": found.target.threads,
    }
    assert set(data["versions"]) >= {"numpy", "onnx", "onnxruntime"}
    assert data["command"] is None
    assert [t["option"] for t in data["tuned"]] == ["threads=1", "no spinning"]
    assert data["tuned"][0] == {
        "option": "threads=1", "ratio": 0.5, "ci": (0.49, 0.51), "kept": True,
    }  # fmt: skip
    assert any("threads=1 (2.00 times as fast); b.session.json" in n for n in data["notes"])
