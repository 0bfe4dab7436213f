"""Embeds captions on a sampler's resources before any sampler or learner starts."""

from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.pool.worker_pool import find_user_error
from actors.resources import resources_of
from rlhf.config.run_config import RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.text_cache import TextCache
from rlhf.diffusion.text_encoding import cache_folder, fill_cache, needs_cache


def prepare_texts(config: RunConfig, table: PromptTable, out: Path, group: PlacementGroup | None) -> TextCache | None:
    """Computes missing embeddings of the table's captions in a process that ends with the text encoder.

    It takes the first bundle of `group`, or the resources of a learner. Returns the cache; None if no prompt has a
    caption. Raises UserError if the model cannot be opened.
    """
    if not needs_cache(config.model, table):
        return None
    asked = resources_of(config.cluster, "learner" if group is None else "sampler")
    options = {"num_cpus": asked.pop("CPU"), "num_gpus": asked.pop("GPU", 0), "resources": asked}
    where = None if group is None else PlacementGroupSchedulingStrategy(group, 0)
    remote = ray.remote(max_calls=1, max_retries=2, scheduling_strategy=where, **options)(_fill)
    try:
        return ray.get(remote.remote(config, table.folder.resolve(), table.split, cache_folder(config, out)))
    except ray.exceptions.RayTaskError as error:
        raise find_user_error(error) or error from error


def _fill(config: RunConfig, prompts: Path, split: str | None, folder: Path) -> TextCache:
    return fill_cache(config.model, PromptTable(prompts, split=split), folder)
