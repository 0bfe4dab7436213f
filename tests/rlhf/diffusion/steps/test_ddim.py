"""One denoising step as a Gaussian: against diffusers and torch.distributions."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from small_networks import build_scheduler
from torch.distributions import Normal, kl_divergence

from rlhf.diffusion.steps.ddim import make_schedule
from rlhf.diffusion.steps.step_rule import Prediction, Transition, masked_mean, transition_kl, transition_log_prob

SHAPE = (2, 4, 5, 6)


def scheduler_of(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler.from_config(build_scheduler().config, prediction_type=prediction_type)


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def half_mask() -> torch.Tensor:
    mask = torch.zeros(2, 1, 5, 6)
    mask[0, :, 1:3, 2:5] = 1
    mask[1, :, :, :2] = 1
    return mask


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_inference_steps", [10, 50])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_mean_and_deviation_equal_diffusers_at_every_step(
    prediction_type: str, num_inference_steps: int, eta: float
) -> None:
    scheduler = scheduler_of(prediction_type)
    schedule = make_schedule(scheduler, num_inference_steps)
    assert len(schedule.timesteps) == num_inference_steps
    output, latents, ones = draw(0), draw(1), torch.ones(SHAPE)
    for step, timestep in enumerate(scheduler.timesteps):
        transition = schedule.transition(output, latents, torch.full((2,), step), eta)
        expected = scheduler.step(output, timestep, latents, eta=eta, variance_noise=torch.zeros(SHAPE)).prev_sample
        shifted = scheduler.step(output, timestep, latents, eta=eta, variance_noise=ones).prev_sample
        torch.testing.assert_close(transition.mean, expected, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(transition.mean + transition.std_dev_t * ones, shifted, rtol=1e-5, atol=2e-5)
        assert int(schedule.timesteps[step]) == int(timestep)


def test_samples_of_a_batch_may_be_at_different_steps() -> None:
    schedule = make_schedule(scheduler_of("v_prediction"), 10)
    output, latents = draw(0), draw(1)
    transition = schedule.transition(output, latents, torch.tensor([2, 7]), 1.0)
    for row, step in enumerate((2, 7)):
        one = slice(row, row + 1)
        alone = schedule.transition(output[one], latents[one], torch.tensor([step]), 1.0)
        torch.testing.assert_close(transition.mean[one], alone.mean)
        torch.testing.assert_close(transition.std_dev_t[one], alone.std_dev_t)


def test_log_prob_is_the_normal_density_averaged_over_the_hole() -> None:
    mean, next_latents, mask = draw(0), draw(1), half_mask()
    std_dev_t = torch.tensor([0.3, 1.7]).view(2, 1, 1, 1)
    transition = Transition(mean=mean, std_dev_t=std_dev_t, clean=mean)
    density = Normal(mean, std_dev_t.expand(SHAPE)).log_prob(next_latents)
    expected = torch.stack([density[b][mask[b].expand(4, -1, -1) > 0].mean() for b in range(2)])
    torch.testing.assert_close(transition_log_prob(transition, next_latents, mask), expected)


def test_log_prob_ignores_what_is_outside_the_hole() -> None:
    mean, next_latents, mask = draw(0), draw(1), half_mask()
    std_dev_t = torch.full((2, 1, 1, 1), 0.5)
    transition = Transition(mean=mean, std_dev_t=std_dev_t, clean=mean)
    elsewhere = next_latents + 100 * (1 - mask)
    expected = transition_log_prob(transition, next_latents, mask)
    torch.testing.assert_close(transition_log_prob(transition, elsewhere, mask), expected)


def test_kl_is_that_of_two_normals_averaged_over_the_hole() -> None:
    mean, base_mean, mask = draw(0), draw(1), half_mask()
    std_dev_t = torch.tensor([0.3, 1.7]).view(2, 1, 1, 1)
    transition = Transition(mean=mean, std_dev_t=std_dev_t, clean=mean)
    scale = std_dev_t.expand(SHAPE)
    expected = masked_mean(kl_divergence(Normal(mean, scale), Normal(base_mean, scale)), mask)
    torch.testing.assert_close(transition_kl(transition, base_mean, mask), expected)


def test_masked_mean_of_a_constant_is_the_constant_for_any_hole() -> None:
    torch.testing.assert_close(masked_mean(torch.full(SHAPE, 3.0), half_mask()), torch.full((2,), 3.0))


def test_a_deterministic_step_has_no_log_prob() -> None:
    schedule = make_schedule(build_scheduler(), 10)
    transition = schedule.transition(draw(0), draw(1), torch.tensor([3, 3]), 0.0)
    assert (transition.std_dev_t == 0).all()
    with pytest.raises(ValueError, match="eta"):
        transition_log_prob(transition, draw(2), half_mask())


@pytest.mark.parametrize("num_inference_steps", [5, 10, 20, 50])
def test_the_last_step_of_the_built_in_scheduler_is_still_random(num_inference_steps: int) -> None:
    schedule = make_schedule(build_scheduler(), num_inference_steps)
    index = torch.full((2,), num_inference_steps - 1)
    std_dev_t = schedule.transition(draw(0), draw(1), index, 1.0).std_dev_t
    assert (std_dev_t > 1e-3).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("visited", [(0, 1, 2, 3, 4), (0, 1, 4, 6, 9), (3, 7)])
def test_a_compressed_grid_of_second_order_equals_diffusers_multistep_solver(
    prediction_type: str, visited: tuple[int, ...]
) -> None:
    """First and last step of first order, those between of second, with a prediction that depends on the latents."""
    scheduler = scheduler_of(prediction_type)
    schedule = make_schedule(scheduler, 10).skip_to(visited)
    solver = DPMSolverMultistepScheduler.from_config(
        scheduler.config, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="sigma_min"
    )
    solver.set_timesteps(timesteps=schedule.timesteps[list(visited)].tolist())
    ours = theirs = draw(1)
    previous = None
    for step, timestep in zip(visited, solver.timesteps, strict=True):
        index = torch.full((2,), step)
        output = 0.7 * ours.roll(1, dims=-1).tanh() + 0.1 * draw(0)
        clean = schedule.predicted_clean(output, ours, index)
        now = Prediction(step=step, latents=ours, clean=clean)
        if previous is None or step == visited[-1]:
            ours = schedule.transition(output, ours, index, 0.0).mean
        else:
            ours = schedule.multistep([now, previous])
        previous = now
        expected = 0.7 * theirs.roll(1, dims=-1).tanh() + 0.1 * draw(0)
        theirs = solver.step(expected, timestep, theirs).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-4)


def test_skipping_nothing_changes_nothing_and_skipping_leads_to_the_next_visited_level() -> None:
    schedule = make_schedule(build_scheduler(), 10)
    assert torch.equal(schedule.skip_to(range(10)).next_alphas_cumprod, schedule.next_alphas_cumprod)
    after = schedule.skip_to((0, 1, 5)).next_alphas_cumprod
    levels = schedule.alphas_cumprod
    assert [float(after[i]) for i in (0, 1, 5)] == [
        float(levels[1]),
        float(levels[5]),
        float(schedule.next_alphas_cumprod[-1]),
    ]
