"""Measures speed and reliability of the service: `python -m benchmarks.serving --out DIR [--only PART ...]`.

It serves the built-in model over HTTP on this machine, with one thread per replica; clients and proxy share the other
cores. Each part writes its figures to DIR/serving.json as soon as it is done, and is skipped if they are there.
"""

import argparse
import asyncio
import io
import json
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np  # noqa: E402
import psutil  # noqa: E402
import requests  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from ray import serve as ray_serve  # noqa: E402

from actors.session.ray_session import ray_session  # noqa: E402
from benchmarks.serving.edit_requests import FILES, SIDE, STEPS, draw_equal, draw_mixed  # noqa: E402
from benchmarks.serving.figure import plot  # noqa: E402
from benchmarks.serving.load import Outcome, closed_loop, open_loop  # noqa: E402
from benchmarks.serving.replica_processes import replica_memory, replica_pids  # noqa: E402
from benchmarks.serving.usual_serving import UsualService, call_usual_pipeline, open_usual_pipeline  # noqa: E402
from rlhf.diffusion.families.open_family import resolve_model  # noqa: E402
from rlhf.diffusion.policy_manifest import list_policies  # noqa: E402
from rlhf.diffusion.tiles import Canvas, crop_to_size, plan_passes, surround  # noqa: E402
from rlhf.promotion.catalogue import Catalogue, ServedName, ServedPolicy, describe_policy, write_catalogue  # noqa: E402
from rlhf.storage.atomic_files import atomic_write_json  # noqa: E402
from rlhf.storage.images import encode_png  # noqa: E402
from serve.api.decoder import Decoder  # noqa: E402
from serve.api.edit_request import EditRequest  # noqa: E402
from serve.api.upload import Parts, open_upload  # noqa: E402
from serve.application import _bind, to_settings  # noqa: E402
from serve.engine.engine import Engine  # noqa: E402
from serve.engine.jobs import TileJob  # noqa: E402
from serve.engine.policy_cache import PolicyCache  # noqa: E402
from serve.engine.running_batch import advance, finish, start_jobs  # noqa: E402

PORT = 8765
CLIENTS = (1, 2, 4, 8, 16, 32)
Figures = dict[str, Any]
"""Figures of a part, as `serving.json` holds them."""


def deploy(name: str, **settings: Any) -> str:
    """Starts our service; returns the address for edits."""
    ray_serve.run(_bind(to_settings(settings), 1.0), name=name, route_prefix=f"/{name}")
    return f"http://127.0.0.1:{PORT}/{name}/v1/images/edits"


def load(url: str, draw: Callable[[int], dict[str, str]], clients: int, seconds: float) -> Outcome:
    """Runs a closed loop of clients."""
    return asyncio.run(closed_loop(url, FILES, draw, clients=clients, seconds=seconds))


def bare_rate(pipeline: Any, seconds: float) -> float:
    """Returns the images per second of the pipeline in a loop, with PNG in and out."""
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        image = Image.open(io.BytesIO(FILES["image"])).convert("RGB")
        mask = Image.open(io.BytesIO(FILES["mask"])).getchannel("A").point(lambda level: 255 if level < 128 else 0)
        encode_png(Image.fromarray(np.asarray(call_usual_pipeline(pipeline, image, mask, STEPS, done))))
        done += 1
    return done / (time.perf_counter() - started)


def measure_throughput(args: argparse.Namespace) -> Figures:
    """Compares ours with the pipeline in a loop and with the usual deployment, for rising numbers of clients."""
    torch.set_num_threads(1)
    pipeline = open_usual_pipeline(resolve_model("tiny-sd"))
    ours = deploy("ours")
    deployment: Any = UsualService  # Ray's decorator makes it one.
    bound = deployment.options(ray_actor_options={"num_cpus": 1}).bind(resolve_model("tiny-sd"))
    ray_serve.run(bound, name="usual", route_prefix="/usual")
    usual = f"http://127.0.0.1:{PORT}/usual"
    for url in (ours, usual):
        load(url, draw_equal, 2, 2)
    rows = []
    for clients in CLIENTS:
        bare = bare_rate(pipeline, args.seconds)
        row: Figures = {"clients": clients, "bare_images_per_s": bare}
        for name, url in (("ours", ours), ("usual", usual)):
            row[name] = load(url, draw_equal, clients, args.seconds).figures()
        rows.append(row)
        print(clients, json.dumps(row), flush=True)
    return {"rows": rows, "steps": STEPS}


async def _decode_files() -> Canvas:
    decoder = Decoder()
    parts = Parts(asked=EditRequest(), image=FILES["image"], mask=FILES["mask"])
    return await (await open_upload(parts, decoder)).decode(decoder)


def measure_overhead(args: argparse.Namespace) -> Figures:
    """Compares one request over HTTP with the same denoising without HTTP and Serve, in turn."""
    torch.set_num_threads(1)
    settings = to_settings({}).engine()
    engine = Engine(PolicyCache(resolve_model("tiny-sd"), settings), None, settings)
    upload = asyncio.run(_decode_files())
    box = surround([b for boxes in plan_passes(upload.hole, (SIDE, SIDE)) for b in boxes])
    ours = deploy("ours")
    for _ in range(3):
        _bare_seconds(engine, upload, box)
        _served_seconds(ours)
    rows = [(_bare_seconds(engine, upload, box), *_served_seconds(ours)) for _ in range(args.repeats)]
    bare, served, painted = np.array(rows).T
    # Within a request: the machine's own speed changes from one second to the next, by more than what is looked for.
    around = served - painted
    return {
        "bare_s": float(np.median(bare)),
        "painted_s": float(np.median(painted)),
        "served_s": float(np.median(served)),
        "overhead_s": float(np.median(around)),
        "overhead_quartiles_s": np.percentile(around, (25, 75)).tolist(),
        "painted_less_bare_quartiles_s": np.percentile(painted - bare, (25, 50, 75)).tolist(),
        "allowed_s": float(0.05 * np.median(painted) + 0.01),
        "repeats": args.repeats,
    }


def _served_seconds(url: str) -> tuple[float, float]:
    """Times one request: the whole of it, and the engine's part from the job's arrival to its images."""
    files = {name: (f"{name}.png", data, "image/png") for name, data in FILES.items()}
    started = time.perf_counter()
    answer = requests.post(url, files=files, data=draw_equal(0), timeout=60)
    seconds = time.perf_counter() - started
    durations = re.findall(r"dur=([\d.]+)", answer.headers["server-timing"])
    return seconds, sum(map(float, durations)) / 1000


def _bare_seconds(engine: Any, upload: Any, box: Any) -> float:
    image, hole = crop_to_size(upload, box, (SIDE, SIDE))
    job = TileJob(image=image, hole=hole, sample_indices=(0,), seed=0, num_inference_steps=STEPS)
    started = time.perf_counter()
    cache = engine._cache
    running = start_jobs(cache, [cache.take(ServedPolicy(), [])], [job])
    while not running[0].is_done:
        advance(cache, running)
    finish(cache, None, running)
    return time.perf_counter() - started


def measure_batching(args: argparse.Namespace) -> Figures:
    """Compares continuous batching with batches of whole requests, for equal and for mixed numbers of steps."""
    urls = {name: deploy(name, batching=name) for name in ("continuous", "whole")}
    for url in urls.values():
        load(url, draw_equal, 2, 2)
    rows = []
    for steps, draw in (("equal", draw_equal), ("mixed", draw_mixed)):
        for clients in (1, 4, 8, 16):
            for repeat in range(2):
                for name, url in urls.items():
                    figures = load(url, draw, clients, args.seconds).figures()
                    rows.append({"steps": steps, "clients": clients, "batching": name, "repeat": repeat} | figures)
                    print(json.dumps(rows[-1]), flush=True)
    return {"rows": rows}


def measure_overload(args: argparse.Namespace) -> Figures:
    """Sends requests at twice the rate that the service can answer."""
    url = deploy("ours")
    capacity = load(url, draw_equal, 16, args.seconds).figures()["images_per_s"]
    memory: list[dict[str, float]] = []

    async def run() -> Outcome:
        async def look() -> None:
            while True:
                memory.append(replica_memory())
                await asyncio.sleep(10)

        looking = asyncio.create_task(look())
        told = await open_loop(url, FILES, draw_equal, rate=2 * capacity, seconds=60 * args.minutes)
        looking.cancel()
        return told

    told = asyncio.run(run())
    answered = np.array(told.latencies)[np.argsort(told.finished)]
    halves = np.array_split(answered, 2)
    return {
        "capacity_images_per_s": capacity,
        "asked_per_s": 2 * capacity,
        "minutes": args.minutes,
        **told.figures(),
        "latency_max_s": float(answered.max()),
        "latency_p99_by_half_s": [float(np.percentile(half, 99)) for half in halves],
        "memory_mb": memory[:: max(1, len(memory) // 12)] + memory[-1:],
    }


def measure_faults(args: argparse.Namespace) -> Figures:
    """Kills replicas and the ingress, and swaps policies, each under a load of eight clients."""
    figures: Figures = {}
    policies = [describe_policy(folder.resolve()) for folder in list_policies(args.policies)[-2:]]
    names = args.out.resolve() / "names.json"

    def swap(number: int) -> None:
        served = ServedName(base="tiny-sd", current=policies[number % len(policies)])
        write_catalogue(Catalogue(models={"aligned": served}), names)

    swap(0)
    url = deploy("ours", replicas=2, catalogue=str(names))
    faults: dict[str, Callable[[int], None]] = {
        "killed replica": lambda _: os.kill(random.choice(replica_pids("Inpainter")), signal.SIGKILL),
        "killed ingress": lambda _: os.kill(random.choice(replica_pids("Api")), signal.SIGKILL),
        "swapped policy": swap,
    }
    for name, fault in faults.items():
        figures[name] = asyncio.run(_load_with_faults(url, fault, args.seconds * 3)) | {"clients": 8}
        print(name, json.dumps(figures[name]), flush=True)
        time.sleep(15)
    return figures


async def _load_with_faults(url: str, fault: Callable[[int], None], seconds: float) -> Figures:
    loading = asyncio.create_task(closed_loop(url, FILES, draw_equal, clients=8, seconds=seconds))
    count = 0
    while not loading.done():
        await asyncio.sleep(10)
        if not loading.done():
            fault(count + 1)
            count += 1
    return {"faults": count} | (await loading).figures()


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "overhead": measure_overhead,
    "throughput": measure_throughput,
    "batching": measure_batching,
    "faults": measure_faults,
    "overload": measure_overload,
}


def main() -> None:
    """Runs the missing parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for serving.json and serving.png")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=20, help="seconds of each load")
    parser.add_argument("--repeats", type=int, default=40, help="number of single requests")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of overload")
    parser.add_argument("--policies", type=Path, help="a run's `align` folder with two policies or more, for swaps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "serving.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    for part in args.only:
        if part in figures:
            continue
        with ray_session(num_cpus=4):
            ray_serve.start(http_options={"host": "127.0.0.1", "port": PORT})
            figures[part] = PARTS[part](args) | {"cores": psutil.cpu_count(), "date": time.strftime("%Y-%m-%d")}
            ray_serve.shutdown()
        atomic_write_json(file, figures)
        print(part, json.dumps(figures[part])[:2000], flush=True)
    if "throughput" in figures:
        plot(figures, args.out / "serving.png")


if __name__ == "__main__":
    main()
