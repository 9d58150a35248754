import itertools
import os
import shutil
import sys
from functools import cache, partial

import pytest

from graphopt import tune

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

# workers share the processors: threads of PyTorch that wait for each other on a busy one take long
os.environ.setdefault("OMP_NUM_THREADS", "1")
# every command that a test starts would compile all of graphopt anew
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
NUMBERS = itertools.count()


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
def browser():
    """Chromium, where it and Playwright are installed."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next((p for name in BROWSERS if (p := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = play.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()
