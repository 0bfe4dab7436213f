"""The loss of the forward process: against the paper's formula written out, finite differences, and at its start."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from small_networks import build_scheduler
from torch import nn

from rlhf.alignment.algorithms import nft
from rlhf.alignment.objective import TrainingBatch
from rlhf.alignment.policy_gradient import kl_between
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.steps.ddim import make_schedule
from rlhf.diffusion.steps.step_rule import transition_kl
from rlhf.diffusion.trajectories import NoisedSamples

BATCH = 6
ADVANTAGES = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
TRUST = torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)


def schedule_of(prediction_type: str = "v_prediction"):  # noqa: ANN202
    return make_schedule(DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type), 10)


def denoiser(seed: int = 1) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(4, 4, 3, padding=1).double()


def make_batch(network: nn.Module, prediction_type: str = "v_prediction") -> TrainingBatch:
    """Noised samples, and what the network, which made them, says of them."""
    schedule, generator = schedule_of(prediction_type), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, BATCH, 4, 5, 5, generator=generator, dtype=torch.float64)
    steps = torch.tensor([0, 3, 9, 5, 7, 1])
    alpha = schedule.alphas_cumprod[steps].view(-1, 1, 1, 1).double()
    latents = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    mask = torch.zeros(BATCH, 1, 5, 5, dtype=torch.float64)
    mask[:, :, 1:4, 1:3] = 1
    with torch.no_grad():
        old = network(latents)
    samples = NoisedSamples(
        condition=torch.zeros(BATCH, 5, 5, 5),
        latent_mask=mask,
        clean_latents=clean,
        latents=latents[None],
        steps=steps[None],
        old_prediction=old[None],
    )
    return TrainingBatch(trajectories=samples, advantages=ADVANTAGES, trust_weights=TRUST)


def loss_of(network: nn.Module, batch: TrainingBatch, base: torch.Tensor | None = None, **changes: object):  # noqa: ANN202
    prediction_type = changes.pop("prediction_type", "v_prediction")
    config = AlignConfig(algorithm="nft", **({"kl_weight": 0.3} | changes))
    output = network(batch.trajectories.latents[0])
    return nft.compute_loss(output, base, batch, 0, schedule_of(prediction_type), config)


def move(network: nn.Module, size: float = 0.02) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_the_papers_written_out_for_every_kind_of_prediction(prediction_type: str) -> None:
    """Slow reference: sample by sample, mixing the predictions themselves as the paper does, not clean latents."""
    network = denoiser()
    batch, beta, clip = make_batch(network, prediction_type), 0.4, 2.5
    t, schedule = batch.trajectories, schedule_of(prediction_type)
    output = move(network)(t.latents[0]).detach()
    expected = []
    for b in range(BATCH):
        r = 0.5 + 0.5 * float(ADVANTAGES[b]) / clip
        hole = t.latent_mask[b, 0] > 0
        total = 0.0
        for share, sign in ((r, 1), (1 - r, -1)):
            mixed = (1 - sign * beta) * t.old_prediction[0, b] + sign * beta * output[b]
            clean = schedule.predicted_clean(mixed[None], t.latents[0, b][None], t.steps[0, b][None])
            error = (clean[0] - t.clean_latents[b])[:, hole]
            total += share * float((error**2).mean() / error.abs().mean()) / beta
        expected.append(float(TRUST[b]) * clip * total)
    found = loss_of(network, batch, nft_beta=beta, advantage_clip=clip, prediction_type=prediction_type)
    assert float(found.loss.detach()) == pytest.approx(sum(expected) / BATCH, rel=1e-9)


def test_gradient_equals_finite_differences() -> None:
    """The weight over time is a constant in the gradient, so it is held where the differences are taken, too."""
    network = denoiser()
    batch = make_batch(network)
    t, schedule, config = batch.trajectories, schedule_of(), AlignConfig(algorithm="nft", kl_weight=0.3, nft_beta=0.7)
    move(network)
    base = torch.randn(BATCH, 4, 5, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def errors() -> list[torch.Tensor]:
        clean, old = (
            schedule.predicted_clean(o, t.latents[0], t.steps[0]) for o in (network(t.latents[0]), t.old_prediction[0])
        )
        hole = t.latent_mask.expand_as(clean)
        return [(old + s * 0.7 * (clean - old) - t.clean_latents)[hole > 0].view(BATCH, -1) for s in (1, -1)]

    weights = [e.abs().mean(1).detach() for e in errors()]

    def loss() -> torch.Tensor:
        r = 0.5 + 0.5 * ADVANTAGES / config.advantage_clip
        parts = [(e**2).mean(1) / w for e, w in zip(errors(), weights, strict=True)]
        objective = config.advantage_clip * (TRUST * (r * parts[0] + (1 - r) * parts[1]) / 0.7).mean()
        step = schedule.transition(network(t.latents[0]), t.latents[0], t.steps[0], 1.0)
        other = schedule.transition(base, t.latents[0], t.steps[0], 1.0).mean
        return objective + 0.3 * transition_kl(step, other, t.latent_mask).mean()

    found = loss_of(network, batch, base, nft_beta=0.7)
    assert float(found.loss.detach()) == pytest.approx(float(loss().detach()), rel=1e-9)
    found.loss.backward()
    for parameter in network.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, len(flat), 13):
            before, h = float(flat[i]), 1e-6
            with torch.no_grad():
                flat[i] = before + h
                above = float(loss().detach())
                flat[i] = before - h
                below = float(loss().detach())
                flat[i] = before
            assert (above - below) / (2 * h) == pytest.approx(float(gradient[i]), rel=1e-5, abs=1e-8)


def test_predictions_are_the_samplers_to_the_last_bit_when_weights_are_unchanged() -> None:
    network = denoiser()
    batch = make_batch(network)
    part = loss_of(network, batch, batch.trajectories.old_prediction[0])
    assert part.disagreement == 0.0
    assert part.figures == {"kl_to_old": 0.0, "kl_to_base": 0.0}
    moved = loss_of(move(network, 1e-3), batch, batch.trajectories.old_prediction[0])
    assert moved.disagreement > 1e-4
    assert moved.figures["kl_to_old"] == moved.figures["kl_to_base"] > 0


def gradients(network: nn.Module, batch: TrainingBatch, **changes: object) -> torch.Tensor:
    network.zero_grad()
    loss_of(network, batch, kl_weight=0.0, **changes).loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def test_the_first_gradient_depends_neither_on_beta_nor_on_the_clip() -> None:
    network = denoiser()
    batch = make_batch(network)
    expected = gradients(network, batch)
    for changes in ({"nft_beta": 0.1}, {"nft_beta": 3.0}, {"advantage_clip": 2.0}):
        torch.testing.assert_close(gradients(network, batch, **changes), expected)


def test_samples_of_no_advantage_do_not_move_a_policy_that_is_the_old_one() -> None:
    network = denoiser()
    batch = replace(make_batch(network), advantages=torch.zeros(BATCH, dtype=torch.float64))
    assert float(gradients(network, batch).abs().max()) < 1e-12
    move(network)
    assert float(gradients(network, batch).abs().max()) > 1e-6, "it is drawn back to the old one"


def test_trust_weights_scale_each_samples_part() -> None:
    network = denoiser()
    batch = make_batch(network)
    alone = []
    for b in range(BATCH):
        only = torch.zeros(BATCH, dtype=torch.float64)
        only[b] = 1
        alone.append(gradients(network, replace(batch, trust_weights=only)))
    expected = sum(float(w) * g for w, g in zip(TRUST, alone, strict=True))
    torch.testing.assert_close(gradients(network, batch), expected)


def test_one_step_brings_predictions_nearer_to_good_samples_and_off_poor_ones() -> None:
    network = denoiser()
    batch = make_batch(network)
    t, schedule = batch.trajectories, schedule_of()

    def errors() -> torch.Tensor:
        with torch.no_grad():
            clean = schedule.predicted_clean(network(t.latents[0]), t.latents[0], t.steps[0])
        return (((clean - t.clean_latents) ** 2) * t.latent_mask).flatten(1).sum(1)

    before = errors()
    gradients(network, batch)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(1e-3 * parameter.grad)
    assert float((ADVANTAGES * (errors() - before)).sum()) < 0


def test_what_is_outside_the_hole_does_not_count() -> None:
    network = denoiser()
    batch = make_batch(network)
    t = batch.trajectories
    elsewhere = replace(t, clean_latents=t.clean_latents + 100 * (1 - t.latent_mask))
    assert float(loss_of(network, batch).loss) == float(loss_of(network, replace(batch, trajectories=elsewhere)).loss)


def test_a_step_that_ends_without_noise_has_no_kl_and_no_nan() -> None:
    scheduler = DDIMScheduler.from_config(build_scheduler().config, set_alpha_to_one=True)
    schedule, network = make_schedule(scheduler, 10), denoiser()
    latents, steps = torch.randn(2, 4, 5, 5, dtype=torch.float64), torch.tensor([9, 4])
    kl = kl_between(network(latents), latents, latents, steps, schedule, 1.0, torch.ones(2, 1, 5, 5))
    assert float(kl[0]) == 0.0
    assert float(kl[1]) > 0
