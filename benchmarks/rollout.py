"""Rollouts against what others do for the same images: `python -m benchmarks.rollout`.

The built-in model, float32, one micro-batch of 16 images (2 prompts x 8 samples), 10 steps. Ours twice: with equal
switches (every image its own noise, all steps random, nothing shared), and with the defaults of `rlhf align`.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from skimage import data as photographs
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Figures, interleave, matmul_rate, peak_megabytes, ratios, report_alone, spread
from benchmarks.usual_serving import open_usual_pipeline
from rlhf.algorithms import grpo
from rlhf.config import AlignConfig, ModelConfig
from rlhf.images import image_to_tensor
from rlhf.policy import TINY, Policy, load_policy, make_trainable
from rlhf.prompts import Prompt
from rlhf.rollout import rollout
from rlhf.trajectories import RolloutPlan

STEPS, PROMPTS, SAMPLES, SIDE = 10, 2, 8, 64
ALIGN = AlignConfig(num_inference_steps=STEPS, samples_per_prompt=SAMPLES, micro_batch_size=PROMPTS * SAMPLES)
KEY = ("benchmark",)


def make_prompts() -> list[Prompt]:
    """A square hole in two crops."""
    mask = torch.zeros(1, SIDE, SIDE)
    mask[:, 16:48, 16:48] = 1
    crops = [photographs.astronaut()[:400, 60:460], photographs.chelsea()[:300, 80:380]]
    from PIL import Image

    images = [image_to_tensor(Image.fromarray(crop).resize((SIDE, SIDE))) for crop in crops]
    made = {"hole": "box", "source": "skimage", "photograph": "p", "split": "train", "caption": ""}
    return [Prompt(prompt_id=f"p{i}", image=image, mask=mask, **made) for i, image in enumerate(images)]


def ours(policy: Policy, prompts: list[Prompt], plans: list[RolloutPlan]) -> Callable[[], object]:
    """All plans in turn, one a call: the window of random steps moves, and with it what is shared."""
    turn = iter(range(10**9))
    return lambda: rollout(policy, prompts, plans[next(turn) % len(plans)], sample_indices=range(SAMPLES), seed_key=KEY)


def usual(pipeline: Any, prompts: list[Prompt], guidance_scale: float) -> Callable[[], object]:
    """One call of diffusers' pipeline for the same images, DDIM with eta 1."""
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


@torch.no_grad()
def trainer_loop(pipeline: Any, prompts: list[Prompt]) -> list[tuple[torch.Tensor, ...]]:
    """As well-known DDPO trainers roll out: conditions per sample, all latents and log-probs of all steps kept.

    Without their second pass of guidance.
    """
    images = torch.stack([p.image for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    masks = torch.stack([p.mask for p in prompts]).repeat_interleave(SAMPLES, dim=0)
    text = pipeline.encode_prompt([""] * len(images), "cpu", 1, False)[0]
    encoded = pipeline.vae.encode(images * (masks < 0.5)).latent_dist.mode() * pipeline.vae.config.scaling_factor
    small = torch.nn.functional.interpolate(masks, size=encoded.shape[-2:])
    latents = torch.randn(encoded.shape)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    kept = []
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


def make_alternatives() -> dict[str, Callable[[], object]]:
    """By name, each 16 images."""
    prompts, base, trained = make_prompts(), load_policy(ModelConfig()), load_policy(ModelConfig())
    make_trainable(trained, "lora", rank=ALIGN.lora_rank, targets=ALIGN.lora_targets, seed=0, keeps_merged=True)
    pipeline = open_usual_pipeline(str(TINY))
    equal = RolloutPlan(num_inference_steps=STEPS, eta=1.0, stochastic_steps=frozenset(range(STEPS)))
    windows = {plan.trained_steps: plan for plan in (grpo.plan_rollout(ALIGN, i, 0) for i in range(100))}
    plans = [windows[place] for place in sorted(windows)]
    return {
        "ours, equal switches": ours(base, prompts, [equal]),
        "ours, defaults": ours(base, prompts, plans),
        "ours, defaults, with the LoRA that is trained": ours(trained, prompts, plans),
        "the same, never merged": ours(replace(trained, merged=None), prompts, plans),
        "diffusers' pipeline, guidance 1": usual(pipeline, prompts, 1.0),
        "diffusers' pipeline, guidance 7, empty prompts": usual(pipeline, prompts, 7.0),
        "a DDPO trainer's loop": lambda: trainer_loop(pipeline, prompts),
    }


def model_share(policy: Policy, run: Callable[[], object]) -> float:
    """Share of a call's time that is spent in UNet and VAE."""
    spent, began = [0.0], [0.0]

    def start(*_: object) -> None:
        began[0] = time.perf_counter()

    def stop(*_: object) -> None:
        spent[0] += time.perf_counter() - began[0]

    vae = policy.pipeline.vae
    parts = [policy.unet, vae.encoder, vae.decoder, vae.quant_conv, vae.post_quant_conv]
    handles = [m.register_forward_pre_hook(start) for m in parts] + [m.register_forward_hook(stop) for m in parts]
    started = time.perf_counter()
    run()
    share = spent[0] / (time.perf_counter() - started)
    for handle in handles:
        handle.remove()
    return share


def unet_rate(policy: Policy, rounds: int) -> Figures:
    """FLOP/s of the UNet's forward pass on 16 images, and as a share of the machine's matrix-product rate."""
    sample = torch.randn(PROMPTS * SAMPLES, policy.latent_channels, SIDE // 4, SIDE // 4)
    condition = torch.randn(len(sample), policy.latent_channels + 1, *sample.shape[-2:])
    timestep = torch.full((len(sample),), 500)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        policy.predict(sample, timestep, condition)
    with torch.no_grad():
        seconds = interleave({"forward": lambda: policy.predict(sample, timestep, condition)}, rounds)["forward"]
    rate, limit = counter.get_total_flops() / spread(seconds)["median"], matmul_rate()
    return {
        "gflop_per_image": counter.get_total_flops() / len(sample) / 1e9,
        "flop_per_s": rate,
        "of_matmul": rate / limit,
    }


def measure(rounds: int) -> Figures:
    """All of it."""
    alternatives = make_alternatives()
    seconds = interleave(alternatives, rounds)
    images = PROMPTS * SAMPLES
    policy, prompts = load_policy(ModelConfig()), make_prompts()
    plan = grpo.plan_rollout(ALIGN, 0, 0)
    shares = [model_share(policy, ours(policy, prompts, [plan])) for _ in range(rounds)]
    over = {name: ratios(seconds[name], seconds["ours, defaults"]) for name in seconds}
    equal = {name: ratios(seconds[name], seconds["ours, equal switches"]) for name in seconds}
    return {
        "images_per_s": {name: spread([images / s for s in found]) for name, found in seconds.items()},
        "times_as_long_as_ours_defaults": over,
        "times_as_long_as_ours_equal": equal,
        "memory": {name: peak_megabytes("benchmarks.rollout", name) for name in alternatives},
        "share_in_unet_and_vae": spread(shares),
        "unet": unet_rate(policy, rounds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", help="run one alternative and print its memory")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if given.alone:
        report_alone(make_alternatives()[given.alone])
    else:
        import json

        print(json.dumps(measure(given.rounds), indent=2))
