"""Adds annotations to a reward: the features stay, V and the head learn, and the bound is calibrated anew."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from rlhf.data.annotated_images import annotations_of, join_annotations
from rlhf.data.candidate_table import Key
from rlhf.data.normalisation import load_normalisation
from rlhf.data.prompts import AnyPrompt
from rlhf.data.rows import AnnotationRow
from rlhf.errors import UserError
from rlhf.reports.records import read_record
from rlhf.rewards.learned.bound import PromptEffects, update_ridge
from rlhf.rewards.learned.reward_figures import bound_figures
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_memory import RewardMemory, annotation_id, load_memory, rows_to_add, with_features
from rlhf.rewards.learned.reward_model import RewardModel
from rlhf.rewards.learned.reward_report import UpdatedReport
from rlhf.rewards.learned.reward_training import features_of, fit_calibration, save_reward
from rlhf.storage.atomic_files import atomic_write_text


def update_reward(
    folder: Path,
    prompts: Mapping[str, AnyPrompt],
    candidates: Mapping[Key, torch.Tensor],
    annotations: list[AnnotationRow],
    out: Path,
) -> UpdatedReport:
    """Adds the annotations that the reward in `folder` has not seen, and writes it to `out`; returns its report.

    A table that has grown can be given whole; a mark that was changed since counts as another annotation.
    Scores are normalised by the folder's own figures. Photographs of parts C and D stay out of the head:
    their annotations join those that calibrate and report. All others, those of part A included, enter
    V and psi as if they had been there at the first correction; new photographs join part B.
    C's stored annotations calibrate again even if it gets no new ones, since V has grown: an old
    multiplier of smaller uncertainties would cover less than it states.

    Raises UserError if the folder is incomplete, PrefPaint's released reward, or of an older version.
    """
    if out.resolve() == folder.resolve():
        raise UserError(f"{out}: is the reward that is updated; choose another --out")
    model, effects = _open(folder)
    report = read_record(UpdatedReport, folder / "report.json", "run `rlhf reward` again")
    before, normalisation = load_memory(folder), load_normalisation(folder)
    matching = annotations_of(candidates, annotations)
    new = [row for row in matching if annotation_id(row) not in before.seen_ids]
    if not new:
        raise UserError(f"{folder}: has had all of these annotations; give others")
    data = join_annotations(prompts, candidates, new, normalisation)
    memory, learned = before.adding(with_features(features_of(model.network, data), data), map(annotation_id, new))
    head = update_ridge(model.head, *rows_to_add(learned, before.seen, effects)) if learned.keys else model.head
    calibration = fit_calibration(
        head, memory.calibration, model.calibration, noise=model.calibration.noise, effects=effects
    )
    updated = replace(model, head=head, calibration=calibration)
    report = _update_report(report, updated, memory, new, learned=len(learned.keys), photographs=data.photographs)
    save_reward(updated, memory, normalisation, report, out)
    if (folder / "config.yaml").is_file():
        atomic_write_text(out / "config.yaml", (folder / "config.yaml").read_text())
    return report


def _open(folder: Path) -> tuple[RewardModel, PromptEffects]:
    model = load_reward(folder)
    effects = model.calibration.prompt_effects if isinstance(model, RewardModel) else None
    if not isinstance(model, RewardModel) or effects is None:
        raise UserError(f"{folder}: cannot take in annotations; fit a reward with `rlhf reward` of this version")
    return model, effects


def _update_report(
    report: UpdatedReport,
    model: RewardModel,
    memory: RewardMemory,
    new: list[AnnotationRow],
    *,
    learned: int,
    photographs: list[str],
) -> UpdatedReport:
    """Returns the report after an update: figures on part D anew, counts with the `new` annotations added."""
    parts, judged = _parts_with(report.parts, set(photographs)), memory.report
    for_a, for_b, *_ = report.annotations_per_part
    return replace(
        report,
        **vars(bound_figures(model.head, model.calibration, judged)),
        is_simulated=report.is_simulated or any(row["is_simulated"] for row in new),
        annotations_per_part=[for_a, for_b + learned, len(memory.calibration.keys), len(judged.keys)],
        photographs_per_part=[len(part) for part in parts],
        parts=parts,
        updates=report.updates + 1,
    )


def _parts_with(parts: list[list[str]], photographs: set[str]) -> list[list[str]]:
    """Returns the parts with the photographs that are in none of them added to B."""
    new = photographs - set().union(*parts)
    return [parts[0], sorted({*parts[1], *new}), *parts[2:]]
