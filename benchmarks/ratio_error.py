"""How far rounding moves ratios from 1, and how far faults do: `python -m benchmarks.ratio_error`.

A sampler rolls out and a learner replays the transitions, each with a network of its own. The two differ in nothing, in
one thing that only rounds otherwise, or by a fault. Adapters are moved at random, as far as 30 optimizer steps.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel

from benchmarks.gpu.measuring import make_prompts
from rlhf.alignment.algorithms import grpo
from rlhf.config.align_config import AlignConfig
from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.builtin.base_denoisers import build_flow_scheduler, transformer_pipeline
from rlhf.diffusion.families.family import ModelFamily, TextEmbedding, cells_of
from rlhf.diffusion.families.flux import FluxFill
from rlhf.diffusion.families.stable_diffusion_3 import StableDiffusion3Fill
from rlhf.diffusion.policy import Policy, load_policy, make_trainable
from rlhf.diffusion.precision import hold_frozen
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.steps.step_rule import transition_log_prob
from rlhf.diffusion.trajectories import Trajectories

REACHED = Path(__file__).parent / "base_model" / "reached"
PX = 64
ALIGN = AlignConfig(num_inference_steps=10, window_size=2)
CPU = torch.device("cpu")


def open_stable_diffusion(precision: str) -> Policy:
    """Opens the built-in model: a UNet of 5.6 M parameters, trained."""
    return load_policy(ModelConfig.model_validate({"precision": precision, "device": "cpu"}))


def open_flux(precision: str) -> Policy:
    """Opens the transformer of FLUX.1 Fill's layout as far as benchmarks/base_model has trained it."""
    network = FluxTransformer2DModel.from_pretrained(REACHED / "transformer", torch_dtype=torch.float32)
    family = FluxFill(transformer_pipeline(_vae(), network.requires_grad_(False).eval()))
    return _policy(family, family.embed(""), precision)


def open_stable_diffusion_3(precision: str) -> Policy:
    """Builds a small transformer of Stable Diffusion 3's layout with random weights, which read a random text."""
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=PX // 4,
        in_channels=33,
        out_channels=16,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=6,
        joint_attention_dim=64,
        caption_projection_dim=192,
        pooled_projection_dim=64,
        pos_embed_max_size=PX // 4,
    )
    scheduler = build_flow_scheduler()
    parts = SimpleNamespace(
        transformer=network.requires_grad_(False).eval(),
        vae=_vae(),
        scheduler=scheduler,
        text_encoder=None,
        vae_scale_factor=4,
    )
    text = TextEmbedding(embedding=torch.randn(1, 16, 64), pooled=torch.randn(1, 64))
    return _policy(StableDiffusion3Fill(parts), text, precision)


MODELS = {"SD tiny": open_stable_diffusion, "FLUX tiny": open_flux, "SD3 tiny": open_stable_diffusion_3}


def _vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(REACHED / "vae", torch_dtype=torch.float32).requires_grad_(False).eval()


def _policy(family: ModelFamily, text: TextEmbedding, precision: str) -> Policy:
    hold_frozen(family.network, precision)
    return Policy(family=family, text=text, device=CPU, precision=precision, name="measured")


def with_adapters(policy: Policy, steps: int) -> Policy:
    """Adds adapters and moves each of their numbers by `steps` random steps of the learning rate."""
    make_trainable(policy, "lora", rank=ALIGN.lora_rank, targets=None, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.network.parameters():
        if parameter.requires_grad:
            # One by one, so that a policy a step behind shares all steps but the last.
            for _ in range(steps):
                parameter.data += ALIGN.learning_rate * torch.randn(parameter.shape, generator=generator).sign()
    return policy


@torch.no_grad()
def replay(policy: Policy, t: Trajectories, images_per_pass: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns predictions [K, B, C, h, w] and log-probs [K, B] of recorded transitions, as learners compute them."""
    schedule = policy.family.schedule(ALIGN.num_inference_steps, cells_of(t.latents))
    outputs, log_probs = [], []
    for k in range(len(t.latents)):
        for rows in torch.arange(len(t.condition)).split(images_per_pass):
            latents, index = t.latents[k][rows], t.steps_at(k)[rows]
            output = policy.predict(latents, schedule.timesteps[index], t.condition[rows])
            transition = schedule.transition(output, latents, index, ALIGN.eta)
            log_probs.append(transition_log_prob(transition, t.next_latents[k][rows], t.latent_mask[rows]))
            outputs.append(output)
    return torch.cat(outputs).view_as(t.latents), torch.cat(log_probs).view_as(t.old_log_prob)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Computes with this many threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(make: Callable[[str], Policy], precision: str, updates: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns two disagreements over all transitions of some updates, by what differs.

    They are the largest |ratio - 1|, and nft's: the largest mean distance of a prediction from the sampler's.
    """
    other = {"fp32": "bf16", "bf16": "fp32"}[precision]
    sampler, learner = (with_adapters(make(precision), 30) for _ in range(2))
    ahead, elsewhere = with_adapters(make(precision), 31), with_adapters(make(other), 30)
    plans = (replace(grpo.plan_rollout(ALIGN, update, 0), shares_initial_noise=False) for update in range(updates))
    ratios: dict[str, float] = {}
    predictions: dict[str, float] = {}
    for update, plan in enumerate(plans):
        t = rollout(sampler, make_prompts(2, PX), plan, sample_indices=range(8), seed_key=(0, update)).trajectories
        assert isinstance(t, Trajectories)
        count = len(t.condition)
        predicted, _ = replay(sampler, t, count)
        found = {"nothing": replay(learner, t, count), "one image a pass": replay(learner, t, 1)}
        with threads(2):
            found["two threads"] = replay(learner, t, count)
        found |= {"the other precision": replay(elsewhere, t, count), "one step behind": replay(ahead, t, count)}
        for name, (output, log_prob) in found.items():
            ratio_error, distance = (log_prob - t.old_log_prob).expm1().abs().max(), (output - predicted).abs()
            ratios[name] = max(ratios.get(name, 0.0), float(ratio_error))
            predictions[name] = max(predictions.get(name, 0.0), float(distance.flatten(2).mean(2).max()))
    return ratios, predictions


def main() -> None:
    """Prints the table of docs/results/precision.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=4)
    updates = parser.parse_args().updates
    torch.set_num_threads(1)
    for number, (model, make) in enumerate(MODELS.items()):
        for precision in ("fp32", "bf16"):
            for what, row in zip(("ratio", "prediction"), measure(make, precision, updates), strict=True):
                if (number, precision, what) == (0, "fp32", "ratio"):
                    print(f"| model | precision | error of | {' | '.join(row)} |\n{'| --- ' * (3 + len(row))}|")
                figures = " | ".join(f"{value:.1e}" for value in row.values())
                print(f"| {model} | {precision} | {what} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
