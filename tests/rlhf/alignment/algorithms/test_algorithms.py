"""Plans and advantages of the algorithms."""

from pathlib import Path

import pytest
import torch

from rlhf.alignment.algorithms import grpo, mixgrpo, nft, prefpaint
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout
from tests.support.small_parts import small_prompts

UPDATES = range(60)


def rewards_of(seed: int = 0) -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_configuration_names_the_algorithm() -> None:
    for module in (grpo, mixgrpo, nft, prefpaint):
        assert algorithm_of(AlignConfig(algorithm=module.__name__.rpartition(".")[2])) is module.ALGORITHM


def test_grpo_advantages_have_mean_zero_and_deviation_one_per_prompt() -> None:
    advantages = grpo.compute_advantages(rewards_of(), AlignConfig(advantage_clip=100))
    torch.testing.assert_close(advantages.mean(dim=1), torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(advantages.std(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-3, atol=0)


def test_grpo_advantages_ignore_each_prompts_own_offset_and_scale() -> None:
    config, rewards = AlignConfig(), rewards_of()
    offset = torch.tensor([0.0, 5.0, -3.0, 100.0, 1.0], dtype=torch.float64)[:, None]
    scale = torch.tensor([1.0, 2.0, 7.0, 0.5, 10.0], dtype=torch.float64)[:, None]
    expected = grpo.compute_advantages(rewards, config)
    changed = grpo.compute_advantages(rewards * scale + offset, config)
    torch.testing.assert_close(changed, expected, rtol=1e-3, atol=1e-3)


def test_grpo_advantages_are_zero_where_all_samples_of_a_prompt_are_alike() -> None:
    advantages = grpo.compute_advantages(torch.full((2, 4), 3.0), AlignConfig())
    assert torch.equal(advantages, torch.zeros(2, 4))


def test_prefpaint_advantages_are_standardised_over_the_whole_batch() -> None:
    config = AlignConfig(algorithm="prefpaint", advantage_clip=100)
    rewards = rewards_of() + torch.arange(5, dtype=torch.float64)[:, None]
    advantages = prefpaint.compute_advantages(rewards, config)
    assert float(advantages.mean()) == pytest.approx(0, abs=1e-9)
    assert float(advantages.std()) == pytest.approx(1, rel=1e-5)
    assert (advantages.mean(dim=1).abs() > 0.1).any(), "a prompt's mean must not be removed"
    torch.testing.assert_close(prefpaint.compute_advantages(3 * rewards - 2, config), advantages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algorithm", [grpo, prefpaint])
def test_advantages_are_clipped_on_both_sides(algorithm) -> None:  # noqa: ANN001
    rewards = torch.zeros(2, 64)
    rewards[0, 0], rewards[1, 0] = 100.0, -100.0
    advantages = algorithm.compute_advantages(rewards, AlignConfig(advantage_clip=1.5))
    assert float(advantages.max()) == 1.5
    assert float(advantages.min()) == -1.5


def test_grpo_window_is_contiguous_within_its_range_and_visits_all_of_it() -> None:
    config = AlignConfig(window_size=2, window_range=6)
    starts = set()
    for update in UPDATES:
        plan = grpo.plan_rollout(config, update, seed=0)
        start = plan.trained_steps[0]
        assert plan.trained_steps == (start, start + 1)
        assert plan.stochastic_steps == frozenset(plan.trained_steps)
        assert plan.shares_initial_noise
        starts.add(start)
    assert starts == {0, 1, 2, 3, 4}


def test_prefpaint_trains_a_sorted_subset_of_its_random_steps_but_the_last() -> None:
    config = AlignConfig(algorithm="prefpaint", trained_steps=5, num_inference_steps=10)
    chosen = set()
    for update in UPDATES:
        plan = prefpaint.plan_rollout(config, update, seed=0)
        assert plan.stochastic_steps == frozenset(range(10))
        assert list(plan.trained_steps) == sorted(set(plan.trained_steps))
        assert len(plan.trained_steps) == 5
        assert set(plan.trained_steps) <= plan.stochastic_steps
        assert not plan.shares_initial_noise
        chosen |= set(plan.trained_steps)
    assert chosen == set(range(9))


@pytest.mark.parametrize("algorithm", [grpo, mixgrpo, prefpaint])
def test_plan_depends_on_seed_and_update_alone(algorithm) -> None:  # noqa: ANN001
    config = AlignConfig()
    torch.manual_seed(1)
    first = [algorithm.plan_rollout(config, update, seed=3) for update in UPDATES]
    torch.manual_seed(2)
    again = [algorithm.plan_rollout(config, update, seed=3) for update in reversed(UPDATES)]
    assert first == again[::-1]
    assert first != [algorithm.plan_rollout(config, update, seed=4) for update in UPDATES]
    assert len({plan.trained_steps for plan in first}) > 1


@pytest.mark.parametrize("steps", [5, 10, 25, 50])
def test_mixgrpo_has_the_window_of_grpo_and_fewer_steps_after_it(steps: int) -> None:
    config = AlignConfig(algorithm="mixgrpo", num_inference_steps=steps, window_range=4, trained_steps=1)
    for update in UPDATES:
        plan, fine = mixgrpo.plan_rollout(config, update, 0), grpo.plan_rollout(config, update, 0)
        end = fine.trained_steps[-1] + 1
        assert (plan.trained_steps, plan.stochastic_steps) == (fine.trained_steps, fine.stochastic_steps)
        assert plan.steps[: end + 1] == tuple(range(end + 1)), "the window's transitions are those of the fine grid"
        rest = plan.steps[end:]
        assert len(rest) == max(1, int((steps - end) * 4 / 10))
        assert list(rest) == sorted(set(rest))
        assert max(rest) < steps
        assert plan.second_order_steps == frozenset(rest[1:-1])


def test_mixgrpo_may_keep_all_steps_and_its_window_may_be_the_end() -> None:
    config = AlignConfig(algorithm="mixgrpo", num_inference_steps=4, window_range=4, trained_steps=1, steps_share=1.0)
    plans = [mixgrpo.plan_rollout(config, update, 0) for update in UPDATES]
    assert {plan.steps for plan in plans} == {(0, 1, 2, 3)}
    assert {plan.trained_steps for plan in plans} == {(0, 1), (1, 2), (2, 3)}


def test_nft_has_no_random_step_and_samples_of_their_own_noise() -> None:
    plan = nft.plan_rollout(AlignConfig(algorithm="nft", trained_steps=3), 0, 0)
    assert (plan.stochastic_steps, plan.trained_steps, plan.noised_steps) == (frozenset(), (), 3)
    assert not plan.shares_initial_noise


def test_noise_levels_are_drawn_from_all_or_from_the_noisiest_alone(small_pipeline: Path) -> None:
    policy, prompts = load_policy(ModelConfig(path=str(small_pipeline))), small_prompts(4)

    def levels(**changes: object) -> torch.Tensor:
        config = AlignConfig(algorithm="awm", num_inference_steps=6, trained_steps=2, **changes)
        plan = nft.plan_rollout(config, 0, 0)
        recorded = rollout(policy, prompts, plan, sample_indices=range(8), seed_key=("seed",)).trajectories
        assert bool((recorded.steps[0] != recorded.steps[1]).all()), "without replacement"
        return recorded.steps

    assert set(levels().flatten().tolist()) == set(range(6))
    assert set(levels(trained_range=3).flatten().tolist()) == {0, 1, 2}


def test_the_old_policy_of_nft_lags_more_and_more_up_to_a_bound_or_not_at_all() -> None:
    config = AlignConfig(algorithm="nft", old_decay_rate=0.1, old_decay_max=0.25)
    assert [nft.old_policy_decay(config, update) for update in range(5)] == [0.0, 0.1, 0.2, 0.25, 0.25]
    assert nft.old_policy_decay(AlignConfig(algorithm="nft", old_decay_rate=0.0), 3) is None
    assert grpo.ALGORITHM.objective.old_policy_decay(config, 3) is None


def test_what_does_not_fit_an_algorithm_is_refused() -> None:
    for algorithm in ("awm", "grpo", "guard", "mixgrpo", "nft"):
        with pytest.raises(ValueError, match=f"{algorithm} compares the samples of a prompt"):
            AlignConfig(algorithm=algorithm, samples_per_prompt=1, micro_batch_size=8)
    assert AlignConfig(algorithm="prefpaint", samples_per_prompt=1, micro_batch_size=8)
    assert AlignConfig(algorithm="nft", zero_stage=3)
    for algorithm in ("awm", "nft"):
        with pytest.raises(ValueError, match="trained_steps exceeds"):
            AlignConfig(algorithm=algorithm, num_inference_steps=6, trained_steps=7)
