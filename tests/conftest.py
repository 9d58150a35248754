import itertools
import os

import pytest

# workers share the processors: threads of PyTorch that wait for each other on a busy one take long
os.environ.setdefault("OMP_NUM_THREADS", "1")
NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Nothing that a test remembers reaches the user's cache folder, or another test."""
    # what caches nothing makes no folder: pytest looks through all of them for each new one
    folder = tmp_path_factory.getbasetemp() / "caches" / str(next(NUMBERS))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
