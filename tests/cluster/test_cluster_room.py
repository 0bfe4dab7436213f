"""A run that a cluster file's command names, or that is given, must have room on the nodes that the file gives."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from helm_chart import find_kind, read_rendered
from typer.main import get_command

import rlhf
from rlhf.commands.cli import app
from rlhf.commands.cluster_check.manifests import manifest_problems
from rlhf.commands.cluster_files import file_problems, ray_up_problems
from rlhf.commands.cluster_shell import UNKNOWN, Checkout, Run, find_runs, read_commands
from rlhf.config.config_files import load_config

ROOT = Path(rlhf.__file__).parents[1]
CHECKOUT = Checkout(root=ROOT, rlhf=get_command(app))
CLUSTER = ROOT / "cluster"
RUN_FILE = "cluster/runs/multi_node_64gpu.yaml"
RUN = Run(name="align", file=RUN_FILE, config=load_config(ROOT / RUN_FILE), options={})
ALIGN = f"python -m rlhf align --address auto --resume --config {RUN_FILE} --prompts p --out o"

SLURM = f"""#!/bin/bash
#SBATCH --nodes=8
#SBATCH -c 96
#SBATCH --gres=gpu:a100:8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --no-kill --requeue  # "a comment
set -euo pipefail
gpus=${{SLURM_GPUS_ON_NODE:-$(nvidia-smi -L | wc -l)}}
marks='{{"learner": 8, "sampler": 8, "scorer": 8}}'
on_node() {{ srun --nodes=1 --nodelist="$1" "${{@:2}}" & }}
on_node "${{nodes[0]}}" ray start --head --port=6379 --block \\
  --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --resources="$marks"
for node in "${{nodes[@]:1}}"; do # the head's own node isn't among them
  on_node "$node" ray start --address="$head" --block --num-cpus=96 --num-gpus="$gpus" --resources="$marks" >"$LOG" 2>&1
done
{ALIGN} --reward "$SHARED/reward" &
trap 'kill -USR1 "$driver"' USR1
"""


def slurm_problems(text: str, tmp_path: Path) -> list[str]:
    (tmp_path / "job.sbatch").write_text(text)
    return file_problems(tmp_path / "job.sbatch", CHECKOUT)


def test_a_job_whose_nodes_hold_its_run_has_no_mistake(tmp_path: Path) -> None:
    assert slurm_problems(SLURM, tmp_path) == []


def test_the_slurm_job_of_the_repository_has_no_mistake() -> None:
    script = (CLUSTER / "slurm.sbatch").read_text()
    assert [start.words[:2] for start in read_commands(script)].count(["ray", "start"]) == 2, "both are read"
    assert file_problems(CLUSTER / "slurm.sbatch", CHECKOUT) == []


SLURM_MISTAKES = [
    ('{"learner": 8, ', "{", r"ray start: no node has the resource learner, which cluster\.role_resources of cluster/"),
    ("gpu:a100:8", "gpu:a100:7", r"ray start: \d+ of 65 actors do not fit .*8 node\(s\) of 96 CPU 7 GPU"),
    ("--gres=gpu:a100:8", "--gpus-per-node=h100:6", r"do not fit .*of 96 CPU 6 GPU"),
    ("--gres=gpu:a100:8", "--gpus=40", r"do not fit .*of 96 CPU 5 GPU"),
    ("#SBATCH --gres=gpu:a100:8\n", "", r"8 node\(s\) of 96 CPU 8 sampler"),
    ("--nodes=8", "--nodes=7", "do not fit .*7 node"),
    ("-c 96", "-c 32", "do not fit .*of 32 CPU 8 GPU"),
    (' --resources="$marks"\nfor', " --resources='{learner: 8}'\nfor", "--resources: {learner: 8} is not JSON"),
    ('--resources="$marks"\nfor', "--resource='{}'\nfor", "No such option.*--resource"),
    ("--no-kill ", "", "#SBATCH --no-kill: is missing, so one lost node of 8"),
    ("#SBATCH --signal=B:USR1@300\n", "", "#SBATCH --signal: is missing, so the time limit"),
    ("B:USR1", "B:USR2", "#SBATCH --signal: USR2 ends the script at once"),
    (" --resume", "", "a requeued job finds its folder used"),
    ("set -euo pipefail", "set -u", "set -e: is missing"),
    ('--num-cpus=96 --num-gpus="$gpus"', '--num-gpus "$SLURM_GPUS_PER_NODE"', "take SLURM_GPUS_ON_NODE"),
    ('on_node "$node" ray start', "srun ray start", "--block: the script waits here for ever"),
    ('on_node "$node" ray start --address="$head" --block', "srun ray symmetric-run --address a:1", "exit code 0 alth"),
    ("multi_node_64gpu", "multi_node_65gpu", r"--config .*multi_node_65gpu\.yaml does not exist"),
    ("set -e", "echo 'set -e", "the script: not a shell command"),
    ("--nodes=8", "--nodes=many", "#SBATCH: not readable .*many"),
    ("--time=24:00:00", '--time="24:00:00', "#SBATCH: not readable .*No closing quotation"),
]


@pytest.mark.parametrize(("right", "wrong", "message"), SLURM_MISTAKES)
def test_a_mistake_in_a_slurm_job_is_told(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    assert right in SLURM
    problems = slurm_problems(SLURM.replace(right, wrong), tmp_path)
    assert any(re.search(message, problem) for problem in problems), problems


def test_what_only_the_shell_knows_is_no_mistake(tmp_path: Path) -> None:
    text = SLURM.replace('--num-gpus="$gpus"', '--num-gpus="$(count)"').replace(RUN_FILE, '"$RUN_FILE"')
    assert slurm_problems(text.replace("marks='", "marks='{}'; marks='"), tmp_path) == []
    assert slurm_problems(SLURM.replace("--port=6379", '"${options[@]}"'), tmp_path) == []


def test_commands_are_found_behind_launchers_variables_and_quotations() -> None:
    text = """
    if ! srun -N1 timeout 5 ray status; then x=1; fi # don't stop
    export y=${z:-two}
    sudo bash -c "ray start --address=$y:1 | tee log" 2>/dev/null
    echo 'ray
    start'; ray stop $(ray up x)
    """
    words = [command.words for command in read_commands(text)]
    assert words == [
        ["ray", "status"],
        ["ray", "start", "--address=two:1"],
        ["ray", "stop", UNKNOWN],
        ["ray", "up", "x"],
    ]
    (run,) = find_runs(f"ray job submit --working-dir . -- {ALIGN} --set cluster.samplers=3", CHECKOUT)
    assert (run.name, run.file, run.config.cluster.samplers) == ("align", RUN_FILE, 3)


RAY_UP = ("aws", "gcp", "azure", "on_premises", "ssh")


def ray_up(name: str) -> dict:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", RAY_UP)
def test_each_cluster_of_64_gpus_has_room_for_the_run_of_64_gpus(name: str) -> None:
    assert ray_up_problems(ray_up(name), CHECKOUT, RUN) == []


def test_a_cluster_without_room_for_the_given_run_is_told() -> None:
    record = ray_up("aws")
    del record["available_node_types"]["learner"]["resources"]["learner"]
    (problem,) = ray_up_problems(record, CHECKOUT, RUN)
    assert problem.startswith("available_node_types: no node has the resource learner, which cluster.role_resources of")
    assert problem.endswith("add it to `resources:` of a node type")
    record = ray_up("aws")
    record["available_node_types"]["sampler"]["max_workers"] = 5
    (problem,) = ray_up_problems(record, CHECKOUT, RUN)
    assert "available_node_types: 8 of 65 actors do not fit (PACK): missing" in problem
    assert "1 node(s) of ? GPU; 2 node(s) of 96 CPU 8 GPU 8 learner; 5 node(s) of 192 CPU" in problem
    assert f"ask for less in `cluster:` of {RUN_FILE}" in problem


def test_machines_of_ones_own_that_no_worker_joins_or_that_have_no_role_are_told() -> None:
    record = ray_up("on_premises")
    head, worker = record["head_start_ray_commands"], record["worker_start_ray_commands"]
    record["head_start_ray_commands"] = [line.replace("RAY_enable_autoscaler_v2=0 ", "") for line in head]
    (problem,) = ray_up_problems(record, CHECKOUT)
    assert problem.startswith("head_start_ray_commands: no worker would join")
    record["head_start_ray_commands"] = head
    record["worker_start_ray_commands"] = [line.split(" --resources")[0] for line in worker]
    (problem,) = ray_up_problems(record, CHECKOUT, RUN)
    assert problem.startswith("worker_start_ray_commands: no node has the resource sampler or scorer or learner")


def manifest(name: str) -> dict:
    return find_kind(read_rendered(), {"ray_cluster": "RayCluster", "ray_job": "RayJob"}.get(name, "RayService"))


def group(record: dict, index: int) -> dict:
    spec = record["spec"]
    cluster = spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec
    return cluster["workerGroupSpecs"][index]


def limit(name: str, amount: str) -> Callable[[dict], None]:
    def change(record: dict) -> None:
        for node in (0, 1) if record["kind"] != "RayService" else (0,):
            group(record, node)["template"]["spec"]["containers"][0]["resources"] = {"limits": {name: amount}}

    return change


KUBERNETES_MISTAKES = [
    ("ray_cluster", lambda r: group(r, 1).pop("resources"), "no node has the resource sampler or scorer, which"),
    ("ray_cluster", lambda r: group(r, 0).update(maxReplicas=1), "8 of 65 actors do not fit"),
    (
        "ray_cluster",
        lambda r: r["spec"].update(enableInTreeAutoscaling=False),
        "no node has the resource sampler or scorer or learner",
    ),
    ("ray_cluster", lambda r: group(r, 0)["rayStartParams"].update({"num-gpus": "4"}), "96 CPU 4 GPU|88 CPU 4 GPU"),
    ("ray_cluster", limit("nvidia.com/gpu", "8"), "Ray cannot read its resources .*failed to detect `CPU`"),
    ("ray_cluster", lambda r: group(r, 0)["template"].update(spec={"containers": []}), "cannot read its resources"),
    ("ray_job", limit("cpu", "88"), "2 node.s. of 88 CPU 8 learner"),
    ("ray_job", lambda r: r["spec"].update(entrypoint=f"{ALIGN} --set cluster.samplers=49"), "1 of 66 actors"),
    ("ray_job", lambda r: r["spec"].update(entrypoint=ALIGN.replace(" --resume", "")), "backoffLimit"),
    ("ray_service", limit("cpu", "6"), "workerGroupSpecs: 2 of 2 actors do not fit .*replicas of the service is 2"),
    ("ray_service", lambda r: group(r, 0).update(maxReplicas=3), "max_replicas of the service is 4"),
    (
        "ray_service",
        lambda r: group(r, 0)["template"]["spec"].pop("terminationGracePeriodSeconds"),
        r"server: terminationGracePeriodSeconds 30 ends requests of 120 s \(request_timeout_s\); make it longer",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), KUBERNETES_MISTAKES)
def test_a_manifest_without_room_for_its_run_is_told(name: str, change: Callable, message: str) -> None:
    record = copy.deepcopy(manifest(name))
    assert manifest_problems(record, CHECKOUT, None, RUN) == []
    change(record)
    problems = manifest_problems(record, CHECKOUT, None, RUN)
    assert any(re.search(message, problem) for problem in problems), problems
