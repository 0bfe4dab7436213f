"""Alignments under a real Slurm, on small machines of this host: what a job does when faults are injected."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from align_runs import with_cluster
from processes import wait_for as wait_with_limit
from small_parts import save_small_reward, small_config, small_prompts, write_prompts

import rlhf
from rlhf.config.config_files import dump_config
from rlhf.reports.metrics_log import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(rlhf.__file__).parents[1]
SCRIPTS = ROOT / "tests" / "lab"
PROGRAMS = ("ip", "nsenter", "unshare", "munged", "slurmctld", "slurmd", "sbatch")
MACHINES = 3
ENVIRONMENT = os.environ | {
    "RAY_AUTH_TOKEN": "a" * 64,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    # Small machines: each shares this host's memory and cores.
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "100000000",
    # A node that does not answer is given up after some 10 s.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}
ENVIRONMENT.pop("CUDA_VISIBLE_DEVICES", None)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Slurm on three machines with two pretended GPUs each."""

    folder: Path

    def run(self, *words: object) -> str:
        own = ENVIRONMENT | {"LAB": str(self.folder), "SLURM_CONF": str(self.folder / "slurm" / "slurm.conf")}
        done = subprocess.run([*map(str, words)], env=own, cwd=self.folder / "checkout", capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def facts(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\S+?)=(\S*)", self.run("scontrol", "show", "job", job)))

    def state(self, job: str) -> str:
        return self.facts(job)["JobState"]

    def nodes_are_free(self) -> bool:
        return set(self.run("sinfo", "--noheader", "--format=%T").split()) == {"idle"}

    def text(self, job: str) -> str:
        """What a job has printed."""
        path = self.folder / "checkout" / f"slurm-{job}.out"
        return path.read_text() if path.is_file() else ""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and the packages iproute2, slurm-wlm and munge; missing: {missing or 'root'}")
    made = Lab(folder=tmp_path_factory.mktemp("lab"))
    checkout = made.folder / "checkout"
    checkout.mkdir()
    (checkout / ".venv").symlink_to(sys.prefix)
    (checkout / "cluster").symlink_to(ROOT / "cluster")
    try:
        made.run(SCRIPTS / "machines.sh", "up", MACHINES)
        made.run(SCRIPTS / "slurm.sh", "up", MACHINES, 2)
        wait_for(made.nodes_are_free, 60)
    except AssertionError as error:
        take_down(made)
        pytest.skip(f"machines cannot be made here: {error}")
    yield made
    take_down(made)


def wait_for(is_true: Callable[[], bool], timeout_s: float = 600) -> None:
    """Waits long enough for a busy machine of two cores."""
    wait_with_limit(is_true, timeout_s)


def take_down(lab: Lab) -> None:
    for script in ("slurm.sh", "machines.sh"):
        subprocess.run([SCRIPTS / script, "down"], env=ENVIRONMENT | {"LAB": str(lab.folder)}, capture_output=True)


@dataclass(frozen=True, kw_only=True)
class Run:
    """An alignment of small networks, which saves a checkpoint at its end alone, unless it is told to earlier."""

    lab: Lab
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "runs" / "align"

    def script(self, nodes: int = 2, gpus: str = "") -> str:
        """The script that is shipped, with the values of this place."""
        text = (ROOT / "cluster" / "slurm.sbatch").read_text()
        changes = {
            "--nodes=8": f"--nodes={nodes}",
            "--cpus-per-task=96": "--cpus-per-task=4",
            # Whoever asks for whole nodes gets their GPUs, too.
            "#SBATCH --gpus-per-node=8\n#SBATCH --exclusive\n": f"#SBATCH {gpus}\n" if gpus else "",
            "--time=24:00:00": "--time=01:00:00",
            "--signal=B:USR1@300": "--signal=B:USR1@60",
            "cluster/runs/multi_node_64gpu.yaml": f"{self.folder}/run.yaml",
            "START_S=600": "START_S=120",
        }
        for shipped, here in changes.items():
            assert shipped in text
            text = text.replace(shipped, here)
        return text

    def submit(self, text: str) -> str:
        script = self.folder / "job.sbatch"
        script.write_text(text)
        return self.lab.run("sbatch", "--parsable", f"--export=ALL,SHARED={self.folder}", script).strip()

    def updates(self) -> int:
        return len(read_metrics(self.out)) if (self.out / "metrics.jsonl").is_file() else 0


def new_run(lab: Lab, pipeline: Path, folder: Path, *, updates: int, cpus: float = 1.0, **align: object) -> Run:
    write_prompts(small_prompts(8), folder / "prompts")
    save_small_reward(folder / "reward")
    config = with_cluster(
        small_config(pipeline, **{"updates": updates, "checkpoint_every": updates} | align),
        samplers=2,
        role_resources=True,
        cpus_per_actor=cpus,
    )
    (folder / "run.yaml").write_text(dump_config(config))
    return Run(lab=lab, folder=folder)


def driver_replaced(text: str, program: str) -> str:
    """The script with a Python program, which has joined Ray, in place of the alignment."""
    first, last = text.index("python -m rlhf align"), text.index("driver=$!")
    return f"{text[:first]}python -c 'import sys, ray; ray.init(\"'$head'\"); {program}' &\n{text[last:]}"


def is_over(lab: Lab, job: str) -> bool:
    return lab.state(job) not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")


def test_a_job_is_saved_before_its_time_limit_and_goes_on_when_it_is_queued_again(
    lab: Lab, small_pipeline: Path, tmp_path: Path
) -> None:
    run = new_run(lab, small_pipeline, tmp_path, updates=10_000)
    job = run.submit(run.script())
    wait_for(lambda: run.updates() >= 1)
    hours, minutes, _ = map(int, lab.facts(job)["RunTime"].split(":"))
    # One to two minutes are left then, and the signal comes a minute before the limit.
    lab.run("scontrol", "update", f"jobid={job}", f"timelimit={60 * hours + minutes + 2}")
    wait_for(lambda: "updates are saved" in lab.text(job))
    saved = run.updates()
    wait_for(lambda: lab.facts(job)["Restarts"] == "1")
    lab.run("scontrol", "update", f"jobid={job}", "timelimit=60", "starttime=now")
    wait_for(lambda: run.updates() > saved)
    assert list((run.out / "learner").glob(f"checkpoint-{saved:06d}/*")), "none was due before the signal"
    lab.run("scancel", job)
    wait_for(lambda: lab.state(job) == "CANCELLED" and lab.nodes_are_free())


def test_a_job_outlives_a_node(lab: Lab, small_pipeline: Path, tmp_path: Path) -> None:
    """The alignment's own way on is in tests/actors/test_network.py; here a program waits for the loss."""
    run = new_run(lab, small_pipeline, tmp_path, updates=2)
    program = """
import time
def count_nodes():
    return sum(node["Alive"] for node in ray.nodes())
print("nodes:", count_nodes(), flush=True)
while count_nodes() == 3:
    time.sleep(1)
print("left:", count_nodes())"""
    job = run.submit(driver_replaced(run.script(nodes=3), program))
    wait_for(lambda: "nodes: 3" in lab.text(job))
    lab.run(SCRIPTS / "machines.sh", "kill", 3)
    try:
        wait_for(lambda: is_over(lab, job))
        assert "left: 2" in lab.text(job)
        assert lab.state(job) == "COMPLETED", lab.text(job)
    finally:
        lab.run(SCRIPTS / "machines.sh", "boot", 3)
        lab.run(SCRIPTS / "slurm.sh", "boot", 3)
        wait_for(lab.nodes_are_free)


def test_a_job_whose_alignment_fails_has_failed_with_its_code(lab: Lab, small_pipeline: Path, tmp_path: Path) -> None:
    run = new_run(lab, small_pipeline, tmp_path, updates=2)
    job = run.submit(driver_replaced(run.script(nodes=1), "sys.exit(3)"))
    wait_for(lambda: is_over(lab, job))
    assert (lab.state(job), lab.facts(job)["ExitCode"]) == ("FAILED", "3:0"), lab.text(job)
    wait_for(lab.nodes_are_free, 30)


def test_a_job_whose_ray_does_not_start_has_failed(lab: Lab, small_pipeline: Path, tmp_path: Path) -> None:
    run = new_run(lab, small_pipeline, tmp_path, updates=2)
    program = "import socket, sys; taken = socket.create_server(('', 6379)); sys.stdin.read()"
    words = [SCRIPTS / "machines.sh", "do", "1", sys.executable, "-c", program]
    taken = subprocess.Popen(words, env=ENVIRONMENT | {"LAB": str(lab.folder)}, stdin=subprocess.PIPE)
    try:
        job = run.submit(run.script(nodes=1))
        wait_for(lambda: is_over(lab, job))
        assert (lab.state(job), lab.facts(job)["ExitCode"]) == ("FAILED", "1:0"), lab.text(job)
        assert "something listens at 10.213.7.11:6379" in lab.text(job)
    finally:
        taken.communicate()  # It ends with its input.


def test_gpus_are_found_however_they_are_asked_for(lab: Lab, small_pipeline: Path, tmp_path: Path) -> None:
    run = new_run(lab, small_pipeline, tmp_path, updates=2)
    program = 'print("GPUs:", ray.cluster_resources().get("GPU", 0.0))'
    jobs = {
        asked: run.submit(driver_replaced(run.script(nodes=1, gpus=asked), program))
        for asked in ("--gres=gpu:2", "--gres=gpu:a100:2", "--gpus-per-node=2", "--gpus=2", "--exclusive", "")
    }
    wait_for(lambda: all(is_over(lab, job) for job in jobs.values()))
    found = {asked: lab.text(job).partition("GPUs: ")[2].split("\n")[0] for asked, job in jobs.items()}
    assert found == dict.fromkeys(list(jobs)[:5], "2.0") | {"": "0.0"}, [lab.text(job) for job in jobs.values()]
