"""Judges the policies of a run on held-out prompts: the same initial noise, steps and sampler for all."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.config.run_config import EvaluateConfig
from rlhf.data.buckets import batches_of_one_size
from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy_manifest import read_manifest
from rlhf.diffusion.sampler import Sampler, SamplingTask
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.errors import UserError
from rlhf.evaluation.alarms import Alarm, RangedEstimate, distance_from, estimate_ranged, find_alarms, ratio
from rlhf.evaluation.comparison_measures import rate_wins
from rlhf.evaluation.judging import JUDGE, Judged, Jury, join_judged, judge_images
from rlhf.evaluation.network_judge import NAME as NETWORK
from rlhf.evaluation.sample_rows import curve_rows, evaluation_rows
from rlhf.progress import progress_bar
from rlhf.reports.grids import save_comparison_grid
from rlhf.reports.intervals import Estimate, estimate_figure, estimate_share, wins
from rlhf.reports.records import parse_record
from rlhf.storage.atomic_files import atomic_write_json, check_schema
from rlhf.storage.images import blank_hole, decode_image, from_8bit
from rlhf.storage.tables import CURVE, EVALUATION, write_table

SUMMARY_SCHEMA_VERSION = 1
"""Schema version of `summary.json`."""
COMPARED = 12
"""Number of prompts in `comparison.png`."""
GOLD_JUDGE = "gold judge: the noiseless utility of the simulated annotators"
Keep = Callable[[str, Path | None, Callable[[], Judged]], Judged]
"""Returns how a contestant was judged, given its name, policy folder (None: base model) and a function that judges."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Figures of the aligned model beside the base model, over photographs."""

    win_rate: Estimate
    """WinRate at S = 1 by the gold judge; ties count half."""
    win_rate_reward: Estimate
    """WinRate at S = 1 by the training reward."""
    gold_base: float
    """Mean gold mark of the base model, 0 to 1."""
    gold_aligned: float
    gold_gain: Estimate
    reward_gain: Estimate
    """Gain in standard deviations of an annotation score."""
    sharpness_ratio: Estimate
    """Mean sharpness inside the holes, aligned over base."""
    diversity_ratio: Estimate
    """Mean difference of a prompt's samples, aligned over base."""
    known_pixels_differ: int
    win_rate_by_hole: dict[str, float]
    """WinRate by the gold judge for each hole family."""
    win_rate_network: Estimate | None = None
    """WinRate at S = 1 by the held-out network; None if its package is not installed."""
    win_rate_independent: Estimate | None = None
    """WinRate at S = 1 by the gold judge, over samples of independent noise, as in the paper; None for one sample."""
    win_rate_network_independent: Estimate | None = None
    """The same by the held-out network."""
    hole_change: Estimate | None = None
    """Mean absolute difference of aligned and base fills of the same noise inside the hole, in levels of 255."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Figures of one saved policy on the held-out prompts."""

    policy_version: int
    """Number of updates; 0 is the base model."""
    gold: float
    reward: float
    win_rate: Estimate
    """WinRate over the base model by the gold judge."""
    monitors: dict[str, RangedEstimate]
    """Figures by key of ALARM_RANGES."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSummary(Gain):
    """Figures of a run, as `summary.json` holds them."""

    schema_version: int = SUMMARY_SCHEMA_VERSION
    curve: list[CurvePoint]
    alarms: list[Alarm]
    prompts: int
    photographs: int
    samples_per_prompt: int
    num_inference_steps: int
    judge: str = GOLD_JUDGE


def parse_summary(record: Any, path: Path, remedy: str) -> EvaluationSummary:
    """Returns the summary that `path` holds as `record`; files of earlier versions lack alarms and their figures.

    Raises UserError with the remedy if a field is missing, or if a newer version wrote the file.
    """
    check_schema(record.get("schema_version"), SUMMARY_SCHEMA_VERSION, path)
    curve = [{"monitors": {}} | point for point in record.get("curve", [])]
    return parse_record(EvaluationSummary, {"alarms": []} | record | {"curve": curve}, path, remedy)


def judge_anew(name: str, policy: Path | None, judge: Callable[[], Judged]) -> Judged:
    """Judges every contestant, whether or not it was judged before."""
    return judge()


def evaluate(
    open_policy: Callable[[Path | None], Sampler],
    policies: list[Path],
    prompts: list[Prompt],
    jury: Jury,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int,
    keep: Keep = judge_anew,
) -> EvaluationSummary:
    """Judges the base model and the policies; the last policy is `aligned`, earlier ones belong to the curve.

    `open_policy` returns the sampler of a policy folder, or of the base model for None. `keep` may return the result of
    an earlier run instead of judging again. Writes `samples.parquet` (base and last policy), `curve/samples.parquet`
    (all policies, without images), `comparison.png` (masked, base, aligned and original of some prompts) and, last,
    `summary.json`.
    """

    def judge(name: str, policy: Path | None) -> Judged:
        """Returns how a policy is judged, from an earlier run or anew."""
        stage = f"evaluate: {name if policy is None else policy.name}"
        return keep(
            name, policy, lambda: judge_policy(open_policy(policy), prompts, jury, config, seed=seed, stage=stage)
        )

    names = ["base", *(folder.name for folder in policies[:-1]), "aligned"]
    path = [judge(name, policy) for name, policy in zip(names, [None, *policies], strict=True)]
    versions = [0, *(int(read_manifest(policy)["policy_version"]) for policy in policies)]
    summary = summarise(["base", *(policy.name for policy in policies)], versions, path, prompts, config)
    _write_samples(versions, path, prompts, out)
    atomic_write_json(out / "summary.json", asdict(summary))
    return summary


def summarise(
    names: Sequence[str], versions: Sequence[int], path: Sequence[Judged], prompts: list[Prompt], config: EvaluateConfig
) -> EvaluationSummary:
    """Returns the figures of a run from its judged policies, the base model first and the aligned one last."""
    base, photographs = path[0], [prompt.photograph for prompt in prompts]
    return EvaluationSummary(
        **vars(compare(base, path[-1], prompts)),
        curve=[_curve_point(v, base, each, prompts) for v, each in zip(versions, path, strict=True)],
        alarms=find_alarms(names, path, photographs),
        prompts=len(prompts),
        photographs=len(set(photographs)),
        samples_per_prompt=config.samples_per_prompt,
        num_inference_steps=config.num_inference_steps,
    )


def _write_samples(versions: list[int], path: list[Judged], prompts: list[Prompt], out: Path) -> None:
    """Writes the tables and `comparison.png` of a path that starts at the base model and ends at the last policy."""
    base, judged = path[0], path[-1]
    rows = [*evaluation_rows("base", base, prompts), *evaluation_rows("aligned", judged, prompts)]
    write_table(rows, EVALUATION, out / "samples.parquet")
    points = (row for v, each in zip(versions, path, strict=True) for row in curve_rows(v, each, prompts))
    write_table(points, CURVE, out / "curve" / "samples.parquet")
    shown = np.linspace(0, len(prompts) - 1, min(COMPARED, len(prompts))).astype(int)
    masked = [blank_hole(prompts[i].image, prompts[i].mask) for i in shown]
    filled = [[from_8bit(each.images[i][0]) for i in shown] for each in (base, judged)]
    save_comparison_grid([masked, *filled, [prompts[i].image for i in shown]], out / "comparison.png")


def judge_policy(
    sampler: Sampler,
    prompts: list[Prompt],
    jury: Jury,
    config: EvaluateConfig,
    *,
    seed: int,
    stage: str,
) -> Judged:
    """Samples every prompt with deterministic steps and lets all judges mark the results.

    Raises UserError if prompts were quarantined, since all contestants must be judged on the same prompts.
    """
    tasks = plan_evaluation(prompts, config, seed)
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    parts: dict[int, Judged] = {}
    for done in progress_bar(sampler.sample(tasks), stage=stage, total=len(tasks)):
        lost = set(tasks[done.task.number].prompt_ids) - set(done.task.prompt_ids)
        if lost:
            names = ", ".join(sorted(lost))
            raise UserError(
                f"evaluate: prompts {names} are quarantined (sampling them kills the sampler); remove them from the "
                "prompts, or delete quarantine.json to try them again"
            )
        painted = [by_id[name] for name in done.task.prompt_ids]
        pictures = torch.stack([torch.from_numpy(np.array(decode_image(image))) for image in done.images])
        pictures = pictures.permute(0, 3, 1, 2).unflatten(0, (len(painted), config.samples_per_prompt))
        parts[done.task.number] = judge_images(pictures, painted, jury)
    return join_judged(parts[number] for number in sorted(parts)).select([prompt.prompt_id for prompt in prompts])


def plan_evaluation(prompts: list[Prompt], config: EvaluateConfig, seed: int) -> list[SamplingTask]:
    """Returns one task, with all samples of its prompts of one size, for each batch that is denoised at once."""
    plan = RolloutPlan(num_inference_steps=config.num_inference_steps, eta=0.0, stochastic_steps=frozenset())
    size = max(1, config.micro_batch_size // config.samples_per_prompt)
    sizes = {prompt.prompt_id: prompt.size for prompt in prompts}
    return [
        SamplingTask(
            number=number,
            prompt_ids=batch,
            sample_indices=range(config.samples_per_prompt),
            plan=plan,
            seed_key=(seed, "evaluate"),
        )
        for number, batch in enumerate(batches_of_one_size(sizes, sizes, size))
    ]


def compare(base: Judged, aligned: Judged, prompts: list[Prompt]) -> Gain:
    """Returns WinRate at S = 1 and gains, with intervals over photographs."""
    photographs = [p.photograph for p in prompts]
    estimate = partial(estimate_figure, clusters=photographs)

    def rate(mark: str, *, is_independent: bool) -> Estimate | None:
        """Returns the WinRate by a mark; None if it was not given, or no two samples are independent."""
        if mark not in aligned.marks or mark not in base.marks:
            return None
        marks = aligned.marks[mark], base.marks[mark]
        won = rate_wins(aligned.reward, *marks, size=1, shares_noise=True) if is_independent else wins(*marks).mean(1)
        return None if won is None else estimate_share(won, photographs)

    gold_wins, reward_wins = wins(aligned.gold, base.gold).mean(1), wins(aligned.reward, base.reward).mean(1)
    families = sorted({p.hole for p in prompts})
    sharp = np.stack([aligned.sharpness.mean(1), base.sharpness.mean(1)], axis=1)
    diverse = np.stack([aligned.diversity, base.diversity], axis=1)
    return Gain(
        win_rate=estimate_share(gold_wins, photographs),
        win_rate_reward=estimate_share(reward_wins, photographs),
        gold_base=float(base.gold.mean()),
        gold_aligned=float(aligned.gold.mean()),
        gold_gain=estimate((aligned.gold - base.gold).mean(1)),
        reward_gain=estimate((aligned.reward - base.reward).mean(1)),
        sharpness_ratio=estimate(sharp, statistic=ratio),
        diversity_ratio=estimate(diverse, statistic=ratio),
        known_pixels_differ=base.known_pixels_differ + aligned.known_pixels_differ,
        win_rate_by_hole={family: float(gold_wins[[p.hole == family for p in prompts]].mean()) for family in families},
        win_rate_network=rate(JUDGE + NETWORK, is_independent=False),
        win_rate_independent=rate("gold", is_independent=True),
        win_rate_network_independent=rate(JUDGE + NETWORK, is_independent=True),
        hole_change=estimate(distance_from(base, aligned)),
    )


def _curve_point(version: int, base: Judged, judged: Judged, prompts: list[Prompt]) -> CurvePoint:
    photographs = [prompt.photograph for prompt in prompts]
    return CurvePoint(
        policy_version=version,
        gold=float(judged.gold.mean()),
        reward=float(judged.reward.mean()),
        win_rate=estimate_share(wins(judged.gold, base.gold).mean(1), photographs),
        monitors=estimate_ranged(base, judged, photographs),
    )
