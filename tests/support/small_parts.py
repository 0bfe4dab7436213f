"""A random small pipeline, prompts and reward for 32x32 pictures: real classes, no training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from small_networks import build_scheduler, build_unet, build_vae
from transformers import CLIPTextModelWithProjection

from rlhf.config.run_config import AlignConfig, ModelConfig, RunConfig
from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.data.prompts import Prompt
from rlhf.data.rows import PromptRow
from rlhf.diffusion.builtin.text_parts import build_text_encoder, build_tokenizer
from rlhf.diffusion.policy import load_policy, make_trainable
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.rewards.learned.bound import RidgeHead
from rlhf.rewards.learned.feature_network import FeatureNetwork, SmallBackbone
from rlhf.rewards.learned.reward_model import Calibration, RewardModel
from rlhf.storage.images import encode_png, image_to_tensor, mask_to_tensor
from rlhf.storage.tables import PROMPTS, image_cell, write_table

SIZE_PX = 32
FAST = {
    "updates": 3,
    "prompts_per_update": 4,
    "samples_per_prompt": 4,
    "micro_batch_size": 8,
    "num_inference_steps": 4,
    "window_range": 3,
    "trained_steps": 2,
    "lora_rank": 4,
    "checkpoint_every": 1,
    "learning_rate": 1e-3,
}


def save_small_pipeline(folder: Path) -> Path:
    """A random pipeline for 32x32, written the way users' folders are."""
    torch.manual_seed(0)
    pipeline = StableDiffusionInpaintPipeline(
        vae=build_vae((8, 16, 16)),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        unet=build_unet((16, 32)),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.unet.register_to_config(sample_size=SIZE_PX // 4)
    pipeline.save_pretrained(folder)
    return folder


def save_small_xl_pipeline(folder: Path) -> Path:
    """A random SDXL inpainting pipeline for 32x32: two text encoders, text_time conditioning, Euler's schedule."""
    torch.manual_seed(0)
    text = build_text_encoder()
    width = text.config.hidden_size
    unet = UNet2DConditionModel.from_config(
        build_unet((16, 32)).config,
        cross_attention_dim=2 * width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=width + 6 * 8,
        transformer_layers_per_block=[1, 2],
        use_linear_projection=True,
        sample_size=SIZE_PX // 4,
    )
    second = text.config.__class__.from_dict({**text.config.to_dict(), "projection_dim": width})
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    StableDiffusionXLInpaintPipeline(
        vae=build_vae((8, 16, 16)),
        text_encoder=text,
        text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**schedule, timestep_spacing="leading"),
    ).save_pretrained(folder)
    return folder


def save_moved_policy(pipeline: Path, folder: Path, *, version: int, trainable: str = "lora") -> Path:
    """A policy folder on that pipeline whose tensors are all off their start, differently for each version."""
    policy = load_policy(ModelConfig(path=str(pipeline)))
    targets = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
    make_trainable(policy, trainable, rank=4, targets=targets, seed=version)
    state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in trainable_state(policy.network).items()}
    save_policy(policy.family, state, folder, version=version, trainable=trainable, base=str(pipeline))
    return folder


def small_config(pipeline: Path, **align: object) -> RunConfig:
    """A run of seconds on that pipeline."""
    return RunConfig(model=ModelConfig(path=str(pipeline)), align=AlignConfig(**(FAST | align)))


def small_prompts(count: int = 8) -> list[Prompt]:
    """Smooth random pictures with holes of all families."""
    prompts = []
    for index in range(count):
        rng = np.random.default_rng(index)
        family = list(FAMILIES)[index % len(FAMILIES)]
        pixels = (rng.random((4, 4, 3)) * 255).astype(np.uint8)
        image = Image.fromarray(pixels).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        prompts.append(
            Prompt(
                prompt_id=f"p{index}",
                photograph=f"photo{index}.png",
                source="test",
                hole=family,
                split="train",
                image=image_to_tensor(image),
                mask=mask_to_tensor(draw_hole(family, rng, SIZE_PX)),
            )
        )
    return prompts


def prompts_of_three_sizes(count: int) -> list[Prompt]:
    """`small_prompts` of 32x32, 32x16 and 24x32 in turn, widths first."""
    cuts = (slice(None), slice(None)), (slice(0, 16), slice(None)), (slice(None), slice(8, 32))
    prompts = []
    for number, prompt in enumerate(small_prompts(count)):
        rows, columns = cuts[number % 3]
        mask = prompt.mask[:, rows, columns].clone()
        mask[:, :4, :4], mask[:, -4:, -4:] = 1.0, 0.0  # What is cut off may have been all of the hole.
        prompts.append(replace(prompt, image=prompt.image[:, rows, columns], mask=mask))
    return prompts


def prompt_row(p: Prompt) -> PromptRow:
    """A prompt as a row of the table of prompts."""
    image = Image.fromarray(((p.image.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy())
    mask = Image.fromarray((p.mask[0].numpy() * 255).astype(np.uint8))
    return {
        "prompt_id": p.prompt_id,
        "image": image_cell(encode_png(image), "i.png"),
        "mask": image_cell(encode_png(mask), "m.png"),
        "hole": p.hole,
        "source": p.source,
        "photograph": p.photograph,
        "split": p.split,
        "caption": p.caption,
    }


def write_prompts(prompts: list[Prompt], folder: Path) -> Path:
    """Prompts as a stage folder."""
    write_table(map(prompt_row, prompts), PROMPTS, folder / "prompts.parquet")
    return folder


def save_small_reward(
    folder: Path, *, scale: float = 1.0, quantile: float | None = None, median_released_norm: float | None = None
) -> Path:
    """A random reward model with a sound V; images less certain than `quantile` are out of distribution."""
    torch.manual_seed(1)
    network = FeatureNetwork(SmallBackbone(), 8).eval()
    weight = scale * torch.randn(9, dtype=torch.float64)
    head = RidgeHead(weight=weight, cholesky=torch.eye(9, dtype=torch.float64), ridge=1.0)
    calibration = Calibration(
        coverage=0.9,
        conformal=2.0,
        theorem=3.0,
        noise=0.5,
        delta=0.05,
        ridge=1.0,
        parameter_norm=1.0,
        median_uncertainty=3.0,
        trust_k=0.05,
        trust_b=0.7,
        uncertainty_quantile=quantile,
        median_released_norm=median_released_norm,
    )
    RewardModel(network=network, head=head, calibration=calibration, backbone="small", feature_dim=8).save(folder)
    return folder
