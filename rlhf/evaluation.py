"""Aligned against base on held-out prompts: same initial noise, steps and sampler on both sides."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.config import EvaluateConfig, ModelConfig
from rlhf.gold_judge import gold_utility, sharpness
from rlhf.grids import save_comparison_grid
from rlhf.images import blank_hole, encode_png, tensor_to_image
from rlhf.policy import Policy, load_policy
from rlhf.progress import progress_bar
from rlhf.prompts import Prompt
from rlhf.reward_model import Reward
from rlhf.rollout import RolloutPlan, rollout
from rlhf.statistics import cluster_bootstrap, wins
from rlhf.storage import atomic_write_json
from rlhf.tables import EVALUATION, image_cell, write_table

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
    model: ModelConfig,
    policies: list[Path],
    prompts: list[Prompt],
    reward: Reward,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int,
) -> dict[str, Any]:
    """Judge base and policies; the last policy is the contestant, earlier ones give the curve.

    Writes `samples.parquet` (base and last policy), `comparison.png` (masked, base, aligned and original of
    prompts spread over all) and, last, `summary.json`, which is returned.
    """
    base = judge_policy(load_policy(model), prompts, reward, config, seed=seed, stage="evaluate: base")
    curve = [_curve_point(0, base, base, prompts, config)]
    judged = base
    for folder in policies:
        policy = load_policy(model, folder)
        judged = judge_policy(policy, prompts, reward, config, seed=seed, stage=f"evaluate: {folder.name}")
        curve.append(_curve_point(policy.version, base, judged, prompts, config))
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
    shown = np.linspace(0, len(prompts) - 1, min(COMPARED, len(prompts))).astype(int)
    originals, masks = (torch.stack([getattr(prompts[i], name) for i in shown]) for name in ("image", "mask"))
    columns = [blank_hole(originals, masks), base.images[shown, 0], judged.images[shown, 0], originals]
    save_comparison_grid(columns, out / "comparison.png")
    atomic_write_json(out / "summary.json", summary)
    return summary


def judge_policy(
    policy: Policy, prompts: list[Prompt], reward: Reward, config: EvaluateConfig, *, seed: int, stage: str
) -> Judged:
    """Sample every prompt with deterministic DDIM and let all judges mark the results."""
    plan = RolloutPlan(num_inference_steps=config.num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    per_batch = max(1, config.micro_batch_size // config.samples_per_prompt)
    batches = [prompts[i : i + per_batch] for i in range(0, len(prompts), per_batch)]
    parts = []
    differing = 0
    for batch in progress_bar(batches, stage=stage):
        indices = range(config.samples_per_prompt)
        filled = rollout(policy, batch, plan, sample_indices=indices, seed_key=(seed, "evaluate")).images
        originals, masks = (
            torch.stack([getattr(p, name) for p in batch]).repeat_interleave(len(indices), dim=0)
            for name in ("image", "mask")
        )
        differing += int(((filled != originals) & (masks < 0.5)).sum())
        scored = reward.score(filled, masks)
        gold = gold_utility(filled, originals, masks).overall
        marks = (scored.reward, scored.uncertainty, gold, sharpness(filled, masks))
        parts.append((filled, _diversity(filled, masks, len(indices)), *(m.double().numpy() for m in marks)))
    shape = (len(prompts), config.samples_per_prompt)
    images, diversity, *columns = (list(column) for column in zip(*parts, strict=True))
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
