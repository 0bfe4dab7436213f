"""PrefPaint's released reward model as a reward folder; and what its released V^-1 says."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import rlhf
from PIL import Image
from small_annotations import make_world
from small_checkpoint import SMALL, release_state

from actors.align import check_rewards
from rlhf.config.config_files import load_config
from rlhf.data.annotated_images import join_annotations
from rlhf.errors import UserError
from rlhf.reports.intervals import rank_correlation
from rlhf.rewards.learned.bound import effective_rank
from rlhf.rewards.learned.prefpaint_reward import PrefpaintReward, adopt_prefpaint, calibrate, read_inverse
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import build_rewards
from rlhf.rewards.scores import Scores
from rlhf.storage.images import image_to_tensor

Files = tuple[Path, Path]

KNOWN = [field.name for field in fields(Scores) if field.name != "is_outlying"]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A checkpoint, and a V^-1 of 40 features with lambda 0.5."""
    torch.save(release_state(), tmp_path / "released.pth")
    z = torch.randn(40, SMALL["features"], generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    gram_matrix = z.T @ z + 0.5 * torch.eye(SMALL["features"], dtype=torch.float64)
    torch.save(torch.linalg.inv(gram_matrix).float(), tmp_path / "V.pt")
    return tmp_path / "released.pth", tmp_path / "V.pt"


@pytest.fixture(scope="module")
def released_inverse(test_data: Path) -> Path:
    """The released V_inverse.pt."""
    path = test_data / "prefpaint_release/V_inverse.pt"
    if not path.is_file():
        pytest.skip(f"{path} is absent: it comes with PrefPaint's released code")
    return path


def batch(count: int = 5, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, 8:20, 6:24] = 1
    return images, masks


def test_reward_and_both_norms_are_those_of_the_formulas(files: Files, tmp_path: Path) -> None:
    model = adopt_prefpaint(*files, tmp_path / "reward")
    scored = model.score(*batch())
    z, inverse = model.backbone(*batch()).detach().double(), torch.load(files[1], weights_only=True).double()
    torch.testing.assert_close(scored.reward, z @ release_state()["mlp.last_layer.weight"][0].double())
    proper = torch.stack([(row @ inverse @ row).sqrt() for row in z])
    released = (z @ inverse).square().sum(1).sqrt()
    torch.testing.assert_close(scored.uncertainty, proper, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(model.bound.released_norm(z), released, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(scored.trust_weight, torch.exp(0.7 - 0.05 * released).clamp(1.0, 2.21))


def test_the_trust_weight_is_clipped_as_the_release_clips_it(files: Files, tmp_path: Path) -> None:
    torch.save(1e4 * torch.eye(SMALL["features"]), files[1])
    assert torch.equal(adopt_prefpaint(*files, tmp_path / "far").score(*batch()).trust_weight, torch.ones(5).double())
    torch.save(1e-9 * torch.eye(SMALL["features"]), files[1])
    near = adopt_prefpaint(*files, tmp_path / "near").score(*batch()).trust_weight
    torch.testing.assert_close(near, torch.full((5,), 0.7).exp().double())


def test_the_folder_opens_as_any_reward_and_scores_the_same(files: Files, tmp_path: Path) -> None:
    before = adopt_prefpaint(*files, tmp_path / "reward").score(*batch())
    assert sorted(p.name for p in (tmp_path / "reward").iterdir()) == ["V_inverse.pt", "checkpoint.pth", "reward.json"]
    model = load_reward(tmp_path / "reward")
    assert isinstance(model, PrefpaintReward)
    after = model.score(*batch())
    assert before.is_outlying is None, "no calibration says what is usual"
    for name in KNOWN:
        assert torch.equal(getattr(before, name), getattr(after, name)), name


def test_a_trust_weight_that_the_release_does_not_have_is_refused(files: Files, tmp_path: Path) -> None:
    adopt_prefpaint(*files, tmp_path / "reward")
    plain = load_reward(tmp_path / "reward").score(*batch()).trust_weight
    for trust in ("auto", "release", "constant", "none"):
        config = load_config(None, (f"align.trust={trust}",))
        check_rewards(config, tmp_path / "reward", {})
        (opened,) = build_rewards((), tmp_path / "reward", torch.device("cpu"), trust=config.align.trust).values()
        assert torch.equal(opened.score(*batch(), [""] * 5).trust_weight, plain), trust
    check_rewards(load_config(None), tmp_path / "reward", {})
    with pytest.raises(UserError, match="reward: align.trust is `proper`.*leave align.trust at `auto`"):
        check_rewards(load_config(None, ("align.trust=proper",)), tmp_path / "reward", {})


def test_nothing_is_drawn_at_random_even_in_train_mode(files: Files, tmp_path: Path) -> None:
    model = adopt_prefpaint(*files, tmp_path / "reward")
    base = model.score(*batch()).reward
    model.backbone.train()
    assert torch.equal(model.score(*batch()).reward, base)


def test_the_second_input_does_not_hold_the_hole(files: Files, tmp_path: Path) -> None:
    clip, (images, masks) = adopt_prefpaint(*files, tmp_path / "reward").backbone.clip, batch()
    with torch.no_grad():
        one, other = (clip(x, masks) for x in (images, torch.where(masks > 0, -images, images)))
    half = clip.output_dim // 2
    assert torch.equal(one[:, half:], other[:, half:])
    assert not torch.allclose(one[:, :half], other[:, :half])


def test_without_calibration_bounds_are_infinite_and_nothing_is_nan(files: Files, tmp_path: Path) -> None:
    scored = adopt_prefpaint(*files, tmp_path / "reward").score(*batch())
    for name in KNOWN:
        assert not torch.isnan(getattr(scored, name)).any(), name
    assert (scored.lower == -torch.inf).all()
    assert (scored.upper == torch.inf).all()


def test_a_calibrated_bound_covers_the_stated_share_of_its_annotations(files: Files, tmp_path: Path) -> None:
    adopt_prefpaint(*files, tmp_path / "reward")
    data = join_annotations(*make_world(8))
    fitted = calibrate(tmp_path / "reward", data, 0.8)
    assert fitted.annotations == len(data.scores)
    scored = load_reward(tmp_path / "reward").score(*data.pictures.show(data.keys))
    covered = ((scored.lower <= data.scores) & (data.scores <= scored.upper)).double().mean()
    assert 0.8 <= float(covered) <= 0.8 + 2 / len(data.scores)
    torch.testing.assert_close(scored.upper - scored.reward, fitted.conformal * scored.uncertainty)


def test_a_picture_that_is_not_finite_is_refused_by_number(files: Files, tmp_path: Path) -> None:
    images, masks = batch()
    images[3, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"pictures \[3\] of a batch of 5"):
        adopt_prefpaint(*files, tmp_path / "reward").score(images, masks)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (torch.eye(7), r"holds \(7, 7\), but the checkpoint's features need a 16x16"),
        ({"V": torch.eye(16)}, "holds dict"),
        (-torch.eye(16), "positive definite"),
        (torch.eye(16) + torch.triu(torch.full((16, 16), 0.1), 1), "not symmetric"),
        (torch.full((16, 16), torch.nan), "positive definite"),
    ],
)
def test_what_is_no_inverse_of_a_v_is_refused(files: Files, tmp_path: Path, record: object, message: str) -> None:
    torch.save(record, files[1])
    with pytest.raises(UserError, match=message):
        adopt_prefpaint(*files, tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


@pytest.mark.parametrize("name", ["checkpoint.pth", "V_inverse.pt", "reward.json"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "emptied"])
def test_an_incomplete_folder_is_refused_by_name(files: Files, tmp_path: Path, name: str, damage: str) -> None:
    adopt_prefpaint(*files, tmp_path / "reward")
    path = tmp_path / "reward" / name
    whole = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else b"")
    with pytest.raises(UserError, match="reward"):
        load_reward(tmp_path / "reward")


def test_a_record_without_its_fields_is_refused(files: Files, tmp_path: Path) -> None:
    adopt_prefpaint(*files, tmp_path / "reward")
    for record in ({"kind": "prefpaint-release"}, [1], {"kind": "prefpaint-release", "checkpoint": "checkpoint.pth"}):
        (tmp_path / "reward/reward.json").write_text(json.dumps(record))
        with pytest.raises(UserError, match="not a complete reward folder"):
            load_reward(tmp_path / "reward")


def test_the_command_makes_the_folder(files: Files, tmp_path: Path) -> None:
    words = ["import-prefpaint-reward", *files, "--out", tmp_path / "r"]
    done = rlhf(*words)
    assert done.returncode == 0, done.stderr
    assert "its bounds are infinite" in done.stdout
    assert (tmp_path / "r/reward.json").is_file()
    done = rlhf(*words, "--prompts", "p")
    assert done.returncode == 2
    assert "go together" in done.stderr


def test_the_released_v_is_one_direction_and_lambda(released_inverse: Path) -> None:
    bound = read_inverse(released_inverse, 256)
    eigenvalues, vectors = torch.linalg.eigh(bound.inverse)
    assert int(((eigenvalues > 99.6) & (eigenvalues < 100.4)).sum()) == 254
    assert float(eigenvalues[0]) == pytest.approx(0.0102, abs=5e-5)
    assert float(eigenvalues[1]) == pytest.approx(98.26, abs=5e-3)
    gram = (1 / eigenvalues - 1 / eigenvalues.max()).clamp(min=0)
    assert effective_rank(gram.sqrt()[:, None] * vectors.T) < 1.01, "Z'Z = V - lambda I"
    torch.testing.assert_close(bound.factor @ bound.factor.T, bound.inverse)


def test_the_released_norm_is_ten_times_the_proper_one_off_that_direction_and_a_tenth_along_it(
    released_inverse: Path,
) -> None:
    """Powers of V^-1: the release takes its eigenvalues (100, 0.01) where the proof needs their roots (10, 0.1)."""
    bound = read_inverse(released_inverse, 256)
    along, *others = torch.linalg.eigh(bound.inverse).eigenvectors.T
    features = torch.stack([along, *others])
    ratio = bound.released_norm(features) / bound.proper(features)
    assert float(ratio[0]) == pytest.approx(0.101, abs=1e-3)
    assert float(ratio[1:].min()) > 9.9
    assert float(ratio[1:].max()) < 10.1
    # Both see the distance from that direction alone, so they order pictures alike.
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(500, 1, generator=generator) * torch.randn(500, 256, generator=generator)
    features = along + 0.05 * spread.double()
    pair = np.stack([bound.released_norm(features).numpy(), bound.proper(features).numpy()], axis=1)
    assert rank_correlation(pair) > 0.999


def test_the_released_example_is_scored_with_the_released_v(
    released_inverse: Path, test_data: Path, tmp_path: Path
) -> None:
    """With random weights in place of the released ones: shapes, files and finiteness only."""
    torch.save(release_state({**SMALL, "features": 256}), tmp_path / "c.pt")
    model = adopt_prefpaint(tmp_path / "c.pt", released_inverse, tmp_path / "reward")
    image = image_to_tensor(Image.open(test_data / "prefpaint_release/image.png").convert("RGB"))[None]
    mask = Image.open(test_data / "prefpaint_release/mask.png").convert("L")
    masks = torch.from_numpy(np.asarray(mask) >= 125).float()[None, None]
    scored = model.score(image, masks)
    assert model.backbone.output_dim == 256
    assert torch.isfinite(scored.reward).all()
    assert 1.0 <= float(scored.trust_weight) <= 2.21
