"""A comparison of a random pipeline, one that was moved, a classical fill and images made elsewhere, on 16 prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from small_parts import save_moved_policy, save_small_reward, small_prompts, write_prompts
from typer.testing import CliRunner

from rlhf.commands.cli import app
from rlhf.data.prompts import Prompt
from rlhf.storage.images import tensor_to_image

SETTINGS = ["--set", "evaluate.num_inference_steps=2"]
ATTACK = '<script>alert("x")</script>.png'


def make_prompts(count: int = 16) -> list[Prompt]:
    """Two of each photograph; the first photograph's name is an attack."""
    names = [ATTACK, *(f"photo{i}.png" for i in range(1, count))]
    return [replace(p, photograph=names[i // 2], split="test") for i, p in enumerate(small_prompts(count))]


def write_images(prompts: list[Prompt], folder: Path) -> Path:
    """Mirror images of the originals inside the holes, two of every prompt."""
    folder.mkdir(parents=True)
    for prompt in prompts:
        original = np.asarray(tensor_to_image(prompt.image))
        hole = prompt.mask[0].numpy()[..., None] > 0.5
        for index, other in enumerate((original[::-1], original[:, ::-1])):
            Image.fromarray(np.where(hole, other, original)).save(folder / f"{prompt.prompt_id}_{index}.png")
    return folder


def prepare(folder: Path, pipeline: Path) -> dict[str, Path]:
    """Prompts, reward, a run of two policies, and images."""
    for version in (10, 20):
        save_moved_policy(pipeline, folder / "run" / f"policy-{version:06d}", version=version)
    return {
        "prompts": write_prompts(make_prompts(), folder / "prompts"),
        "reward": save_small_reward(folder / "reward"),
        "run": folder / "run",
        "images": write_images(make_prompts(), folder / "images"),
    }


def evaluate(parts: dict[str, Path], pipeline: Path, out: Path, *options: str):  # noqa: ANN201
    """The command, in this process."""
    given = ["--prompts", str(parts["prompts"]), "--reward", str(parts["reward"]), "--out", str(out)]
    model = ["--set", f"model.path={pipeline}"]
    return CliRunner().invoke(app, ["evaluate", *given, *SETTINGS, *model, *options])
