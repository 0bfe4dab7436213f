"""`rlhf plan`: what a run will take, before anything starts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.commands.options import Config, Overrides, resolve_config
from rlhf.errors import UserError

if TYPE_CHECKING:
    from rlhf.alignment.planning.machine import Rates

GB = 1_000_000_000


def plan(
    config: Config = None,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs that there are; default: as many as needed.")] = None,
    gpu_memory_gb: Annotated[float | None, typer.Option(min=0.1, help="Memory of each GPU.")] = None,
    host_memory_gb: Annotated[float | None, typer.Option(min=0.1, help="Memory of each machine, of 8 GPUs.")] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="TFLOP/s that a process reaches in passes of the network.")
    ] = None,
    rates: Annotated[
        Path | None, typer.Option("--rates", help="gpu.json of `python -m benchmarks.gpu`, in place of --tflops.")
    ] = None,
    gpu_hour_price: Annotated[float | None, typer.Option(min=0.0, help="Price of a GPU for an hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Count memory, traffic, time and cost of `rlhf align` without weights, and say what does not fit."""
    resolved = resolve_config(config, overrides)
    from rlhf.alignment.planning.machine import Machine
    from rlhf.alignment.planning.plan import make_plan, planned_precision
    from rlhf.alignment.planning.plan_table import format_plan
    from rlhf.alignment.planning.verdict import judge, refuse

    machine = Machine(
        gpus=gpus,
        gpu_bytes=None if gpu_memory_gb is None else int(gpu_memory_gb * GB),
        host_bytes=None if host_memory_gb is None else int(host_memory_gb * GB),
    )
    speed = _speed(tflops, rates, planned_precision(resolved))
    made = make_plan(resolved, gpus=gpus, rates=speed, price_per_gpu_hour=gpu_hour_price)
    if gpu_memory_gb is not None and not made.gpus:
        raise UserError("--gpu-memory-gb: no process of this run asks for a GPU; set cluster.gpus_per_actor")
    made = judge(resolved, made, machine)
    print(json.dumps(_record(made), indent=2) if as_json else format_plan(made))
    refuse(made)
    if not as_json and machine != Machine():
        print("it fits")


def _speed(tflops: float | None, file: Path | None, precision: str) -> "Rates | None":
    from rlhf.alignment.planning.machine import Rates, read_rates

    if file is not None:
        if tflops is not None:
            raise UserError("plan: --tflops and --rates both give the speed; leave one out")
        return read_rates(file, precision)
    return None if tflops is None else Rates(rollout=1e12 * tflops, training=1e12 * tflops)


def _record(plan: object) -> dict[str, object]:
    record = asdict(plan)  # type: ignore[call-overload]
    for own, need in zip(record["processes"], plan.processes, strict=True):  # type: ignore[attr-defined]
        own |= {"gpu_bytes": need.gpu_bytes, "host_bytes": need.host_bytes}
    return record
