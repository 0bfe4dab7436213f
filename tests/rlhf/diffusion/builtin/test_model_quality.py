from pathlib import Path

import pytest
import torch
from small_parts import small_config, small_prompts

from rlhf.diffusion.builtin.model_quality import measure_quality, psnr
from rlhf.diffusion.policy import load_policy


def test_psnr_of_a_known_error() -> None:
    original = torch.zeros(3, 8, 8)
    assert psnr(original + 0.2, original) == pytest.approx(20.0, abs=1e-4)
    assert psnr(original, original) == pytest.approx(100.0)


def test_quality_has_an_interval_for_every_figure(small_pipeline: Path) -> None:
    policy = load_policy(small_config(small_pipeline).model)
    figures = measure_quality(policy, small_prompts(6), num_inference_steps=2, seed=0)
    for figure in (figures.vae_psnr_db, figures.hole_psnr_db, figures.hole_ssim):
        assert figure.low <= figure.value <= figure.high
        assert figure.clusters == 6
