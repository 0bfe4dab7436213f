"""From annotations to a reward model, on photographs of flat noise whose score is the hole's brightness."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from small_annotations import make_world

from rlhf.config.run_config import RewardConfig
from rlhf.errors import UserError
from rlhf.rewards.learned.reward_figures import pair_accuracy, reliability
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_model import Calibration
from rlhf.rewards.learned.reward_report import RewardReport
from rlhf.rewards.learned.reward_training import train_reward
from rlhf.rewards.scores import Scores
from rlhf.storage.atomic_files import finite

CONFIG = RewardConfig(feature_dim=12, epochs=30, micro_batch_size=64, decorrelation=1.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RewardReport]:
    """A reward folder and its report; the first annotation is a person's."""
    out = tmp_path_factory.mktemp("reward")
    prompts, candidates, annotations = make_world()
    annotations[0]["is_simulated"] = False
    return out, train_reward(prompts, candidates, annotations, out, CONFIG, seed=0)


def test_pair_accuracy_compares_samples_of_one_prompt_only() -> None:
    keys = [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    scores = np.array([0.0, 1.0, 10.0, 11.0])
    assert pair_accuracy(np.array([5.0, 6.0, 1.0, 2.0]), scores, keys) == 1.0
    assert pair_accuracy(np.array([5.0, 6.0, 2.0, 1.0]), scores, keys) == 0.5
    assert pair_accuracy(scores, np.zeros(4), keys) is None
    assert pair_accuracy(scores[:2], scores[:2], [("p", 0), ("p", 0)]) is None


def test_reliability_holds_every_row_once_in_fifths_of_rising_uncertainty() -> None:
    uncertainty = np.random.default_rng(0).permutation(np.arange(1.0, 51.0))
    rows = reliability(0.5 * uncertainty, uncertainty, conformal=0.6)
    assert [row.uncertainty for row in rows] == [5.5, 15.5, 25.5, 35.5, 45.5]
    assert [row.error for row in rows] == [2.75, 7.75, 12.75, 17.75, 22.75]
    assert all(row.coverage == 1.0 and row.bound == pytest.approx(0.6 * row.uncertainty) for row in rows)


def test_the_reward_finds_what_was_scored_on_photographs_it_never_saw(trained: tuple[Path, RewardReport]) -> None:
    _, report = trained
    assert report.rank_correlation_reward_score.value > 0.7
    assert report.pair_accuracy > 0.7
    assert report.coverage_measured.value > 0.6
    parts = [set(part) for part in report.parts]
    assert len(parts) == 4
    assert sum(map(len, parts)) == len(set().union(*parts)) == 24


def test_collapsed_features_are_refused(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"feature_dim": 2})
    with pytest.raises(UserError, match=r"features collapsed \(effective rank .*raise reward.decorrelation"):
        train_reward(*make_world(), tmp_path, config, seed=0)
    assert not (tmp_path / "reward.json").exists(), "nothing there looks like a reward"


def test_the_report_is_stored_with_all_that_it_promises(trained: tuple[Path, RewardReport]) -> None:
    out, report = trained
    written = json.loads((out / "report.json").read_text())
    assert written == finite(asdict(report))
    promised = {"calibration", "coverage_stated", "coverage_measured", "mean_width", "pair_accuracy", "reliability"}
    promised |= {"rank_correlation_error_uncertainty", "rank_correlation_reward_score", "effective_rank", "parts"}
    promised |= {"is_simulated", "annotations_per_part", "photographs_per_part", "feature_dim"}
    assert promised <= set(written)
    assert set(written["calibration"]) == {field.name for field in fields(Calibration)}
    assert 4 <= report.effective_rank <= CONFIG.feature_dim + 1
    assert report.calibration.noise > 0
    assert report.calibration.uncertainty_quantile is not None
    assert report.calibration.uncertainty_quantile > report.calibration.median_uncertainty


def test_a_report_that_rests_on_any_simulated_annotation_says_so(trained: tuple[Path, RewardReport]) -> None:
    assert trained[1].is_simulated is True


def test_training_again_gives_the_same_scores_bit_for_bit(trained: tuple[Path, RewardReport], tmp_path: Path) -> None:
    prompts, candidates, annotations = make_world()
    train_reward(prompts, candidates, annotations, tmp_path, CONFIG, seed=0)
    images = torch.stack(list(candidates.values())[:20])
    masks = torch.stack([prompts[key[0]].mask for key in list(candidates)[:20]])
    first, again = (load_reward(folder).score(images, masks) for folder in (trained[0], tmp_path))
    for field in fields(Scores):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
