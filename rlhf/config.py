"""The run configuration: typed, frozen, one section per stage. YAML files hold only what differs."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlhf.cluster_config import ClusterConfig
from rlhf.config_types import Count, NonNegative, Positive, PositiveShare, Section, Share
from rlhf.evaluate_config import EvaluateConfig
from rlhf.gate_config import GateConfig
from rlhf.logging_config import LoggingConfig
from rlhf.rewards.entry import RewardEntry


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the smaller share comes first")
    return values


class ModelConfig(Section):
    """Which pre-trained inpainting model, and how it is run."""

    path: str = "tiny"
    """`tiny` (built in), a pipeline folder, or a hub name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run; `auto` takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the UNet's forward pass, in rollout and training alike. Log-probs are always fp32."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """`auto` is PyTorch's SDPA; `xformers` needs CUDA and the extra `gpu`."""


class PromptsConfig(Section):
    """Photographs to prompts (an image with a hole)."""

    size_px: Count = 64
    """Side of the square crops; the model's native size."""
    crops_per_photograph: Count = 2
    """Prompts cut from each photograph."""
    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], AfterValidator(_ascending)] = (0.4, 1.0)
    """Side of a crop as a share of the photograph's short side, drawn uniformly."""
    holes: Annotated[
        tuple[Literal["boundary_square", "boundary_band", "box", "brush", "warp"], ...], Field(min_length=1)
    ] = (
        "boundary_square",
        "boundary_band",
        "box",
        "brush",
        "warp",
    )
    """Hole families, taken in turn."""
    test_share: Share = 0.0
    """Share of the photographs whose prompts get the split `test` (all others: `train`)."""


class CandidatesConfig(Section):
    """Samples for annotation."""

    samples_per_prompt: Count = 6
    """Inpaintings per prompt."""
    num_inference_steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (10,)
    """Denoising steps; sample i uses entry i modulo the length."""
    eta: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 1.0)
    """DDIM's eta; sample i uses entry i modulo the length."""
    strength: Annotated[tuple[PositiveShare, ...], Field(min_length=1)] = (1.0,)
    """Share of the steps that sample i runs (entry i modulo the length); below 1 it starts from the noised
    original, so that annotators see better fills than the model makes by itself."""
    micro_batch_size: Count = 64
    """Images denoised at once."""


class AnnotatorsConfig(Section):
    """Simulated annotators: the gold judge seen through bias and noise."""

    count: Count = 4
    """How many annotators share the work."""
    bias_sd: NonNegative = 0.4
    """Spread of the annotators' constant bias, in points of the 0-7 scale."""
    noise_sd: NonNegative = 0.6
    """Noise of a single mark, in points of the 0-7 scale."""
    marks_per_candidate: Count = 3
    """Different annotators who score each candidate."""

    @model_validator(mode="after")
    def _are_enough(self) -> "AnnotatorsConfig":
        if self.marks_per_candidate > self.count:
            raise ValueError(f"marks_per_candidate {self.marks_per_candidate} exceeds the {self.count} annotators")
        return self


class RewardConfig(Section):
    """The reward model and its bound."""

    backbone: str = "small"
    """`small`, a CLIP vision model (a folder or a hub name), or `prefpaint-release:` and the file of PrefPaint's
    released reward model."""
    frozen_share: Share = 0.7
    """Share of CLIP's layers, from the first, that are not trained (PrefPaint: 0.7); at 1 all of it is fixed."""
    feature_dim: Count = 48
    """Length of the features z, without the constant."""
    epochs: Count = 12
    """Passes over part A."""
    learning_rate: Positive = 2e-3
    """Peak rate of AdamW, cosine decay."""
    micro_batch_size: Annotated[int, Field(ge=2)] = 64
    """Images per optimizer step."""
    augmentation: Literal["mirror", "strong"] = "mirror"
    """`mirror`: left and right; `strong`: also upside down, turned, colours swapped and inverted (few data)."""
    within_prompt: NonNegative = 30.0
    """Weight of the error of differences between samples of one prompt."""
    objective: Literal["scores", "pairs"] = "scores"
    """`scores`: regression on all marks; `pairs`: Bradley-Terry on the totals of one prompt's samples."""
    validation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of part A's photographs that tells when to stop; 0 trains all epochs."""
    patience: Count = 6
    """Epochs without a better validation before training stops."""
    decorrelation: NonNegative = 0.05
    """Weight of the penalty on the features' covariance; keeps them from collapsing."""
    ridge: Positive | Literal["auto"] = "auto"
    """lambda of the ridge head and of V = Z'Z + lambda I; `auto` chooses it on part A."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """The theorem's bound holds with probability 1 - delta."""
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Stated coverage of the conformal bound on a new annotation."""
    parameter_norm: Positive = 0.3
    """S: assumed norm of psi* less the head of part A, in the theorem's constant."""
    parts: tuple[Positive, Positive, Positive, Positive] = (0.5, 0.2, 0.15, 0.15)
    """Shares of photographs: A trains features and a first head, B corrects it and makes V, C calibrates, D reports."""
    trust_k: NonNegative = 0.05
    """k of the trust weight exp(-k u + b) (PrefPaint, section 3)."""
    trust_b: float = 0.7
    """b of the trust weight."""


class AlignConfig(Section):
    """Reinforcement learning of the policy."""

    algorithm: Literal["grpo", "mixgrpo", "nft", "prefpaint"] = "grpo"
    """`grpo`: group advantages and a moving window of stochastic steps; `mixgrpo`: with fewer steps after it;
    `prefpaint`: the paper's; `nft`: finished samples are noised again, no step is random."""
    updates: Count = 30
    """Rollout-and-train rounds."""
    prompts_per_update: Count = 8
    """Prompts per update, over all ranks."""
    samples_per_prompt: Count = 8
    """Inpaintings per prompt: the group."""
    micro_batch_size: Count = 16
    """Images per forward pass, in rollout and training alike (whole groups)."""
    epochs_per_update: Count = 1
    """Optimizer steps per rollout, each over the whole batch."""
    num_inference_steps: Count = 10
    """Denoising steps of a rollout."""
    eta: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """DDIM's eta at stochastic steps."""
    window_size: Count = 2
    """grpo, mixgrpo: length of the window of stochastic, trained steps."""
    window_range: Count = 6
    """grpo, mixgrpo: the window lies within the first so many steps."""
    steps_share: PositiveShare = 0.4
    """mixgrpo: share of the steps after the window that is run, by a solver of second order."""
    trained_steps: Count = 5
    """prefpaint: how many steps, drawn at random, are trained; nft: to how many, drawn for each, samples are noised."""
    nft_beta: Annotated[float, Field(gt=0.0)] = 1.0
    """nft: how far the implicit positive and negative policies lie from the old one, towards and off the trained."""
    old_decay_rate: NonNegative = 0.001
    """nft: the old policy, which samples, follows the trained one by an average whose decay grows by this with every
    update; 0: it is the trained one."""
    old_decay_max: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    """nft: up to this decay."""
    learning_rate: Positive = 3e-4
    """Of AdamW."""
    weight_decay: NonNegative = 0.0
    """Of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradient clipping."""
    clip_range: Positive = 1e-3
    """Of the ratio; log-probs are means over latent elements, see `log_prob_over`."""
    advantage_clip: Positive = 5.0
    """Advantages are clipped to plus and minus this."""
    kl_weight: NonNegative = 0.01
    """Of the KL to the base policy, in nats per latent element."""
    trust: Annotated[
        Literal["proper", "release", "constant", "none"],
        BeforeValidator(lambda value: ("none", "proper")[value] if isinstance(value, bool) else value),
    ] = "proper"
    """Weight of each sample, divided by its mean over the update: exp(-k u + b) with u = sqrt(z' V^-1 z) (`proper`) or
    ||V^-1 z|| as the release has it (`release`); the same for all (`constant`), which is `none` to the last bit."""
    climbs: Literal["reward", "lower_bound"] = "reward"
    """What advantages are made of: the reward, or the reward less its conformal bound."""
    log_prob_over: Literal["hole", "all"] = "hole"
    """Latent elements over which log-probs, errors (nft) and KL are means: those of the hole, or all, as in PrefPaint's
    code."""
    ood_alarm: Share = 0.5
    """A warning is printed where more of the rewards are less certain than the calibrated 0.95 quantile."""
    trainable: Literal["lora", "full"] = "lora"
    """What is trained: LoRA adapters or the whole UNet."""
    lora_rank: Count = 16
    """Rank and alpha of the adapters."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out")
    """Names of the UNet's modules that get an adapter."""
    gradient_checkpointing: bool = False
    """Compute the UNet's activations again in the backward pass instead of keeping them: less memory, more time."""
    average_decay: Share = 0.9
    """The saved policy is an exponential average of the trained weights; 0 saves the last ones."""
    max_ratio_error: Positive = 1e-5
    """An update whose ratio differs from 1 by more before its first optimizer step is refused (nft: whose prediction
    differs by more from the sampler's); so is a sampler whose canary's log-prob differs by more (relative, where it is
    above 1). Rounding alone makes some 1e-6 where a policy has moved far."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """DeepSpeed's ZeRO stage."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Versions that samplers may run ahead of the learner; 0 is synchronous. Ratios correct for it."""
    checkpoint_every: Count = 10
    """Updates between checkpoints."""
    keep_last: Count = 2
    """Checkpoints kept, the newest; a run goes on from the last. May change with --resume, as keep_policies may."""
    keep_policies: Count | None = None
    """Policies kept, the newest; null keeps all."""

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
        if self.window_range > self.num_inference_steps or self.window_size > self.window_range:
            raise ValueError("needs window_size <= window_range <= num_inference_steps")
        if self.trained_steps > self.num_inference_steps:
            raise ValueError("trained_steps exceeds num_inference_steps")
        if self.prompts_per_update * self.samples_per_prompt < 2:
            raise ValueError("an update needs two images or more: advantages compare them")
        if self.algorithm != "prefpaint" and self.samples_per_prompt < 2:
            raise ValueError(f"{self.algorithm} compares the samples of a prompt: samples_per_prompt must be 2 or more")
        if self.algorithm == "nft" and self.old_decay_rate > 0 and self.zero_stage == 3:
            raise ValueError("nft with zero_stage 3, which splits the weights, needs old_decay_rate 0")
        return self


class RoundsConfig(Section):
    """What `rlhf rounds` does from its second round on."""

    refit: bool = True
    """True: the reward is fitted anew to all rounds' annotations; False: it takes the new ones in, features stay."""


class RunConfig(Section):
    """Everything that a run is told."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of prompts, candidates, annotators, reward model and alignment."""
    model: ModelConfig = ModelConfig()
    """Pre-trained model."""
    prompts: PromptsConfig = PromptsConfig()
    """Stage `rlhf prompts`."""
    candidates: CandidatesConfig = CandidatesConfig()
    """Stage `rlhf candidates`."""
    annotators: AnnotatorsConfig = AnnotatorsConfig()
    """Stage `rlhf annotate --simulated`."""
    reward: RewardConfig = RewardConfig()
    """Stage `rlhf reward`."""
    rewards: tuple[RewardEntry, ...] = ()
    """What `rlhf align` climbs: the weighted sum of these; none is the reward folder alone."""
    judges: tuple[RewardEntry, ...] = ()
    """Held out: further judges of `rlhf evaluate`, kept apart from the reward that policies were trained on."""
    align: AlignConfig = AlignConfig()
    """Stage `rlhf align`."""
    cluster: ClusterConfig = ClusterConfig()
    """Processes of `rlhf align`."""
    logging: LoggingConfig = LoggingConfig()
    """Services that `rlhf align` sends its figures to."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Stage `rlhf evaluate`."""
    gate: GateConfig = GateConfig()
    """Stage `rlhf promote`, which paints as `evaluate` says."""
    rounds: RoundsConfig = RoundsConfig()
    """`rlhf rounds`."""

    @model_validator(mode="after")
    def _rewards_are_told_apart(self) -> "RunConfig":
        for section in ("rewards", "judges"):
            names = [entry.label for entry in getattr(self, section)]
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(f"{section}: {names.count(name)} are called {name!r}; give each its own `name`")
        if self.rewards and not any(entry.weight for entry in self.rewards):
            raise ValueError("rewards: all weights are 0, so there is nothing to climb")
        return self

    @model_validator(mode="after")
    def _ranks_share_evenly(self) -> "RunConfig":
        chunks = self.align.prompts_per_update * self.align.samples_per_prompt // self.align.micro_batch_size
        if chunks % self.cluster.learners:
            raise ValueError(
                f"an update has {chunks} micro-batches, which {self.cluster.learners} learners cannot share evenly; "
                "change align.prompts_per_update or cluster.learners"
            )
        return self
