"""Compares our rollouts with other implementations for the same images: `python -m benchmarks.suite.rollout`.

All use the built-in model `tiny-sd` in float32, one micro-batch of 16 images (2 prompts x 8 samples) and 10 steps. Ours
runs with equal switches (every image encoded separately, with its own noise, all steps random, weights in PyTorch's
layout) and with the defaults of `rlhf align`, with LoRA as in samplers and without, as in `rlhf candidates`.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from skimage import data as photographs
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device_measures import PassClock
from benchmarks.measure import Figures, interleave, peak_megabytes, ratios, report_alone, spread
from benchmarks.serving.usual_serving import open_usual_pipeline
from rlhf.alignment.algorithms import grpo
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.data.prompts import Prompt
from rlhf.diffusion.families.open_family import resolve_model
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.trajectories import RolloutPlan
from rlhf.storage.images import image_to_tensor

MODEL = ModelConfig(path="tiny-sd")
CHANNELS = 4
"""Channels of the latents."""
STEPS, PROMPTS, SAMPLES, SIDE = 10, 2, 8, 64
ALIGN = AlignConfig(num_inference_steps=STEPS, samples_per_prompt=SAMPLES, micro_batch_size=PROMPTS * SAMPLES)
PRODUCT_SIDE = 1536
"""Side of the square matrix products that measure the machine's rate."""
KEY = ("benchmark",)
Run = Callable[[], object]


def make_prompts() -> list[Prompt]:
    """Returns two crops with a square hole."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 16:48, 16:48] = 1
    crops = [photographs.astronaut()[:400, 60:460], photographs.chelsea()[:300, 80:380]]
    from PIL import Image

    images = [image_to_tensor(Image.fromarray(crop).resize((SIDE, SIDE))) for crop in crops]
    made = {"hole": "box", "source": "skimage", "photograph": "p", "split": "train", "caption": ""}
    return [Prompt(prompt_id=f"p{i}", image=image, mask=mask, **made) for i, image in enumerate(images)]


def equal_work() -> tuple[list[Prompt], RolloutPlan, range]:
    """Returns 16 prompts of one sample each, so that nothing is shared, and a plan with random steps only."""
    prompts = [
        replace(prompt, prompt_id=f"{prompt.prompt_id}-{i}") for prompt in make_prompts() for i in range(SAMPLES)
    ]
    plan = RolloutPlan(num_inference_steps=STEPS, eta=1.0, stochastic_steps=frozenset(range(STEPS)))
    return prompts, plan, range(1)


def ours_equal() -> Run:
    """Returns our rollout without its savings."""
    policy, (prompts, plan, samples) = load_policy(MODEL), equal_work()
    policy.network.to(memory_format=torch.contiguous_format)
    return lambda: rollout(policy, prompts, plan, sample_indices=samples, seed_key=KEY)


def default_plans() -> list[RolloutPlan]:
    """Returns the plans of `rlhf align`, one for each place of the window of random steps."""
    windows = {plan.trained_steps: plan for plan in (grpo.plan_rollout(ALIGN, i, 0) for i in range(100))}
    return [windows[place] for place in sorted(windows)]


def open_trained() -> Policy:
    """Opens the policy as a sampler has it."""
    policy = load_policy(MODEL)
    make_trainable(policy, "lora", rank=ALIGN.lora_rank, targets=ALIGN.lora_targets, seed=0, keeps_merged=True)
    return policy


def ours(policy: Policy) -> Run:
    """Returns our rollout with the default plans in turn, one per call."""
    turn, prompts, plans = iter(range(10**9)), make_prompts(), default_plans()
    return lambda: rollout(policy, prompts, plans[next(turn) % len(plans)], sample_indices=range(SAMPLES), seed_key=KEY)


def usual(guidance_scale: float) -> Run:
    """Returns a call of diffusers' pipeline for the same images, by DDIM with eta 1."""
    pipeline, prompts = open_usual_pipeline(resolve_model(MODEL.path)), make_prompts()
    images = torch.stack([p.image for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    masks = torch.stack([p.mask for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    options = {
        "guidance_scale": guidance_scale,
        "num_inference_steps": STEPS,
        "height": SIDE,
        "width": SIDE,
        "eta": 1.0,
    }
    texts = [""] * len(images)
    generators = [torch.Generator().manual_seed(i) for i in range(len(images))]
    return lambda: pipeline(
        prompt=texts, image=images, mask_image=masks, generator=generators, output_type="pt", **options
    )


def trainer() -> Run:
    """Returns `trainer_loop` on its own pipeline."""
    pipeline, prompts = open_usual_pipeline(resolve_model(MODEL.path)), make_prompts()
    return lambda: trainer_loop(pipeline, prompts)


@torch.no_grad()
def trainer_loop(pipeline: Any, prompts: list[Prompt]) -> list[tuple[torch.Tensor, ...]]:
    """Rolls out as well-known DDPO trainers do: it encodes each sample, and keeps latents and log-probs of all steps.

    It leaves out their second pass for guidance.
    """
    images = torch.stack([p.image for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    masks = torch.stack([p.mask for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    text = pipeline.encode_prompt([""] * len(images), "cpu", 1, False)[0]
    encoded = pipeline.vae.encode(images * (masks < 0.5)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(masks, size=encoded.shape[-2:])
    latents = torch.randn(encoded.shape)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    kept: list[tuple[torch.Tensor, ...]] = []
    for t in scheduler.timesteps:
        output = pipeline.unet(torch.cat([latents, small, encoded], dim=1), t, encoder_hidden_states=text).sample
        noise = torch.randn(latents.shape)
        mean = scheduler.step(output, t, latents, eta=1.0, variance_noise=torch.zeros_like(noise)).prev_sample
        std = scheduler._get_variance(t, t - scheduler.config.num_train_timesteps // STEPS).clamp(min=1e-12).sqrt()
        next_latents = mean + std * noise
        log_prob = torch.distributions.Normal(mean, std).log_prob(next_latents).mean((1, 2, 3))
        kept.append((latents, next_latents, log_prob))
        latents = next_latents
    pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor)
    return kept


EQUAL, BARE, DEFAULTS = "ours, equal switches", "ours, defaults, no LoRA yet", "ours, defaults"
ALTERNATIVES: Mapping[str, Callable[[], Run]] = {
    EQUAL: ours_equal,
    BARE: lambda: ours(load_policy(MODEL)),
    DEFAULTS: lambda: ours(open_trained()),
    "ours, the LoRA never merged": lambda: ours(replace(open_trained(), merged=None)),
    "diffusers' pipeline, guidance 1": lambda: usual(1.0),
    "diffusers' pipeline, guidance 7, empty prompts": lambda: usual(7.0),
    "a DDPO trainer's loop": trainer,
}
"""Functions that build the alternatives; each call makes 16 images."""


def model_shares(rounds: int) -> list[float]:
    """Returns the shares of time in UNet and VAE, of calls with the defaults at every place of the window."""
    policy, clock = open_trained(), PassClock(torch.device("cpu"))
    vae = policy.family.pipeline.vae
    assert policy.merged is not None
    for part in [policy.network, policy.merged, vae.encoder, vae.decoder, vae.quant_conv, vae.post_quant_conv]:
        clock.watch(part)
    run, shares = ours(policy), []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        shares.append(clock.read() / (time.perf_counter() - started))
    return shares


def unet_rate(policy: Policy, rounds: int) -> Figures:
    """Measures FLOP/s of the UNet's forward pass on 16 images, also as a share of the rate of matrix products."""
    sample = torch.randn(PROMPTS * SAMPLES, CHANNELS, SIDE // 4, SIDE // 4)
    condition = torch.randn(len(sample), CHANNELS + 1, *sample.shape[-2:])
    timestep = torch.full((len(sample),), 500)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.predict(sample, timestep, condition)
    flops, square = counter.get_total_flops(), torch.randn(PRODUCT_SIDE, PRODUCT_SIDE)
    runs = {"forward": lambda: policy.predict(sample, timestep, condition), "product": lambda: square @ square}
    with torch.no_grad():
        seconds = interleave(runs, rounds)
    limits = [2 * PRODUCT_SIDE**3 / s for s in seconds["product"]]
    return {
        "gflop_per_image": flops / len(sample) / 1e9,
        "flop_per_s": spread([flops / s for s in seconds["forward"]]),
        "of_matmul": spread([flops / s / limit for s, limit in zip(seconds["forward"], limits, strict=True)]),
    }


def measure(rounds: int) -> Figures:
    """Measures time and memory of all alternatives."""
    seconds = interleave({name: build() for name, build in ALTERNATIVES.items()}, rounds)
    return {
        "images_per_s": {name: spread([PROMPTS * SAMPLES / s for s in found]) for name, found in seconds.items()},
        "times_as_long_as": {
            reference: {name: ratios(found, seconds[reference]) for name, found in seconds.items()}
            for reference in (EQUAL, BARE, DEFAULTS)
        },
        "added_mb": {name: peak_megabytes("benchmarks.suite.rollout", name) for name in ALTERNATIVES},
        "share_in_unet_and_vae": spread(model_shares(rounds)),
        "unet": unet_rate(load_policy(MODEL), rounds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help="run one alternative and print its memory")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if given.alone:
        report_alone(ALTERNATIVES[given.alone])
    else:
        import json

        print(json.dumps(measure(given.rounds), indent=2))
