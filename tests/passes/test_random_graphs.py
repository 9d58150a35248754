"""A few of the random graphs that bench/random_graphs.py draws by the thousand."""

import importlib.util
import sys
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

BENCH = Path(__file__).parents[2] / "bench"


def bench_module(name):
    found = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


bench_module("random_layouts")
bench_module("random_steps")
drawn = bench_module("random_graphs")


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(drawn.graphs())
def test_outputs_stay_as_they_are(case):
    drawn.check(case)
