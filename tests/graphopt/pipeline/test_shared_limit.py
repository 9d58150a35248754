"""Several lossy passes share the guard's limit, and each is judged by what it adds."""

from pathlib import Path

import numpy as np

import graphopt
from graphopt import optimize

DATA = Path(graphopt.__file__).parent / "data"


def test_what_a_pass_before_strained_leaves_room_for_int8():
    """Pruning moves the logits; what int8 adds is little, and counts alone."""
    images = np.load(DATA / "digits.npz")["calibration"].astype(np.float32) / 16
    report = optimize(DATA / "digits.onnx", "prune,fuse,int8", samples=images, measure=False).report
    prune, _, int8 = report.steps
    assert (prune.status, int8.status) == ("kept", "kept")
    assert int8.bytes < 0.5 * prune.bytes
    (found,) = int8.agreement.values()
    assert found.over < 1
