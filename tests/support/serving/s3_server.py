"""A real S3 server on this machine: moto's, in its own process, so that Ray's processes reach it too."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from rlhf.storage.url_path import _open_filesystem

SERVE = """
import sys
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(sys.argv[1]), verbose=False)
server.start()
server._thread.join()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def run_s3_server() -> Iterator[str]:
    """Its address, with an empty bucket `runs`; the environment names it and a key meanwhile."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)], stderr=subprocess.DEVNULL)
    os.environ.update(settings)
    _open_filesystem.cache_clear()  # it may hold a server of before
    try:
        _wait(address)
        requests.put(f"{address}/runs", timeout=10).raise_for_status()
        yield address
    finally:
        server.terminate()
        server.wait()
        _open_filesystem.cache_clear()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait(address: str) -> None:
    for _ in range(300):
        try:
            requests.get(address, timeout=5)
            return
        except requests.ConnectionError:
            time.sleep(0.1)
    raise TimeoutError(f"{address}: the S3 server did not start")


def refuse_everyone(address: str) -> None:
    """From now on the server checks keys, and knows none."""
    requests.post(f"{address}/moto-api/reset-auth", data=b"0", timeout=10).raise_for_status()
