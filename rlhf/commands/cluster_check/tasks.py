"""Finds mistakes in the tasks of SkyPilot and dstack; their own packages check the keys."""

import re
from typing import Any

from rlhf.commands.cluster_check.nodes import room_problems, started_offer
from rlhf.commands.cluster_shell import UNKNOWN, Checkout, command_problems, find_runs, read_commands


def is_task(record: dict[str, Any]) -> bool:
    """Whether a file's record is a task of SkyPilot or dstack."""
    return "run" in record or ("commands" in record and "type" in record)


def task_problems(record: dict[str, Any], checkout: Checkout) -> list[str]:
    """Returns the problems of a task's commands, and what its run asks for and no node has."""
    resources = record.get("resources") or {}
    if "run" in record:
        text, count = f"{record.get('setup') or ''}\n{record['run']}", record.get("num_nodes", 1)
        name, gpus = "SKYPILOT_NUM_GPUS_PER_NODE", resources.get("accelerators")
    else:
        text, count = "\n".join(map(str, record["commands"])), record.get("nodes", 1)
        name, gpus = "DSTACK_GPUS_PER_NODE", resources.get("gpu")
    variables = {name: _count_gpus(gpus)}
    problems = command_problems(text, checkout, variables)
    starts = [command for command in read_commands(text, variables) if command.words[:2] == ["ray", "start"]]
    # Commands that cannot be parsed say nothing of the resources.
    if problems or not starts or not isinstance(count, int):
        return problems
    offer = started_offer(count, starts)
    return [p for run in find_runs(text, checkout, variables) for p in room_problems(offer, run)]


def _count_gpus(gpus: object) -> str:
    """Returns the GPUs of each node, written as `A100:8`, `8` or `{A100: 8}`; UNKNOWN for a choice of several kinds."""
    if gpus is None:
        return "0"
    if isinstance(gpus, dict) and len(gpus) == 1:
        (gpus,) = gpus.values()
    match = re.fullmatch(r"(?:.*:)?(\d+)", str(gpus))
    return UNKNOWN if match is None else match[1]
