"""The arms of the study of trust: kinds of weight, the lower bound, log-probs over all latents."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_parts import save_small_reward, small_config, small_prompts

from actors.coordinator import CONSTANT_TRUST, Coordinator, climbed_reward, weigh_trust
from actors.dispatch import FinishedTask
from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.config_files import load_config
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import Trajectories
from rlhf.errors import UserError
from rlhf.rewards.build import build_rewards
from rlhf.rewards.combination import Scale, combine
from rlhf.rewards.learned.bound import fit_ridge
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.scores import Scores

CPU = torch.device("cpu")


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, 32, 32)
    masks[:, :, 8:20, 6:24] = 1
    return images, masks, [""] * count


def scores(count: int = 24) -> Scores:
    generator = torch.Generator().manual_seed(3)
    reward, uncertainty = torch.randn(2, count, generator=generator, dtype=torch.float64).abs()
    weight = torch.exp(-uncertainty)
    return Scores(reward=reward, uncertainty=uncertainty, trust_weight=weight, width=2 * uncertainty)


def weigh(align: AlignConfig, given: Scores) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and trust weights that the coordinator hands out."""
    size = align.micro_batch_size
    empty = torch.zeros(0)
    nothing = Trajectories(
        condition=empty, latent_mask=empty, latents=empty, next_latents=empty, old_log_prob=empty, step_indices=()
    )
    tasks = [
        FinishedTask(number=i, prompt_ids=(f"p{i}",), trajectories=nothing, images=None, scores={}, forward_images=0)
        for i in range(len(given.reward) // size)
    ]
    config = load_config(None).model_copy(update={"align": align})
    coordinator = Coordinator(config, None, None, None, ranks=1, out=Path("nowhere"))
    shares, _ = coordinator._weigh(given, tasks)
    return torch.cat([s.advantages for s in shares]), torch.cat([s.trust_weights for s in shares])


def align_config(**changes: object) -> AlignConfig:
    return AlignConfig(prompts_per_update=6, samples_per_prompt=4, micro_batch_size=8, **changes)


def test_constant_weights_are_none_to_the_last_bit_whatever_their_number() -> None:
    for count in (8, 24, 48, 80):
        none, constant = (weigh(align_config(trust=kind), scores(count)) for kind in ("none", "constant"))
        assert torch.equal(constant[1], torch.ones(count))
        assert all(torch.equal(a, b) for a, b in zip(none, constant, strict=True))
    assert torch.equal(weigh_trust(scores(), align_config(trust="constant")), torch.full((24,), CONSTANT_TRUST))


def test_all_kinds_of_weight_have_mean_one_and_the_uncertain_weigh_less() -> None:
    given = scores()
    for kind in ("proper", "release", "constant", "none"):
        assert float(weigh(align_config(trust=kind), given)[1].mean()) == pytest.approx(1, abs=1e-6)
    _, weights = weigh(align_config(trust="proper"), given)
    assert weights[given.uncertainty.argmax()] == weights.min() < weights.max()


def test_the_lower_bound_is_climbed_in_place_of_the_reward() -> None:
    given, align = scores(), align_config(climbs="lower_bound", trust="none")
    lower = given.reward - given.width
    torch.testing.assert_close(climbed_reward(given, align), lower.float())
    expected = algorithm_of(align).compute_advantages(lower.float().view(-1, 4), align).flatten()
    assert torch.equal(weigh(align, given)[0], expected)
    assert not torch.equal(weigh(align_config(trust="none"), given)[0], expected)


@pytest.mark.parametrize("width", [None, torch.full((24,), torch.inf, dtype=torch.float64)])
def test_climbing_a_bound_that_nobody_calibrated_is_refused(width: torch.Tensor | None) -> None:
    with pytest.raises(UserError, match=r"align\.climbs.*no reward here has a calibrated bound"):
        climbed_reward(replace(scores(), width=width), align_config(climbs="lower_bound"))


def test_the_width_of_a_sum_is_that_of_the_triangle_inequality() -> None:
    a, b = scores(), scores()
    combined = combine({"a": a, "b": b}, {"a": 1.0, "b": -2.0}, {"a": Scale(std=0.5), "b": Scale(mean=3.0, std=4.0)})
    torch.testing.assert_close(combined.width, a.width / 0.5 + 2 / 4 * b.width)
    alone = combine({"a": a}, {"a": 1.0}, {"a": Scale()})
    assert torch.equal(alone.width, a.width)


def test_the_released_norm_is_that_of_v_inverse_z() -> None:
    """Slow reference: V is inverted."""
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    head = fit_ridge(z, z[:, 0], 2.0)
    v = z.T @ z + 2.0 * torch.eye(5).double()
    torch.testing.assert_close(head.prefpaint_norm(z), (z @ torch.linalg.inv(v)).norm(dim=1))


def test_a_reward_folder_weighs_by_either_norm_and_both_give_the_median_the_papers_weight(tmp_path: Path) -> None:
    folder = save_small_reward(tmp_path / "reward", median_released_norm=0.3)
    images, masks, captions = batch()
    model = load_reward(folder)
    (proper,) = build_rewards((), folder, CPU).values()
    (release,) = build_rewards((), folder, CPU, trust="release").values()
    scored, ours = model.score(images, masks), release.score(images, masks, captions)
    norm = model.head.prefpaint_norm(model.network(images, masks).detach())
    torch.testing.assert_close(ours.trust_weight, torch.exp(-0.05 * norm * 7.3 / 0.3 + 0.7))
    assert torch.equal(proper.score(images, masks, captions).trust_weight, scored.trust_weight)
    assert torch.equal(ours.lower, scored.lower)


def test_a_folder_that_does_not_know_the_released_norms_median_is_refused(tmp_path: Path) -> None:
    (release,) = build_rewards((), save_small_reward(tmp_path / "reward"), CPU, trust="release").values()
    with pytest.raises(UserError, match="run `rlhf reward` again"):
        release.score(*batch())


def test_older_files_that_switch_trust_on_or_off_are_still_read() -> None:
    assert load_config(None, ("align.trust=true",)).align.trust == "proper"
    assert load_config(None, ("align.trust=false",)).align.trust == "none"
    with pytest.raises(UserError, match=r"align\.trust"):
        load_config(None, ("align.trust=sometimes",))


def test_log_probs_over_all_latents_see_what_the_hole_does_not(small_pipeline: Path) -> None:
    config = small_config(small_pipeline)
    policy = load_policy(config.model)
    kept = {}
    for over in ("hole", "all"):
        align = config.align.model_copy(update={"log_prob_over": over})
        plan = algorithm_of(align).plan_rollout(align, 0, 0)
        kept[over] = rollout(policy, small_prompts(2), plan, sample_indices=range(2), seed_key=(0,)).trajectories
    assert bool((kept["all"].latent_mask == 1).all())
    assert 0 < float(kept["hole"].latent_mask.mean()) < 1
    assert torch.equal(kept["hole"].next_latents, kept["all"].next_latents), "the samples are the same"
    assert not torch.allclose(kept["hole"].old_log_prob, kept["all"].old_log_prob)
