"""`rlhf reward` on several workers: Ray Train starts them, and starts them again from the last epoch if one dies.

Pictures do not travel. Each worker opens the tables and reads the pictures of its own prompts.
"""

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device

from actors.session.process_group import process_group_config
from actors.session.ray_session import check_address, ray_session
from actors.session.trainers import fit, storage_of
from rlhf.alignment.collectives import process_ranks
from rlhf.errors import UserError
from rlhf.reports.records import read_record
from rlhf.rewards.learned.reward_report import RewardReport
from rlhf.workflows.reward_run import RewardRun, run_reward

MAX_FAILURES = 8
"""Deaths of workers after which the run ends."""


def train_on_workers(run: RewardRun, workers: int, address: str | None) -> RewardReport:
    """Trains the reward on `workers` processes of this machine or of the cluster at `address`; returns its report.

    Each has a GPU if the cluster has enough of them, else a CPU. Raises UserError as `run_reward` does.
    """
    check_address(address)
    with ray_session(address, num_cpus=workers if address is None else None):
        trainer = _make_trainer(run, workers, has_gpus=ray.cluster_resources().get("GPU", 0) >= workers)
        fit(trainer)
    return read_record(RewardReport, run.out / "report.json", "run `rlhf reward` again")


def _make_trainer(run: RewardRun, workers: int, *, has_gpus: bool) -> TorchTrainer:
    return TorchTrainer(
        reward_loop,
        train_loop_config={"run": run},
        torch_config=process_group_config("nccl" if has_gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=has_gpus),
        run_config=ray.train.RunConfig(
            name="workers",
            **storage_of(run.out),
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    )


def reward_loop(loop_config: dict[str, RewardRun]) -> str | None:
    """Trains `loop_config["run"]` as one rank.

    Returns None, or the text of a UserError: after an exception Ray Train would start again.
    """
    torch.set_num_threads(1)
    ranks = process_ranks(get_device())
    run = loop_config["run"]
    try:
        with ranks.agreed():
            tables = run.open_tables()
        run_reward(run, tables, ranks)
    except UserError as error:
        return str(error)
    return None
