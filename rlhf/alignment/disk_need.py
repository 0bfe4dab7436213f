"""Estimates the disk space of an alignment before it starts."""

import shutil
from pathlib import Path
from typing import Any

import torch

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, RunConfig
from rlhf.diffusion.families.open_family import default_lora_targets, network_on_meta, resolve_model
from rlhf.storage.url_path import UrlPath, as_path

FLOAT_BYTES = 4
"""Bytes of a trained number in a policy: float32."""


def describe_disk_need(config: RunConfig, out: Path) -> str:
    """One line for the user: the most that `out` will hold, the free space there, and a warning if that is less.

    Pictures, metrics and events are small and left out. Raises UserError if model.path is no pipeline.
    """
    align = config.align
    trained = count_trained(config.model.path, align)
    checkpoints, policies = kept_folders(align)
    size, need = checkpoint_bytes(align), disk_bytes(align, trained)
    line = (
        f"align: about {show_bytes(need)} in {out}: {checkpoints} checkpoints of "
        f"{show_bytes(size * trained)} (one is being written) and {policies} policies of "
        f"{show_bytes(FLOAT_BYTES * trained)}"
    )
    if isinstance(out, UrlPath):
        return line
    free = shutil.disk_usage(out).free
    warning = "; warning: that is less, see align.keep_last and align.keep_policies" if free < need else ""
    return f"{line}; {show_bytes(free)} are free{warning}"


def kept_folders(align: AlignConfig) -> tuple[int, int]:
    """Number of checkpoints, one of them being written, and of policies that a run folder holds at most."""
    written = -(-align.updates // align.checkpoint_every)
    return min(align.keep_last + 1, written), min(align.keep_policies or written, written)


def disk_bytes(align: AlignConfig, trained: int) -> int:
    """The most that a run folder will hold, for this many trained numbers."""
    checkpoints, policies = kept_folders(align)
    return trained * (checkpoint_bytes(align) * checkpoints + FLOAT_BYTES * policies)


def checkpoint_bytes(align: AlignConfig) -> int:
    """Bytes per trained number in a checkpoint: the number, Adam's two moments, the average, and nft's old policy."""
    is_lagging = algorithm_of(align).objective.old_policy_decay(align, 0) is not None
    return FLOAT_BYTES * (5 if is_lagging else 4)


def count_trained(model: str, align: AlignConfig) -> int:
    """Number of trained numbers, by the network's configuration alone."""
    return sum(p.numel() for p in trained_network_on_meta(model, align).parameters() if p.requires_grad)


def trained_network_on_meta(model: str, align: AlignConfig) -> Any:
    """The network with its adapters, if any, without memory for its weights; only trained ones require gradients."""
    from peft import LoraConfig

    place = as_path(resolve_model(model))
    network, targets = network_on_meta(place), align.lora_targets or default_lora_targets(place)
    if align.trainable == "lora":
        with torch.device("meta"):
            network.requires_grad_(False).add_adapter(LoraConfig(r=align.lora_rank, target_modules=list(targets)))
    return network


def show_bytes(count: float) -> str:
    """A size for people: 3.4 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
