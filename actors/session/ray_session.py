"""Ray for the time of a command: every command that needs Ray gets it here."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private import ray_constants
from ray._private.authentication import authentication_token_setup as authentication

from actors.session.start import start_ray
from actors.session.watch import end_with_cluster, end_with_ray
from rlhf.errors import UserError

ANSWER_S = 5.0
"""Longest time that a cluster's head may take to accept a connection."""
DEFAULTS = {
    # A proxy of Ray Serve is started again after three failed checks; at Ray's period of 10 s nobody is answered for
    # half a minute after its death.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    # No cloud takes this machine away, so no actor of Ray Train need watch for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""Settings of Ray's libraries for Ray that is started here, unless the user sets them."""
OPEN_CLUSTER = (
    "warning: the Ray cluster at {address} is joined without a token, so whoever reaches its ports runs code as its "
    "user and reads its images and weights; start its nodes with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN, or let "
    "nobody else into its network"
)


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster at `address` for the time of the `with`; without one it starts Ray on this machine alone.

    Ray that is started here listens on loopback only, and answers nobody without a token that is made for it and
    given to its processes alone. If Ray dies, this process says so and ends with exit code 2; see
    `actors/session/watch.py`.
    `num_cpus` is the number of CPUs that it offers, by default the machine's.
    Raises UserError if no cluster answers at `address`, or if Ray does not start.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with _join(address) if address is not None else _start_alone(num_cpus):
        yield


def check_address(address: str | None) -> None:
    """Raises UserError if nothing answers at HOST:PORT within seconds; Ray itself would try for minutes."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: nothing answers there ({error}); start Ray, or name its head") from error


@contextmanager
def _join(address: str) -> Iterator[None]:
    check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from error
    try:
        if authentication.get_authentication_mode() != authentication.AuthenticationMode.TOKEN:
            print(OPEN_CLUSTER.format(address=address), file=sys.stderr)
        with end_with_cluster({} if address.startswith("ray://") else _find_servers()):
            yield
    finally:
        ray.shutdown()


def _find_servers() -> dict[str, tuple[str, int]]:
    """Returns host and port of the servers of the joined cluster without which this process cannot go on."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    servers = {"gcs_server": (host.strip("[]"), int(port))}
    for node in ray.nodes():
        if node["NodeID"] == context.get_node_id():
            servers["raylet"] = (node["NodeManagerAddress"], node["NodeManagerPort"])
    return servers


@contextmanager
def _start_alone(num_cpus: int | None) -> Iterator[None]:
    with own_access():
        servers = start_ray(num_cpus)
        try:
            with end_with_ray(servers):
                yield
        finally:
            ray.shutdown()


@contextmanager
def own_access() -> Iterator[None]:
    """Lets Ray that is started during the `with` listen on loopback only, and ask for a new token.

    The token is in the environment of this process and of those that it starts, and nowhere else.
    """
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    own |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo")
    own |= {name: os.environ.get(name, value) for name, value in DEFAULTS.items()}
    before = {name: os.environ.get(name) for name in own}
    is_cluster = ray_constants.ENABLE_RAY_CLUSTER
    os.environ.update(own)
    # Ray binds to loopback where it is not to form a cluster. It reads that from the environment once, when it is
    # imported, and offers no argument for it: `_node_ip_address` replaces 127.0.0.1 by the address of the network.
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_environment()
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = is_cluster
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        _read_environment()


def _read_environment() -> None:
    """Makes Ray read the environment again: it has kept the mode since its import, and the token since its use."""
    authentication.Config.initialize("")
    authentication.AuthenticationTokenLoader.instance().reset_cache()
