"""Finds mistakes in sbatch scripts that Slurm finds late, or never."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf.commands.cluster_check.nodes import room_problems, started_offer
from rlhf.commands.cluster_shell import Checkout, Command, command_problems, find_runs, read_commands
from rlhf.errors import UserError

SHORT = {"N": "nodes", "c": "cpus-per-task", "G": "gpus", "k": "no-kill", "t": "time"}


@dataclass(frozen=True, kw_only=True)
class Script:
    """An sbatch script."""

    text: str
    options: Mapping[str, str]
    """The options of its #SBATCH lines by their long names; empty for those without a value."""
    nodes: int
    """The most nodes that it asks for."""

    @property
    def gpus(self) -> int:
        """GPUs that it asks for on each node."""
        for name in ("gpus-per-node", "gres", "gpus"):
            for part in self.options.get(name, "").split(","):
                match = re.fullmatch(r"(?:gres/)?(?:gpu:)?(?:[A-Za-z][\w.-]*:)?(\d+)", part.removesuffix("gpu"))
                if part == "gpu":
                    return 1
                if match is not None and (name != "gres" or part.startswith(("gpu", "gres/gpu"))):
                    return int(match[1]) // (self.nodes if name == "gpus" else 1)
        return 0

    @property
    def variables(self) -> dict[str, str]:
        """The variables that Slurm sets by its options."""
        known = dict.fromkeys(("SLURM_JOB_NUM_NODES", "SLURM_NNODES"), str(self.nodes))
        known |= {"SLURM_GPUS_ON_NODE": str(self.gpus)}
        names = {"SLURM_CPUS_PER_TASK": "cpus-per-task", "SLURM_GPUS_PER_NODE": "gpus-per-node"}
        return known | {name: self.options[option] for name, option in names.items() if option in self.options}


def script_problems(path: Path, checkout: Checkout) -> list[str]:
    """Returns the problems of a shell script's commands, and those of an sbatch script's options and resources.

    Raises UserError if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    try:
        options = _read_options(text)
        nodes = int(options.get("nodes", "1").rpartition("-")[2])
    except ValueError as error:
        return [f"#SBATCH: not readable ({error})"]
    script = Script(text=text, options=options, nodes=nodes)
    problems = command_problems(text, checkout, script.variables)
    # Commands that cannot be parsed say nothing of the resources.
    return problems or _job_problems(script, checkout)


def _read_options(text: str) -> dict[str, str]:
    options = {}
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("#SBATCH"), comments=True) if line.startswith("#SBATCH") else []
        for word, value in zip(words, [*words[1:], ""], strict=False):
            if word.startswith("--"):
                name, equals, given = word[2:].partition("=")
                options[name] = given if equals else "" if value.startswith("-") else value
            elif re.match(r"-[A-Za-z]", word):
                options[SHORT.get(word[1], word[1])] = word[2:] or ("" if value.startswith("-") else value)
    return options


def _job_problems(script: Script, checkout: Checkout) -> list[str]:
    commands = list(read_commands(script.text, script.variables))
    starts = [c for c in commands if c.words[:2] in (["ray", "start"], ["ray", "symmetric-run"])]
    runs = find_runs(script.text, checkout, script.variables)
    problems = _loss_problems(script, starts)
    if "requeue" in script.options and any(r.name == "align" and not r.options["resume"] for r in runs):
        problems.append("rlhf align: a requeued job finds its folder used and stops; add --resume")
    if starts:
        offer = started_offer(script.nodes, starts)
        problems += [p for run in runs for p in room_problems(offer, run)]
    return problems


def _loss_problems(script: Script, starts: list[Command]) -> list[str]:
    """Returns what lets a failure pass as success, or throws away more than was lost."""
    problems = []
    if any(start.words[1] == "symmetric-run" for start in starts):
        problems.append(
            "ray symmetric-run: exit code 0 although Ray did not start, and nodes that stay held after the end; "
            "use `ray start` on each node, as cluster/slurm.sbatch does"
        )
    if script.nodes > 1 and "no-kill" not in script.options:
        problems.append(f"#SBATCH --no-kill: is missing, so one lost node of {script.nodes} ends the job; add it")
    if starts and "time" in script.options and "signal" not in script.options:
        problems.append(
            "#SBATCH --signal: is missing, so the time limit ends the job without a checkpoint; "
            "add --signal=B:USR1@300, and a trap for USR1 that stops the run"
        )
    name = script.options.get("signal", "").removeprefix("B:").partition("@")[0].removeprefix("SIG")
    if name and not re.search(rf"^\s*trap\s.*\b(SIG)?{name}\b", script.text, re.MULTILINE):
        problems.append(f"#SBATCH --signal: {name} ends the script at once, as no `trap` takes it; add one")
    if starts and not re.search(r"^\s*(set\s+(-\w*e|-o errexit)|exit\b)", script.text, re.MULTILINE):
        problems.append("set -e: is missing, and no `exit` hands on the run's exit code: a failure counts as success")
    if re.search(r"--num-gpus[= ]\"?\$\{?SLURM_GPUS_PER_NODE\b", script.text):
        problems.append(
            "ray start --num-gpus: SLURM_GPUS_PER_NODE is empty with --gres and holds the type with "
            "--gpus-per-node=a100:8; take SLURM_GPUS_ON_NODE"
        )
    for start in starts:
        if start.words[1] == "start" and "--block" in start.words and not start.in_background:
            problems.append(f"{' '.join(start.words[:3])} --block: the script waits here for ever; add & behind it")
    return problems
