"""Report of a run: one self-contained HTML page, and a summary for the terminal."""

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlhf.data.rows import PromptRow
from rlhf.errors import UserError
from rlhf.evaluation.comparison_records import ALL, ComparisonReport
from rlhf.evaluation.evaluation import CurvePoint, EvaluationSummary, parse_summary
from rlhf.evaluation.judging import JUDGE
from rlhf.evaluation.network_judge import NAME as NETWORK
from rlhf.evaluation.sample_rows import EvaluationRow
from rlhf.reports.charts import GOLD, GREY, REWARD, Series, draw_forest, draw_lines
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS, Estimate, estimate_share, show_estimate, wins
from rlhf.reports.metrics_log import Metrics, read_metrics
from rlhf.reports.pages import (
    FEW_PHOTOGRAPHS,
    MAX_PICTURE_PX,
    data_uri,
    picture_uri,
    show_duration,
    show_hole,
    write_page,
)
from rlhf.reports.records import parse_record
from rlhf.rewards.learned.reward_charts import reliability_charts
from rlhf.rewards.learned.reward_report import UpdatedReport
from rlhf.storage.images import decode_image, decode_mask
from rlhf.storage.tables import EVALUATION, PROMPTS, read_table
from rlhf.workflows.stages import read_stages

GALLERY_PROMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Fills of one prompt and initial noise by both models: two rows of `samples.parquet`."""

    base: EvaluationRow
    aligned: EvaluationRow

    @property
    def gain(self) -> float:
        """Gold mark of the aligned model minus that of the base model."""
        return self.aligned["gold"] - self.base["gold"]


def write_report(run: Path) -> Path:
    """Writes `run/report.html`, a page that loads nothing from elsewhere; returns its path.

    Raises UserError with the file and the stage to run if one is missing or damaged.
    """
    summary = read_evaluation(run)
    reward = read_reward(run)
    rows = cast(list[EvaluationRow], read_table(run / "evaluation" / "samples.parquet", EVALUATION))
    pairs = pair_samples(rows)
    held_out = cast(list[PromptRow], read_table(run / "held_out_prompts", PROMPTS))
    prompts = {row["prompt_id"]: row for row in held_out}
    return write_page(
        "report.html",
        run / "report.html",
        name=run.resolve().name,
        summary=summary,
        reward=reward,
        pair_count=len(pairs),
        has_comparison=(run / "evaluation" / "comparison.html").is_file(),
        sliders=_show_pairs(run, prompts, pairs, sorted({0, len(pairs) // 2, len(pairs) - 1})),
        gallery=_show_pairs(run, prompts, pairs, choose_spread(pairs, GALLERY_PROMPTS)),
        marks=read_marks(run),
        charts=_training_charts(read_metrics(run / "align"), summary.curve) | _judged_charts(summary, reward, pairs),
        grids={path.stem: data_uri(path.read_bytes(), "png") for path in sorted(run.glob("align/grids/*.png"))[-4:]},
        stages=read_stages(run),
        configurations={path.parent.name: path.read_text() for path in sorted(run.glob("*/config.yaml"))},
        skipped=[s for path in sorted(run.glob("*prompts/skipped.json")) for s in _read_json(path, "prompts")],
    )


def summarise(run: Path, report: Path, duration_s: float) -> list[str]:
    """Returns the summary for the terminal: the figures, how far to trust them, and how to continue."""
    summary = read_evaluation(run)
    reward = read_reward(run)
    rests_on = f"{summary.prompts} prompts of {summary.photographs} held-out photographs"
    if summary.photographs < LEAST_PHOTOGRAPHS:
        rests_on += f": too few (below {LEAST_PHOTOGRAPHS}) for intervals"
    elif summary.photographs < FEW_PHOTOGRAPHS:
        rests_on += f": few (below {FEW_PHOTOGRAPHS}), so the intervals are rough"
    coverage = show_estimate(reward.coverage_measured, ".1%")
    rate, noise = (
        summary.win_rate_independent or summary.win_rate,
        "independent" if summary.win_rate_independent else "same",
    )
    network = summary.win_rate_network_independent or summary.win_rate_network
    change = summary.hole_change
    lines = {
        "WinRate over base": f"{show_estimate(rate, '.1%')}, {noise} noise; 50% is no difference",
        "by the network": "its package is not installed" if network is None else show_estimate(network, ".1%"),
        "gold gain": show_estimate(summary.gold_gain, "+.3f") + " on a scale of 0 to 1",
        "sharpness ratio": show_estimate(summary.sharpness_ratio, ".2f") + " aligned / base",
        "change in the hole": "not measured" if change is None else show_estimate(change, ".1f") + " of 255 levels",
        "diversity ratio": show_estimate(summary.diversity_ratio, ".2f") + " aligned / base",
        "coverage measured": f"{coverage}, stated {reward.coverage_stated:.0%}",
        "effective rank": f"{reward.effective_rank:.1f} of {reward.feature_dim} features",
        "rests on": rests_on,
        "alarms": "; ".join(alarm.message for alarm in summary.alarms) or "none",
        "judged by": f"{'simulated annotators' if reward.is_simulated else 'people'}, then a simulated gold judge",
        "total time": show_duration(duration_s),
        "report": str(report),
        "continue with": f"rlhf serve {shlex.quote(str(run))}",
        "or": "rlhf demo --images YOUR_PHOTOS --eval-images OTHER_PHOTOS --out runs/mine",
    }
    return ["", *(f"{label:<18} {text}" for label, text in lines.items())]


def read_evaluation(run: Path) -> EvaluationSummary:
    """Reads `summary.json` of a run. Raises UserError if it is missing, damaged or of a newer version."""
    path = run / "evaluation" / "summary.json"
    return parse_summary(_read_json(path, "evaluate"), path, "run `rlhf evaluate` again")


def read_reward(run: Path) -> UpdatedReport:
    """Reads what every `report.json` of a reward has. Raises UserError if it is missing or damaged."""
    path = run / "reward" / "report.json"
    return parse_record(UpdatedReport, _read_json(path, "reward"), path, "run `rlhf reward` again")


def _read_json(path: Path, stage: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"is not readable ({error})"
        raise UserError(f"{path} {reason}; run `rlhf {stage}`, or `rlhf demo`, which runs what is left") from error


def pair_samples(rows: Sequence[EvaluationRow]) -> list[Pair]:
    """Pairs the samples of both models by prompt and noise, largest gold gain first. Raises UserError if none pair."""
    sides: dict[tuple[str, int], dict[str, EvaluationRow]] = {}
    for row in rows:
        sides.setdefault((row["prompt_id"], row["sample_index"]), {})[row["policy"]] = row
    pairs = [Pair(base=s["base"], aligned=s["aligned"]) for s in sides.values() if {"base", "aligned"} <= s.keys()]
    if not pairs:
        raise UserError("evaluation: samples of base and aligned model do not pair up; run `rlhf evaluate` again")
    return sorted(pairs, key=lambda pair: -pair.gain)


def choose_spread(pairs: list[Pair], count: int) -> list[int]:
    """Returns the indices of up to `count` of `pairs`, sorted by gain: the best, the worst, and one per equal band.

    Within a band, the photographs and hole families shown least come first; no prompt is shown twice.
    """
    bands = np.array_split(np.arange(len(pairs)), min(count, len(pairs)))
    shown: Counter[tuple[str, str]] = Counter()
    chosen = set()
    for band in [bands[0][:1], bands[-1][-1:], *bands[1:-1]]:
        rows = {int(place): pairs[place].base for place in band}
        fresh = [place for place, row in rows.items() if not shown["prompt_id", row["prompt_id"]]]
        if fresh:
            place = min(fresh, key=lambda i: sum(shown[k, rows[i][k]] for k in ("photograph", "hole")))
            chosen.add(place)
            shown.update((key, rows[place][key]) for key in ("prompt_id", "photograph", "hole"))
    return sorted(chosen)


@dataclass(frozen=True, kw_only=True)
class ShownPair:
    """Pair with its pictures."""

    pair: Pair
    rank: int
    """Rank by gold gain, from 1."""
    is_small: bool
    pictures: dict[str, str]
    """Data URIs by title; the hole is transparent in the masked photograph."""
    change: float
    """Mean absolute difference of the two fills inside the hole, in levels of 255."""


def _show_pairs(
    run: Path, prompts: Mapping[str, PromptRow], pairs: list[Pair], places: Sequence[int]
) -> Iterator[ShownPair]:
    for place in places:
        pair = pairs[place]
        prompt = prompts.get(pair.base["prompt_id"])
        if prompt is None:
            raise UserError(f"{run}: held-out prompt {pair.base['prompt_id']} is gone; run `rlhf evaluate` again")
        original, base, aligned = (decode_image(row["image"]["bytes"]) for row in (prompt, pair.base, pair.aligned))
        mask = decode_mask(prompt["mask"]["bytes"], size=original.size, name=f"mask of {prompt['prompt_id']}")
        pictures = {"masked": show_hole(original, mask), "base": base, "aligned": aligned, "original": original}
        uris = {title: picture_uri(picture) for title, picture in pictures.items()}
        is_small = original.width <= MAX_PICTURE_PX // 2
        change = float(np.abs(np.asarray(base, np.float64) - np.asarray(aligned, np.float64))[mask].mean())
        yield ShownPair(pair=pair, rank=place + 1, is_small=is_small, pictures=uris, change=change)


def read_marks(run: Path) -> list[tuple[str, list[Estimate | None]]]:
    """Mean marks of models and classical fills by the gold judge and the held-out network; none without a comparison.

    Raises UserError if `comparison.json` is damaged.
    """
    path = run / "evaluation" / "comparison.json"
    if not path.is_file():
        return []
    report = parse_record(ComparisonReport, _read_json(path, "evaluate"), path, "run `rlhf evaluate` again")
    judges = ("gold", JUDGE + NETWORK)
    return [(name, [own.figures[ALL].get(judge) for judge in judges]) for name, own in report.contestants.items()]


def _training_charts(metrics: Sequence[Metrics], curve: Sequence[CurvePoint]) -> dict[str, dict[str, str]]:
    """Draws training by update and held-out prompts by policy version; the template has titles and captions."""
    updates, versions = [line["update"] for line in metrics], [p.policy_version for p in curve]

    def track(name: str, key: str, colour: str = REWARD) -> Series:
        """Returns the curve of one figure of `metrics.jsonl`, with gaps where it is missing."""
        return {name: (colour, [line.get(key, math.nan) for line in metrics])}

    rates = [point.win_rate for point in curve]
    wins_by_version = {"": (GOLD, [rate.value for rate in rates])}
    trust = track("sd (mean is 1)", "trust_weight_std") | track("effective share", "effective_sample_share", GREY)
    by_version, sd = "policy version (updates; 0 is the base model)", "reward (sd of scores)"
    return {
        "reward": draw_lines(updates, track("", "reward"), "update", sd),
        "kl": draw_lines(updates, track("", "kl_to_base"), "update", "KL (nats per latent element)"),
        "trust": draw_lines(updates, trust, "update", "trust weights (no unit)"),
        "held_out_reward": draw_lines(versions, {"": (REWARD, [p.reward for p in curve])}, by_version, sd),
        "held_out_gold": draw_lines(versions, {"": (GOLD, [p.gold for p in curve])}, by_version, "gold mark (0 to 1)"),
        "held_out_wins": draw_lines(
            versions, wins_by_version, by_version, "WinRate (share)", band=rates, reference=0.5
        ),
    }


def _judged_charts(
    summary: EvaluationSummary, reward: UpdatedReport, pairs: Sequence[Pair]
) -> dict[str, dict[str, str]]:
    """Draws WinRate by hole family, ratios, and the bound by fifths of the uncertainty."""
    rates = {"all holes": summary.win_rate}
    for hole in sorted({pair.base["hole"] for pair in pairs}):
        own = [pair for pair in pairs if pair.base["hole"] == hole]
        won = wins(np.array([pair.gain for pair in own]), np.zeros(len(own)))
        rates[hole] = estimate_share(won, [pair.base["photograph"] for pair in own])
    ratios = {"sharpness": summary.sharpness_ratio, "diversity": summary.diversity_ratio}
    return {
        "win_rates": draw_forest(rates, "WinRate over base (share)", 0.5),
        "ratios": draw_forest(ratios, "aligned / base (ratio)", 1.0),
    } | reliability_charts(reward)
