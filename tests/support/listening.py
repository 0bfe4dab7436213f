"""The addresses on which a process and all that it started listen."""

import contextlib
import ipaddress
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import psutil


def listening(process: psutil.Process | None = None) -> dict[tuple[str, int], str]:
    """Address and port of each listening socket, with the process that listens; by default those of this process."""
    process = process or psutil.Process()
    found = {}
    for member in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):  # it may have ended meanwhile
            for socket in member.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN:
                    found[socket.laddr.ip, socket.laddr.port] = " ".join(member.cmdline())
    return found


@contextmanager
def watch_listening() -> Iterator[dict[tuple[str, int], str]]:
    """Collects what `listening` finds, again and again during the `with`."""
    found: dict[tuple[str, int], str] = {}
    is_over = threading.Event()

    def collect() -> None:
        while not is_over.wait(0.1):
            found.update(listening())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


def beyond_loopback(found: dict[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """The sockets that other machines can reach."""
    return {address: name for address, name in found.items() if not _is_loopback(address[0])}


def status_of_call(port: int, method: str, token: str | None) -> str:
    """The status of a call of gRPC with an empty message."""
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{method}")
        try:
            call(b"", metadata=metadata, timeout=20)
        except grpc.RpcError as error:
            return error.code().name
    return "OK"


def _is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    inner = getattr(address, "ipv4_mapped", None)
    return (inner or address).is_loopback
