import itertools
import os
import shutil
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from graphopt import tune

#: Milliseconds until a browser is taken for dead.
PATIENCE = 300_000.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# workers share the processors: threads of PyTorch that wait for each other on a busy one take long
os.environ.setdefault("OMP_NUM_THREADS", "1")
# every command that a test starts would compile all of graphopt anew
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# a busy machine is no fault of a property, nor of what its examples are drawn from
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
NUMBERS = itertools.count()
ROOT = Path(__file__).parent
#: Whose tests take seconds, for the processes and the training that they start.
LONG = (
    *("passes/test_backend_suite.py", "cli", "docs", "graphopt/searching", "graphopt/training"),
    *("backends", "passes/test_compositions.py", "passes/kv_cache", "passes/distill"),
    *("passes/weight_only", "graphopt/tracing", "graphopt/verification", "graphopt/page"),
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Long tests first, in both halves: two workers begin with one each, and short ones end both.

    A file's tests stay together, for what they share.
    """

    def rank(item):
        place = item.path.relative_to(ROOT).as_posix()
        return next((k for k, one in enumerate(LONG) if f"{place}/".startswith(f"{one}/")), None)

    files = itertools.groupby(sorted(items, key=lambda i: str(i.path)), key=lambda i: i.path)
    parts = [list(tests) for _, tests in files]
    long = sorted((p for p in parts if rank(p[0]) is not None), key=lambda p: rank(p[0]))
    short = [item for p in parts if rank(p[0]) is None for item in p]
    first, second = ([item for p in long[k::2] for item in p] for k in (0, 1))
    cut = max(0, len(items) // 2 - len(first))
    items[:] = [*first, *short[:cut], *second, *short[cut:]]


@pytest.fixture(autouse=True)
def _same_draws(request):
    """What a test draws does not depend on the tests that its worker ran before."""
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(1)  # not what weights are drawn by


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing that a test remembers reaches the user's cache folder, or another test."""
    # what caches nothing makes no folder: pytest looks through all of them for each new one
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.fixture(autouse=True)
def measuring(monkeypatch):
    """What is timed takes turns of 2 ms, and of session options a result tries threads alone."""
    monkeypatch.setattr("graphopt.measuring.worker.BURST", 0.002)
    monkeypatch.setattr("graphopt.pipeline.result.tune", partial(tune, every=False))


@pytest.fixture(autouse=True)
def translations():
    """PyTorch's exporter reads the source of all its translations once, not for every model."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is None:
        return
    exporter = registration.onnxscript_apis
    if not hasattr(exporter.get_torchlib_ops, "cache_info"):
        exporter.get_torchlib_ops = cache(exporter.get_torchlib_ops)


@pytest.fixture(scope="module")
def chromium():
    """Chromium, where it and Playwright are installed."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = play.chromium.launch(executable_path=path, args=options, timeout=PATIENCE)
        yield opened
        opened.close()


@pytest.fixture
def browser(chromium):
    """Makes windows of Chromium, which wait as long as a busy machine takes."""
    windows = []

    def window(scheme="light"):
        view = {"width": 1280, "height": 900}
        windows.append(chromium.new_context(color_scheme=scheme, viewport=view))
        windows[-1].set_default_timeout(PATIENCE)
        return windows[-1].new_page()

    yield window
    for one in windows:
        one.close()
