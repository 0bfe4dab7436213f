"""What the metrics of an update mean: the keys of `metrics.jsonl` and the descriptions of their gauges.

The figures come from `weigh` in rlhf/alignment/weighing.py (rewards and trust), `Coordinator.collect` in
actors/coordinator.py (sampling), the algorithm's loss (training), `Usage` in rlhf/alignment/utilisation.py (devices)
and `train` in actors/learner_loop.py (time).
"""

MEANINGS = {
    "update": "number of the update, from 1",
    "policy_version": "version of the weights that sampled, the number of updates behind them",
    "staleness": "updates that the sampling weights lag behind",
    "learners": "number of learner ranks",
    "loss": "mean loss over the update",
    "approx_kl": "half the mean square of the log-ratio, in nats per latent element",
    "clipfrac": "share of ratios outside align.clip_range",
    "kl_to_base": "mean KL to the base policy, in nats per latent element",
    "kl_to_old": "nft: mean KL to the old policy, in nats per latent element",
    "ratio_error": "largest deviation of a ratio from 1 before the first optimizer step",
    "prediction_error": "nft: largest mean deviation of a prediction from the sampler's, before the first step",
    "share_of_bound": "the ratio or prediction error over align.max_ratio_error; above 1 the update is refused",
    "pair_accuracy": "dpo: share of the pairs that the policy orders as the annotator did",
    "pair_margin": "dpo: mean margin of the pairs, in logits",
    "reward": "mean of the weighted sum of rewards",
    "climbed": "mean of what advantages compare: the reward or its lower bound",
    "reward_std_in_group": "mean standard deviation of the reward among the samples of a prompt",
    "trust_weight": "mean trust weight before the division by its mean",
    "trust_weight_std": "standard deviation of the trust weights after the division by their mean",
    "effective_sample_share": "effective number of samples under the trust weights, over their number",
    "uncertainty": "mean uncertainty of the reward",
    "ood_share": "share of rewards less certain than 95 % of those calibrated",
    "restarts": "workers lost since the run began",
    "tasks_repeated": "tasks of the update that were repeated after a loss",
    "prompts_quarantined": "prompts that are left out because their workers die",
    "images_per_s": "finished images over the time of the rollout",
    "pixels_per_s": "pixels of the finished images over the time of the rollout",
    "sampler_idle_share": "share of the rollout in which samplers wait",
    "scorer_idle_share": "share of the rollout in which scorers wait",
    "queue_to_sample": "mean number of tasks that wait for a sampler",
    "queue_to_score": "mean number of tasks that wait for a scorer",
    "weights_sync_s": "seconds until the last sampler had proved the weights",
    "weights_bytes": "bytes of the published weights",
    "rollout_s": "seconds of publishing, rolling out, scoring and weighing",
    "train_s": "seconds of training",
    "update_s": "seconds of the whole update",
    "sampler_forward_images": "images that went through the samplers' networks, over all steps",
    "learner_forward_images": "images that went through the trained network, over all ranks and steps",
    "base_forward_images": "images that went through the base network for the KL, over all ranks and steps",
    "backward_images": "images that went through the backward pass, over all ranks and steps",
    "sampler_utilisation": "share of the FLOP/s of the samplers' devices that the rollout reaches",
    "learner_utilisation": "share of the FLOP/s of the learners' devices that training reaches",
    "sampler_device_flops": "FLOP/s of matrix products on the slowest sampler's device, or cluster.peak_tflops",
    "learner_device_flops": "FLOP/s of matrix products on rank 0's device, or cluster.peak_tflops",
    "sampler_memory_bytes": "most bytes that one sampler has held: on its GPU, or resident",
    "scorer_memory_bytes": "most bytes that one scorer has held: on its GPU, or resident",
    "learner_memory_bytes": "most bytes that rank 0 has held: on its GPU, or resident",
}
"""Meaning of each metric, with its unit."""
PART_MEANINGS = {
    "rewards/": "mean of this reward, on its own scale",
    "restarts/": "workers of this role lost from this cause since the run began",
}
"""Meaning of metrics that there are several of, by the part of the name that they share."""


def meaning_of(name: str) -> str | None:
    """Returns the meaning of a metric; None for one that is not in the tables."""
    part = next((part for part in PART_MEANINGS if name.startswith(part)), None)
    return MEANINGS.get(name) if part is None else PART_MEANINGS[part]
