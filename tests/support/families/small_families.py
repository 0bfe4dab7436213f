"""Random small pipelines of the families: each class's own layout, with a VAE of the true factor."""

from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxTransformer2DModel,
    LMSDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3InpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from small_networks import build_scheduler, build_unet
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from rlhf.diffusion.builtin.base_denoisers import build_flow_scheduler, build_t5
from rlhf.diffusion.builtin.text_parts import TEXT_WIDTH, build_text_encoder, build_tokenizer

Pipeline = TypeVar("Pipeline", FluxFillPipeline, FluxInpaintPipeline, FluxKontextInpaintPipeline)
CHANNELS = 4
"""Channels of the latents."""


def small_kl_vae(*, channels: int = CHANNELS, shift: float | None = 0.1159) -> AutoencoderKL:
    """A VAE of factor 8; FLUX's and SD3's have a shift."""
    return AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        shift_factor=shift,
        scaling_factor=0.3611,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def small_fill_pipeline(*, guidance_embeds: bool = True) -> FluxFillPipeline:
    """FLUX.1 Fill: 8x8 mask pixels and 2x2 packing as in the full model, a dynamic shift, one block of each kind."""
    return _flux(FluxFillPipeline, in_channels=4 * (2 * CHANNELS + 64), guidance_embeds=guidance_embeds)


def small_flux_inpaint_pipeline() -> FluxInpaintPipeline:
    """FLUX.1's text-to-image network, which inpaints by blending."""
    return _flux(FluxInpaintPipeline, in_channels=4 * CHANNELS, guidance_embeds=True)


def small_multistep_fill_pipeline() -> FluxFillPipeline:
    """FLUX.1 Fill with steps of third order."""
    pipeline = small_fill_pipeline()
    pipeline.register_modules(scheduler=build_flow_scheduler())
    return pipeline


class LinearMultistep(FlowMatchEulerDiscreteScheduler):
    """Flow matching's levels, with the steps of diffusers' own linear multistep method."""

    def __init__(self) -> None:
        super().__init__(shift=2.0)
        self.slopes: list[torch.Tensor] = []

    def step(self, model_output: torch.Tensor, timestep: torch.Tensor, sample: torch.Tensor, **named: object) -> Any:
        """The coefficients are found by numerical integration."""
        now = self.index_for_timestep(timestep)
        self.slopes = [model_output, *self.slopes][:3] if now else [model_output]
        orders = range(len(self.slopes))
        weights = [LMSDiscreteScheduler.get_lms_coefficient(self, len(self.slopes), now, k) for k in orders]
        return (sample + sum(weight * slope for weight, slope in zip(weights, self.slopes, strict=True)),)


def small_kontext_pipeline() -> FluxKontextInpaintPipeline:
    """FLUX.1 Kontext: the network of the text-to-image model, which also reads the known image."""
    return _flux(FluxKontextInpaintPipeline, in_channels=4 * CHANNELS, guidance_embeds=True)


def _flux(kind: type[Pipeline], *, in_channels: int, guidance_embeds: bool) -> Pipeline:
    torch.manual_seed(0)
    text_encoder_2, tokenizer_2 = build_t5()
    pipeline = kind(
        vae=small_kl_vae(),
        text_encoder=build_text_encoder().eval(),
        tokenizer=build_tokenizer(),
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=FluxTransformer2DModel(
            in_channels=in_channels,
            out_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=TEXT_WIDTH,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_sd3_pipeline(*, in_channels: int) -> StableDiffusion3InpaintPipeline:
    """Stable Diffusion 3 with 16 or 33 input channels, a static shift, and tokens of 2x2 cells."""
    torch.manual_seed(0)
    text, (t5, tokenizer_3) = build_text_encoder(), build_t5()
    projected = text.config.__class__.from_dict({**text.config.to_dict(), "projection_dim": TEXT_WIDTH})
    joint = 2 * TEXT_WIDTH
    pipeline = StableDiffusion3InpaintPipeline(
        vae=small_kl_vae(channels=16),
        text_encoder=CLIPTextModelWithProjection(projected).eval(),
        text_encoder_2=CLIPTextModelWithProjection(projected).eval(),
        text_encoder_3=T5EncoderModel(t5.config.__class__.from_dict({**t5.config.to_dict(), "d_model": joint})).eval(),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        tokenizer_3=tokenizer_3,
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=in_channels,
            out_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=joint,
            caption_projection_dim=32,
            pooled_projection_dim=2 * TEXT_WIDTH,
            pos_embed_max_size=16,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_sd_pipeline(*, in_channels: int) -> StableDiffusionInpaintPipeline:
    """Stable Diffusion with 9 input channels, or the 4 of text-to-image networks."""
    torch.manual_seed(0)
    pipeline = StableDiffusionInpaintPipeline(
        vae=small_kl_vae(shift=None),
        text_encoder=build_text_encoder().eval(),
        tokenizer=build_tokenizer(),
        unet=UNet2DConditionModel.from_config(build_unet((16, 32)).config, in_channels=in_channels, sample_size=8),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_xl_pipeline(*, in_channels: int) -> StableDiffusionXLInpaintPipeline:
    """SDXL with 9 or 4 input channels: two text encoders, and the conditioning by sizes."""
    torch.manual_seed(0)
    text = build_text_encoder()
    projected = text.config.__class__.from_dict({**text.config.to_dict(), "projection_dim": TEXT_WIDTH})
    pipeline = StableDiffusionXLInpaintPipeline(
        vae=small_kl_vae(shift=None),
        text_encoder=text.eval(),
        text_encoder_2=CLIPTextModelWithProjection(projected).eval(),
        tokenizer=build_tokenizer(),
        tokenizer_2=build_tokenizer(),
        unet=UNet2DConditionModel.from_config(
            build_unet((16, 32)).config,
            in_channels=in_channels,
            sample_size=8,
            cross_attention_dim=2 * TEXT_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
        ),
        scheduler=build_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
