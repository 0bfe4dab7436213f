"""The driver of `rlhf align --rollouts-only`, which runs samplers and scorers without a learner."""

from functools import partial
from pathlib import Path

from actors.align import check_inputs, prepare_run_folder
from actors.colocation import gpus_of_cluster, share_gpus
from actors.coordinator import Coordinator
from actors.placement import cpus_of, reserve, start_dispatcher
from actors.remote_sampler import read_weights
from actors.rollout_replay import collect_into
from actors.session.ray_session import ray_session
from actors.telemetry.incidents import Incidents
from actors.text_preparation import prepare_texts
from rlhf.alignment.rollout_dump import RolloutDump
from rlhf.alignment.trained_steps import check_trained_steps
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.policy_weights import check_start
from rlhf.progress import progress_bar


def roll_out(
    config: RunConfig,
    prompts: Path,
    reward: Path | None,
    out: Path,
    dump: Path,
    *,
    start: Path | None = None,
    resume: bool = False,
    address: str | None = None,
    wait: bool = False,
) -> int:
    """Rolls out and scores all updates with the weights that training would start from; returns their number.

    They are written into `dump`, one after another; with `resume` those that exist are not repeated.
    Raises UserError as `rlhf align` does.
    """
    if start is not None:
        check_start(start, config.align.trainable, config.model.path)
    check_trained_steps(config)
    prepare_run_folder(out, config, resume=resume, start=start)
    rollouts = RolloutDump(dump)
    rollouts.begin(config, resume=resume)
    config = check_inputs(config, prompts, reward)
    with ray_session(address, num_cpus=cpus_of(config.cluster)):
        config = share_gpus(config, gpus_of_cluster())
        group = reserve(config.cluster, ("sampler", "scorer"), wait=wait)
        incidents, table = Incidents(out), PromptTable(prompts, split="train")
        folder = None if reward is None else reward.resolve()
        texts = prepare_texts(config, table, out, group)
        dispatcher = start_dispatcher(config, folder, group, incidents, texts, keep_images=True)
        coordinator = Coordinator(config, table, dispatcher, incidents, ranks=1, out=out)
        weights = read_weights(config, start, texts)
        for update in progress_bar(range(config.align.updates), stage="rollouts"):
            if not rollouts.has(update):
                collect_into(rollouts, update, partial(coordinator.collect, update, weights, version=0))
    return config.align.updates
