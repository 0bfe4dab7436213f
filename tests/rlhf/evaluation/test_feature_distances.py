"""FID and KID in closed form and by slow loops; LPIPS as a mean over the hole, and left out without its weights."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from small_parts import save_small_reward, small_prompts

from rlhf.config.run_config import EvaluateConfig
from rlhf.errors import UserError
from rlhf.evaluation.comparison import summarise_comparison
from rlhf.evaluation.comparison_records import JudgedContestant
from rlhf.evaluation.feature_distances import frechet_distance, kernel_distance, open_features, open_lpips
from rlhf.evaluation.hole_measures import seam_band
from rlhf.evaluation.judging import Jury, judge_images
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.storage.images import to_8bit


def test_the_frechet_distance_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(40, 3)), rng.normal(size=(50, 3)) @ np.diag([1.0, 2.0, 0.5]) + 1
    ours, theirs = np.cov(first.T), np.cov(second.T)
    means = first.mean(0) - second.mean(0)
    slow = means @ means + np.trace(ours + theirs - 2 * np.real(sqrtm(ours @ theirs)))
    assert frechet_distance(first, second) == pytest.approx(slow)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(first, first + 2) == pytest.approx(12), "a shift by 2 in each of three dimensions"


def test_the_kernel_distance_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(5, 2)), rng.normal(size=(4, 2)) + 1

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 2 + 1) ** 3)

    slow = np.mean([k(*pair) for pair in permutations(first, 2)]) + np.mean([k(*p) for p in permutations(second, 2)])
    slow -= 2 * np.mean([k(*pair) for pair in product(first, second)])
    assert kernel_distance(first, second) == pytest.approx(slow)


def test_sets_are_compared_without_an_interval_and_pictures_by_their_holes(tmp_path: Path) -> None:
    prompts = small_prompts(8)
    originals = to_8bit(torch.stack([prompt.image for prompt in prompts]))[:, None]
    jury = Jury(reward=load_reward(save_small_reward(tmp_path)), lpips=lambda a, b: (a - b).abs().mean(1, keepdim=True))
    masks = torch.stack([prompt.mask for prompt in prompts])[:, None]
    filled = torch.where(masks > 0.5, torch.tensor(0, dtype=torch.uint8), originals)
    judged = {"true": judge_images(originals, prompts, jury), "black": judge_images(filled, prompts, jury)}
    assert judged["true"].marks["lpips"].max() == 0
    expected = [(((p.image + 1) * p.mask).sum() / 3 / p.mask.sum()).item() for p in prompts]
    assert judged["black"].marks["lpips"][:, 0] == pytest.approx(expected, rel=1e-4)
    assert judged["true"].marks["lpips_seam"].max() == 0
    bands = [seam_band(p.mask[None])[0] for p in prompts]
    expected = [(((p.image + 1) * p.mask * b).sum() / 3 / b.sum()).item() for p, b in zip(prompts, bands, strict=True)]
    assert judged["black"].marks["lpips_seam"][:, 0] == pytest.approx(expected, rel=1e-4)
    entries = [JudgedContestant(name=name, spec=name, follows_noise=False, judged=own) for name, own in judged.items()]

    def features(images: torch.Tensor) -> np.ndarray:
        return images.mean((2, 3)).double().numpy()

    found = summarise_comparison(entries, "true", prompts, EvaluateConfig(), features)
    figures = {name: own.figures["all"] for name, own in found.contestants.items()}
    assert figures["true"]["fid"].value == pytest.approx(0, abs=1e-9)
    assert figures["black"]["fid"].value > 0.001
    assert np.isnan(figures["black"]["kid"].low)
    assert found.contestants["black"].figures["box"]["fid"] is None
    assert figures["black"]["lpips"].low > 0
    assert figures["true"]["psnr_db"] is None, "an exact copy has none"
    without = summarise_comparison(entries, "true", prompts, EvaluateConfig())
    assert "fid" not in without.measures
    one = summarise_comparison(entries, "true", prompts[:1], EvaluateConfig(), features)
    assert "FID, KID" in {gone.measure for gone in one.left_out}
    assert "fid" not in one.measures
    copies = summarise_comparison(entries[:1], "true", prompts, EvaluateConfig()).left_out
    assert {"PSNR, dB", "seam PSNR, dB"} == {gone.measure for gone in copies if "exact copy" in gone.reason}
    assert not [gone for gone in without.left_out if "exact copy" in gone.reason], "the black fill has one"


def test_a_clip_model_gives_features(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=16, patch_size=8, projection_dim=4, **width)
    text = CLIPTextConfig(vocab_size=10, max_position_embeddings=8, projection_dim=4, **width)
    configuration = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=4)
    CLIPModel(configuration).save_pretrained(tmp_path)
    describe = open_features(str(tmp_path), torch.device("cpu"))
    images = torch.stack([prompt.image for prompt in small_prompts(3)])
    assert describe(images).shape == (3, 4)
    assert not np.allclose(describe(images)[0], describe(images)[1])


def test_what_has_no_weights_says_so() -> None:
    with pytest.raises(UserError, match=r"evaluate\.features"):
        open_features(None, torch.device("cpu"))
    with pytest.raises(UserError, match="nowhere"):
        open_features("nowhere", torch.device("cpu"))
    with pytest.raises(UserError, match="no weights of AlexNet|not installed"):
        open_lpips(torch.device("cpu"))
