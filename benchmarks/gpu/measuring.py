"""Measures one variant of `benchmarks.gpu`: a rollout, or an update."""

import datetime
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from benchmarks.device_measures import PassClock, count_flops, memory, time_rounds, write_profile
from benchmarks.gpu.full_size_models import Architecture, build_policy
from benchmarks.gpu.variants import Part, Scale, Variant
from benchmarks.measure import Figures, spread
from benchmarks.training_loops import plain_update
from rlhf.alignment.algorithms import grpo
from rlhf.alignment.learner import Learner
from rlhf.alignment.objective import TrainingBatch
from rlhf.config.run_config import AlignConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.policy import Policy, make_trainable
from rlhf.diffusion.precision import hold_frozen
from rlhf.diffusion.rollout import rollout

PLAIN = "plain PyTorch"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A variant of a part, to be measured on this machine."""

    part: Part
    variant: Variant
    scale: Scale
    device: torch.device
    rate: Callable[[str], float]
    """FLOP/s of matrix products, by precision."""
    profile: Path | None
    """File of the profile if the target is missed; None for no profile."""

    @property
    def architecture(self) -> Architecture:
        """Architecture at the scale of the job."""
        return self.part.tiny if self.scale.is_tiny else self.part.architecture

    @property
    def px(self) -> int:
        """Side of the images."""
        return self.scale.px * self.variant.px_factor


def is_available(variant: Variant, device: torch.device) -> bool:
    """Returns whether this machine can run the variant."""
    has_xformers = device.type == "cuda" and importlib.util.find_spec("xformers") is not None
    return variant.attention != "xformers" or has_xformers


@cache
def has_deepspeed() -> bool:
    """Returns whether DeepSpeed can be imported."""
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        return False
    return True


def make_config(job: Job) -> AlignConfig:
    """Returns the defaults of `rlhf align` with the job's batch, and a tiny learning rate for stable random weights."""
    variant, scale = job.variant, job.scale
    return AlignConfig(
        samples_per_prompt=scale.samples,
        micro_batch_size=variant.prompts * scale.samples,
        prompts_per_update=variant.prompts * scale.micro_batches,
        num_inference_steps=scale.num_inference_steps,
        window_range=min(6, scale.num_inference_steps),
        trained_steps=min(5, scale.num_inference_steps),
        trainable="full" if variant.trainable == "full" else "lora",
        gradient_checkpointing=variant.gradient_checkpointing,
        kl_weight=variant.kl_weight,
        learning_rate=1e-8,
    )


def make_prompts(count: int, px: int) -> list[Prompt]:
    """Returns random pictures with a square hole in the centre."""
    mask = torch.zeros(1, px, px)
    mask[:, px // 4 : 3 * px // 4, px // 4 : 3 * px // 4] = 1
    made = {"hole": "box", "source": "random", "photograph": "p", "split": "train", "caption": ""}
    return [Prompt(prompt_id=f"p{i}", image=2 * torch.rand(3, px, px) - 1, mask=mask, **made) for i in range(count)]


def open_policy(job: Job) -> Policy:
    """Opens the architecture with the variant's attention and compilation, without adapters."""
    variant = job.variant
    policy = build_policy(job.architecture, job.device, variant.precision)
    if variant.trainable == "lora":
        hold_frozen(policy.network, policy.precision)
    if variant.attention == "xformers":
        policy.network.enable_xformers_memory_efficient_attention()
    if variant.is_compiled:
        # A block is compiled anew for each size, and with or without LoRA and gradients; beyond 8 it runs uncompiled.
        torch._dynamo.config.recompile_limit = 64
        # The tiny size only tests that blocks can be traced, since code generation takes a CPU minutes.
        policy.network.compile_repeated_blocks(dynamic=True, **({"backend": "eager"} if job.scale.is_tiny else {}))
    return policy


def reorder_weights(policy: Policy, variant: Variant) -> None:
    """Stores the weights in the variant's memory format, if it names one."""
    if variant.memory_format:
        for unet in (policy.network, policy.merged):
            if unet is not None:
                unet.to(memory_format=getattr(torch, variant.memory_format))  # type: ignore[call-overload]


def measure_rollout(job: Job) -> Figures:
    """Measures a micro-batch of rollouts, with the weights and the plan of `rlhf align`."""
    config, policy, clock = make_config(job), open_policy(job), PassClock(job.device)
    if job.variant.trainable == "lora":
        make_trainable(
            policy,
            "lora",
            rank=config.lora_rank,
            targets=config.lora_targets,
            seed=0,
            keeps_merged=job.variant.is_merged,
        )
    reorder_weights(policy, job.variant)
    for unet in (policy.network, policy.merged):
        if unet is not None:
            clock.watch(unet.to(torch.bfloat16) if job.variant.has_bf16_weights else unet)
    plan = replace(grpo.plan_rollout(config, 0, 0), shares_initial_noise=job.variant.shares_prefix)
    prompts, forward_images = make_prompts(job.variant.prompts, job.px), 0

    def run() -> None:
        nonlocal forward_images
        done = rollout(policy, prompts, plan, sample_indices=range(job.scale.samples), seed_key=("benchmark",))
        forward_images = done.forward_images

    def flops() -> int:
        # FLOPs of adapters are left out if some passes run without them.
        trainable = "none" if job.variant.is_merged else job.variant.trainable
        return forward_images * count_flops(job.architecture, job.px, trainable, backward=False)

    figures = measure_calls(job, run, clock, flops)
    images = config.micro_batch_size
    per_s = spread([images / s for s in figures["s"]])
    return finish(figures) | {"images": images, "px": job.px, "forward_images": forward_images, "images_per_s": per_s}


def measure_training(job: Job) -> Figures:
    """Measures an update: its micro-batches, the optimizer's step and, with DeepSpeed, the averaging of weights."""
    config, policy, clock = make_config(job), open_policy(job), PassClock(job.device)
    clock.watch(policy.network)
    plan, samples = grpo.plan_rollout(config, 0, 0), range(job.scale.samples)
    done = rollout(policy, make_prompts(job.variant.prompts, job.px), plan, sample_indices=samples, seed_key=("b",))
    advantages, trust = torch.randn(config.micro_batch_size), torch.ones(config.micro_batch_size)
    batch = TrainingBatch(trajectories=done.trajectories, advantages=advantages, trust_weights=trust)
    batches = [batch] * job.scale.micro_batches
    transitions = len(plan.trained_steps) * config.micro_batch_size * len(batches)
    is_plain = job.variant.is_plain or not has_deepspeed()
    if is_plain:
        run = plain_update(policy, batches, config, clock.timed(torch.Tensor.backward))
        reorder_weights(policy, job.variant)
    else:
        learner = Learner(policy, config, micro_batches=len(plan.trained_steps) * len(batches), seed=0)
        learner.engine.backward = clock.timed(learner.engine.backward)

        def run() -> None:
            learner.train(batches, is_on_policy=False)

    def flops() -> int:
        once = count_flops(job.architecture, job.px, config.trainable, backward=True)
        base = count_flops(job.architecture, job.px, "none", backward=False) if config.kl_weight else 0
        return transitions * (once + base)

    figures = measure_calls(job, run, clock, flops)
    per_s = spread([transitions / s for s in figures["s"]])
    sizes = {"images": config.micro_batch_size, "px": job.px, "transitions": transitions}
    loop = PLAIN if is_plain else "DeepSpeed"
    return finish(figures) | sizes | {"loop": loop, "transitions_per_s": per_s}


def measure_calls(job: Job, run: Callable[[], object], clock: PassClock, flops: Callable[[], int]) -> Figures:
    """Returns the seconds of the calls and the utilisation; writes the profile if the target is missed.

    `flops` returns the FLOPs of the UNet passes of one call, and is called after the calls.
    """
    scale, device = job.scale, job.device
    seconds, within = time_rounds(run, clock, device, rounds=scale.rounds, limit_s=scale.limit_s)
    figures = memory(device)
    limit, needed = job.rate(job.variant.precision if device.type == "cuda" else "fp32"), flops()
    figures |= {
        "s": seconds,
        "flop": needed,
        "utilisation": spread([needed / s / limit for s in seconds]),
        "utilisation_in_unet": spread([needed / s / limit for s in within]),
        "share_in_unet": spread([inside / s for inside, s in zip(within, seconds, strict=True)]),
    }
    if job.profile is not None and figures["utilisation"]["median"] < job.part.target:
        write_profile(run, device, job.profile, spread(seconds)["median"])
        figures["profile"] = job.profile.name
    return figures


def finish(figures: Figures) -> Figures:
    """Replaces the seconds by their median and quartiles, and adds the date."""
    return figures | {"s": spread(figures["s"]), "measured": datetime.date.today().isoformat()}


MEASURES: dict[str, Callable[[Job], Figures]] = {"rollout": measure_rollout, "training": measure_training}
