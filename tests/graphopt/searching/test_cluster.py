"""Trials on a Ray cluster of two nodes on this machine, one of which is lost."""

import pytest

from graphopt import Budget, search
from graphopt.searching.cluster import Cluster
from graphopt.searching.trial import Task

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed")
pytest.importorskip("ray.cluster_utils")
pytest.importorskip("optuna")
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def nodes(folder):
    from ray.cluster_utils import Cluster as Nodes

    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 1})
    extra = made.add_node(num_cpus=1)
    yield made, extra
    ray.shutdown()
    made.shutdown()


def test_a_lost_node_costs_no_trial(folder, nodes):
    made, extra = nodes
    here = str(folder)
    task = Task(f"{here}/model.onnx", f"{here}/samples.npz", None, "cpu", "error")
    cluster = Cluster(made.address, task, None)
    specs = [f"clean, fold, prune(ratio={r}), fuse" for r in (0.2, 0.3, 0.4, 0.5)]
    found = {}
    for k, outcome in cluster.outcomes(specs):
        found[k] = outcome
        if len(found) == 1:
            made.remove_node(extra, allow_graceful=False)
    cluster.close()
    assert sorted(found) == [0, 1, 2, 3]
    assert [o.reason for o in found.values()] == [""] * 4
    sizes = [found[k].size for k in range(4)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_front_is_that_of_one_process(folder, nodes):
    made, _ = nodes
    here = str(folder)
    given = {
        "samples": f"{here}/samples.npz",
        "budget": Budget(max_error=0.2),
        "minimize": "size",
        "passes": "prune",
        "trials": 2,
        "measure_seconds": 0.1,
    }
    fronts = []
    for ray_address in (None, made.address):
        found = search(f"{here}/model.onnx", ray=ray_address, **given)
        fronts.append([(r["spec"], r["loss"], r["size"]) for r in found.report.front])
    assert fronts[0] == fronts[1]
