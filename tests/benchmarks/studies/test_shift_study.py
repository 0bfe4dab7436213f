"""Corruptions by degrees, holes of a family that was never annotated, other sources."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from small_annotations import STUDY_CONFIG as CONFIG
from small_annotations import make_world
from small_parts import small_prompts

from benchmarks.studies.shift import CORRUPTIONS, SEVERITIES, ShiftedImages, ShiftSummary, format_shifts, study_shift
from rlhf.data.annotated_images import join_annotations
from rlhf.errors import UserError
from rlhf.storage.atomic_files import finite


def run_small_study(out: Path, resplits: int = 1) -> ShiftSummary:
    prompts, candidates, annotations = make_world(30)
    data = join_annotations(prompts, candidates, annotations)
    other = small_prompts(4)
    others = {
        "elsewhere": ShiftedImages(
            images=torch.stack([-p.image for p in other]), masks=data.pictures.show(data.keys[:4])[1]
        )
    }
    families = [prompts[prompt_id].hole for prompt_id, _ in data.keys]
    return study_shift(data, families, others, CONFIG, out, resplits=resplits)


def test_corruptions_grow_with_severity() -> None:
    images = torch.stack([p.image for p in small_prompts(6)])
    for corrupt in CORRUPTIONS.values():
        changes = [float((corrupt(images, severity) - images).abs().mean()) for severity in SEVERITIES]
        assert changes == sorted(changes)
        assert changes[0] > 0


def test_a_study_of_shift_has_every_corruption_family_and_source_and_goes_on(tmp_path: Path) -> None:
    summary = run_small_study(tmp_path)
    shifts = summary.shifts
    assert set(shifts) == {*CORRUPTIONS, "source elsewhere", "hole box", "hole brush"}
    for name in CORRUPTIONS:
        assert shifts[name]["0"].uncertainty.value == 1.0, "severity 0 is the clean fill"
        assert list(shifts[name]) == ["0", *map(str, SEVERITIES)]
    assert set(shifts["hole box"]) == {"annotated", "never annotated"}
    assert all(name in format_shifts(summary) for name in shifts)
    before = (tmp_path / "resplit-00.json").stat().st_mtime_ns
    assert finite(asdict(run_small_study(tmp_path))) == finite(asdict(summary))
    assert (tmp_path / "resplit-00.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("corruption", ["blur", "noise"])
def test_what_no_annotated_fill_is_like_raises_uncertainty_and_the_alarm(corruption: str, tmp_path: Path) -> None:
    degrees = run_small_study(tmp_path).shifts[corruption]
    assert degrees["4"].uncertainty.value > 1.2
    assert degrees["4"].ood_share > degrees["0"].ood_share


def test_another_source_is_refused_where_the_study_began_without_it(tmp_path: Path) -> None:
    summary = run_small_study(tmp_path)
    prompts, candidates, annotations = make_world(30)
    data = join_annotations(prompts, candidates, annotations)
    with pytest.raises(UserError, match="other settings"):
        study_shift(data, ["box"] * len(data.keys), {}, CONFIG, tmp_path, resplits=summary.resplits)
