"""What starts quickly, and why."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.open_family import open_family, resolve_model


def test_a_model_is_opened_without_collections_of_garbage_which_take_a_quarter_of_the_time() -> None:
    phases: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        phases.append(phase)

    gc.collect()
    gc.callbacks.append(note)
    open_family(ModelConfig(path="tiny"), Path(resolve_model("tiny")), torch.device("cpu"))
    gc.callbacks.remove(note)
    assert len(phases) <= 2, "the one that is due when collections go on again"
    assert gc.isenabled()


MODELS = {"diffusers", "transformers", "peft", "deepspeed", "accelerate"}
FIGURES = {"scipy", "skimage", "matplotlib", "sklearn", "tensorboard"}


@pytest.mark.parametrize(
    ("roles", "heavy"),
    [
        ("serve.api.http_api", {"torch", *MODELS, *FIGURES}),
        # A scorer of a small reward needs no more; the others import models when they open one.
        ("actors.reward_scorer, actors.rollout_sampler", {"pandas", "fastapi", *MODELS, *FIGURES}),
        ("actors.align", {"fastapi", *MODELS, *FIGURES}),
    ],
)
def test_a_process_does_not_import_what_its_role_does_not_need(roles: str, heavy: set[str]) -> None:
    script = f"import sys, {roles}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
