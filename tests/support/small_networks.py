"""Random parts of a StableDiffusionInpaintPipeline for 64x64 pixels: by default of the size of `tiny-sd`."""

from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel

from rlhf.diffusion.builtin.text_parts import TEXT_WIDTH, build_text_encoder, build_tokenizer


def build_vae(channels: tuple[int, ...] = (32, 48, 64)) -> AutoencoderKL:
    """Builds an autoencoder with factor 4: images [B, 3, 64, 64] to latents [B, 4, 16, 16]."""
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
    )


def build_unet(channels: tuple[int, ...] = (48, 96, 120)) -> UNet2DConditionModel:
    """Builds a denoiser with the 9 input channels of inpainting: latents, mask, masked-image latents."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=9,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(channels) - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (len(channels) - 1) + ("UpBlock2D",),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
    )


def build_scheduler() -> DDIMScheduler:
    """Builds Stable Diffusion's noise schedule with v-prediction; the last step's deviation stays above 0."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def build_pipeline() -> StableDiffusionInpaintPipeline:
    """Builds the untrained pipeline."""
    return StableDiffusionInpaintPipeline(
        vae=build_vae(),
        text_encoder=build_text_encoder(),
        tokenizer=build_tokenizer(),
        unet=build_unet(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
