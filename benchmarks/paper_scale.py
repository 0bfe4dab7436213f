"""Measures the reward stage on as many candidates as the paper has: 51,000 of 8,500 prompts at 512 px.

Run it as `python -m benchmarks.paper_scale FOLDER PART`. The first part, `make`, writes tables of few pictures that
repeat (2.6 GB); the others print processor time and peak memory of this process after each step. Marks are made up.
"""

import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from benchmarks.gpu.full_size_models import CLIP_VISION, build_vision_tower
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import join_annotations, split_photographs
from rlhf.data.annotators import load_annotations
from rlhf.data.augmentation import PLAIN, Augmentation
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.descriptions import Descriptions, describe
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import PromptTable
from rlhf.data.ranks import ALONE
from rlhf.rewards.learned.backbones.clip_backbone import ClipBackbone
from rlhf.rewards.learned.feature_network import SmallBackbone, describe_to_train
from rlhf.rewards.learned.reward_figures import bound_figures, group_figures, score_annotations
from rlhf.rewards.learned.reward_memory import with_features
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.images import encode_png, tensor_to_image
from rlhf.storage.tables import ANNOTATIONS, CANDIDATES, PROMPTS, image_cell, write_table

PROMPT_COUNT, SAMPLES, SIZE_PX = 8500, 6, 512
DISTINCT = 64
"""Number of distinct prompts; the others repeat their pictures."""
MIRRORED = Augmentation(mirrored=True)


def main(folder: Path, part: str, count: int = 8) -> None:
    """Runs `make`, `fit`, `small`, `clip-fixed` or `clip-trained`; `count` is the number of pictures described."""
    if part == "make":
        make_tables(folder)
    elif part == "fit":
        measure_fit(folder)
    else:
        measure_backbone(folder, part, count)


def say(step: str) -> None:
    """Prints the processor time and peak memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{step}: {time.process_time():.1f} s, {peak:.2f} GB", flush=True)


def make_tables(folder: Path) -> None:
    """Writes prompts, candidates in parts of 64, and three annotations of each candidate."""
    rng = np.random.default_rng(0)
    fields = [torch.from_numpy(rng.normal(0, 0.4, (3, 32, 32)).repeat(16, 1).repeat(16, 2)) for _ in range(DISTINCT)]
    mask = torch.zeros(1, SIZE_PX, SIZE_PX)
    mask[:, 128:384, 96:320] = 1
    hole = encode_png(tensor_to_image((mask * 2 - 1).repeat(3, 1, 1)))
    originals = [encode_png(tensor_to_image(field.clamp(-1, 1).float())) for field in fields]
    fills = [
        [
            encode_png(tensor_to_image((f + mask * 0.15 * s * torch.randn(1)).clamp(-1, 1).float()))
            for s in range(SAMPLES)
        ]
        for f in fields
    ]
    facts = {"mask": image_cell(hole, "m.png"), "source": "made", "split": "train", "caption": ""}
    prompts = (
        facts
        | {"prompt_id": f"p{i:05d}", "photograph": f"{i // 2:05d}.jpg", "hole": ("box", "brush")[i % 2]}
        | {"image": image_cell(originals[i % DISTINCT], "o.png")}
        for i in range(PROMPT_COUNT)
    )
    write_table(prompts, PROMPTS, folder / "prompts" / "prompts.parquet")
    plan = {"seed": 0, "policy_version": 0, "num_inference_steps": 10, "eta": 0.0, "first_step": 0}
    keys = [(i, s) for s in range(SAMPLES) for i in range(PROMPT_COUNT)]
    for number, start in enumerate(range(0, len(keys), 64)):
        rows = (
            plan | {"prompt_id": f"p{i:05d}", "sample_index": s, "image": image_cell(fills[i % DISTINCT][s], "c.png")}
            for i, s in keys[start : start + 64]
        )
        write_table(rows, CANDIDATES, folder / "candidates" / f"part-{number:05d}.parquet")
    write_table(_annotate(keys, rng), ANNOTATIONS, folder / "annotations" / "annotations.parquet")


def _annotate(keys: list[tuple[int, int]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    now = datetime.now(UTC)
    for i, s in keys:
        for annotator in rng.permutation(4)[:3]:
            marks = np.clip(np.round(6 - 0.9 * s + rng.normal(0, 0.6, 3)), 0, 7)
            row = {"prompt_id": f"p{i:05d}", "sample_index": s, "annotator": f"simulated-{annotator}"}
            row |= dict(zip(("structure", "texture", "overall"), marks.tolist(), strict=True))
            yield row | {"annotated_at": now, "is_simulated": True}


def open_pictures(folder: Path) -> Pictures:
    """Opens prompts and candidates."""
    prompts = PromptTable(folder / "prompts")
    return Pictures(prompts, CandidateTable(folder / "candidates", prompts))


def measure_fit(folder: Path) -> None:
    """Measures `rlhf reward` for one epoch, with random numbers in the place of the pictures' descriptions."""
    say("imports")
    pictures = open_pictures(folder)
    say("tables opened")
    annotations = load_annotations(folder / "annotations")
    say(f"{len(annotations)} annotations read")
    data, keys = join_annotations(pictures.prompts, pictures.candidates, annotations), list(pictures.candidates)
    say("joined and normalised")
    quality = torch.tensor([-0.9 * s for _, s in keys])[:, None] * torch.linspace(0, 1, SmallBackbone.output_dim)
    rows = {change: torch.randn(quality.shape) / 2 + quality for change in (PLAIN, MIRRORED)}
    found = Descriptions(dict.fromkeys(rows, keys), rows, ALONE)
    found.variants = [PLAIN, MIRRORED]
    config = RewardConfig(epochs=1)
    parts = split_photographs(data.photographs, config.parts, 0)
    a, b, c, d = (replace(data, described=found).of(part) for part in parts)
    fitted = fit_reward(a, b, c, config, 0)
    say("one epoch, heads and calibration")
    of_d = with_features(features_of(fitted.model.network, d), d)
    bound_figures(fitted.model.head, fitted.model.calibration, of_d)
    group_figures(fitted.model, score_annotations(fitted.model.head, of_d, pictures.prompts))
    say("figures of part D")


def measure_backbone(folder: Path, part: str, count: int) -> None:
    """Measures the description of some pictures, or one step of a trained backbone on them."""
    pictures = open_pictures(folder)
    keys = list(pictures.candidates)[:count]
    backbone = SmallBackbone() if part == "small" else _random_clip(1.0 if part == "clip-fixed" else 0.7)
    say("opened")
    if part != "clip-trained":
        describe(backbone, pictures, {PLAIN: keys})
    else:
        rows, give_back = describe_to_train(backbone, pictures, keys, PLAIN, ALONE)
        rows.square().sum().backward()
        give_back(rows.grad)
        torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad]).step()
    say(f"{part}: {count} pictures")


def _random_clip(frozen_share: float) -> ClipBackbone:
    return ClipBackbone(build_vision_tower(CLIP_VISION), frozen_share).eval()


if __name__ == "__main__":
    typer.run(main)
