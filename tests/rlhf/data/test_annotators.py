"""Simulated annotators: bias and noise as configured, and the checks on what people wrote."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_parts import small_prompts

from rlhf.config.run_config import AnnotatorsConfig
from rlhf.data.annotated_images import join_annotations
from rlhf.data.annotators import UTILITY_RANGE, load_annotations, noiseless_scores, simulate_annotations, to_mark
from rlhf.data.photographs import HELD_OUT
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.storage.images import decode_image, image_to_tensor
from rlhf.storage.tables import ANNOTATIONS, read_table, write_table

MARKS = ("structure", "texture", "overall")


def make_prompt() -> Prompt:
    """A photograph of the demo's held-out ones, which trained no judge."""
    photograph = decode_image(HELD_OUT / "0008_oakland_zoo_otters.jpg")
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    image = image_to_tensor(photograph.resize((64, 64), box=(40, 0, 360, 320)))
    return Prompt(prompt_id="p", photograph="p.png", source="s", hole="box", split="train", image=image, mask=mask)


def fills(shares: list[float]) -> dict[tuple[str, int], torch.Tensor]:
    """Candidates with so much noise in the hole."""
    prompt = make_prompt()
    noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {("p", i): prompt.image + share * prompt.mask * (noise - prompt.image) for i, share in enumerate(shares)}


def simulate(shares: list[float], out: Path, seed: int = 0, **changes: Any) -> list[dict[str, Any]]:
    config = AnnotatorsConfig(**changes)
    count = simulate_annotations({"p": make_prompt()}, fills(shares), out, config, seed=seed)
    rows = read_table(out, ANNOTATIONS)
    assert len(rows) == count
    return rows


def test_the_agreement_of_simulated_annotators_stands_beside_their_marks(tmp_path: Path) -> None:
    simulate([0.0, 0.3, 0.6, 1.0], tmp_path, count=3, marks_per_candidate=2)
    figures = json.loads((tmp_path / "agreement.json").read_text())
    assert figures["is_simulated"]
    assert figures["images_scored_by_several"] == 4
    assert -1 <= figures["krippendorff_alpha"]["overall"] <= 1


def test_marks_rise_with_utility_from_0_to_7() -> None:
    utility = np.linspace(0, 1, 101)
    marks = to_mark(utility)
    assert (np.diff(marks) >= 0).all()
    assert (marks.min(), marks.max()) == (0.0, 7.0)
    inside = (utility > UTILITY_RANGE[0]) & (utility < UTILITY_RANGE[1])
    assert (np.diff(marks[inside]) > 0).all()


def test_without_bias_and_noise_worse_fills_get_no_better_marks(tmp_path: Path) -> None:
    shares = [0.0, 0.1, 0.25, 0.5, 1.0]
    rows = simulate(shares, tmp_path, bias_sd=0, noise_sd=0, marks_per_candidate=1)
    overall = [row["overall"] for row in sorted(rows, key=lambda r: r["sample_index"])]
    assert overall == sorted(overall, reverse=True)
    assert overall[0] >= 6
    assert overall[0] > overall[2] > overall[-1]


def test_marks_are_whole_within_0_to_7_and_said_to_be_simulated(tmp_path: Path) -> None:
    rows = simulate([0.0, 0.3, 1.0] * 12, tmp_path, bias_sd=2.0, noise_sd=3.0)
    marks = np.array([[row[name] for name in MARKS] for row in rows])
    assert np.array_equal(marks, np.round(marks))
    assert (marks.min(), marks.max()) == (0.0, 7.0)
    assert all(row["is_simulated"] is True for row in rows)
    assert all(row["annotator"].startswith("simulated-") for row in rows)


def test_noise_and_bias_are_as_large_as_configured(tmp_path: Path) -> None:
    inside, share = ("texture", "overall"), 0.1
    (exact,) = simulate([share], tmp_path / "exact", bias_sd=0, noise_sd=0, marks_per_candidate=1)
    assert all(2 < exact[name] < 6 for name in inside), "marks far from the ends of the scale, where they are cut off"
    rows = simulate([share] * 30, tmp_path, count=50, bias_sd=0.5, noise_sd=0.6, marks_per_candidate=50)
    marks = defaultdict(list)
    for row in rows:
        marks[row["annotator"]].append([row[name] for name in inside])
    per_annotator = [np.array(m) - np.array(m).mean(0) for m in marks.values()]
    freedom = sum(len(m) - 1 for m in per_annotator) * len(inside)
    noise_variance = sum((m**2).sum() for m in per_annotator) / freedom - 1 / 12
    assert np.sqrt(noise_variance) == pytest.approx(0.6, rel=0.1)
    bias = np.array([np.mean(m) for m in marks.values()])
    assert bias.std() == pytest.approx(0.5, rel=0.3)


def test_every_candidate_is_scored_by_as_many_different_annotators_as_configured(tmp_path: Path) -> None:
    rows = simulate([0.2] * 20, tmp_path, marks_per_candidate=2)
    scorers = defaultdict(list)
    for row in rows:
        scorers[row["sample_index"]].append(row["annotator"])
    assert len(scorers) == 20
    assert all(len(names) == len(set(names)) == 2 for names in scorers.values())
    assert len({name for names in scorers.values() for name in names}) == AnnotatorsConfig().count


def test_same_seed_same_marks(tmp_path: Path) -> None:
    first, again, other = (
        [[r[name] for name in MARKS] for r in simulate([0.3] * 10, tmp_path / str(i), seed=s)]
        for i, s in enumerate((5, 5, 6))
    )
    assert first == again
    assert first != other


def test_total_is_the_weighted_sum_of_the_three_marks(tmp_path: Path) -> None:
    rows = simulate([0.1, 0.5], tmp_path)
    rows[0] |= {"structure": 7.0, "texture": 0.0, "overall": 5.0}
    write_table(rows, ANNOTATIONS, tmp_path / "annotations.parquet")
    assert load_annotations(tmp_path)[0]["annotation_score"] == pytest.approx(0.15 * 7 + 0.70 * 5)


@pytest.mark.parametrize("mark", [float("nan"), float("inf"), None, -0.5, 7.5])
def test_marks_off_the_scale_are_refused_with_their_row(mark: float | None, tmp_path: Path) -> None:
    rows = simulate([0.1] * 6, tmp_path, marks_per_candidate=1)
    rows[4]["texture"] = mark
    write_table(rows, ANNOTATIONS, tmp_path / "annotations.parquet")
    with pytest.raises(UserError, match=r"row 4 \(prompt p\): texture"):
        load_annotations(tmp_path)


@pytest.mark.parametrize("bias_sd", [0.0, 0.5])
def test_noiseless_scores_are_those_of_annotators_without_noise(bias_sd: float, tmp_path: Path) -> None:
    prompts = {p.prompt_id: p for p in small_prompts(6)}
    generator = torch.Generator().manual_seed(0)
    candidates = {
        (name, s): (p.image + p.mask * 0.3 * s * torch.randn(p.image.shape, generator=generator)).clamp(-1, 1)
        for name, p in prompts.items()
        for s in range(4)
    }
    config = AnnotatorsConfig(count=3, bias_sd=bias_sd, noise_sd=0.0, marks_per_candidate=3)
    simulate_annotations(prompts, candidates, tmp_path, config, seed=0)
    rows = load_annotations(tmp_path)
    scores = join_annotations(prompts, candidates, rows).scores.numpy()
    # Marks come in steps, so a little of what noise would add is left.
    differences = noiseless_scores(prompts, candidates, rows) - scores
    assert differences.std() < 0.25 * scores.std()
    assert abs(differences.mean()) < 1e-6, "the annotators' mean bias is no error of the reward"
