import numpy as np
import pytest

from graphopt.cache import default_folder, open_cache
from graphopt.calibration import ranges, resume
from graphopt.samples import Samples
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


def states():
    return default_folder() / "calibration"


def calibrate(*args, **options):
    return ranges.calibrate(*args, cache=open_cache(), **options)


@pytest.fixture(autouse=True)
def always_due(monkeypatch):
    monkeypatch.setattr(resume, "EVERY", 0.0)


@pytest.mark.parametrize("method", ["minmax", "average", "mse"])
def test_a_killed_calibration_goes_on(method):
    samples = feeds()
    expected = calibrate(model(), ["a", "b"], samples, method)
    with pytest.raises(Killed):
        calibrate(model(), ["a", "b"], killed_after(samples, 5), method)
    assert len(list(states().iterdir())) == 1
    tracked = []
    watched = Samples(samples).watched(lambda done, total: tracked.append(done))
    found = calibrate(model(), ["a", "b"], watched, method)
    assert found == expected
    # the first tells whose state it is; then each was read once: those of before were not run again
    assert tracked == [0, *range(8)]
    assert not list(states().iterdir()), "nothing is left behind"


def test_other_samples_start_anew():
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(seed=1), 5))
    expected = calibrate(model(), ["a"], feeds())
    assert calibrate(model(), ["a"], feeds()) == expected


def test_fewer_samples_start_anew():
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5))
    expected = calibrate(model(), ["a"], feeds(3))
    assert calibrate(model(), ["a"], feeds(3)) == expected


def test_another_model_has_a_state_of_its_own():
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5))
    expected = calibrate(model(3.0), ["a"], feeds())
    assert calibrate(model(3.0), ["a"], feeds()) == expected


def test_other_attributes_are_another_model():
    def pooled(stride):
        text = f"a = MaxPool <kernel_shape=[2], strides=[{stride}]> (x)"
        return parse_model(text, inputs={"x": (1, 2, 8)})

    samples = [{"x": np.arange(16, dtype=np.float32).reshape(1, 2, 8)}] * 8
    with pytest.raises(Killed):
        calibrate(pooled(1), ["a"], killed_after(samples, 5))
    count = len(list(states().iterdir()))
    with pytest.raises(Killed):
        calibrate(pooled(2), ["a"], killed_after(samples, 5))
    assert len(list(states().iterdir())) == count + 1


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrate(model(), ["a"], feeds())


def test_a_state_cut_off_while_being_written_is_none():
    with pytest.raises(Killed):
        calibrate(model(), ["a"], killed_after(feeds(), 5))
    (path,) = states().iterdir()
    path.write_bytes(path.read_bytes()[:20])
    expected = calibrate(model(), ["a"], feeds())
    assert calibrate(model(), ["a"], feeds()) == expected


def test_without_a_cache_nothing_is_written(tmp_path):
    with pytest.raises(Killed):
        ranges.calibrate(model(), ["a"], killed_after(feeds(), 5))
    assert not default_folder().exists()
