"""Advantage-weighted matching: against its formula written out, sample by sample, and at its start."""

import pytest
import torch
from small_schedulers import SCHEDULES, random

from rlhf.alignment.algorithms import awm
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.trajectories import NoisedSamples

CONFIG = AlignConfig(algorithm="awm", kl_weight=0.0, clip_range=0.02)
INDEX = torch.tensor([0, 1, 3, 6])
BATCH = len(INDEX)
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -2.0], dtype=torch.float64)
TRUST = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)


def make_batch(name: str) -> TrainingBatch:
    schedule = SCHEDULES[name]()
    clean, noise, old = (random(BATCH, 3, 5, 5, seed=seed) for seed in range(3))
    mask = torch.zeros(BATCH, 1, 5, 5, dtype=torch.float64)
    mask[:, :, 1:4, 1:3] = 1
    samples = NoisedSamples(
        condition=torch.zeros(BATCH, 4, 5, 5),
        latent_mask=mask,
        clean_latents=clean,
        latents=schedule.add_noise(clean, noise, INDEX)[None],
        steps=INDEX[None],
        old_prediction=old[None],
    )
    return TrainingBatch(trajectories=samples, advantages=ADVANTAGES, trust_weights=TRUST)


def target_of(name: str, clean: torch.Tensor, noise: torch.Tensor, b: int) -> torch.Tensor:
    """What each kind of network is trained to say, from the clean latents and the noise that were mixed."""
    if name == "sample":
        return clean
    if name in {"ddim", "flow_sde", "dance"}:
        return noise - clean
    alpha = float(SCHEDULES[name]().alphas_cumprod[INDEX[b]])
    return noise if name == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_loss_is_the_clipped_ratio_of_the_pretraining_loss(name: str) -> None:
    batch = make_batch(name)
    t = batch.trajectories
    noise, output = random(BATCH, 3, 5, 5, seed=1), t.old_prediction[0] + 0.05 * random(BATCH, 3, 5, 5, seed=9)
    expected, ratios = 0.0, []
    for b in range(BATCH):
        target, hole = target_of(name, t.clean_latents[b], noise[b], b), t.latent_mask[b, 0] > 0
        errors = [float(((said - target)[:, hole] ** 2).mean()) for said in (output[b], t.old_prediction[0, b])]
        ratios.append(torch.tensor(errors[1] - errors[0]).exp())
        clipped = ratios[-1].clamp(1 - CONFIG.clip_range, 1 + CONFIG.clip_range)
        expected -= float(TRUST[b] * torch.minimum(ADVANTAGES[b] * ratios[-1], ADVANTAGES[b] * clipped)) / BATCH
    found = awm.compute_loss(output, None, batch, 0, SCHEDULES[name](), CONFIG)
    assert float(found.loss) == pytest.approx(expected, rel=1e-4)
    assert found.disagreement == pytest.approx(max(abs(float(r) - 1) for r in ratios), rel=1e-3)
    assert 0 < found.figures["clipfrac"] < 1


def test_at_the_old_policy_the_gradient_is_the_advantage_times_that_of_the_squared_error() -> None:
    batch = make_batch("flow_sde")
    t = batch.trajectories
    output = t.old_prediction[0].clone().requires_grad_()
    part = awm.compute_loss(output, t.old_prediction[0], batch, 0, SCHEDULES["flow_sde"](), CONFIG)
    assert part.disagreement == 0.0
    assert part.figures == {"approx_kl": 0.0, "clipfrac": 0.0, "kl_to_base": 0.0}
    part.loss.backward()
    error = t.old_prediction[0] - (random(BATCH, 3, 5, 5, seed=1) - t.clean_latents)
    expected = (ADVANTAGES * TRUST).view(-1, 1, 1, 1) * 2 * error * t.latent_mask / (18 * BATCH)
    assert torch.allclose(output.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_output_that_implies_a_sample_implies_it(name: str) -> None:
    schedule, t = SCHEDULES[name](), make_batch(name).trajectories
    target = schedule.target_output(t.clean_latents, t.latents[0], INDEX)
    assert torch.allclose(schedule.predicted_clean(target, t.latents[0], INDEX), t.clean_latents, atol=1e-6)
