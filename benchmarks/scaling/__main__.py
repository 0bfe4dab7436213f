"""Measures how many samplers one coordinator serves: `python -m benchmarks.scaling --samplers 1 8 64`.

Stand-ins replace samplers and scorers and take the time of their GPUs. Coordinator, dispatcher, messages, checksums
and Ray are those of a run, and so are the sizes of prompts, LoRA weights, images and trajectories. Everything runs on
one machine, so its few cores share the copying and hashing of all nodes. For hundreds of samplers let one process stand
in for many, with small images: `--samplers 64 256 1024 --per-process 64 --edge-px 64`. The coordinator's work per
task does not depend on either. With `--nodes 4` the stand-ins lie on as many Ray nodes, each with a raylet and an
object store of its own.
"""

import argparse
import json
import os
import pickle
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("RAY_worker_niceness", "0")

import psutil  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402

from actors.coordinator import Coordinator  # noqa: E402
from actors.messages import UpdateWork  # noqa: E402
from actors.pool.dispatch import Dispatcher  # noqa: E402
from actors.pool.worker_pool import WorkerPool  # noqa: E402
from actors.session.ray_session import ray_session  # noqa: E402
from actors.telemetry.incidents import Incidents  # noqa: E402
from benchmarks.scaling.stand_ins import Pace, StandInSampler, StandInScorer, batch_seconds  # noqa: E402
from benchmarks.several_nodes import several_nodes  # noqa: E402
from rlhf.alignment.planning.idle_shares import best_seconds  # noqa: E402
from rlhf.config.config_files import load_config  # noqa: E402
from rlhf.config.run_config import RunConfig  # noqa: E402
from rlhf.data.photographs import TO_LEARN_FROM  # noqa: E402
from rlhf.data.prompt_cutting import make_prompts  # noqa: E402
from rlhf.data.prompts import PromptTable  # noqa: E402
from rlhf.diffusion.families.stable_diffusion import LORA_TARGETS

RUN_FILE = Path(__file__).parents[2] / "cluster" / "runs" / "one_node_8gpu.yaml"
GCS, RAYLET = "gcs_server", "raylet"
"""Ray's own processes, one for all nodes and one for each; the rest of its control plane is in the workers."""


@dataclass(frozen=True, kw_only=True)
class ScalingSize:
    """Size of one measurement."""

    samplers: int
    scorers: int
    updates: int
    """Number of measured updates."""


@dataclass(frozen=True, kw_only=True)
class UpdateFigures:
    """Figures of one update, or their means over updates."""

    images_per_s: float
    share_of_ideal: float
    """Images per second over those of samplers that never wait."""
    share_of_best_schedule: float
    """Duration of the best schedule over that of the update."""
    update_s: float
    weights_sync_s: float
    sampler_idle_share: float
    tasks: float
    tasks_per_s: float
    object_store_mb_per_s: float
    """Images and trajectories that pass through object stores, by their sizes."""
    coordinator_cpu_ms_per_task: float
    ray_cpu_ms_per_task: float
    """CPU time of Ray's own processes."""
    gcs_cpu_share: float
    """CPU time of Ray's one server of the whole cluster over the duration of the update."""
    raylet_cpu_share: float
    """The same for the busiest node's raylet."""
    coordinator_cpu_share: float
    """CPU time of the coordinator over the duration of the update."""
    control_kb_per_task: float
    """Serialised size of ids, advantages, trust weights and scores."""
    images_mb_per_task: float
    trajectories_mb_per_task: float
    weights_mb: float
    fetched_s: float
    """Duration of fetching the trajectories of all learner ranks in turn."""


@dataclass(frozen=True, kw_only=True)
class ScalingLine(UpdateFigures, ScalingSize):
    """Mean figures of one number of samplers: a line of `scaling.json`, beside the pace."""


def lora_weights(config: RunConfig) -> dict[str, torch.Tensor]:
    """Returns adapters of stable-diffusion-inpainting with the configuration's rank: real names and shapes."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, in_channels=9, cross_attention_dim=768)
        rank, targets = config.align.lora_rank, list(config.align.lora_targets or LORA_TARGETS)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return {name: torch.randn(p.shape) for name, p in unet.named_parameters() if p.requires_grad}


def make_prompt_table(folder: Path, config: RunConfig) -> PromptTable:
    """Makes prompts from real photographs, at the configuration's size."""
    prompts = config.prompts.model_copy(update={"crops_per_photograph": 4})
    make_prompts(TO_LEARN_FROM, folder / "prompts", prompts, seed=0)
    return PromptTable(folder / "prompts", split="train")


def measure(
    samplers: int, arguments: argparse.Namespace, pace: Pace, weights: dict[str, torch.Tensor], folder: Path
) -> ScalingLine:
    """Runs updates of `waves` micro-batches per sampler; returns the mean figures of all updates but the first."""
    config = load_config(RUN_FILE)
    groups = config.align.micro_batch_size // config.align.samples_per_prompt
    align = config.align.model_copy(update={"prompts_per_update": samplers * arguments.waves * groups})
    config, scorers = config.model_copy(update={"align": align}), max(1, samplers // 8)
    incidents = Incidents(folder)

    def pool(role: str, actor: type, size: int) -> WorkerPool:
        shared = arguments.per_process
        start = ray.remote(num_cpus=0, max_concurrency=shared, scheduling_strategy="SPREAD")(actor).remote
        handles = [start(pace) for _ in range(-(-size // shared))]
        return WorkerPool(role, lambda place: handles[place // shared], size, incidents)

    dispatcher = Dispatcher(
        samplers=pool("sampler", StandInSampler, samplers),
        scorers=pool("scorer", StandInScorer, scorers),
        timeout_s=600.0,
    )
    table = make_prompt_table(folder, config) if not (folder / "prompts").is_dir() else None
    table = table or PromptTable(folder / "prompts", split="train")
    coordinator = Coordinator(config, table, dispatcher, incidents, ranks=2, out=folder)
    lines = []
    for update in range(arguments.updates + 1):
        cpu = cpu_seconds()
        work = coordinator.collect(update, {name: tensor + update for name, tensor in weights.items()}, probe=0.0)
        spent = {name: seconds - cpu[name] for name, seconds in cpu_seconds().items()}
        fetch_s = fetch(work)
        lines.append(describe(work, samplers, pace, spent, update, fetch_s))
    for started in dispatcher.pools:
        started.dismiss()
    assert not incidents.metrics()["restarts"], "a stand-in was lost"
    # Stand-ins start during the first update.
    kept = lines[1:]
    means = {name: sum(getattr(line, name) for line in kept) / len(kept) for name in vars(kept[0])}
    return ScalingLine(samplers=samplers, scorers=scorers, updates=arguments.updates, **means)


def fetch(work: UpdateWork) -> float:
    """Fetches the trajectories of all learner ranks in turn; returns the duration in seconds."""
    started = time.perf_counter()
    for share in work.shares:
        ray.get([batch.trajectories[0] for batch in share])
    return time.perf_counter() - started


def cpu_seconds() -> dict[str, float]:
    """Returns the CPU seconds of this process, which coordinates, and of Ray's own processes, by name and id."""
    spent = {"coordinator": time.process_time()}
    for process in psutil.Process().children(recursive=True):
        if process.name() in (GCS, RAYLET):
            times = process.cpu_times()
            spent[f"{process.name()} {process.pid}"] = times.user + times.system
    return spent


def describe(
    work: UpdateWork, samplers: int, pace: Pace, cpu: Mapping[str, float], update: int, fetched_s: float
) -> UpdateFigures:
    """Returns the figures of one update."""
    metrics, batches = work.metrics, [batch for share in work.shares for batch in share]
    images = metrics["images_per_s"] * metrics["rollout_s"]
    ideal = samplers * (images / len(batches)) / pace.batch_s
    best_s = best_seconds([batch_seconds(pace, update, batch.prompt_ids) for batch in batches], samplers)
    control = sum(len(pickle.dumps((b.prompt_ids, b.advantages, b.trust_weights, b.scores))) for b in batches)
    latent = (pace.edge_px // 8) ** 2 * 4 / 1e6
    steps, seconds = 2, metrics["rollout_s"]
    images_mb = images / len(batches) * 3 * pace.edge_px**2 / 1e6
    trajectories_mb = images / len(batches) * (6 + 8 * steps) * latent
    ray_s = {name: cpu_s for name, cpu_s in cpu.items() if name != "coordinator"}
    return UpdateFigures(
        images_per_s=metrics["images_per_s"],
        share_of_ideal=metrics["images_per_s"] / ideal,
        share_of_best_schedule=best_s / seconds,
        update_s=seconds,
        weights_sync_s=metrics["weights_sync_s"],
        sampler_idle_share=metrics["sampler_idle_share"],
        tasks=len(batches),
        tasks_per_s=len(batches) / seconds,
        object_store_mb_per_s=(images_mb + trajectories_mb) * len(batches) / seconds,
        coordinator_cpu_ms_per_task=1e3 * cpu["coordinator"] / len(batches),
        ray_cpu_ms_per_task=1e3 * sum(ray_s.values()) / len(batches),
        coordinator_cpu_share=cpu["coordinator"] / seconds,
        gcs_cpu_share=sum(cpu_s for name, cpu_s in ray_s.items() if name.startswith(GCS)) / seconds,
        raylet_cpu_share=max(cpu_s for name, cpu_s in ray_s.items() if name.startswith(RAYLET)) / seconds,
        control_kb_per_task=control / len(batches) / 1e3,
        images_mb_per_task=images_mb,
        trajectories_mb_per_task=trajectories_mb,
        weights_mb=metrics["weights_bytes"] / 1e6,
        fetched_s=fetched_s,
    )


def main() -> None:
    """Measures each number of samplers, prints its figures and writes all to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samplers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--updates", type=int, default=2, help="number of measured updates; one more comes before them")
    parser.add_argument("--waves", type=int, default=4, help="micro-batches per sampler and update")
    parser.add_argument("--batch-s", type=float, default=20.0, help="a sampler's time for 16 images")
    parser.add_argument("--jitter", type=float, default=0.05, help="up to this share more or less")
    parser.add_argument("--score-s", type=float, default=0.25, help="a scorer's time for 16 images")
    parser.add_argument("--per-process", type=int, default=1, help="stand-ins in one process, a thread each")
    parser.add_argument("--edge-px", type=int, default=512, help="edge of the stand-ins' images")
    parser.add_argument("--nodes", type=int, default=1, help="Ray nodes, all on this machine")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "scaling.json")
    arguments = parser.parse_args()
    pace = Pace(
        batch_s=arguments.batch_s, jitter=arguments.jitter, score_s=arguments.score_s, edge_px=arguments.edge_px
    )
    weights, lines = lora_weights(load_config(RUN_FILE)), []
    session = ray_session() if arguments.nodes == 1 else several_nodes(arguments.nodes)
    with session, tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        for samplers in arguments.samplers:
            line = measure(samplers, arguments, pace, weights, Path(folder))
            lines.append(vars(pace) | {"per_process": arguments.per_process, "nodes": arguments.nodes} | asdict(line))
            print(json.dumps({name: round(value, 4) for name, value in asdict(line).items()}), flush=True)
    arguments.out.write_text(json.dumps({"lines": lines}, indent=2) + "\n")


if __name__ == "__main__":
    main()
