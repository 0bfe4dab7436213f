"""The checks of `rlhf doctor` that run on each node.

The module imports nothing of this package at its head, and Ray sends it as code: nodes that lack the package, or have
another version, answer too.
"""

import ipaddress
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any, TypedDict

PACKAGES = ("torch", "ray", "diffusers", "deepspeed")
CONNECT_S = 3.0


class Gpu(TypedDict):
    """A GPU in the words of nvidia-smi."""

    name: str
    driver: str


class NodeFacts(TypedDict):
    """The facts that a node reports about itself."""

    versions: dict[str, str]
    """Versions by package; `missing` if it is not installed."""
    gpus: list[Gpu]
    shm_bytes: int
    """Size of /dev/shm; 0 if there is none."""
    hub: str | None
    """Reason why the model hub is not reachable; None if it is."""


def inspect_node() -> NodeFacts:
    """Returns versions, GPUs, shared memory and access to the model hub."""
    shm = shutil.disk_usage("/dev/shm").total if os.path.isdir("/dev/shm") else 0
    return NodeFacts(versions=read_versions(), gpus=list_gpus(), shm_bytes=shm, hub=try_hub())


def read_versions() -> dict[str, str]:
    """Returns the versions of Python, of the packages that must be equal, and of this one, installed or in a folder."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "missing"
    try:
        import rlhf

        versions["prefpaint-ray"] = rlhf.__version__
    except ImportError:
        versions["prefpaint-ray"] = "missing"
    return versions


def list_gpus() -> list[Gpu]:
    """Returns all GPUs of the node, also those in use; none if nvidia-smi is absent or fails."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return [Gpu(name=name, driver=driver) for name, driver in rows]


def try_hub() -> str | None:
    """Returns the reason why models cannot be fetched by name; None if the hub gives any answer."""
    try:
        from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
    except ImportError:
        return "huggingface_hub is not installed"
    if HF_HUB_OFFLINE:
        return "switched off by HF_HUB_OFFLINE"
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=CONNECT_S).close()
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return f"{ENDPOINT} does not answer ({getattr(error, 'reason', error)})"
    return None


def find_closed(places: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Returns the addresses and ports that refuse a connection from here."""

    def is_closed(place: tuple[str, int]) -> bool:
        try:
            socket.create_connection(place, timeout=CONNECT_S).close()
        except OSError:
            return True
        return False

    with ThreadPoolExecutor(32) as pool:
        return [place for place, closed in zip(places, pool.map(is_closed, places), strict=True) if closed]


def write_mark(storage: str, name: str) -> str | None:
    """Writes a file that holds its own name into an existing folder; returns the problem, if any."""
    try:
        from rlhf.errors import UserError
        from rlhf.storage.atomic_files import atomic_write_text
        from rlhf.storage.url_path import UrlPath, as_path

        folder = as_path(storage)
        if not isinstance(folder, UrlPath) and not folder.is_dir():
            return "cannot be written: no such folder"
        atomic_write_text(folder / name, name)
    except (OSError, ImportError, UserError) as error:
        return f"cannot be written: {error}"
    return None


def read_marks(storage: str, names: list[str]) -> str | None:
    """Reads the files that the nodes wrote; returns the problem, if any."""
    from rlhf.errors import UserError
    from rlhf.storage.url_path import as_path

    for name in names:
        try:
            content = (as_path(storage) / name).read_bytes()
        except (OSError, UserError) as error:
            return f"what a node wrote is not seen here: {error}"
        if content != name.encode():
            return f"{name} holds other bytes than were written"
    return None


def remove_mark(storage: str, name: str) -> None:
    """Removes the file that this node wrote."""
    from rlhf.storage.url_path import as_path

    (as_path(storage) / name).unlink()


def make_block(size_bytes: int) -> tuple[bytes, int]:
    """Puts random bytes and their checksum into this node's object store."""
    block = os.urandom(size_bytes)
    return block, zlib.crc32(block)


def fetch_block(block: list[Any], checksum: int) -> tuple[bool, float]:
    """Returns whether the bytes arrive whole, and the duration in seconds; `block` holds one reference."""
    import ray

    started = time.perf_counter()
    found = ray.get(block[0], timeout=60)
    return zlib.crc32(found) == checksum, time.perf_counter() - started


class Place:
    """A place for a learner rank."""

    def address(self) -> str:
        """Returns the address of a free port here in the form of torch.distributed."""
        import ray

        host = ray.util.get_node_ip_address()
        if ipaddress.ip_address(host).is_loopback:  # Over TCP rank 0 would listen on all interfaces.
            return f"file://{tempfile.gettempdir()}/{uuid.uuid4().hex}"
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
            free.bind((host, 0))
            port = free.getsockname()[1]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def all_reduce(self, backend: str, address: str, rank: int, ranks: int, timeout_s: float) -> tuple[float, float]:
        """Returns the maximum of (rank + 1) over all ranks from a million numbers, and the seconds of the second run.

        The numbers take the learner's own way, including the copy to the device that the backend serves.
        """
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        from rlhf.alignment.collectives import reduce_max

        limit = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=ranks, timeout=limit)
        try:
            for _ in range(2):  # The first one opens the connections.
                numbers = torch.full((2**20,), rank + 1.0)
                started = time.perf_counter()
                found = float(reduce_max(numbers).mean())
            return found, time.perf_counter() - started
        finally:
            dist.destroy_process_group()
