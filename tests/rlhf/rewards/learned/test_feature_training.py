"""Training of the features: objectives, any number of annotations, early stopping, resume."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_commands import Command
from small_annotations import make_world

from rlhf.config.run_config import RewardConfig
from rlhf.data.annotated_images import join_annotations
from rlhf.errors import UserError
from rlhf.rewards.learned.feature_network import FeatureNetwork, SmallBackbone
from rlhf.rewards.learned.feature_training import (
    FeatureTraining,
    covariance_penalty,
    pair_loss,
    train_features,
    with_descriptions,
)
from rlhf.rewards.learned.reward_training import features_of

CONFIG = RewardConfig(feature_dim=12, epochs=6, micro_batch_size=64, decorrelation=1.0)


class KilledError(Exception):
    """Stands for a kill."""


def test_covariance_penalty_is_zero_for_uncorrelated_features_and_the_sum_of_squares_else() -> None:
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = torch.linalg.qr(features - features.mean(0)).Q + 3.0
    assert float(covariance_penalty(white)) == pytest.approx(0, abs=1e-12)
    covariance = np.cov(features.numpy().T)
    expected = (covariance**2).sum() - (np.diag(covariance) ** 2).sum()
    assert float(covariance_penalty(features)) == pytest.approx(expected / 6)
    assert float(covariance_penalty(torch.stack([features[:, 0]] * 2, 1))) > 0.5


@pytest.mark.parametrize(("count", "micro_batch_size"), [(13, 3), (16, 16), (20, 64), (9, 4)])
def test_features_train_on_any_number_of_annotations(count: int, micro_batch_size: int) -> None:
    data = join_annotations(*make_world(4))
    few = data.rows(list(range(count)))
    config = CONFIG.model_copy(update={"epochs": 1, "micro_batch_size": micro_batch_size})
    network = train_features(few, config, seed=0)
    features = network(*few.pictures.show(few.keys))
    assert features.shape == (count, CONFIG.feature_dim + 1)
    assert torch.isfinite(features).all()


def test_pair_loss_is_the_mean_of_bradley_and_terrys_log_odds_over_the_pairs_of_each_prompt() -> None:
    rewards, scores = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.1]), torch.tensor([1.0, 2.0, 2.0, 5.0, 4.0])
    pairs = [(1, 0), (2, 0), (3, 4)]
    expected = torch.stack([-torch.sigmoid(rewards[i] - rewards[j]).log() for i, j in pairs]).mean()
    torch.testing.assert_close(pair_loss(rewards, scores, [3, 2]), expected)
    assert pair_loss(rewards, torch.zeros(5), [3, 2]) == 0.0


@pytest.mark.parametrize("objective", ["scores", "pairs"])
def test_each_objective_falls_on_photographs_that_were_held_out(objective: str, tmp_path: Path) -> None:
    data = join_annotations(*make_world())
    config = CONFIG.model_copy(update={"objective": objective, "validation_share": 0.25, "epochs": 20})
    train_features(data, config, seed=0, out=tmp_path)
    curve = [json.loads(line) for line in (tmp_path / "learning_curve.jsonl").read_text().splitlines()]
    assert [figures["epoch"] for figures in curve] == list(range(1, len(curve) + 1))
    assert min(figures["validation"] for figures in curve) < 0.8 * curve[0]["validation"]


def test_training_stops_where_the_validation_no_longer_improves(tmp_path: Path) -> None:
    data = join_annotations(*make_world(8))
    noise = torch.randn(data.marks.shape, generator=torch.Generator().manual_seed(0))
    meaningless = replace(data, marks=noise, scores=noise[:, 0])
    config = CONFIG.model_copy(update={"validation_share": 0.3, "patience": 2, "epochs": 60})
    train_features(meaningless, config, seed=0, out=tmp_path)
    values = [json.loads(line)["validation"] for line in (tmp_path / "learning_curve.jsonl").read_text().splitlines()]
    assert len(values) < 60
    assert len(values) - 1 - values.index(min(values)) == 2


def test_an_interrupted_training_goes_on_to_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = join_annotations(*make_world(6))
    whole = train_features(data, CONFIG, seed=0, out=tmp_path / "whole")
    run_epoch, epochs = FeatureTraining.run_epoch, []

    def fail_at_the_fourth(training: FeatureTraining) -> float:
        epochs.append(1)
        if len(epochs) == 4:
            raise KilledError
        return run_epoch(training)

    monkeypatch.setattr(FeatureTraining, "run_epoch", fail_at_the_fourth)
    with pytest.raises(KilledError):
        train_features(data, CONFIG, seed=0, out=tmp_path / "cut")
    resumed = train_features(data, CONFIG, seed=0, out=tmp_path / "cut")
    assert len(epochs) == 4 + 3, "three epochs were not repeated"
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    other = train_features(data, CONFIG, seed=1, out=tmp_path / "cut")
    assert not torch.equal(other.linear.weight, resumed.linear.weight), "another seed does not go on with it"


def test_data_described_once_train_and_describe_as_their_pictures_do() -> None:
    config = RewardConfig(epochs=2, feature_dim=8, micro_batch_size=8)
    prompts, candidates, annotations = make_world(6)
    data = join_annotations(prompts, candidates, annotations)
    described = with_descriptions(data, config, 0)
    network = train_features(described, config, 0)
    assert torch.equal(features_of(network, described), features_of(network, data))
    part = set(data.photographs[:1])
    assert torch.equal(features_of(network, described.of(part)), features_of(network, data.of(part)))


def test_a_backbone_with_weights_is_described_anew_in_every_batch() -> None:
    class Learned(SmallBackbone):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(self.output_dim))

        def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
            return self.scale * super().forward(images, masks)

    data = join_annotations(*make_world(4))
    network = FeatureNetwork(Learned(), 12)
    before = network.backbone.scale.detach().clone()
    FeatureTraining(network, data, CONFIG, seed=0).run_epoch()
    assert not torch.equal(before, network.backbone.scale.detach())


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "command", "no archive"])
def test_damage_of_the_kept_training_is_named_and_runs_nothing(damage: str, tmp_path: Path) -> None:
    data, file, trace = join_annotations(*make_world(4)), tmp_path / "training.pt", tmp_path / "trace"
    train_features(data, CONFIG.model_copy(update={"epochs": 1}), seed=0, out=tmp_path)
    content = bytearray(file.read_bytes())
    if damage == "command":
        torch.save(Command(f"touch {trace}"), file)
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[:-100] if damage == "cut" else b"weights")
    with pytest.raises(UserError, match=rf"{file}: .*remove {file}"):
        train_features(data, CONFIG.model_copy(update={"epochs": 1}), seed=0, out=tmp_path)
    assert not trace.exists()
