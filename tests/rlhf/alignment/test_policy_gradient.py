"""The clipped, trust-weighted loss and the replay of stored transitions."""

import pytest
import torch
from small_networks import build_scheduler
from torch import nn

from rlhf.alignment.policy_gradient import clipped_objective, replay_transition
from rlhf.diffusion.steps.ddim import make_schedule
from rlhf.diffusion.steps.step_rule import transition_log_prob

STEP = 4
BATCH = 6


def make_case(seed: int = 0) -> dict[str, torch.Tensor]:
    """A tiny float64 denoiser's inputs, and transitions sampled from it."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(3, BATCH, 4, 5, 5, generator=generator, dtype=torch.float64)
    mask = torch.zeros(BATCH, 1, 5, 5, dtype=torch.float64)
    mask[:, :, 1:4, 1:3] = 1
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)
    return {"latents": draws[0], "noise": draws[1], "base": draws[2], "mask": mask, "advantages": advantages}


def denoiser(seed: int = 1) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(4, 4, 3, padding=1).double()


def sample(network: nn.Module, case: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Next latents and their log-prob under the sampling weights."""
    schedule = make_schedule(build_scheduler(), 10)
    with torch.no_grad():
        output, index = network(case["latents"]), torch.full((BATCH,), STEP)
        transition = schedule.transition(output, case["latents"], index, 1.0)
        next_latents = transition.mean + transition.std_dev_t * case["noise"]
        return next_latents, transition_log_prob(transition, next_latents, case["mask"])


def replay(
    network: nn.Module, case: dict[str, torch.Tensor], next_latents: torch.Tensor, base: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    schedule, index = make_schedule(build_scheduler(), 10), torch.full((BATCH,), STEP)
    return replay_transition(
        network(case["latents"]), base, case["latents"], next_latents, index, schedule, 1.0, case["mask"]
    )


def test_ratio_is_one_when_weights_are_unchanged() -> None:
    case, network = make_case(), denoiser()
    next_latents, old_log_prob = sample(network, case)
    log_prob, kl = replay(network, case, next_latents)
    loss, ratio = clipped_objective(log_prob, old_log_prob, case["advantages"], torch.ones(BATCH), 1e-3)
    assert torch.equal(ratio, torch.ones_like(ratio))
    torch.testing.assert_close(loss, -case["advantages"].mean())
    assert torch.equal(kl, torch.zeros_like(kl))


def test_kl_is_zero_to_itself_and_positive_to_another_policy() -> None:
    case, network = make_case(), denoiser()
    next_latents, _ = sample(network, case)
    own = network(case["latents"]).detach()
    assert torch.equal(replay(network, case, next_latents, own)[1], torch.zeros(BATCH, dtype=torch.float64))
    assert (replay(network, case, next_latents, case["base"])[1] > 0).all()


def test_gradient_equals_finite_differences() -> None:
    case, network = make_case(), denoiser()
    next_latents, old_log_prob = sample(network, case)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.002 * torch.randn_like(parameter))
    trust = torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)

    def loss() -> torch.Tensor:
        log_prob, kl = replay(network, case, next_latents, case["base"])
        return clipped_objective(log_prob, old_log_prob, case["advantages"], trust, 0.2)[0] + 0.3 * kl.mean()

    loss().backward()
    for parameter in network.parameters():
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(0, len(flat), 13):
            before, h = float(flat[i]), 1e-6
            with torch.no_grad():
                flat[i] = before + h
                above = float(loss())
                flat[i] = before - h
                below = float(loss())
                flat[i] = before
            assert (above - below) / (2 * h) == pytest.approx(float(gradient[i]), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("ratio", "advantage", "is_stopped"),
    [(1.3, 1.0, True), (0.7, -1.0, True), (1.3, -1.0, False), (0.7, 1.0, False), (1.1, 1.0, False), (0.9, -1.0, False)],
)
def test_clip_stops_the_gradient_only_beyond_the_range_in_the_profitable_direction(
    ratio: float, advantage: float, is_stopped: bool
) -> None:
    log_prob = torch.tensor([ratio]).log().requires_grad_()
    loss, measured = clipped_objective(log_prob, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2)
    loss.backward()
    torch.testing.assert_close(measured, torch.tensor([ratio]))
    expected = 0.0 if is_stopped else -advantage * ratio
    assert float(log_prob.grad) == pytest.approx(expected, abs=1e-6)


def test_trust_weights_scale_the_gradient_of_each_sample() -> None:
    advantages, trust = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 3.0])
    gradients = []
    for weights in (torch.ones(3), trust):
        log_prob = torch.zeros(3, requires_grad=True)
        clipped_objective(log_prob, torch.zeros(3), advantages, weights, 0.1)[0].backward()
        gradients.append(log_prob.grad)
    torch.testing.assert_close(gradients[1], trust * gradients[0])
    torch.testing.assert_close(gradients[0], -advantages / 3)


def test_one_step_along_the_gradient_makes_good_samples_likelier_and_poor_ones_less_so() -> None:
    case, network = make_case(), denoiser()
    next_latents, old_log_prob = sample(network, case)
    log_prob, _ = replay(network, case, next_latents)
    clipped_objective(log_prob, old_log_prob, case["advantages"], torch.ones(BATCH), 0.2)[0].backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(1e-4 * parameter.grad)
        change = replay(network, case, next_latents)[0] - old_log_prob
    assert float((case["advantages"] * change).sum()) > 0
