"""The guard: each output judged by what it is."""

import numpy as np
import onnx_ir as ir
import pytest
from graphopt.passes.prune import Prune

from graphopt import Budget, Pass, Samples, optimize
from graphopt.budget import MAX_DISAGREEMENT
from graphopt.reporting.confidence import upper_bound
from graphopt.testing import parse_model
from graphopt.verification.agreement import spread_error
from graphopt.verification.flips import flips
from graphopt.verification.guard import Guard, kind_of
from graphopt.verification.strain import strain

RNG = np.random.default_rng(0)


def output(text, shape=(4, 8), constants=None):
    return parse_model(text, inputs={"x": shape}, constants=constants or {}).graph.outputs[0]


#: Scales of a thousand classes, of which five hardly move.
ODD = np.where(np.arange(1000) < 5, 0.01, 1.0)


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


ROWS = RNG.normal(size=(64, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("text", "array", "kind"),
    [
        ("y = ArgMax(x)", RNG.integers(0, 8, (64, 1)), "decisions"),
        ("y = Softmax(x)", softmax(ROWS), "scores"),
        ("s = LogSoftmax(x)  y = Identity(s)", np.log(softmax(ROWS)), "scores"),
        ("y = Relu(x)", softmax(ROWS), "scores"),
        ("y = Sigmoid(x)", 1 / (1 + np.exp(-ROWS)), "chances"),
        ("y = Relu(x)", ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True), "embedding"),
        ("y = Relu(x)", ROWS, "logits"),
        ("y = Relu(x)", RNG.normal(size=(64, 384)), "features"),
        ("y = Relu(x)", RNG.normal(size=(64, 1000)), "logits"),
        (
            "y = Relu(x)",
            np.random.default_rng(7).normal(size=(64, 1000)) * ODD,
            "logits",
        ),  # of classes that never come
        ("y = Relu(x)", np.random.default_rng(8).normal(size=(64, 100)) * ODD[:100], "values"),
        ("y = Relu(x)", ROWS[:, :1], "values"),
        ("s = Add(x, x)  y = Identity(s)", ROWS[:, :1], "margins"),
        ("y = Add(x, x)", np.abs(ROWS[:, :1]), "values"),
        ("y = Relu(x)", ROWS.reshape(4, 4, 4, 8), "values"),
    ],
)
def test_an_output_is_what_makes_it_and_what_it_says(text, array, kind):
    assert kind_of(output(text), [array]) == kind


def judged(text, want, got, **options):
    model = parse_model(text, inputs={"x": (4, 8)})
    name = model.graph.outputs[0].name
    guard = Guard(model, [{name: a} for a in want], [{}] * len(want), **options)
    return guard.judge([{name: a} for a in got])[name]


def test_scores_agree_where_the_top_class_does():
    changed = softmax(ROWS).copy()
    changed[3] = np.roll(changed[3], 1)
    found = judged("y = Softmax(x)", [softmax(ROWS)], [changed])
    assert (found.kind, found.n, found.disagreements) == ("scores", 64, 1)
    assert found.figure == 1 / 64
    assert found.over == 1  # one of a few dozen is no share
    changed[4] = np.roll(changed[4], 1)
    two = judged("y = Softmax(x)", [softmax(ROWS)], [changed])
    assert two.over == pytest.approx(2 / 64 / MAX_DISAGREEMENT)
    soft = judged("y = Softmax(x)", [softmax(ROWS)], [softmax(3 * ROWS)])
    assert soft.disagreements == 0


def test_a_sequence_is_wrong_as_a_whole():
    """One of 20 steps of one of two lines: 2.5 % of the steps, half of the lines."""
    want = softmax(9.0 * np.eye(5)[np.arange(40).reshape(2, 20) % 5])
    got = want.copy()
    got[0, 7] = np.roll(got[0, 7], 2)
    found = judged("y = Softmax(x)", [want], [got])
    assert (found.kind, found.n, found.disagreements) == ("sequences", 2, 1)


def test_scores_beside_coordinates_count():
    """A column of scores zeroed beside pixels: the whole tensor moves by less than 0.1 %."""
    want = np.concatenate([RNG.uniform(0, 640, (1, 300, 4)), RNG.uniform(0, 1, (1, 300, 1))], -1)
    got = want.copy()
    got[..., 4] = 0
    assert np.linalg.norm(want - got) < 1e-3 * np.linalg.norm(want) * 3
    assert judged("y = Relu(x)", [want], [got]).over > 1
    near = want + RNG.normal(size=want.shape) * want.std(axis=1) * 0.02
    assert judged("y = Relu(x)", [want], [near]).over < 1


def found_in(channels: int, anchors: int, present: int = 1) -> np.ndarray:
    """[1, channels, anchors]: boxes in pixels, then classes; the first ones are in the picture."""
    rng = np.random.default_rng(5)
    boxes = rng.uniform(0, 640, (1, 4, anchors))
    chances = rng.uniform(0, 2e-3, (1, channels - 4, anchors))
    chances[:, :present, : anchors // 40] = rng.uniform(0.1, 0.95, (1, present, anchors // 40))
    return np.concatenate([boxes, chances], 1)


@pytest.mark.parametrize("turned", [False, True])
def test_the_chances_of_a_detector_are_decisions_beside_its_boxes(turned):
    """Anchors last or first: a score lost where something is counts, noise where nothing is not."""
    form = (lambda a: a.swapaxes(1, 2)) if turned else (lambda a: a)
    want = found_in(24, 4000)
    assert kind_of(output("y = Relu(x)"), [form(want)]) == "detections"
    rng = np.random.default_rng(6)
    quiet, lost, moved = want.copy(), want.copy(), want.copy()
    quiet[:, 5:] = rng.uniform(0, 2e-3, quiet[:, 5:].shape)
    lost[:, 4, :3] = 0.01
    moved[:, 0] += 60 * rng.normal(size=4000)
    for got, over in ((quiet, False), (lost, True), (moved, True)):
        found = judged("y = Relu(x)", [form(want)], [form(got)])
        assert (found.over > 1) == over
        guard = Guard(parse_model("y = Relu(x)", inputs={"x": (4, 8)}), [{"y": form(want)}], [{}])
        assert (strain(guard, [{"y": form(got)}]) > 1) == over
    assert judged("y = Relu(x)", [form(want)], [form(lost)]).kind == "chances"
    assert judged("y = Relu(x)", [form(want)], [form(moved)]).kind == "values"


def test_first_runs_of_a_detector_may_show_no_large_coordinate():
    """Boxes in a corner of the first pictures: those runs alone are judged as values."""
    near = found_in(6, 400)
    near[:, :4] *= 2e-2
    runs = [np.concatenate([near] * 2), np.concatenate([found_in(6, 400)] * 2)]
    guard = Guard(
        parse_model("y = Relu(x)", inputs={"x": (4, 8)}), [{"y": a} for a in runs], [{}] * 2
    )
    assert guard.kinds == {"y": "detections"}
    moved = runs[0].copy()
    moved[:, 0] += 6 * np.random.default_rng(0).normal(size=400)
    assert strain(guard, [{"y": runs[0]}]) == 0
    assert strain(guard, [{"y": moved}]) > 1
    assert flips(guard, [{"y": moved}]) == 0


def test_a_state_is_no_detector():
    """Cells of an LSTM: some of 128 stay within 0 and 1, others grow large."""
    state = RNG.normal(size=(2, 1, 128)) * np.geomspace(1e-2, 60, 128)
    state[..., :9] = np.abs(np.tanh(state[..., :9]))
    runs = [state * (1 + 0.1 * k) for k in range(24)]
    assert kind_of(output("y = Relu(x)"), runs) != "detections"
    model = parse_model("p = Softmax(x)  y = Relu(s)", inputs={"x": (64, 8), "s": (40, 1, 128)})
    model.graph.outputs.extend(n.outputs[0] for n in model.graph if n.op_type == "Softmax")
    many = np.concatenate([state] * 20)
    expected = [{"p": softmax(ROWS), "y": many}]
    assert Guard(model, expected, [{"s": many.copy()}]).kinds == {"y": "state", "p": "scores"}


def test_channels_of_anchors_are_no_rows_of_classes():
    """Boxes and scores as shares of the picture: the first anchor of the largest is no class."""
    want = found_in(6, 800) / np.array([640.0] * 4 + [1.0] * 2).reshape(1, 6, 1)
    assert kind_of(output("y = Relu(x)"), [want]) == "values"
    assert kind_of(output("y = Relu(x)"), [RNG.normal(size=(1, 6, 810))]) == "logits"


def test_a_channel_far_smaller_than_others_has_its_own_spread():
    """Scores of a thousandth beside pixels; what does not vary at all counts by all."""
    want = np.stack([RNG.uniform(0, 640, 500), RNG.uniform(0, 1e-2, 500), np.full(500, 7.0)], 1)
    off = want + np.array([0, 5e-3, 0])
    assert spread_error([want], [off]) > 1
    assert spread_error([want], [want + np.array([0, 0, 0.5])]) < 0.01


def test_embeddings_are_compared_by_angle():
    rows = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
    near = rows + 0.05 * RNG.normal(size=rows.shape) / 8**0.5
    far = rows + 0.5 * RNG.normal(size=rows.shape) / 8**0.5
    assert judged("y = Relu(x)", [rows], [near]).over < 1
    assert judged("y = Relu(x)", [rows], [far]).over > 1


def test_features_agree_as_scores_or_as_values():
    wide = RNG.normal(size=(64, 384))
    turned = np.roll(wide, 1, 0)
    assert judged("y = Relu(x)", [wide], [wide * (1 + 0.15 * RNG.normal(size=(64, 1)))]).over <= 1
    assert judged("y = Relu(x)", [wide], [wide + 0.05 * turned]).over <= 1  # other top classes
    assert judged("y = Relu(x)", [wide], [turned]).over > 1


def test_logits_agree_as_scores_and_as_values():
    near = ROWS + 0.002 * RNG.normal(size=ROWS.shape)
    other = ROWS.copy()
    other[5] = np.roll(other[5], 1)
    assert judged("y = Relu(x)", [ROWS], [ROWS * 1.05]).over <= 1
    assert judged("y = Relu(x)", [ROWS], [other]).disagreements == 1
    coordinates = np.sort(RNG.uniform(0, 100, (64, 4)), axis=1)  # the last is always the largest
    moved = coordinates + np.float64([0, 0, 0, 40])
    assert (moved.argmax(1) == coordinates.argmax(1)).all()
    assert judged("y = Relu(x)", [coordinates], [moved]).kind == "values"
    assert judged("y = Relu(x)", [coordinates], [moved]).over > 1
    assert judged("y = Relu(x)", [ROWS], [near]).over < judged("y = Relu(x)", [ROWS], [other]).over


def test_integers_and_text_differ_or_not():
    a = np.arange(10)
    assert judged("y = ArgMax(x)", [a], [a + 1]).figure == 1
    text = np.array(["a", "b"], object)
    assert judged("y = ArgMax(x)", [text], [np.array(["a", "c"], object)]).figure == 0.5
    assert judged("y = ArgMax(x)", [a], [a[:4]]).figure == 1  # another shape


@pytest.mark.parametrize(
    ("k", "n", "bound"), [(0, 59, 0.0495), (0, 299, 0.00997), (3, 100, 0.0757), (5, 5, 1.0)]
)
def test_the_bound_is_that_of_clopper_and_pearson(k, n, bound):
    """1 - 0.05^(1/n) where none differs; published tables for the others."""
    assert upper_bound(k, n) == pytest.approx(bound, rel=2e-3)
    if k == 0:
        assert upper_bound(k, n) == pytest.approx(1 - 0.05 ** (1 / n))


def test_rare_things_count_among_rare_things():
    """30 notes of 3,000 frames, a third of them lost: 0.3 % of the frames, a third of the music."""
    want = np.full((1, 3000), 0.01)
    want[0, ::100] = 0.95
    got = want.copy()
    got[0, :1000] = 0.01
    found = judged("y = Sigmoid(x)", [want], [got])
    assert (found.kind, found.n, found.disagreements) == ("chances", 60, 10)
    assert found.over > 10
    assert judged("y = Sigmoid(x)", [want], [want]).over == 0
    spurious = want.copy()
    spurious[0, 1:3] = 0.9
    assert judged("y = Sigmoid(x)", [np.full((1, 3000), 0.01)], [spurious * 0 + 0.01]).over == 0
    assert judged("y = Sigmoid(x)", [np.full((1, 3000), 0.01)], [spurious]).over > 1


def test_runs_of_different_lengths_without_a_class_axis_are_judged():
    runs = [RNG.uniform(size=(1, n)) for n in (63, 22, 5)]
    for text, kind in (("y = Relu(x)", "values"), ("y = Sigmoid(x)", "chances")):
        found = judged(text, runs, runs)
        assert (found.kind, found.over) == (kind, 0)
        assert judged(text, runs, [1 - r for r in runs]).over > 1


def test_a_state_is_judged_by_less_than_what_it_serves():
    model = parse_model("y = Sigmoid(x)  g = Relu(h)", inputs={"x": (4, 1), "h": (2, 8)})
    feeds = [{"x": RNG.normal(size=(4, 1)), "h": RNG.normal(size=(2, 8))} for _ in range(9)]
    want = [{"y": np.abs(f["x"]) % 1, "g": f["h"]} for f in feeds]
    off = [{**w, "g": w["g"] + 0.12 * RNG.normal(size=(2, 8))} for w in want]
    guard = Guard(model, want, feeds)
    assert guard.kinds["g"] == "state"
    assert guard.judge(off)["g"].over <= 1
    fixed = Guard(model, want, [{"x": f["x"]} for f in feeds])
    assert fixed.kinds["g"] != "state"
    assert fixed.judge(off)["g"].over > 0.2


def test_lossy_steps_share_the_limit():
    want = softmax(ROWS)
    got = want.copy()
    got[:2] = np.roll(got[:2], 1, 1)
    model = parse_model("y = Softmax(x)", inputs={"x": (4, 8)})
    guard = Guard(model, [{"y": want}], [{}], limit=0.05)
    assert guard.judge([{"y": got}])["y"].over == pytest.approx(2 / 64 / 0.05)
    assert guard.judge([{"y": got}], share=0.5)["y"].over == pytest.approx(2 / 64 / 0.025)


class Halfway(Pass):
    """Changes as many answers as one of two steps may not."""

    lossy = True

    def run(self, model, ctx):
        weight = model.graph.initializers["v"]
        if not ctx.edit(self, "v"):
            return 0
        import onnx_ir as ir

        moved = weight.const_value.numpy() + np.float32(0.01) * np.roll(
            weight.const_value.numpy(), 1, 1
        )
        weight.const_value = ir.tensor(moved, name="v")
        return 1


def test_the_total_of_several_steps_stays_within_the_default():
    one = optimize(classifier(), [Halfway()], samples=SAMPLES, measure=False).report.steps[0]
    assert one.agreement["y"].limit == MAX_DISAGREEMENT
    both = optimize(classifier(), [Halfway(), Halfway()], samples=SAMPLES, measure=False)
    limits = [s.agreement["y"].limit for s in both.report.steps]
    assert limits == [MAX_DISAGREEMENT / 2, MAX_DISAGREEMENT]


# --- in the pipeline ------------------------------------------------------------------------


def classifier():
    """Of 64 hidden units half count for little."""
    rng = np.random.default_rng(1)
    counts = np.repeat(np.float32([[1], [1e-3]]), 32, axis=0)
    return parse_model(
        "h = MatMul(x, w)  r = Relu(h)  l = MatMul(r, v)  y = Softmax(l)",
        inputs={"x": ("batch", 16)},
        constants={
            "w": rng.normal(size=(16, 64)).astype(np.float32),
            "v": rng.normal(size=(64, 10)).astype(np.float32) * counts,
        },
    )


class Blunt(Pass):
    """Turns the classes round: every decision is another."""

    lossy = True

    def run(self, model, ctx):
        weight = model.graph.initializers["v"]
        if not ctx.edit(self, "v"):
            return 0
        import onnx_ir as ir

        weight.const_value = ir.tensor(np.roll(weight.const_value.numpy(), 1, 1), name="v")
        return 1


SAMPLES = Samples([{"x": RNG.normal(size=(200, 16)).astype(np.float32)}])


def test_a_lossy_step_that_says_something_else_is_undone_and_told():
    result = optimize(classifier(), [Blunt()], samples=SAMPLES, measure=False)
    (step,) = result.report.steps
    assert step.status == "undone"
    assert "200 of 200 scores differ (100.0%, at most 1.0%)" in step.reason
    assert result.report.validated


def test_without_samples_or_with_limits_of_its_own_nothing_guards():
    assert optimize(classifier(), [Blunt()], measure=False).report.steps[0].status == "kept"
    lifted = Budget(max_disagreement=float("inf"))
    kept = optimize(classifier(), [Blunt()], samples=SAMPLES, measure=False, budget=lifted)
    assert kept.report.steps[0].status == "kept"
    wide = Budget(max_error=10)
    assert (
        optimize(classifier(), [Blunt()], samples=SAMPLES, measure=False, budget=wide)
        .report.steps[0]
        .agreement
        is None
    )


def test_prune_is_run_weaker_until_the_outputs_agree_and_replays():
    strong = Prune(ratio=0.7, scope="inner")
    result = optimize(classifier(), [strong], samples=SAMPLES, measure=False)
    (step,) = result.report.steps
    assert step.status == "kept"
    assert any(note.startswith("run as prune(ratio=") for note in step.notes)
    assert step.agreement["y"].over <= 1
    again = optimize(classifier(), [strong], samples=SAMPLES, measure=False, replay=result.recipe)
    assert again.recipe == result.recipe
    assert again.report.after.params == result.report.after.params


class Recovering(Pass):
    """Turns the classes back (or only says so)."""

    lossy = True
    recovers = True

    def __init__(self, works=True):
        object.__setattr__(self, "works", works)

    def run(self, model, ctx):
        if not ctx.edit(self, "v"):
            return 0
        import onnx_ir as ir

        weight = model.graph.initializers["v"]
        array = weight.const_value.numpy()
        shift = -1 if self.works else 1
        weight.const_value = ir.tensor(np.roll(array, shift, 1), name="v")
        return 1


def test_what_a_later_pass_wins_back_is_judged_after_it():
    result = optimize(classifier(), [Blunt(), Recovering()], samples=SAMPLES, measure=False)
    assert [s.status for s in result.report.steps] == ["kept", "kept"]
    assert result.report.steps[1].agreement["y"].figure == 0


def test_what_is_not_won_back_is_undone_as_a_whole():
    source = classifier()
    weight = source.graph.initializers["v"].const_value.numpy().copy()
    passes = [Blunt(), Recovering(works=False)]
    result = optimize(source, passes, samples=SAMPLES, measure=False)
    assert [s.status for s in result.report.steps] == ["undone", "undone"]
    assert "did not win back" in result.report.steps[0].reason
    np.testing.assert_array_equal(result.model.graph.initializers["v"].const_value.numpy(), weight)


@pytest.mark.parametrize(("last", "kind"), [("L", "values"), ("C", "logits")])
def test_an_axis_as_long_as_an_input_s_holds_no_classes(last, kind):
    """The largest of a row of moments in time is no class, however often one is another."""
    model = parse_model("y = Relu(x)", inputs={"x": ("N", 3, "L")})
    (value,) = model.graph.outputs
    value.shape = ir.Shape(["N", 16, last])
    assert kind_of(value, [RNG.normal(size=(4, 16, 20))]) == kind


def test_rows_beside_scores_are_coordinates():
    """The largest of four offsets of a box says nothing; the class beside it does."""
    model = parse_model("p = Softmax(x)  b = Relu(x)", inputs={"x": (64, 8)})
    model.graph.outputs.extend(n.outputs[0] for n in model.graph if n.op_type == "Softmax")
    names = [v.name for v in model.graph.outputs]
    expected = [{n: softmax(ROWS) if n == "p" else ROWS for n in names}]
    assert Guard(model, expected, [{}]).kinds == {"b": "values", "p": "scores"}
    assert kind_of(model.graph.outputs[0], [ROWS]) == "logits"


def test_two_rows_have_no_spread_of_their_own():
    """States at the end of two sessions: channels that happen to agree there are not constant."""
    rows = RNG.normal(size=(2, 64))
    rows[1, 3] = rows[0, 3] + 1e-3
    assert spread_error([rows], [rows + 0.02 * RNG.normal(size=rows.shape)]) < 0.05


def test_the_logit_of_one_thing_is_judged_by_its_sign():
    want = np.where(RNG.normal(size=(400, 1)) > 0, 0.02, -1.0)
    moved = np.where(want > 0, -0.01, want)
    assert judged("y = Add(x, x)", [want], [moved]).over > 1
    assert judged("y = Relu(x)", [want], [moved]).over < 1
    assert judged("y = Add(x, x)", [want], [want + 0.005]).over < 1


def test_a_line_of_a_recurrent_layer_has_its_steps_on_the_first_axis():
    """[time, rows, classes]: one step in twenty changes every line, and 5 % of the steps."""
    model = parse_model("y = Softmax<axis=-1>(x)", inputs={"x": ("T", "N", 7)})
    rng = np.random.default_rng(3)
    want, got, feeds = [], [], []
    for rows in (1, 3):
        scores = rng.dirichlet(np.full(7, 0.2), (20, rows)).astype(np.float32)
        changed = scores.copy()
        changed[10] = np.roll(scores[10], 1, axis=-1)
        want.append({"y": scores})
        got.append({"y": changed})
        feeds.append({"image": np.zeros((rows, 1, 8, 160), np.float32)})
    found = Guard(model, want, feeds, limit=0.1).judge(got)["y"]
    assert (found.kind, found.n, found.disagreements) == ("sequences", 4, 4)
    assert strain(Guard(model, want, feeds, limit=0.1), got) == pytest.approx(10)
    # where the rows come first, a row is no step
    feeds = [{"image": np.zeros((20, 1, 8, 160), np.float32)}] * 2
    assert Guard(model, want[:1] * 2, feeds).by_rows("y", want)[0].shape == (20, 1, 7)


def test_of_few_values_the_worst_counts_and_of_many_the_mean():
    want = [RNG.normal(size=(64, 3)) + np.array([1, 3, 5])]
    off = want[0] + 0.2 * RNG.normal(size=(64, 3)) * [1, 0, 0]
    assert spread_error(want, [off]) == pytest.approx(0.2, rel=0.3)
    scales = np.arange(1.0, 61.0)
    wide = [RNG.normal(size=(64, 60)) * scales]
    noise = 0.2 * RNG.normal(size=(64, 60)) * (scales == 1)
    assert spread_error(wide, [wide[0] + noise]) == pytest.approx(0.2 / 60, rel=0.3)


@pytest.mark.parametrize(("offset", "over"), [(0.0, False), (3.0, True)])
def test_rows_of_one_sign_may_be_marks_and_are_judged_as_values(offset, over):
    """Three qualities of 1 to 5 look like logits, but a fifth of their spread is much of a mark."""
    rng = np.random.default_rng(0)
    want = np.clip(rng.normal(size=(64, 3)), -1.9, 1.9) + offset
    want[:, 0] += 0.1
    off = 0.2 * want.std() * rng.normal(size=want.shape)
    top = want.argmax(-1)
    got = np.where(np.eye(3, dtype=bool)[top], want + np.abs(off), want - np.abs(off))
    judge = Guard(parse_model("y = Neg(x)", inputs={"x": (64, 3)}), [{"y": want}], [{}])
    assert judge.kinds == {"y": "logits"}
    (found,) = judge.judge([{"y": got}]).values()
    assert (found.over > 1) == over


def test_outputs_that_all_have_an_inputs_form_are_no_states():
    """A mean and a variance of six measurements a row: no other output says what matters."""
    model = parse_model("y = Tanh(x) z = Exp(x)", inputs={"x": (8, 6)})
    rng = np.random.default_rng(0)
    probe = [{"x": rng.normal(size=(8, 6)).astype(np.float32)} for _ in range(8)]
    expected = [{"y": np.tanh(p["x"]) + p["x"], "z": np.exp(p["x"])} for p in probe]
    assert "state" not in Guard(model, expected, probe).kinds.values()
    one = [{**run, "z": run["z"][:, :3]} for run in expected]
    assert Guard(model, one, probe).kinds["y"] == "state"
