"""What starts quickly, and why."""

import gc

import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.open_family import open_family
from rlhf.diffusion.policy import TINY


def test_a_model_is_opened_without_collections_of_garbage_which_take_a_quarter_of_the_time() -> None:
    phases: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        phases.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    open_family(ModelConfig(path="tiny"), TINY, torch.device("cpu"))
    gc.callbacks.remove(note)
    assert len(phases) <= 2, "the one that is due when collections go on again"
    assert gc.isenabled()
