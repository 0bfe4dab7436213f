"""Several Ray nodes on this machine, for measurements of what coordinates them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster

from actors.session.ray_session import own_access, ray_session


@contextmanager
def several_nodes(count: int, *, cpus: int = 1, object_store_bytes: int = 300_000_000) -> Iterator[Cluster]:
    """Starts nodes, each with a raylet, workers and an object store of its own, and joins the first; ends them all.

    They share this machine's cores and network, and listen on loopback only.
    """
    options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": object_store_bytes}
    with own_access():
        cluster = Cluster(initialize_head=True, head_node_args=options | {"include_dashboard": False})
        try:
            for _ in range(count - 1):
                cluster.add_node(**options)
            with ray_session(cluster.address):
                yield cluster
        finally:
            cluster.shutdown()
