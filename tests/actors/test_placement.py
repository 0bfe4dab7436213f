"""The resources that a cluster lacks for a run are named before anything starts."""

import math

import pytest

from actors.colocation import share_gpus
from actors.resources import bundles_of, find_shortage, resources_of
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError

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
    assert "2 node(s) of 8 CPU 2 GPU" in shortage


def test_a_fraction_of_a_gpu_lies_on_one_gpu() -> None:
    share = {"CPU": 1.0, "GPU": 0.6}
    assert find_shortage([share] * 2, [GPU_NODE], "PACK") is None
    assert "1 of 3 actors do not fit" in (find_shortage([share] * 3, [GPU_NODE], "PACK") or "")
    assert find_shortage([share, share, {"GPU": 0.4}, {"GPU": 0.4}], [GPU_NODE], "STRICT_PACK") is None
    assert find_shortage([{"GPU": 2.0}, {"GPU": 0.1}], [GPU_NODE], "PACK") is not None


def test_what_a_file_leaves_to_the_machine_is_no_shortage() -> None:
    unknown = {"CPU": math.inf, "GPU": math.inf}
    assert find_shortage([ACTOR] * 8, [unknown], "PACK") is None
    assert "1 node(s) of ? CPU ? GPU" in (find_shortage([{"learner": 1.0}], [unknown], "PACK") or "")


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


def run_config(cluster: dict | None = None, **sections: dict) -> RunConfig:
    return RunConfig.model_validate({"cluster": cluster or {}} | sections)


@pytest.mark.parametrize(
    ("gpus", "config", "takes_turns"),
    [
        (1, run_config(), True),
        (0, run_config(), False),
        (8, run_config(), False),
        (1, run_config(model={"device": "cpu"}), False),
        (1, run_config(align={"max_staleness": 1}), False),
        (1, run_config({"learners": 2}), False),
        (1, run_config({"gpus_per_learner": 1.0}), False),
        (1, run_config({"colocate": False}), False),
        (0, run_config({"colocate": True}), True),
        (8, run_config({"colocate": True, "learners": 2}), True),
    ],
)
def test_roles_take_turns_by_themselves_only_where_they_share_the_only_gpu(
    gpus: int, config: RunConfig, takes_turns: bool
) -> None:
    assert share_gpus(config, gpus).cluster.colocate is takes_turns


def test_roles_that_ask_for_no_gpu_get_shares_of_the_only_one_that_fit_into_it() -> None:
    shared = share_gpus(run_config({"samplers": 1}), 1).cluster
    bundles = [*bundles_of(shared), resources_of(shared, "learner")]
    assert [bundle["GPU"] for bundle in bundles] == [0.3333] * 3
    assert find_shortage(bundles, [{"CPU": 8.0, "GPU": 1.0}], "STRICT_PACK") is None
    own = share_gpus(run_config({"gpus_per_actor": 0.25}), 1).cluster
    assert own.gpus_per_actor == 0.25
    assert not share_gpus(run_config({"colocate": False}), 1).cluster.gpus_per_actor


def test_turns_that_cannot_be_taken_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"2 ranks cannot share one GPU.*colocate to false"):
        share_gpus(run_config({"learners": 2, "colocate": True}), 1)
    with pytest.raises(ValueError, match="set align.max_staleness to 0"):
        run_config({"colocate": True}, align={"max_staleness": 1})
