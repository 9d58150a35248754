import numpy as np
import pytest

from graphopt.analyses import resume
from graphopt.analyses.ranges import calibrate
from graphopt.testing import parse_model


class Killed(Exception):
    pass


def model(scale=2.0):
    return parse_model(
        "a = Mul(x, s)  b = Relu(a)", inputs={"x": (4, 3)}, constants={"s": np.float32([scale])}
    )


def feeds(count=8, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((4, 3)).astype(np.float32)} for _ in range(count)]


def killed_after(samples, count):
    """The first look at a sample is for its shape; the run after `count` samples is the last."""
    first = True

    def again():
        nonlocal first
        if first:
            first = False
            yield from samples
            return
        yield from samples[:count]
        raise Killed

    class Once:
        def __iter__(self):
            return again()

    return Once()


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(resume, "EVERY", 0.0)


@pytest.mark.parametrize("method", ["minmax", "average", "mse"])
def test_a_killed_calibration_goes_on(tmp_path, method):
    samples = feeds()
    expected = calibrate(model(), ["a", "b"], samples, method, cache=tmp_path / "other")
    with pytest.raises(Killed):
        calibrate(model(), ["a", "b"], killed_after(samples, 5), method, cache=tmp_path)
    assert len(list((tmp_path / "calibration").iterdir())) == 1
    tracked = []

    def track(s):
        for feed in s:
            tracked.append(feed)
            yield feed

    found = calibrate(model(), ["a", "b"], samples, method, cache=tmp_path, track=track)
    assert found == expected
    assert len(tracked) == 8  # each sample was read once: those of before were not run again
    assert not list((tmp_path / "calibration").iterdir()), "nothing is left behind"


def test_other_samples_start_anew(tmp_path):
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(seed=1), 5), cache=tmp_path)
    expected = calibrate(model(), ["a"], feeds(), cache=tmp_path / "other")
    assert calibrate(model(), ["a"], feeds(), cache=tmp_path) == expected


def test_fewer_samples_start_anew(tmp_path):
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5), cache=tmp_path)
    expected = calibrate(model(), ["a"], feeds(3), cache=tmp_path / "other")
    assert calibrate(model(), ["a"], feeds(3), cache=tmp_path) == expected


def test_another_model_has_a_state_of_its_own(tmp_path):
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5), cache=tmp_path)
    expected = calibrate(model(3.0), ["a"], feeds(), cache=tmp_path / "other")
    assert calibrate(model(3.0), ["a"], feeds(), cache=tmp_path) == expected


def test_a_state_cut_off_while_being_written_is_none(tmp_path):
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5), cache=tmp_path)
    (path,) = (tmp_path / "calibration").iterdir()
    path.write_bytes(path.read_bytes()[:20])
    expected = calibrate(model(), ["a"], feeds(), cache=tmp_path / "other")
    assert calibrate(model(), ["a"], feeds(), cache=tmp_path) == expected
