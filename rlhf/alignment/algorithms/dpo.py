"""Diffusion-DPO (arXiv:2311.12908): offline, from pairs of samples of which a person preferred one.

No policy samples. Both samples of a pair are noised with one noise to one level, and the loss is the negative
log-likelihood of the preference, eq. 14 there: the network's error on the better sample must fall, against the base
model's, by more than that on the worse one. Deviations: the errors are means over the hole; levels are those of the
schedule, `trained_steps` of them drawn for each pair.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid

from rlhf.alignment.algorithms import grpo, nft
from rlhf.alignment.objective import Algorithm, Objective, PassLoss, TrainingBatch
from rlhf.alignment.policy_gradient import kl_between, no_old_policy
from rlhf.config.run_config import AlignConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.denoising import finish_known
from rlhf.diffusion.families.family import cells_of
from rlhf.diffusion.noising import noise_again
from rlhf.diffusion.policy import Policy
from rlhf.diffusion.steps.step_rule import Schedule, masked_mean
from rlhf.diffusion.trajectories import NoisedSamples, RolloutPlan


@torch.no_grad()
def noise_pairs(
    policy: Policy,
    prompts: Sequence[Prompt],
    images: torch.Tensor,
    plan: RolloutPlan,
    keys: Sequence[tuple[object, ...]],
) -> NoisedSamples:
    """Pairs of pictures, noised; B = 2 x pairs. Noise and levels of a pair depend on its key alone.

    `prompts` has the prompt of each pair; `images`, float32 [B, 3, H, W] in [-1, 1], has the better and the worse
    picture of one pair after another. The policy's network is not used.
    """
    family = policy.family
    condition, latent_mask = (part.repeat_interleave(2, dim=0) for part in family.encode_prompts(prompts))
    if plan.log_prob_over == "all":
        latent_mask = torch.ones_like(latent_mask)
    schedule = family.schedule(plan.num_inference_steps, cells_of(condition))
    clean = finish_known(family.encode_images(images.to(family.device)), family.known_latents(condition))
    of_both = [key for key in keys for _ in range(2)]
    noised, steps = noise_again(schedule, clean, of_both, plan.noised_steps, plan.noised_range)
    return NoisedSamples(
        condition=condition.cpu(),
        latent_mask=latent_mask.cpu(),
        clean_latents=clean.cpu(),
        latents=noised.cpu(),
        steps=steps,
        old_prediction=None,
        text=policy.embed(prompts).to("cpu"),
    )


def compute_loss(
    output: torch.Tensor,
    base_output: torch.Tensor | None,
    batch: TrainingBatch,
    k: int,
    schedule: Schedule,
    config: AlignConfig,
) -> PassLoss:
    """Loss of the k-th noising of a micro-batch of pairs; see `LossFunction`."""
    t, device, steps = batch.trajectories, output.device, batch.trajectories.steps_at(k)
    assert isinstance(t, NoisedSamples)
    assert base_output is not None
    latents, mask = t.latents[k].to(device), t.latent_mask.to(device)
    target = schedule.target_output(t.clean_latents.to(device), latents, steps)
    errors, base_errors = (masked_mean((said - target).square(), mask) for said in (output, base_output))
    # Pairs lie side by side: [pairs, (better, worse)].
    gains = (base_errors - errors).view(-1, 2)
    margins = config.dpo_beta / 2 * (gains[:, 0] - gains[:, 1])
    kl = kl_between(output.detach(), base_output, latents, steps, schedule, config.eta, mask)
    return PassLoss(
        loss=-logsigmoid(margins).mean(),
        disagreement=0.0,
        figures={
            "pair_accuracy": float((margins.detach() > 0).float().mean()),
            "pair_margin": float(margins.detach().mean()),
            "kl_to_base": float(kl.mean()),
        },
    )


ALGORITHM = Algorithm(
    plan_rollout=nft.plan_rollout,
    compute_advantages=grpo.compute_advantages,
    compares_within_prompts=True,
    passes_per_batch=nft.passes_per_batch,
    objective=Objective(compute_loss=compute_loss, disagreement=None, old_policy_decay=no_old_policy, reads_base=True),
)
