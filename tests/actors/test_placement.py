"""The resources that a cluster lacks for a run are named before anything starts."""

import pytest

from actors.placement import bundles_of, find_shortage, resources_of
from rlhf.config.cluster_config import ClusterConfig

GPU_NODE = {"CPU": 8.0, "GPU": 2.0}
ACTOR = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("wanted", "nodes", "placement"),
    [
        ([ACTOR] * 4, [GPU_NODE, GPU_NODE], "PACK"),
        ([ACTOR] * 2, [GPU_NODE], "STRICT_PACK"),
        ([ACTOR] * 2, [GPU_NODE, GPU_NODE], "STRICT_SPREAD"),
        ([{"CPU": 1.0, "GPU": 0.5}] * 4, [GPU_NODE], "PACK"),
        ([{"CPU": 0.1}] * 10, [{"CPU": 1.0}], "SPREAD"),
    ],
)
def test_what_fits_lacks_nothing(wanted: list, nodes: list, placement: str) -> None:
    assert find_shortage(wanted, nodes, placement) is None


def test_what_is_missing_is_counted_and_what_exists_is_named() -> None:
    shortage = find_shortage([ACTOR] * 5, [GPU_NODE, GPU_NODE], "PACK")
    assert shortage is not None
    assert "1 of 5 actors do not fit" in shortage
    assert "missing 1 CPU 1 GPU" in shortage
    assert "node 1: 8 CPU 2 GPU" in shortage


def test_a_fraction_is_not_split_over_nodes_and_strict_placements_are_meant() -> None:
    assert find_shortage([{"CPU": 3.0}], [{"CPU": 2.0}, {"CPU": 2.0}], "PACK") is not None
    assert find_shortage([ACTOR] * 3, [GPU_NODE, GPU_NODE], "STRICT_PACK") is not None
    assert find_shortage([ACTOR] * 3, [GPU_NODE, GPU_NODE], "STRICT_SPREAD") is not None
    assert "no node" in (find_shortage([ACTOR], [], "PACK") or "")


def test_each_role_asks_for_its_own_share_of_gpus() -> None:
    cluster = ClusterConfig(samplers=2, scorers=1, cpus_per_actor=1.0, gpus_per_actor=1.0, gpus_per_scorer=0.25)
    assert bundles_of(cluster) == [ACTOR, ACTOR, {"CPU": 1.0, "GPU": 0.25}]
    assert resources_of(cluster.model_copy(update={"gpus_per_learner": 0.0}), "learner") == {"CPU": 1.0}
    marked = cluster.model_copy(update={"role_resources": True})
    assert resources_of(marked, "scorer") == {"CPU": 1.0, "GPU": 0.25, "scorer": 0.25}
    assert find_shortage([resources_of(marked, "sampler")], [GPU_NODE], "PACK") is not None
    assert find_shortage([resources_of(marked, "sampler")], [GPU_NODE | {"sampler": 1.0}], "PACK") is None
