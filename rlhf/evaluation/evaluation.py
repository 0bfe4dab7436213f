"""Aligned against base on held-out prompts: same initial noise, steps and sampler on both sides."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy_folders import read_manifest
from rlhf.diffusion.sampler import Sampler, SamplingTask
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.evaluation.alarms import find_alarms, watch
from rlhf.evaluation.feature_distances import PictureDistance
from rlhf.evaluation.judging import Judged, Jury, encode_picture, join_judged, judge_images
from rlhf.progress import progress_bar
from rlhf.reports.grids import save_comparison_grid
from rlhf.reports.intervals import cluster_bootstrap, wins
from rlhf.rewards.scores import Reward
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import blank_hole, decode_image, from_8bit
from rlhf.storage.tables import CURVE, EVALUATION, image_cell, write_table

SUMMARY_SCHEMA_VERSION = 1
"""Of `summary.json`."""
COMPARED = 12
"""Prompts in `comparison.png`."""
NO_JUDGES: Mapping[str, Reward] = MappingProxyType({})
Keep = Callable[[str, Path | None, Callable[[], Judged]], Judged]
"""Given a contestant's name, its policy folder (None: the base model) and what judges it, how it was judged."""


def judge_anew(name: str, policy: Path | None, judge: Callable[[], Judged]) -> Judged:
    """Whoever it is, as if nothing were known."""
    return judge()


def evaluate(
    open_policy: Callable[[Path | None], Sampler],
    policies: list[Path],
    prompts: list[Prompt],
    reward: Reward,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int,
    judges: Mapping[str, Reward] = NO_JUDGES,
    lpips: PictureDistance | None = None,
    keep: Keep = judge_anew,
) -> dict[str, Any]:
    """Judge base and policies; the last policy is the contestant, earlier ones give the curve.

    `open_policy` gives the sampler of a policy folder, and of the base model for None; `keep` may know from before
    how a policy was judged. Writes `samples.parquet` (base and last policy), `curve/samples.parquet` (all, without
    images), `comparison.png` (masked, base, aligned and original of prompts spread over all) and, last, `summary.json`,
    which is returned: `monitors` of every policy in its `curve`, and `alarms`.
    """

    def judge(name: str, policy: Path | None) -> Judged:
        def paint() -> Judged:
            stage = f"evaluate: {name if policy is None else policy.name}"
            options: dict[str, Any] = {"seed": seed, "stage": stage, "judges": judges, "lpips": lpips}
            return judge_policy(open_policy(policy), prompts, reward, config, **options)

        return keep(name, policy, paint)

    names = ["base", *(folder.name for folder in policies[:-1]), "aligned"]
    path = [judge(name, policy) for name, policy in zip(names, [None, *policies], strict=True)]
    versions = [0, *(int(read_manifest(policy)["policy_version"]) for policy in policies)]
    base, judged, photographs = path[0], path[-1], [p.photograph for p in prompts]
    summary = compare(base, judged, prompts, config) | {
        "schema_version": SUMMARY_SCHEMA_VERSION,
        "curve": [_curve_point(v, base, each, prompts, config) for v, each in zip(versions, path, strict=True)],
        "alarms": find_alarms(["base", *(policy.name for policy in policies)], path, photographs, config.bootstrap),
        "prompts": len(prompts),
        "photographs": len(set(photographs)),
        "samples_per_prompt": config.samples_per_prompt,
        "num_inference_steps": config.num_inference_steps,
        "judge": "gold judge: the noiseless utility of the simulated annotators",
    }
    _write_samples(versions, path, prompts, out)
    atomic_write_json(out / "summary.json", summary)
    return summary


def _write_samples(versions: list[int], path: list[Judged], prompts: list[Prompt], out: Path) -> None:
    """The tables and `comparison.png`; the base model is first and the last policy last."""
    base, judged = path[0], path[-1]
    rows = list(_rows("base", base, prompts)) + list(_rows("aligned", judged, prompts))
    write_table(rows, EVALUATION, out / "samples.parquet")
    curve_rows = (row for v, each in zip(versions, path, strict=True) for row in _curve_rows(v, each, prompts))
    write_table(curve_rows, CURVE, out / "curve" / "samples.parquet")
    shown = np.linspace(0, len(prompts) - 1, min(COMPARED, len(prompts))).astype(int)
    originals, masks = (torch.stack([getattr(prompts[i], name) for i in shown]) for name in ("image", "mask"))
    filled = [from_8bit(each.images[shown, 0]) for each in (base, judged)]
    save_comparison_grid([blank_hole(originals, masks), *filled, originals], out / "comparison.png")


def judge_policy(
    sampler: Sampler,
    prompts: list[Prompt],
    reward: Reward,
    config: EvaluateConfig,
    *,
    seed: int,
    stage: str,
    judges: Mapping[str, Reward] = NO_JUDGES,
    lpips: PictureDistance | None = None,
) -> Judged:
    """Sample every prompt with deterministic DDIM and let all judges mark the results.

    Raises UserError where prompts had to be put aside: both sides are judged on the same ones.
    """
    tasks, jury = plan_evaluation(prompts, config, seed), Jury(reward=reward, judges=judges, lpips=lpips)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    parts: dict[int, Judged] = {}
    for done in progress_bar(sampler.sample(tasks), stage=stage, total=len(tasks)):
        lost = set(tasks[done.task.number].prompt_ids) - set(done.task.prompt_ids)
        if lost:
            names = ", ".join(sorted(lost))
            raise UserError(f"evaluate: {names} kill samplers; take them out, or remove put_aside.json to try again")
        painted = [by_id[name] for name in done.task.prompt_ids]
        pictures = torch.stack([torch.from_numpy(np.array(decode_image(image))) for image in done.images])
        pictures = pictures.permute(0, 3, 1, 2).unflatten(0, (len(painted), config.samples_per_prompt))
        parts[done.task.number] = judge_images(pictures, painted, jury)
    return join_judged(parts[number] for number in sorted(parts))


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
        "monitors": watch(base, judged, [p.photograph for p in prompts], config.bootstrap),
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
                "image": image_cell(encode_picture(judged.images[p, s]), path),
                "reward": judged.reward[p, s],
                "uncertainty": judged.uncertainty[p, s],
                "gold": judged.gold[p, s],
                "sharpness": judged.sharpness[p, s],
            }
