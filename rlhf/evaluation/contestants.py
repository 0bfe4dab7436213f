"""Contestants of a comparison of inpaintings: policies, pipelines, classical fills, images made elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rlhf.config.run_config import RunConfig
from rlhf.data.buckets import batches_of_one_size
from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.policy_manifest import locate_policy, read_manifest
from rlhf.diffusion.sampler import InProcessSampler, TakePrompts
from rlhf.errors import UserError
from rlhf.evaluation.classical_fills import CLASSICAL, open_classical
from rlhf.evaluation.evaluation import judge_policy
from rlhf.evaluation.judged_store import Inputs
from rlhf.evaluation.judging import Judged, Jury, join_judged, judge_images
from rlhf.progress import progress_bar
from rlhf.storage.checksum import folder_checksum
from rlhf.storage.images import decode_image, to_8bit
from rlhf.storage.url_path import as_path

IMAGES = "images:"
"""Prefix of the spec of a folder of images that were made elsewhere."""
BATCH = 32
"""Number of prompts that are judged at once if no model paints them."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """Contestant that is not opened yet."""

    name: str
    spec: str
    what: Inputs
    follows_noise: bool
    """Whether sample n starts from the same noise as sample n of other contestants that follow noise."""
    judge: Callable[[Sequence[Prompt], Jury], Judged]
    """Returns its judged samples of the prompts; a folder of images may lack some prompts."""


def parse_contestants(texts: Sequence[str]) -> dict[str, str]:
    """Parses `NAME=SPEC`; returns specs by name. Raises UserError if one is malformed or a name appears twice."""
    specs: dict[str, str] = {}
    for text in texts:
        name, sign, spec = text.partition("=")
        is_name = name and all(character.isalnum() or character in "-_." for character in name)
        if not sign or not spec or not is_name or name.startswith("."):
            raise UserError(f"--contestant {text!r}: give NAME=SPEC, the name of letters, digits, -, _ and .")
        if name in specs:
            raise UserError(f"--contestant {name}: given twice; give each contestant a name of its own")
        specs[name] = spec
    return specs


def open_contestant(name: str, spec: str, config: RunConfig, take: TakePrompts) -> Contestant:
    """Opens a classical fill, `images:FOLDER`, a run or policy folder, or a pipeline from a folder or the hub.

    Weights are not loaded yet. Raises UserError if the folder or package that `spec` needs is missing.
    """
    if spec in CLASSICAL:
        fill = open_classical(spec)
        return Contestant(
            name=name, spec=spec, what={"classical": spec}, follows_noise=False, judge=judge_fill(fill, name)
        )
    if spec.startswith(IMAGES):
        folder = as_path(spec.removeprefix(IMAGES))
        if not folder.is_dir():
            raise UserError(f"contestant {name}: {folder}: no such folder; name one of PNG files called by prompt_id")
        what = {"images": folder_checksum(folder)}
        return Contestant(
            name=name, spec=spec, what=what, follows_noise=False, judge=lambda p, j: judge_folder(folder, p, j, name)
        )
    return of_model(name, spec, config, take)


def of_model(name: str, spec: str, config: RunConfig, take: TakePrompts) -> Contestant:
    """Opens a run, policy or pipeline folder, or a name on the hub; an empty spec is the configured model."""
    model, adapter = config.model, None
    folder = as_path(spec)
    if spec and folder.is_dir():
        model, adapter = locate_policy(config.model, folder)
    elif spec:
        if folder.is_absolute() or spec.startswith("."):
            raise UserError(
                f"contestant {name}: {spec}: no such folder; name one, a hub repository or a classical fill"
            )
        model = config.model.model_copy(update={"path": spec})

    def judge(prompts: Sequence[Prompt], jury: Jury) -> Judged:
        """Returns the judged samples of the prompts."""
        sampler = InProcessSampler(load_policy(model, adapter), take)
        return judge_policy(sampler, list(prompts), jury, config.evaluate, seed=config.seed, stage=f"evaluate: {name}")

    return Contestant(
        name=name, spec=spec or model.path, what=describe(model.path, adapter), follows_noise=True, judge=judge
    )


def describe(base: str, policy: Path | None) -> Inputs:
    """Returns the base model and the checksum of the weights, on which a model's samples depend."""
    return {"base": base, "weights": None if policy is None else read_manifest(policy)["checksum"]}


def judge_fill(
    fill: Callable[[np.ndarray, np.ndarray], np.ndarray], name: str
) -> Callable[[Sequence[Prompt], Jury], Judged]:
    """Returns a judge of `fill`, a function of colours uint8 [H, W, 3], grey in the hole, and hole bool [H, W]."""

    def judge(prompts: Sequence[Prompt], jury: Jury) -> Judged:
        """Returns the judged samples of the prompts."""

        def paint(prompt: Prompt) -> torch.Tensor:
            """Returns the filled picture, uint8 [1, 3, H, W]."""
            rgb = to_8bit(prompt.image).permute(1, 2, 0).numpy()
            hole = prompt.mask[0].numpy() > 0.5
            filled = fill(np.where(hole[..., None], np.uint8(128), rgb), hole)
            return torch.from_numpy(filled).permute(2, 0, 1)[None]

        return _judge_each(prompts, paint, jury, name)

    return judge


def _judge_each(prompts: Sequence[Prompt], paint: Callable[[Prompt], torch.Tensor], jury: Jury, name: str) -> Judged:
    """Judges batch by batch; `paint` returns uint8 [S, 3, H, W]."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    parts = []
    batches = batches_of_one_size(by_id, {name: prompt.size for name, prompt in by_id.items()}, BATCH)
    for names in progress_bar(batches, stage=f"evaluate: {name}"):
        batch = [by_id[prompt_id] for prompt_id in names]
        parts.append(judge_images(torch.stack([paint(prompt) for prompt in batch]), batch, jury))
    return join_judged(parts).select(list(by_id))


def judge_folder(folder: Path, prompts: Sequence[Prompt], jury: Jury, name: str) -> Judged:
    """Judges images `PROMPT_ID.png`, or `PROMPT_ID_0.png`, `PROMPT_ID_1.png` and so on, of the prompts that have some.

    Every prompt gets the number of images of the prompt with the fewest. Raises UserError if there are none, or an
    image has another size than its prompt: resizing would blur some contestants and not others.
    """
    files = {prompt.prompt_id: found for prompt in prompts if (found := _find_images(folder, prompt.prompt_id))}
    if not files:
        raise UserError(
            f"contestant {name}: {folder}: holds no image of any prompt; call them PROMPT_ID.png or PROMPT_ID_0.png, "
            f"such as {prompts[0].prompt_id}.png"
        )
    samples = min(map(len, files.values()))

    def read(prompt: Prompt) -> torch.Tensor:
        """Loads the images of a prompt, uint8 [S, 3, H, W]."""
        pictures = [decode_image(path) for path in files[prompt.prompt_id][:samples]]
        height, width = prompt.mask.shape[-2:]
        for path, picture in zip(files[prompt.prompt_id], pictures, strict=False):
            if picture.size != (width, height):
                raise UserError(
                    f"contestant {name}: {path}: is {picture.width}x{picture.height}, its prompt {width}x{height}; "
                    "make both of one size, with the hole at the same pixels (nothing is resized here)"
                )
        return torch.stack([_to_pixels(picture) for picture in pictures])

    present = [prompt for prompt in prompts if prompt.prompt_id in files]
    return _judge_each(present, read, jury, name)


def _find_images(folder: Path, prompt_id: str) -> list[Path]:
    single = folder / f"{prompt_id}.png"
    if single.is_file():
        return [single]
    numbered: list[Path] = []
    while (path := folder / f"{prompt_id}_{len(numbered)}.png").is_file():
        numbered.append(path)
    return numbered


def _to_pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
