"""Configuration of `rlhf align`: the algorithm, its rollouts, its updates."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from rlhf.config.config_types import Count, NonNegative, Positive, PositiveShare, Section, Share

SAMPLING = ("awm", "grpo", "guard", "mixgrpo", "nft", "prefpaint")
"""Algorithms that train on rollouts."""
SETTINGS_OF_SOME = {
    "window_size": ("grpo", "guard", "mixgrpo"),
    "window_range": ("grpo", "guard", "mixgrpo"),
    "steps_share": ("mixgrpo",),
    "trained_steps": ("awm", "dpo", "nft", "prefpaint"),
    "trained_range": ("awm", "dpo", "nft"),
    "clip_range": ("awm", "grpo", "guard", "mixgrpo", "prefpaint"),
    "nft_beta": ("nft",),
    "old_decay_rate": ("nft",),
    "old_decay_max": ("nft",),
    "dpo_beta": ("dpo",),
    **dict.fromkeys(("advantage_clip", "kl_weight", "trust", "climbs", "merged_sampling", "max_staleness"), SAMPLING),
}
"""Settings that not every algorithm uses, with the algorithms that do."""
Trust = Literal["auto", "proper", "release", "constant", "none"]
"""Kinds of trust weight."""


class AlignConfig(Section):
    """Reinforcement learning of the policy."""

    algorithm: Literal["awm", "dpo", "grpo", "guard", "mixgrpo", "nft", "prefpaint"] = "grpo"
    """Algorithm. `grpo` uses group advantages and a moving window of stochastic steps; `mixgrpo` runs fewer steps after
    the window; `guard` scales the ratios of all steps alike; `prefpaint` is the paper's; `nft` and `awm` noise finished
    samples again and have no random steps; `dpo` trains on the pairs that annotators made, without rollouts."""
    updates: Count = 30
    """Number of updates: rollouts that are trained on."""
    prompts_per_update: Count = 8
    """Number of prompts per update, over all ranks; dpo: of pairs."""
    samples_per_prompt: Count = 8
    """Number of inpaintings per prompt: the group; dpo: 2, a pair, also by default."""
    micro_batch_size: Count = 16
    """Number of images per forward pass, in rollout and training alike; a multiple of samples_per_prompt."""
    epochs_per_update: Count = 1
    """Number of optimizer steps per rollout, each over the whole batch."""
    num_inference_steps: Count = 10
    """Number of denoising steps of a rollout."""
    eta: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Noise level eta of the stochastic steps: 1 is the full variance of the step rule."""
    window_size: Count = 2
    """grpo, guard, mixgrpo: length of the window of stochastic, trained steps."""
    window_range: Count = 6
    """grpo, guard, mixgrpo: number of steps, from the first, that the window lies within."""
    steps_share: PositiveShare = 0.4
    """mixgrpo: share of the steps after the window that are run, with a second-order solver."""
    trained_steps: Count = 5
    """prefpaint: number of trained steps, drawn from all but the last; awm, dpo, nft: number of noise levels, drawn
    for each sample or pair."""
    trained_range: Count | None = None
    """awm, dpo, nft: number of noise levels, from the noisiest, that these are drawn from; null draws from all."""
    nft_beta: Annotated[float, Field(gt=0.0)] = 1.0
    """nft: beta; the implicit positive and negative policies are old +/- beta x (trained - old)."""
    old_decay_rate: NonNegative = 0.001
    """nft: growth per update of the EMA decay with which the old (sampling) policy follows the trained one; 0 samples
    with the trained policy."""
    old_decay_max: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """nft: largest EMA decay of the old policy."""
    dpo_beta: Positive = 2000.0
    """dpo: beta, the weight of the differences of squared errors in a pair's preference."""
    learning_rate: Positive = 3e-4
    """Learning rate of AdamW."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Largest norm of the gradient; larger ones are scaled down."""
    clip_range: Positive = 1e-3
    """All but nft and dpo: clip range of the ratio; log-probs are means over latent elements, see `log_prob_over`."""
    advantage_clip: Positive = 5.0
    """Bound of the advantages, which are clipped to plus and minus this value."""
    kl_weight: NonNegative = 0.01
    """Weight of the KL to the base policy, in nats per latent element."""
    trust: Annotated[
        Trust, BeforeValidator(lambda value: ("none", "auto")[value] if isinstance(value, bool) else value)
    ] = "auto"
    """Trust weight of each sample, normalised by the mean over the update: exp(-k u + b) with u = sqrt(z' V^-1 z)
    (`proper`) or u = ||V^-1 z||, as in PrefPaint's code (`release`). `auto` is `proper`; PrefPaint's released reward
    takes `release` instead, with the k, b and clip of its code, and refuses `proper`. `constant` weighs all samples
    alike and equals `none` to the last bit."""
    climbs: Literal["reward", "lower_bound"] = "reward"
    """Source of the advantages: the reward, or the reward minus its conformal bound."""
    log_prob_over: Literal["hole", "all"] = "hole"
    """Latent elements over which log-probs, errors (awm, nft) and KL are averaged: those of the hole, or all, as in
    PrefPaint's code."""
    ood_alarm: Share = 0.5
    """Share of rewards less certain than the calibrated 0.95 quantile above which a warning is printed."""
    trainable: Literal["lora", "full"] = "lora"
    """Trained weights: LoRA adapters or the whole network."""
    lora_rank: Count = 16
    """Rank and alpha of the adapters."""
    lora_targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the network's modules that get an adapter; default: those of the model's family."""
    merged_sampling: Literal["auto"] | bool = "auto"
    """Samplers hold a second copy of the network with the adapters merged, and run untrained steps with it: less time,
    more memory. `auto` does so in fp32 if the copy takes at most a quarter of the device's free memory. In bf16 it is
    not possible: a merged weight would round small updates away."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, more time."""
    average_decay: Share = 0.9
    """EMA decay of the saved policy over the trained weights; 0 saves the last weights."""
    max_ratio_error: Positive | None = None
    """Largest accepted difference of the ratio from 1 before the first optimizer step (nft: of the prediction from the
    sampler's), and of a sampler's probe log-prob from the learner's (relative if above 1). Larger ones refuse the
    update or the sampler. Default: 1e-5 in fp32, in
    bf16 1e-4 (nft: 1.5e-3)."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed's ZeRO stage. At 3 every rank holds a slice of each weight, and one layer at a time is whole on it,
    also while the network opens and when weights are published or saved."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Number of policy versions that samplers may lag behind; 0 is synchronous. Ratios correct for the lag."""
    checkpoint_every: Count = 10
    """Number of updates between checkpoints."""
    keep_last: Count = 2
    """Number of newest checkpoints to keep; a run resumes from the last. --resume may change it, and keep_policies."""
    keep_policies: Count | None = None
    """Number of newest policies to keep; null keeps all."""

    def uses(self, setting: str) -> bool:
        """Returns whether the algorithm uses a setting of this section."""
        return self.algorithm in SETTINGS_OF_SOME.get(setting, (self.algorithm,))

    @model_validator(mode="before")
    @classmethod
    def _pairs_are_two(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("algorithm") == "dpo":
            return {"samples_per_prompt": 2} | given
        return given

    @model_validator(mode="after")
    def _steps_fit(self) -> "AlignConfig":
        if self.micro_batch_size % self.samples_per_prompt:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} is not a multiple of samples_per_prompt "
                f"{self.samples_per_prompt}; whole groups share a forward pass"
            )
        if self.prompts_per_update * self.samples_per_prompt % self.micro_batch_size:
            raise ValueError(
                f"prompts_per_update x samples_per_prompt = {self.prompts_per_update * self.samples_per_prompt} "
                f"is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        is_in_order = self.window_size <= self.window_range <= self.num_inference_steps
        if self.uses("window_range") and not is_in_order:
            raise ValueError("needs window_size <= window_range <= num_inference_steps")
        if self.algorithm == "prefpaint" and self.trained_steps >= self.num_inference_steps:
            raise ValueError("trained_steps must be less than num_inference_steps: the last step is not trained")
        if self.uses("trained_steps") and self.trained_steps > self.num_inference_steps:
            raise ValueError("trained_steps exceeds num_inference_steps")
        levels = self.trained_range or self.num_inference_steps
        if self.uses("trained_range") and not self.trained_steps <= levels <= self.num_inference_steps:
            raise ValueError("needs trained_steps <= trained_range <= num_inference_steps")
        if self.prompts_per_update * self.samples_per_prompt < 2:
            raise ValueError("an update needs two images or more: advantages compare them")
        if self.algorithm == "dpo" and self.samples_per_prompt != 2:
            raise ValueError("dpo trains on pairs: samples_per_prompt must be 2")
        if self.algorithm != "prefpaint" and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares the samples of a prompt: samples_per_prompt must be 2 or more")
        return self
