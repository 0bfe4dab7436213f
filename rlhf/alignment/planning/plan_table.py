"""A plan as a table for people."""

from rlhf.alignment.disk_need import show_bytes
from rlhf.alignment.planning.machine import STATED_UTILISATION
from rlhf.alignment.planning.plan import Plan

COLUMNS = ("role", "processes", "parameters", "held in", "device", "weights", "optimizer", "passes", "host", "idle")


def format_plan(plan: Plan) -> str:
    """The processes, line by line, and what the run takes as a whole."""
    height, width = plan.size_px
    head = f"{plan.model} ({plan.pipeline}), {width}x{height} px, {plan.precision}, {plan.images} images an update"
    rows = [COLUMNS, *(_row(plan, index) for index in range(len(plan.processes)))]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([head, "", *table, "", *_whole(plan)])


def _row(plan: Plan, index: int) -> tuple[str, ...]:
    need = plan.processes[index]
    held = need.device
    opening = need.opening_bytes > sum(held.values())
    return (
        need.role,
        f"{need.count} x {need.gpus:g} GPU" if need.gpus else f"{need.count} on CPUs",
        f"{need.parameters / 1e6:,.1f} M",
        need.dtype,
        show_bytes(need.gpu_bytes or need.device_bytes) + (" (text encoders, at the start)" if opening else ""),
        _size(sum(held.get(name, 0) for name in ("network", "base copy", "merged copy", "VAE"))),
        _size(held.get("gradients", 0) + held.get("optimizer", 0)),
        _size(held.get("passes", 0) + held.get("rollout", 0)),
        show_bytes(need.host_bytes),
        f"{plan.idle_shares[need.role]:.0%}",
    )


def _whole(plan: Plan) -> list[str]:
    traffic, timing = plan.traffic, plan.timing
    lines = [
        f"GPUs: {plan.gpus}; the fullest holds {plan.largest_gpu}: {show_bytes(plan.largest_gpu_bytes)}"
        + (" (they take turns)" if plan.are_turns else ""),
        f"host memory: {show_bytes(plan.node_bytes)} on each of {plan.nodes} node(s), "
        f"object store {show_bytes(plan.object_store_bytes)}; disk: {show_bytes(plan.disk_bytes)}",
        f"an update sends: weights {show_bytes(traffic.weights)} to each node, images {show_bytes(traffic.images)}, "
        f"trajectories {show_bytes(traffic.trajectories)}, a learner to the others "
        f"{show_bytes(traffic.between_learners)}",
    ]
    if timing is None:
        stated = " and ".join(f"{share:.0%} in {use}" for use, share in STATED_UTILISATION.items())
        lines.append(f"time: give --tflops or --rates; idle shares suppose {stated} of a GPU's rate, not measured")
    else:
        cost = timing.cost_per_1000_images
        lines.append(
            f"time: {timing.update_s:.3g} s an update: {timing.rollout_s:.3g} rollout, {timing.training_s:.3g} training"
            + (f"; {cost:.3g} for 1,000 images" if cost is not None else "; cost: give --gpu-hour-price")
        )
    return lines if plan.gpus else lines[1:]


def _size(count: int) -> str:
    return show_bytes(count) if count else "-"
