import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from rlhf.diffusion.builtin.base_denoisers import build_flow_scheduler
from rlhf.diffusion.steps.flow_matching import FlowRule, FlowSchedule, make_flow_schedule
from rlhf.diffusion.steps.step_rule import Prediction, transition_kl, transition_log_prob
from rlhf.errors import UserError

RULES: list[FlowRule] = ["ddim", "flow_sde", "dance"]


def schedule_of(steps: int, *, shift: float = 3.0, rule: FlowRule = "ddim") -> FlowSchedule:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    return make_flow_schedule(scheduler, evenly(steps), tokens=64, rule=rule)


def evenly(steps: int) -> list[float]:
    return [1 - k / steps for k in range(steps)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_steps_without_noise_are_those_of_diffusers_scheduler(rule: FlowRule, shift: float) -> None:
    schedule, scheduler = schedule_of(8, shift=shift, rule=rule), FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - k / 8 for k in range(8)])
    ours = theirs = normal(2, 4, 8, 8)
    for step, timestep in enumerate(scheduler.timesteps):
        assert float(schedule.timesteps[step]) == float(timestep)
        velocity = normal(2, 4, 8, 8, seed=step + 1)
        ours = schedule.transition(velocity, ours, torch.full((2,), step), 0.0).mean
        theirs = scheduler.step(velocity, timestep, theirs, return_dict=False)[0]
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


def test_a_dynamic_shift_follows_the_number_of_tokens() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    few, many = (make_flow_schedule(scheduler, evenly(4), tokens=n) for n in (256, 4096))
    for schedule, mu in ((few, 0.5), (many, 1.15)):
        expected = [math.exp(mu) / (math.exp(mu) + 1 / t - 1) for t in (1.0, 0.75, 0.5, 0.25)]
        torch.testing.assert_close(schedule.sigmas, torch.tensor(expected))
    torch.testing.assert_close(few.next_sigmas, torch.cat([few.sigmas[1:], torch.zeros(1)]))


def test_a_scheduler_with_steps_of_another_kind_is_refused_by_setting() -> None:
    with pytest.raises(UserError, match="stochastic_sampling"):
        make_flow_schedule(FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), 4, tokens=64)


@pytest.mark.parametrize("rule", RULES)
def test_log_prob_equals_torch_and_a_float64_reference(rule: FlowRule) -> None:
    schedule, index = schedule_of(10, rule=rule), torch.tensor([0, 3, 8])
    latents, velocity, mask = normal(3, 4, 6, 6), normal(3, 4, 6, 6, seed=1), (normal(3, 1, 6, 6, seed=2) > 0).float()
    step = schedule.transition(velocity, latents, index, 0.7)
    following = step.mean + step.std_dev_t * normal(3, 4, 6, 6, seed=3)
    densities = torch.distributions.Normal(step.mean.double(), step.std_dev_t.double()).log_prob(following.double())
    chosen = [densities[i][mask[i].expand(4, -1, -1) > 0].mean() for i in range(3)]
    torch.testing.assert_close(
        transition_log_prob(step, following, mask).double(), torch.stack(chosen), atol=1e-5, rtol=1e-5
    )


def test_steps_equal_their_formulas_written_out_in_float64() -> None:
    """The rules as families of papers print them, one number at a time."""
    for rule in RULES:
        schedule, eta = schedule_of(10, rule=rule), 0.8
        for k in range(9):
            s, after, x, v = float(schedule.sigmas[k]), float(schedule.next_sigmas[k]), 0.3, -1.2
            clean, noise = x - s * v, x + (1 - s) * v
            if rule == "ddim":
                std = eta * after * math.sqrt(1 - ((1 - s) * after / ((1 - after) * s)) ** 2)
                mean = (1 - after) * clean + math.sqrt(after**2 - std**2) * noise
            else:
                g = eta * math.sqrt(s / (1 - (after if s == 1 else s))) if rule == "flow_sde" else eta
                dt = after - s
                mean = x * (1 + g**2 * dt / (2 * s)) + v * (1 + g**2 * (1 - s) / (2 * s)) * dt
                std = g * math.sqrt(-dt)
            step = schedule.transition(torch.full((1, 1, 1, 1), v), torch.full((1, 1, 1, 1), x), torch.tensor([k]), eta)
            assert float(step.mean) == pytest.approx(mean, abs=2e-6)
            assert float(step.std_dev_t) == pytest.approx(std, rel=2e-5)


def variance_after(steps: int, rule: FlowRule, eta: float) -> tuple[float, float]:
    """Worst ratio of the latents' variance to its level's, and the final variance, for data of variance 1.

    The exact velocity of such data is linear in x, and every mean is linear in x and v: variances follow in closed
    form, without a draw.
    """
    schedule, variance, worst = schedule_of(steps, rule=rule), 1.0, 0.0
    for k in range(steps):
        s, after = float(schedule.sigmas[k]), float(schedule.next_sigmas[k])
        slope = (2 * s - 1) / ((1 - s) ** 2 + s**2)  # E[e - x0 | x] = slope * x
        x = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        step = schedule.transition(slope * x, x, torch.tensor([k]), eta if k < steps - 1 else 0.0)
        variance = float(step.mean) ** 2 * variance + float(step.std_dev_t) ** 2
        worst = max(worst, variance / ((1 - after) ** 2 + after**2))
    return worst, variance


@pytest.mark.parametrize(("rule", "eta"), [("ddim", 1.0), ("flow_sde", 0.7), ("dance", 0.7)])
def test_stochastic_steps_keep_the_variance_of_gaussian_data(rule: FlowRule, eta: float) -> None:
    assert variance_after(400, rule, eta)[1] == pytest.approx(1, abs=0.025)


def test_the_default_rule_never_holds_more_variance_than_the_data() -> None:
    assert variance_after(10, "ddim", 1.0)[0] <= 1 + 1e-6
    assert variance_after(6, "ddim", 1.0)[0] <= 1 + 1e-6
    assert variance_after(10, "flow_sde", 0.9)[0] > 1.2, "the peers' rule does, so the check can fail"


def test_kl_is_that_of_two_gaussians_with_the_steps_length_in_it() -> None:
    schedule, index = schedule_of(10), torch.tensor([2, 7])
    latents, velocity, other = (normal(2, 4, 6, 6, seed=seed) for seed in range(3))
    step = schedule.transition(velocity, latents, index, 1.0)
    base = schedule.transition(other, latents, index, 1.0).mean
    gaussians = [torch.distributions.Normal(mean.double(), step.std_dev_t.double()) for mean in (step.mean, base)]
    expected = torch.distributions.kl_divergence(*gaussians).flatten(1).mean(1)
    torch.testing.assert_close(transition_kl(step, base, torch.ones(2, 1, 6, 6)).double(), expected, rtol=1e-4, atol=0)


def test_gradients_of_the_log_prob_equal_finite_differences() -> None:
    schedule, index = schedule_of(10), torch.tensor([4])
    latents, following = normal(1, 2, 3, 3).double(), normal(1, 2, 3, 3, seed=5).double()
    velocity = normal(1, 2, 3, 3, seed=1).double().requires_grad_()

    def log_prob(v: torch.Tensor) -> torch.Tensor:
        return transition_log_prob(schedule.transition(v, latents, index, 1.0), following, torch.ones(1, 1, 3, 3))

    assert torch.autograd.gradcheck(log_prob, (velocity,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_steps_of_an_order_are_exact_for_velocities_of_one_degree_less(order: int) -> None:
    """x'(s) is a polynomial in the noise level s, so x itself is known at every level."""
    schedule, path = schedule_of(7), np.poly1d([0.7, -1.3, 0.4, 0.1][-order:]).integ(k=2.0)
    levels = [*schedule.sigmas.tolist(), 0.0]
    latents = [torch.full((1, 1, 1, 1), float(path(level)), dtype=torch.float64) for level in levels]
    made = [
        Prediction(step=k, latents=latents[k], clean=latents[k] - float(schedule.sigmas[k]) * path.deriv()(levels[k]))
        for k in range(7)
    ]
    for k in range(order - 1, 7):
        taken = schedule.multistep(made[k - order + 1 : k + 1][::-1])
        torch.testing.assert_close(taken, latents[k + 1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_twice_as_many_steps_err_less_by_two_to_the_order_of_the_first_steps(order: int) -> None:
    """Of the exact velocity of Gaussian data, whose end is known: x has a constant share of the data's deviation.

    The first step is Euler's, whose own error is of second order.
    """

    def error(steps: int) -> float:
        schedule, x, predictions = schedule_of(steps, shift=1.0), torch.ones(1, 1, 1, 1, dtype=torch.float64), []
        for k in range(steps):
            s = float(schedule.sigmas[k])
            slope = (2 * s - 1) / ((1 - s) ** 2 + s**2)
            now = Prediction(step=k, latents=x, clean=x - s * slope * x)
            predictions = [now, *predictions][:order]
            x = schedule.multistep(predictions)
        return abs(float(x) - 1)

    assert math.log2(error(64) / error(128)) == pytest.approx(min(order, 2), abs=0.2)


def test_skipped_positions_lead_to_the_next_visited_level() -> None:
    schedule = schedule_of(6).skip_to((0, 2, 5))
    torch.testing.assert_close(
        schedule.next_sigmas[[0, 2, 5]], torch.stack([*schedule.sigmas[[2, 5]], torch.tensor(0.0)])
    )


def test_rows_of_several_schedules_step_as_each_does_alone() -> None:
    few, many = schedule_of(4), schedule_of(9)
    latents, velocity = normal(2, 4, 6, 6), normal(2, 4, 6, 6, seed=1)
    joined = few.at_rows([(few, 1), (many, 7)]).transition(velocity, latents, torch.tensor([0, 1]), 0.5).mean
    for row, (schedule, k) in enumerate([(few, 1), (many, 7)]):
        alone = schedule.transition(velocity[[row]], latents[[row]], torch.tensor([k]), 0.5).mean
        assert torch.equal(joined[[row]], alone)


def test_noise_is_mixed_at_the_levels_named() -> None:
    schedule, clean, noise = schedule_of(5), normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    mixed = schedule.add_noise(clean, noise, torch.tensor([0, 3]))
    assert torch.equal(mixed[0], noise[0])
    s = schedule.sigmas[3]
    torch.testing.assert_close(mixed[1], (1 - s) * clean[1] + s * noise[1])
    torch.testing.assert_close(
        schedule.predicted_clean(noise - clean, mixed, torch.tensor([0, 3])), clean, atol=1e-5, rtol=1e-5
    )


def test_the_order_of_deterministic_steps_is_an_option_of_the_scheduler(tmp_path: Path) -> None:
    scheduler = build_flow_scheduler()
    scheduler.save_pretrained(tmp_path)
    opened = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert make_flow_schedule(opened, 4, tokens=64).solver_order == 3
    assert schedule_of(4).solver_order == 1
    opened.register_to_config(solver_order=4)
    with pytest.raises(UserError, match="solver_order 4 is not supported; set 1, 2 or 3"):
        make_flow_schedule(opened, 4, tokens=64)
