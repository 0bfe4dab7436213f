"""Tests whether uncertainty rises for images unlike the annotated ones: corruptions, other holes, other sources.

Every model is fitted on parts A to C of a split of the photographs and is asked about other photographs only. All
uncertainties are relative to those of clean fills of part D, which resemble the annotated ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from pydantic import JsonValue

from benchmarks.studies.command_line import run_as_program
from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import AnnotatedImages, distinct_images, join_annotations, split_photographs
from rlhf.data.annotators import load_annotations
from rlhf.data.candidate_table import CandidateTable
from rlhf.data.pictures import Pictures
from rlhf.data.prompts import PromptTable
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.reports.intervals import Estimate
from rlhf.reports.pages import show
from rlhf.rewards.learned.feature_training import with_descriptions
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_training import features_of, fit_reward
from rlhf.storage.atomic_files import atomic_write_json

SEVERITIES = (1, 2, 3, 4)
BATCH = 256


def blur(images: torch.Tensor, severity: int) -> torch.Tensor:
    """Blurs by `severity` passes of a 3x3 mean."""
    for _ in range(severity):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return images


def noise(images: torch.Tensor, severity: int) -> torch.Tensor:
    """Adds Gaussian noise of standard deviation 0.1 x severity; images span [-1, 1]."""
    generator = torch.Generator().manual_seed(severity)
    return (images + 0.1 * severity * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def colour_cast(images: torch.Tensor, severity: int) -> torch.Tensor:
    """Adds red and removes blue, by 0.15 x severity."""
    return (images + 0.15 * severity * torch.tensor([1.0, 0.0, -1.0])[:, None, None]).clamp(-1, 1)


def checkerboard(images: torch.Tensor, severity: int) -> torch.Tensor:
    """Adds the pattern of transposed convolutions: pixels lighter and darker in turn, by 0.1 x severity."""
    rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
    sign = 1.0 - 2.0 * ((rows[:, None] + columns[None, :]) % 2)
    return (images + 0.1 * severity * sign).clamp(-1, 1)


CORRUPTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "blur": blur,
    "noise": noise,
    "colour cast": colour_cast,
    "checkerboard": checkerboard,
}


@dataclass(frozen=True, kw_only=True)
class ShiftedImages:
    """Inpaintings of another source that nobody annotated."""

    images: torch.Tensor
    """[N, 3, H, W] in [-1, 1]."""
    masks: torch.Tensor
    """[N, 1, H, W]."""


@dataclass(frozen=True, kw_only=True)
class ShiftFigures:
    """Uncertainty of shifted images on one split."""

    uncertainty: float
    """Mean uncertainty relative to clean fills."""
    ood_share: float
    """Share of images that are flagged as out of distribution."""


Shifts = dict[str, dict[str, ShiftFigures]]
"""Figures of one split by shift and degree."""


@dataclass(frozen=True, kw_only=True)
class ShiftMeans:
    """Means of ShiftFigures over splits."""

    uncertainty: Estimate | None
    ood_share: float


@dataclass(frozen=True, kw_only=True)
class ShiftSummary:
    """Summary of all splits."""

    resplits: int
    shifts: dict[str, dict[str, ShiftMeans]]
    """Means by shift and degree."""


def study_shift(
    data: AnnotatedImages,
    families: list[str],
    others: Mapping[str, ShiftedImages],
    config: RewardConfig,
    out: Path,
    *,
    resplits: int,
) -> ShiftSummary:
    """Measures all shifts on `resplits` splits of the photographs; each split is a file, so a study can be resumed.

    `families` are the hole families of the rows of the data. Writes `resplit-*.json` and, last, `shift_study.json`.
    Raises UserError if `out` holds a study with other settings.
    """
    settings: dict[str, JsonValue] = {
        "config": config.model_dump(mode="json"),
        "rows": len(data.keys),
        "others": {name: len(other.images) for name, other in others.items()},
    }
    data = with_descriptions(data, config, 0)
    records = run_resplits(
        out,
        settings,
        resplits,
        lambda seed: measure_split(data, families, others, config, seed),
        Shifts,
        stage="study shift",
    )
    summary = ShiftSummary(resplits=resplits, shifts=_summarise(records))
    atomic_write_json(out / "shift_study.json", asdict(summary))
    return summary


def measure_split(
    data: AnnotatedImages, families: list[str], others: Mapping[str, ShiftedImages], config: RewardConfig, seed: int
) -> Shifts:
    """Returns the figures of one split, relative to clean fills of part D."""
    parts = split_photographs(data.photographs, config.parts, seed)
    model, held_out = _fit(data, parts, config, seed), data.of(parts[3])
    clean = _mean_uncertainty(model, features_of(model.network, held_out))
    rows, _ = distinct_images(held_out)
    images, masks = held_out.pictures.show(held_out.keys_of(rows.tolist()))
    table: Shifts = {}
    for name, corrupt in CORRUPTIONS.items():
        table[name] = {"0": _relate(clean, clean)}
        for severity in SEVERITIES:
            corrupted = torch.where(masks > 0.5, corrupt(images, severity), images)
            table[name][str(severity)] = _relate(_measure_pictures(model, corrupted, masks), clean)
    for name, other in others.items():
        table[f"source {name}"] = {"other": _relate(_measure_pictures(model, other.images, other.masks), clean)}
    for family in sorted(set(families)):
        table[f"hole {family}"] = _leave_out(data, families, family, parts, model, config, seed)
    return table


def _fit(data: AnnotatedImages, parts: list[set[str]], config: RewardConfig, seed: int) -> RewardModel:
    a, b, c = (data.of(part) for part in parts[:3])
    return fit_reward(a, b, c, config, seed).model


def _leave_out(
    data: AnnotatedImages,
    families: list[str],
    family: str,
    parts: list[set[str]],
    model: RewardModel,
    config: RewardConfig,
    seed: int,
) -> dict[str, ShiftFigures]:
    """Compares part D's holes of one family with its others: after annotation of all, and of all but this family."""
    others = data.rows([i for i, name in enumerate(families) if name != family])
    own = data.rows([i for i, name in enumerate(families) if name == family]).of(parts[3])
    without = _fit(others, parts, config, seed)
    return {
        degree: _relate(*(_mean_uncertainty(m, features_of(m.network, d)) for d in (own, others.of(parts[3]))))
        for degree, m in (("annotated", model), ("never annotated", without))
    }


def _mean_uncertainty(model: RewardModel, features: torch.Tensor) -> tuple[float, float]:
    """Returns the mean uncertainty of features [N, d], and the share of them out of distribution."""
    uncertainty = model.head.uncertainty(features)
    quantile = model.calibration.uncertainty_quantile
    assert quantile is not None
    return float(uncertainty.mean()), float((uncertainty > quantile).double().mean())


@torch.no_grad()
def _measure_pictures(model: RewardModel, images: torch.Tensor, masks: torch.Tensor) -> tuple[float, float]:
    parts = zip(images.split(BATCH), masks.split(BATCH), strict=True)
    return _mean_uncertainty(model, torch.cat([model.network(i, m) for i, m in parts]))


def _relate(measured: tuple[float, float], clean: tuple[float, float]) -> ShiftFigures:
    return ShiftFigures(uncertainty=measured[0] / clean[0], ood_share=measured[1])


def _summarise(records: Sequence[Shifts]) -> dict[str, dict[str, ShiftMeans]]:
    def means(shift: str, degree: str) -> ShiftMeans:
        found = [record[shift][degree] for record in records]
        share = sum(figures.ood_share for figures in found) / len(found)
        return ShiftMeans(uncertainty=average(figures.uncertainty for figures in found), ood_share=share)

    return {shift: {degree: means(shift, degree) for degree in degrees} for shift, degrees in records[0].items()}


def format_shifts(summary: ShiftSummary) -> str:
    """Formats a line per shift: mean uncertainty relative to clean fills by degree, and share out of distribution."""
    lines = [f"uncertainty relative to clean fills (share out of distribution); {summary.resplits} splits"]
    for shift, degrees in summary.shifts.items():
        values = {degree: own.uncertainty.value if own.uncertainty else None for degree, own in degrees.items()}
        cells = [
            f"{degree}: {show(value, '.2f')} ({degrees[degree].ood_share:.0%})" for degree, value in values.items()
        ]
        lines.append(f"{shift:<22}" + "  ".join(f"{cell:<18}" for cell in cells).rstrip())
    return "\n".join(lines)


def main(
    prompts: Annotated[Path, typer.Argument(help="Folder of prompts.")],
    candidates: Annotated[Path, typer.Argument(help="Folder of candidates.")],
    annotations: Annotated[Path, typer.Argument(help="Folder of annotations.")],
    out: Out,
    other: Annotated[
        list[Path] | None,
        typer.Option(help="Candidates of another source, with their prompts/ beside them; may be repeated."),
    ] = None,
    resplits: Annotated[int, typer.Option(min=1, help="Splits of the photographs.")] = 6,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Test whether uncertainty rises for what was never annotated: corrupted fills, other holes, other sources."""
    resolved = resolve_config(config, overrides)
    save_config(resolved, out)
    by_id = PromptTable(prompts)
    data = join_annotations(by_id, CandidateTable(candidates, by_id), load_annotations(annotations))
    families = [by_id[prompt_id].hole for prompt_id, _ in data.keys]
    others = {}
    for folder in other or []:
        own = PromptTable(folder / "prompts")
        candidates_of = CandidateTable(folder, own)
        images, masks = Pictures(own, candidates_of).show(list(candidates_of))
        others[folder.parent.name or folder.name] = ShiftedImages(images=images, masks=masks)
    print(format_shifts(study_shift(data, families, others, resolved.reward, out, resplits=resplits)))


if __name__ == "__main__":
    run_as_program(main)
