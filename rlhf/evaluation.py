"""Aligned against base on held-out prompts: same initial noise, steps and sampler on both sides."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.config import EvaluateConfig
from rlhf.errors import UserError
from rlhf.gold_judge import gold_utility, sharpness
from rlhf.grids import save_comparison_grid
from rlhf.images import blank_hole, decode_image, encode_png, image_to_tensor, tensor_to_image
from rlhf.progress import progress_bar
from rlhf.prompts import Prompt
from rlhf.reward_model import Reward
from rlhf.sampling import Sampler, SamplingTask
from rlhf.statistics import cluster_bootstrap, wins
from rlhf.storage import atomic_write_json
from rlhf.tables import CURVE, EVALUATION, image_cell, write_table
from rlhf.trajectories import RolloutPlan

SUMMARY_SCHEMA_VERSION = 1
"""Of `summary.json`."""
COMPARED = 12
"""Prompts in `comparison.png`."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Samples of one policy: rows are prompts, columns samples."""

    images: torch.Tensor
    """uint-rounded float32 [P, S, 3, H, W]."""
    reward: np.ndarray
    uncertainty: np.ndarray
    gold: np.ndarray
    sharpness: np.ndarray
    diversity: np.ndarray
    """[P]: mean absolute difference between a prompt's samples inside the hole; NaN for one sample."""
    known_pixels_differ: int
    """Pixels outside the holes that are not the prompt's own; must be 0."""


def evaluate(
    open_policy: Callable[[Path | None], Sampler],
    policies: list[Path],
    prompts: list[Prompt],
    reward: Reward,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int,
) -> dict[str, Any]:
    """Judge base and policies; the last policy is the contestant, earlier ones give the curve.

    `open_policy` gives the sampler of a policy folder, and of the base model for None.
    Writes `samples.parquet` (base and last policy), `curve/samples.parquet` (all, without images),
    `comparison.png` (masked, base, aligned and original of prompts spread over all) and, last, `summary.json`,
    which is returned.
    """
    base = judge_policy(open_policy(None), prompts, reward, config, seed=seed, stage="evaluate: base")
    curve = [_curve_point(0, base, base, prompts, config)]
    judged, curve_rows = base, list(_curve_rows(0, base, prompts))
    for folder in policies:
        sampler = open_policy(folder)
        judged = judge_policy(sampler, prompts, reward, config, seed=seed, stage=f"evaluate: {folder.name}")
        curve.append(_curve_point(sampler.version, base, judged, prompts, config))
        curve_rows += _curve_rows(sampler.version, judged, prompts)
    summary = compare(base, judged, prompts, config) | {
        "schema_version": SUMMARY_SCHEMA_VERSION,
        "curve": curve,
        "prompts": len(prompts),
        "photographs": len({p.photograph for p in prompts}),
        "samples_per_prompt": config.samples_per_prompt,
        "num_inference_steps": config.num_inference_steps,
        "judge": "gold judge: the noiseless utility of the simulated annotators",
    }
    rows = list(_rows("base", base, prompts)) + list(_rows("aligned", judged, prompts))
    write_table(rows, EVALUATION, out / "samples.parquet")
    write_table(curve_rows, CURVE, out / "curve" / "samples.parquet")
    shown = np.linspace(0, len(prompts) - 1, min(COMPARED, len(prompts))).astype(int)
    originals, masks = (torch.stack([getattr(prompts[i], name) for i in shown]) for name in ("image", "mask"))
    columns = [blank_hole(originals, masks), base.images[shown, 0], judged.images[shown, 0], originals]
    save_comparison_grid(columns, out / "comparison.png")
    atomic_write_json(out / "summary.json", summary)
    return summary


def judge_policy(
    sampler: Sampler, prompts: list[Prompt], reward: Reward, config: EvaluateConfig, *, seed: int, stage: str
) -> Judged:
    """Sample every prompt with deterministic DDIM and let all judges mark the results.

    Raises UserError where prompts had to be put aside: both sides are judged on the same ones.
    """
    tasks = plan_evaluation(prompts, config, seed)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    parts: dict[int, tuple] = {}
    differing = 0
    for done in progress_bar(sampler.sample(tasks), stage=stage, total=len(tasks)):
        lost = set(tasks[done.task.number].prompt_ids) - set(done.task.prompt_ids)
        if lost:
            names = ", ".join(sorted(lost))
            raise UserError(f"evaluate: {names} kill samplers; take them out, or remove put_aside.json to try again")
        filled = torch.stack([image_to_tensor(decode_image(image)) for image in done.images])
        originals, masks = (
            torch.stack([getattr(by_id[name], column) for name in done.task.prompt_ids]).repeat_interleave(
                config.samples_per_prompt, dim=0
            )
            for column in ("image", "mask")
        )
        differing += int(((filled != originals) & (masks < 0.5)).sum())
        scored = reward.score(filled, masks)
        gold = gold_utility(filled, originals, masks).overall
        marks = (scored.reward, scored.uncertainty, gold, sharpness(filled, masks))
        spread = _diversity(filled, masks, config.samples_per_prompt)
        parts[done.task.number] = (filled, spread, *(m.double().numpy() for m in marks))
    shape = (len(prompts), config.samples_per_prompt)
    images, diversity, *columns = (list(column) for column in zip(*(parts[n] for n in sorted(parts)), strict=True))
    rewards, uncertainties, golds, sharpnesses = (np.concatenate(column).reshape(shape) for column in columns)
    return Judged(
        images=torch.cat(images).unflatten(0, shape),
        reward=rewards,
        uncertainty=uncertainties,
        gold=golds,
        sharpness=sharpnesses,
        diversity=np.concatenate(diversity),
        known_pixels_differ=differing,
    )


def plan_evaluation(prompts: list[Prompt], config: EvaluateConfig, seed: int) -> list[SamplingTask]:
    """All samples of so many prompts as are denoised at once."""
    plan = RolloutPlan(num_inference_steps=config.num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    size = max(1, config.micro_batch_size // config.samples_per_prompt)
    names = [prompt.prompt_id for prompt in prompts]
    batches = [tuple(names[i : i + size]) for i in range(0, len(names), size)]
    return [
        SamplingTask(
            number=number,
            prompt_ids=batch,
            sample_indices=range(config.samples_per_prompt),
            plan=plan,
            seed_key=(seed, "evaluate"),
        )
        for number, batch in enumerate(batches)
    ]


def _diversity(images: torch.Tensor, masks: torch.Tensor, samples: int) -> np.ndarray:
    grouped = images.unflatten(0, (-1, samples))
    hole = masks.unflatten(0, (-1, samples))[:, 0]
    if samples < 2:
        return np.full(len(grouped), np.nan)
    pairs = [(i, j) for i in range(samples) for j in range(i)]
    differences = torch.stack([(grouped[:, i] - grouped[:, j]).abs() for i, j in pairs]).mean(0)
    return ((differences * hole).sum((1, 2, 3)) / hole.sum((1, 2, 3)) / 3).double().numpy()


def compare(base: Judged, aligned: Judged, prompts: list[Prompt], config: EvaluateConfig) -> dict[str, Any]:
    """WinRate at S = 1 and gains, with intervals from a bootstrap over photographs."""

    def estimate(values: np.ndarray, statistic: Callable[[np.ndarray], float] = lambda v: float(v.mean())) -> dict:
        return asdict(cluster_bootstrap(values, photographs, resamples=config.bootstrap, statistic=statistic))

    photographs = [p.photograph for p in prompts]
    gold_wins, reward_wins = wins(aligned.gold, base.gold).mean(1), wins(aligned.reward, base.reward).mean(1)
    families = sorted({p.hole for p in prompts})
    sharp = np.stack([aligned.sharpness.mean(1), base.sharpness.mean(1)], axis=1)
    diverse = np.stack([aligned.diversity, base.diversity], axis=1)
    return {
        "win_rate": estimate(gold_wins),
        "win_rate_reward": estimate(reward_wins),
        "gold_base": float(base.gold.mean()),
        "gold_aligned": float(aligned.gold.mean()),
        "gold_gain": estimate((aligned.gold - base.gold).mean(1)),
        "reward_gain": estimate((aligned.reward - base.reward).mean(1)),
        "sharpness_ratio": estimate(sharp, lambda v: float(v[:, 0].mean() / v[:, 1].mean())),
        "diversity_ratio": estimate(diverse, lambda v: float(v[:, 0].mean() / v[:, 1].mean())),
        "known_pixels_differ": base.known_pixels_differ + aligned.known_pixels_differ,
        "win_rate_by_hole": {
            family: float(gold_wins[[p.hole == family for p in prompts]].mean()) for family in families
        },
    }


def _curve_point(
    version: int, base: Judged, judged: Judged, prompts: list[Prompt], config: EvaluateConfig
) -> dict[str, Any]:
    figures = compare(base, judged, prompts, config)
    return {
        "policy_version": version,
        "gold": float(judged.gold.mean()),
        "reward": float(judged.reward.mean()),
        "win_rate": figures["win_rate"],
    }


def _curve_rows(version: int, judged: Judged, prompts: list[Prompt]) -> Iterator[dict[str, Any]]:
    for p, prompt in enumerate(prompts):
        for s in range(judged.reward.shape[1]):
            yield {
                "prompt_id": prompt.prompt_id,
                "sample_index": s,
                "photograph": prompt.photograph,
                "policy_version": version,
                "reward": judged.reward[p, s],
                "gold": judged.gold[p, s],
            }


def _rows(name: str, judged: Judged, prompts: list[Prompt]):  # noqa: ANN202
    for p, prompt in enumerate(prompts):
        for s in range(judged.reward.shape[1]):
            path = f"{prompt.prompt_id}_{s}_{name}.png"
            yield {
                "prompt_id": prompt.prompt_id,
                "sample_index": s,
                "photograph": prompt.photograph,
                "hole": prompt.hole,
                "policy": name,
                "image": image_cell(encode_png(tensor_to_image(judged.images[p, s])), path),
                "reward": judged.reward[p, s],
                "uncertainty": judged.uncertainty[p, s],
                "gold": judged.gold[p, s],
                "sharpness": judged.sharpness[p, s],
            }
