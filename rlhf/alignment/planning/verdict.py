"""Whether a plan fits the machines, and the settings that would make it fit."""

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from rlhf.alignment.disk_need import show_bytes
from rlhf.alignment.planning.machine import Machine
from rlhf.alignment.planning.model_costs import count_numbers
from rlhf.alignment.planning.plan import ROLES, Plan, make_plan
from rlhf.config.run_config import RunConfig
from rlhf.errors import UserError

COUNTED_FROM = 100_000_000
"""Numbers in a network from which `rlhf align` counts its passes before it starts, which takes seconds."""
Changes = dict[str, Any]
"""Values of settings by their names, as `--set` takes them."""


def judge(config: RunConfig, plan: Plan, machine: Machine) -> Plan:
    """The plan with its problems on these machines."""
    problems = []
    if machine.gpus is not None and plan.gpus > machine.gpus:
        problems.append(
            f"the run asks for {plan.gpus} GPUs, and there are {machine.gpus}; lower cluster.samplers or "
            "cluster.learners, or let actors share a GPU with cluster.gpus_per_sampler and the others"
        )
    if machine.gpu_bytes is not None and plan.largest_gpu_bytes > machine.gpu_bytes:
        problems.append(
            f"{plan.largest_gpu}: {show_bytes(plan.largest_gpu_bytes)} on a GPU of {show_bytes(machine.gpu_bytes)}; "
            + _remedy(config, plan, machine, "a larger GPU")
        )
    if machine.host_bytes is not None and plan.node_bytes > machine.host_bytes:
        problems.append(
            f"{show_bytes(plan.node_bytes)} of host memory on a machine of {show_bytes(machine.host_bytes)}; "
            + _remedy(config, plan, machine, "more memory or fewer processes")
        )
    return replace(plan, problems=tuple(problems))


def refuse(plan: Plan) -> None:
    """Raises UserError with the problems of a plan, if it has any."""
    if plan.problems:
        raise UserError("\n".join(f"{plan.model}: {problem}" for problem in plan.problems))


def check_room(config: RunConfig, size_px: tuple[int, int] | None, *, is_here: bool, is_sampling: bool = True) -> str:
    """One line for the start of a run on pictures of `size_px`; this machine counts if the run `is_here`.

    Raises UserError if the run cannot fit. Networks of fewer than `COUNTED_FROM` numbers are not counted.
    """
    if (numbers := count_numbers(config.model.path)) < COUNTED_FROM:
        return f"plan: {numbers / 1e6:.1f} M parameters fit anywhere; rlhf plan counts the rest"
    machine = Machine.here() if is_here else Machine()
    plan = make_plan(config, gpus=machine.gpus, size_px=size_px, roles=ROLES if is_sampling else ("learner",))
    refuse(judge(config, plan, machine))
    needs = [f"{n.count} {n.role}(s) of {show_bytes(n.gpu_bytes or n.host_bytes)}" for n in plan.processes]
    known = "fit this machine" if is_here else "were not compared with the cluster's memory"
    return f"plan: {', '.join(needs)}, which {known}; rlhf plan shows more"


def _fits(plan: Plan, machine: Machine) -> bool:
    return (machine.gpu_bytes is None or plan.largest_gpu_bytes <= machine.gpu_bytes) and (
        machine.host_bytes is None or plan.node_bytes <= machine.host_bytes
    )


def _remedy(config: RunConfig, plan: Plan, machine: Machine, otherwise: str) -> str:
    """The first settings, alone or together with those before them, that make the run fit."""
    changes = list(_changes(config))
    together = [dict(ChainMap(*reversed(changes[: count + 1]))) for count in range(1, len(changes))]
    for change in changes + together:
        changed = _changed(config, change)
        if changed is None:
            continue
        other = make_plan(
            changed, gpus=machine.gpus, size_px=plan.size_px, roles=tuple(need.role for need in plan.processes)
        )
        if _fits(other, machine):
            settings = " ".join(f"--set {name}={str(value).lower()}" for name, value in change.items())
            size = other.largest_gpu_bytes or other.node_bytes
            return f"{settings} would make it fit ({show_bytes(size)})"
    return f"no setting that was tried makes it fit; use {otherwise}, or a smaller model"


def _changes(config: RunConfig) -> Iterator[Changes]:
    """Settings that take less memory, those that change least first."""
    align = config.align
    if align.merged_sampling is True:
        yield {"align.merged_sampling": False}
    if not align.gradient_checkpointing:
        yield {"align.gradient_checkpointing": True}
    size = align.micro_batch_size // 2
    while size >= align.samples_per_prompt and size % align.samples_per_prompt == 0:
        yield {"align.micro_batch_size": size}
        size //= 2
    if config.model.precision == "fp32":
        yield {"model.precision": "bf16"}
    if align.samples_per_prompt > 4 and align.samples_per_prompt % 4 == 0:
        count = align.samples_per_prompt // 4
        yield {"align.micro_batch_size": 4, "align.samples_per_prompt": 4} | {
            "align.prompts_per_update": align.prompts_per_update * count
        }
    if align.trainable == "full":
        if config.cluster.learners > 1 and align.zero_stage < 3:
            yield {"align.zero_stage": 3}
        yield {"align.trainable": "lora"}
    if config.cluster.samplers > 1:
        yield {"cluster.samplers": 1}


def _changed(config: RunConfig, changes: Changes) -> RunConfig | None:
    record = config.model_dump()
    for name, value in changes.items():
        section, _, setting = name.partition(".")
        record[section][setting] = value
    try:
        return RunConfig.model_validate(record)
    except ValidationError:
        return None
