"""Measures a service on several Ray nodes of which one is lost: `python -m benchmarks.serving.lost_node --out FILE`.

Interface, decoder, retries, Ray Serve and its proxy are those of the service; stand-ins, which wait instead of
painting, take the place of the models. All nodes are processes of this machine and share its cores, as the clients do.
"""

import argparse
import asyncio
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")

from ray import serve as ray_serve  # noqa: E402

from benchmarks.serving.edit_requests import FILES, draw_equal  # noqa: E402
from benchmarks.serving.load import Outcome, closed_loop  # noqa: E402
from benchmarks.serving.stand_in_painter import StandInPainter  # noqa: E402
from benchmarks.several_nodes import several_nodes  # noqa: E402
from rlhf.storage.atomic_files import atomic_write_json  # noqa: E402
from serve.api.http_api import Api  # noqa: E402
from serve.application import HEALTH_CHECK_S  # noqa: E402
from serve.settings import ServiceSettings, name_models  # noqa: E402

PORT = 8766
WINDOW_S = 5.0
"""Seconds over which a rate is taken."""


def deploy(replicas: int, paint_s: float) -> str:
    """Starts two copies of the interface and the stand-ins, each of which asks for a CPU; returns the address."""
    settings = ServiceSettings(max_waiting=1_000, ingress_replicas=2)
    [base] = {served.base for served in name_models(settings).models.values()}
    painter: Any = StandInPainter
    ingress: Any = Api
    handle = painter.options(
        num_replicas=replicas, ray_actor_options={"num_cpus": 1}, health_check_period_s=HEALTH_CHECK_S
    ).bind(paint_s)
    application = ingress.options(num_replicas=2, health_check_period_s=HEALTH_CHECK_S).bind(
        {base: handle}, name_models(settings), settings
    )
    # All nodes share this machine's ports, so one of them has a proxy.
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": PORT})
    ray_serve.run(application, name="nodes", route_prefix="/")
    return f"http://127.0.0.1:{PORT}/v1/images/edits"


def describe(told: Outcome, lost_s: float) -> dict[str, Any]:
    """Returns the figures of all requests, and of the answers before and after the loss."""
    windows = [sum(at // WINDOW_S == number for at in told.finished) for number in range(int(told.seconds // WINDOW_S))]
    before = windows[1 : int(lost_s // WINDOW_S)]  # The first window warms up.
    if not before:
        raise SystemExit(f"the node was lost after {lost_s:.0f} s, too early for a rate before it: raise --lost-at")
    rate = sum(before) / len(before) / WINDOW_S
    back = [at for at in range(int(lost_s // WINDOW_S), len(windows)) if windows[at] >= 0.9 * rate * WINDOW_S]
    pauses = [b - a for a, b in zip(sorted(told.finished), sorted(told.finished)[1:], strict=False)]
    return told.figures() | {
        "seconds": told.seconds,
        "longest_s": max(told.latencies),
        "lost_after_s": lost_s,
        "images_per_s_before": rate,
        "least_images_per_s_after": min(windows[int(lost_s // WINDOW_S) :]) / WINDOW_S,
        "longest_pause_s": max(pauses),
        "rate_is_back_after_s": max(0.0, (back[0] + 1) * WINDOW_S - lost_s) if back else None,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends all requests; a node other than the first is lost when a part of them has been sent."""
    lose, lost_at = threading.Event(), []

    def draw(number: int) -> dict[str, str]:
        if number == arguments.lost_at:
            lose.set()
        return draw_equal(number)

    with several_nodes(arguments.nodes, cpus=-(-arguments.replicas // (arguments.nodes - 1))) as cluster:
        url = deploy(arguments.replicas, arguments.paint_s)
        victim = sorted(cluster.worker_nodes, key=lambda node: node.node_id)[0]

        def cut() -> None:
            lose.wait()
            lost_at.append(time.perf_counter())
            cluster.remove_node(victim, allow_graceful=False)

        thread = threading.Thread(target=cut)
        thread.start()
        started = time.perf_counter()
        told = asyncio.run(closed_loop(url, FILES, draw, clients=arguments.clients, requests=arguments.requests))
        thread.join()
        ray_serve.shutdown()
    if not told.latencies:
        raise SystemExit(f"no request was answered: {dict(told.statuses)}")
    return describe(told, lost_at[0] - started)


def main() -> None:
    """Prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--lost-at", type=int, default=3_000, help="the request with which a node is lost")
    parser.add_argument("--clients", type=int, default=64, help="each sends the next request after an answer")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--paint-s", type=float, default=0.5, help="time of a stand-in for a request")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "lost_node.json")
    arguments = parser.parse_args()
    settings = {name: value for name, value in vars(arguments).items() if name != "out"}
    figures = settings | measure(arguments)
    print(json.dumps(figures, indent=2))
    atomic_write_json(arguments.out, figures)


if __name__ == "__main__":
    main()
