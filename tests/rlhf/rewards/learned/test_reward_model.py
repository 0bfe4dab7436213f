"""The reward model's network, what it says of an image, and its folder."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_backbones import CALIBRATION, batch, make_model

from rlhf.errors import UserError
from rlhf.rewards.learned.bound import effective_rank
from rlhf.rewards.learned.feature_network import LINEAR_LENGTH, FeatureNetwork, SmallBackbone, build_backbone, whiten
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.scores import Scores


def test_features_end_with_a_constant_and_grow_only_logarithmically_beyond_a_length() -> None:
    network = make_model().network
    limit = LINEAR_LENGTH * 8**0.5
    with torch.no_grad():
        short = network.centred_features(network.backbone(*batch()))
        assert (short.norm(dim=1) < limit).all(), "or the case below tests nothing"
        torch.testing.assert_close(network(*batch())[:, :-1], short)
        network.whitening.mul_(100)
        features = network(*batch())
    assert features.shape == (6, 9)
    assert torch.equal(features[:, -1], torch.ones(6))
    length = short.norm(dim=1, keepdim=True)
    torch.testing.assert_close(features[:, :-1], short / length * limit * (1 + (100 * length / limit).log()))


def test_scores_do_not_depend_on_the_rest_of_the_batch() -> None:
    model, (images, masks) = make_model(), batch()
    together, alone = model.score(images, masks), model.score(images[2:3], masks[2:3])
    torch.testing.assert_close(alone.reward, together.reward[2:3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone.uncertainty, together.uncertainty[2:3], atol=1e-5, rtol=1e-5)


def test_bounds_and_trust_follow_from_the_uncertainty() -> None:
    scored = make_model().score(*batch())
    torch.testing.assert_close(scored.upper - scored.reward, 2.0 * scored.uncertainty)
    torch.testing.assert_close(scored.reward - scored.lower, 2.0 * scored.uncertainty)
    torch.testing.assert_close(scored.trust_weight, torch.exp(-0.05 * scored.uncertainty * 7.3 / 0.2 + 0.7))
    assert (scored.uncertainty > 0).all()


def test_the_network_sees_hole_and_mask() -> None:
    model, (images, masks) = make_model(), batch()
    base = model.score(images, masks).reward
    assert not torch.allclose(model.score(images * (1 - masks), masks).reward, base)
    assert not torch.allclose(model.score(images, masks.roll(4, -1)).reward, base)


def test_a_saved_model_scores_the_same_bit_for_bit(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path)
    before, after = model.score(*batch()), load_reward(tmp_path).score(*batch())
    for field in fields(Scores):
        assert torch.equal(getattr(before, field.name), getattr(after, field.name)), field.name
    assert load_reward(tmp_path).calibration == CALIBRATION


@pytest.mark.parametrize("name", ["reward.json", "model.safetensors", "head.safetensors"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied"])
def test_an_incomplete_reward_folder_is_refused_by_name(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    make_model().save(folder)
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match=r"reward: not a complete reward folder"):
        load_reward(folder)


def test_a_folder_of_another_architecture_is_refused(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    record = json.loads((tmp_path / "reward.json").read_text())
    for change in ({"feature_dim": 9}, {"calibration": {}}):
        (tmp_path / "reward.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match="not a complete reward folder"):
            load_reward(tmp_path)


@pytest.mark.parametrize(
    ("file", "name", "value", "message"),
    [
        ("head.safetensors", "cholesky", float("nan"), "V in head.safetensors is not positive definite"),
        ("head.safetensors", "cholesky", 0.0, "V in head.safetensors is not positive definite"),
        ("head.safetensors", "weight", float("inf"), "not finite"),
        ("model.safetensors", "linear.weight", float("nan"), "not finite"),
    ],
)
def test_a_folder_whose_numbers_make_no_bound_is_refused(
    file: str, name: str, value: float, message: str, tmp_path: Path
) -> None:
    make_model().save(tmp_path)
    tensors = load_file(tmp_path / file)
    save_file(tensors | {name: tensors[name] * value}, tmp_path / file)
    with pytest.raises(UserError, match=message):
        load_reward(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "head.safetensors"])
def test_a_flipped_bit_is_refused_with_the_files_name(file: str, tmp_path: Path) -> None:
    make_model().save(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    with pytest.raises(UserError, match=f"{file}: not the weights of its reward.json"):
        load_reward(tmp_path)
    (tmp_path / file).write_bytes(whole)
    assert load_reward(tmp_path).feature_dim == 8


def test_a_folder_from_before_checksums_opens(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    record = json.loads((tmp_path / "reward.json").read_text())
    del record["checksums"]
    (tmp_path / "reward.json").write_text(json.dumps(record))
    assert load_reward(tmp_path).calibration == CALIBRATION


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    save_file(head | {"weight": head["weight"][:-1].clone()}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="not a complete reward folder.*weight is"):
        load_reward(tmp_path)


def test_a_folder_of_a_later_schema_is_refused(tmp_path: Path) -> None:
    make_model().save(tmp_path)
    record = json.loads((tmp_path / "reward.json").read_text())
    (tmp_path / "reward.json").write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(UserError, match="schema"):
        load_reward(tmp_path)


def test_saving_writes_the_record_last(tmp_path: Path) -> None:
    model = make_model()
    model.save(tmp_path)
    (tmp_path / "head.safetensors").unlink()
    (tmp_path / "head.safetensors").mkdir()
    with pytest.raises(UserError, match="head.safetensors"):
        model.save(tmp_path)
    assert not (tmp_path / "reward.json").exists(), "a half-written folder must not look complete"


def test_gradients_reach_every_layer_of_the_small_network() -> None:
    network = FeatureNetwork(SmallBackbone(), 8)
    network.linear(network(*batch())).square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_an_unknown_backbone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reward.backbone: '.*no-clip' is neither"):
        build_backbone(str(tmp_path / "no-clip"))


def test_whitening_leaves_the_features_uncorrelated_and_rank_full() -> None:
    torch.manual_seed(0)
    network = FeatureNetwork(SmallBackbone(), 8)
    images, masks = torch.randn(200, 3, 32, 32).clamp(-1, 1), torch.zeros(200, 1, 32, 32)
    masks[:, :, 8:24, 8:24] = 1
    images *= torch.rand(200, 1, 1, 1)
    network.eval()
    with torch.no_grad():
        before = effective_rank(network(images, masks)[:, :-1])
        described = network.backbone(images, masks)
        whiten(network, described, shrinkage=1e-6)
        features = network(images, masks)
    z = network.centred_features(described) @ network.whitening
    torch.testing.assert_close(torch.cov(z.T), torch.eye(8), atol=2e-2, rtol=0)
    assert z.mean(0).abs().max() < 1e-3
    assert effective_rank(features[:, :-1]) > max(before, 7.0)
