"""Finds the processes of the service by the titles that Ray gives them."""

import psutil


def replica_memory() -> dict[str, float]:
    """Returns the unshared memory of each process of the service, in MB."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if "ServeReplica" in title or "ProxyActor" in title:
            found[f"{title.split(':')[-1][:24].strip()} {process.pid}"] = process.memory_full_info().uss / 1e6
    return found


def replica_pids(kind: str) -> list[int]:
    """Returns the ids of the processes of replicas of one deployment."""
    titles = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, title in titles.items() if title.startswith(f"ray::ServeReplica:ours:{kind}")]
