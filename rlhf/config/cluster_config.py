"""Settings of the actors: their number, place and resources, and the reaction to their loss."""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field

from rlhf.config.config_types import Count, NonNegative, Positive, Section


class ClusterConfig(Section):
    """Ray actors and the resources of each."""

    samplers: Count = 2
    """Number of RolloutSampler actors."""
    scorers: Count = 1
    """Number of RewardScorer actors."""
    learners: Count = 1
    """Number of learner ranks."""
    threads_per_sampler: Count = 1
    """PyTorch threads of a sampler or scorer (CPU only)."""
    threads_per_learner: Count = 2
    """PyTorch threads of a learner rank (CPU only)."""
    cpus_per_actor: Positive = 0.25
    """Ray CPUs asked for by each sampler, scorer and learner rank."""
    gpus_per_actor: NonNegative = 0.0
    """Ray GPUs asked for by each sampler, scorer and learner rank; below 1, actors share a GPU."""
    gpus_per_sampler: NonNegative | None = None
    """Replaces `gpus_per_actor` for this role."""
    gpus_per_scorer: NonNegative | None = None
    """Replaces `gpus_per_actor` for this role."""
    gpus_per_learner: NonNegative | None = None
    """Replaces `gpus_per_actor` for this role."""
    colocate: Literal["auto"] | bool = "auto"
    """Samplers, scorers and learners take turns on the GPUs that they share: whose turn it is not holds its weights and
    optimizer in host memory. `auto` does so where the cluster has one GPU, one learner and no `align.max_staleness`;
    actors for whom no GPU is asked then get equal shares of it."""
    weights_in: Literal["auto", "fp32"] = "auto"
    """How a network that is trained whole travels to samplers: `auto` sends and holds in bfloat16 what
    `model.precision: bf16` rounds anyway, so that half the bytes give the same numbers to the bit; `fp32` sends all in
    float32."""
    role_resources: bool = False
    """Actors also ask for the resource of their role's name (`sampler`, `scorer`, `learner`), as much as of GPUs, so
    that nodes can be marked for a role."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Placement of actors: few nodes (PACK) or many (SPREAD) if possible, or strictly one node or one node each."""
    min_learners: Count | None = None
    """Least number of learner ranks to continue with if no more are available; None always waits for `learners`."""
    learner_failures: Annotated[int, Field(ge=-1)] = 8
    """Losses of learner ranks, each of which costs the updates since the last checkpoint; -1 is any number."""
    peak_tflops: Positive | None = None
    """Rate that utilisation is a share of, in 10^12 FLOP/s of one device, such as the maker's figure for dense bf16;
    None measures matrix products on the device when a role starts."""
    text_cache: str | None = None
    """Folder that all nodes see, or a URL, of the captions' embeddings, which several stages may share; default:
    `texts/` in the stage's own folder. An embedding takes some megabytes; it is computed once for each text encoder."""
    task_timeout_s: Positive = 3600.0
    """Time without an answer after which a sampler or scorer is replaced; includes the start of a new one."""
    probe_every: Annotated[int, Field(ge=1, validation_alias=AliasChoices("probe_every", "canary_every"))] = 1
    """Number of updates from one probe to the next: a sampler whose log-prob differs from the learner's is replaced."""
