"""Run configuration: typed, frozen, one section per stage. YAML files hold only the values that differ."""

from importlib import import_module
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from rlhf.config.align_config import AlignConfig
from rlhf.config.cluster_config import ClusterConfig
from rlhf.config.config_types import Count, NonNegative, PositiveShare, Section, Share, one_of
from rlhf.config.evaluate_config import EvaluateConfig
from rlhf.config.gate_config import GateConfig
from rlhf.config.logging_config import LoggingConfig
from rlhf.config.reward_config import RewardConfig
from rlhf.config.reward_entry import RewardEntry


def _ascending(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the smaller share comes first")
    return values


Guidance = Literal["none", "embedded", "true"]


BUILTIN = ("tiny", "tiny-sd")
"""Names of the models of the package; the first is the default."""


def _yaml_true(value: object) -> object:
    return "true" if value is True else value


def _hole_families() -> tuple[str, ...]:
    # By name, since the configuration lies below the data and must not import it to be read.
    return tuple(import_module("rlhf.data.holes").FAMILIES)


class ModelConfig(Section):
    """Pre-trained inpainting model, and how it runs."""

    path: str = BUILTIN[0]
    """`tiny` or `tiny-sd` (built in), a pipeline folder, or a hub name."""
    variant: str | None = None
    """Files of weights, such as `fp16`; default: the plain ones, or the only variant there is."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the denoising network, in rollout, training and serving alike; `auto` is `bf16` on a GPU, else
    `fp32`. In `bf16` the frozen weights of its matrix products are held in bfloat16. Trained weights, their optimizer,
    latents, log-probs and KL are always fp32."""
    guidance: Annotated[Guidance, BeforeValidator(_yaml_true)] | None = None
    """`none`; `embedded`, a constant that a guidance-distilled network (FLUX.1) is told; or `true`, a second pass with
    `negative_caption`, combined by the rule of the model's class, in sampling and training alike. Default: `embedded`
    for networks that are told a scale, else `none`."""
    guidance_scale: NonNegative | None = None
    """Scale of the guidance, as diffusers' class means it; default: that of the class."""
    negative_caption: str | None = None
    """Text that true guidance leads away from; default: the empty text."""
    step_rule: Literal["ddim", "flow_sde", "dance"] | None = None
    """Rule of the stochastic steps of flow-matching models: `ddim` (default), or for comparison Flow-GRPO's `flow_sde`
    or DanceGRPO's `dance`, in which `eta` means another scale. Other models take `ddim`."""
    attention: Literal["auto", "sdpa", "xformers"] = "auto"
    """`auto` is PyTorch's SDPA; `xformers` needs CUDA and the extra `gpu`."""


class PromptsConfig(Section):
    """Prompts: crops of photographs with a hole."""

    size_px: Count = 64
    """Side of the square crops in pixels; the model's native size."""
    buckets: bool = False
    """Crops keep about the shape of their photograph: each gets the nearest aspect ratio among sizes of at most
    `size_px` x `size_px` pixels, from 1:4 to 4:1. False cuts squares."""
    bucket_step_px: Count | None = None
    """Sides of the buckets are multiples of it, as `bucket_reso_steps` of LoRA trainers; it divides `size_px`. Default:
    64 from 512 px on, below in proportion, at least 8."""
    crops_per_photograph: Count = 2
    """Prompts cut from each photograph."""
    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], AfterValidator(_ascending)] = (0.4, 1.0)
    """Side of a crop as a share of the photograph's short side, drawn uniformly."""
    holes: tuple[Annotated[str, one_of(_hole_families)], ...] = Field(default_factory=_hole_families, min_length=1)
    """Hole families of rlhf/data/holes.py, taken in turn; default: all of them."""
    test_share: Share = 0.0
    """Share of the photographs whose prompts get the split `test` (all others: `train`)."""

    @property
    def step_px(self) -> int:
        """The configured or default step of the buckets."""
        return self.bucket_step_px or 8 * min(max(self.size_px // 64, 1), 8)

    @model_validator(mode="after")
    def _has_a_square_bucket(self) -> "PromptsConfig":
        if self.buckets and self.size_px % self.step_px:
            raise ValueError(
                f"bucket_step_px {self.step_px} does not divide size_px {self.size_px}; choose one that does"
            )
        if self.bucket_step_px is not None and not self.buckets:
            raise ValueError("bucket_step_px: only buckets have a step; set buckets true, or remove it")
        return self


class CandidatesConfig(Section):
    """Candidates: samples for annotation."""

    samples_per_prompt: Count = 6
    """Inpaintings per prompt."""
    num_inference_steps: Annotated[tuple[Count, ...], Field(min_length=1)] = (10,)
    """Denoising steps; sample i uses entry i modulo the length."""
    eta: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.0, 1.0)
    """Noise level eta of the steps, 0 to 1; sample i uses entry i modulo the length."""
    strength: Annotated[tuple[PositiveShare, ...], Field(min_length=1)] = (1.0,)
    """Share of the steps that sample i runs (entry i modulo the length). Below 1 the sample starts from the noised
    original, so annotators see better fills than the model makes by itself."""
    micro_batch_size: Count = 64
    """Number of images denoised at once."""


class AnnotatorsConfig(Section):
    """Simulated annotators: the gold judge seen through bias and noise."""

    count: Count = 4
    """Number of annotators who share the work."""
    bias_sd: NonNegative = 0.4
    """Spread of the annotators' constant bias, in points of the 0-7 scale."""
    noise_sd: NonNegative = 0.6
    """Noise of a single mark, in points of the 0-7 scale."""
    marks_per_candidate: Count = 3
    """Number of different annotators who score each candidate."""

    @model_validator(mode="after")
    def _are_enough(self) -> "AnnotatorsConfig":
        if self.marks_per_candidate > self.count:
            raise ValueError(f"marks_per_candidate {self.marks_per_candidate} exceeds the {self.count} annotators")
        return self


class RoundsConfig(Section):
    """`rlhf rounds` from its second round on."""

    refit: bool = True
    """True fits the reward anew to all rounds' annotations; False adds the new ones, and the features stay."""


class RunConfig(Section):
    """All settings of a run."""

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
    """Rewards whose weighted sum `rlhf align` climbs; without any, the reward folder alone."""
    judges: tuple[RewardEntry, ...] = ()
    """Held-out judges of `rlhf evaluate`, apart from the reward that policies were trained on."""
    align: AlignConfig = AlignConfig()
    """Stage `rlhf align`."""
    cluster: ClusterConfig = ClusterConfig()
    """Processes of `rlhf align`."""
    logging: LoggingConfig = LoggingConfig()
    """Services that receive the figures of `rlhf align`."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Stage `rlhf evaluate`."""
    gate: GateConfig = GateConfig()
    """Stage `rlhf promote`, which samples with the settings of `evaluate`."""
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
    def _turns_are_possible(self) -> "RunConfig":
        if self.cluster.colocate is True and self.align.max_staleness:
            raise ValueError(
                "cluster.colocate: samplers that take turns cannot run ahead of the learner; "
                "set align.max_staleness to 0, or colocate to false"
            )
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
