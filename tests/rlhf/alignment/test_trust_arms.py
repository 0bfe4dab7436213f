"""The switches of the study of trust outside weighing: the released norm, and log-probs over all latents."""

from pathlib import Path

import pytest
import torch
from small_parts import save_small_reward, small_config, small_prompts

from rlhf.alignment.algorithms.table import algorithm_of
from rlhf.config.config_files import load_config
from rlhf.diffusion.policy import load_policy
from rlhf.diffusion.rollout import rollout
from rlhf.errors import UserError
from rlhf.rewards.learned.bound import fit_ridge
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.open_reward import build_rewards

CPU = torch.device("cpu")


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, 32, 32)
    masks[:, :, 8:20, 6:24] = 1
    return images, masks, [""] * count


def test_the_released_norm_is_that_of_v_inverse_z() -> None:
    """Slow reference: V is inverted."""
    z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    head = fit_ridge(z, z[:, 0], 2.0)
    v = z.T @ z + 2.0 * torch.eye(5).double()
    torch.testing.assert_close(head.released_norm(z), (z @ torch.linalg.inv(v)).norm(dim=1))


def test_a_reward_folder_weighs_by_either_norm_and_both_give_the_median_the_papers_weight(tmp_path: Path) -> None:
    folder = save_small_reward(tmp_path / "reward", median_released_norm=0.3)
    images, masks, captions = batch()
    model = load_reward(folder)
    (proper,) = build_rewards((), folder, CPU).values()
    (release,) = build_rewards((), folder, CPU, trust="release").values()
    scored, ours = model.score(images, masks), release.score(images, masks, captions)
    norm = model.head.released_norm(model.network(images, masks).detach())
    torch.testing.assert_close(ours.trust_weight, torch.exp(-0.05 * norm * 7.3 / 0.3 + 0.7))
    assert torch.equal(proper.score(images, masks, captions).trust_weight, scored.trust_weight)
    assert torch.equal(ours.lower, scored.lower)


def test_a_folder_that_does_not_know_the_released_norms_median_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="align.trust is `release`.*run `rlhf reward` again"):
        build_rewards((), save_small_reward(tmp_path / "reward"), CPU, trust="release")


def test_older_files_that_switch_trust_on_or_off_are_still_read() -> None:
    assert load_config(None, ("align.trust=true",)).align.trust == "auto"
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
