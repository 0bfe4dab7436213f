"""Random small text encoders of Qwen's kinds, with a byte-level tokenizer, and pipelines that read them."""

import tempfile
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2Transformer2DModel,
    QwenImageEditInpaintPipeline,
    QwenImageInpaintPipeline,
    QwenImageTransformer2DModel,
    ZImageInpaintPipeline,
    ZImageTransformer2DModel,
)
from small_families import CHANNELS, small_kl_vae
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from rlhf.diffusion.families.qwen_processor import open_processor

WIDTH = 16
"""Width of the text embedding."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
DECODER = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 256 + len(SPECIAL),
    "bos_token_id": None,
    "eos_token_id": 256,
}


def small_qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes and the special tokens of Qwen's templates."""
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *SPECIAL])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(SPECIAL[1:]))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_qwen_image_pipeline() -> QwenImageInpaintPipeline:
    """Qwen-Image: per-channel statistics, a VAE for videos of factor 8, and the shift with a last level of its own."""
    torch.manual_seed(0)
    vision = {
        "depth": 1,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [0],
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    encoder = Qwen2_5_VLConfig(
        text_config=DECODER | {"rope_parameters": rope},
        vision_config=vision,
        vision_start_token_id=259,
        vision_end_token_id=260,
        image_token_id=261,
    )
    pipeline = QwenImageInpaintPipeline(
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[-0.7, 0.1, 0.4, -0.2],
            latents_std=[2.8, 1.4, 2.3, 0.6],
        ).eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(encoder).eval(),
        tokenizer=small_qwen_tokenizer(),
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 6, 6),
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_qwen_edit_pipeline() -> QwenImageEditInpaintPipeline:
    """Qwen-Image-Edit: the parts of Qwen-Image, and a processor of pictures of at least 56 by 56 pixels."""
    parts = small_qwen_image_pipeline().components
    with tempfile.TemporaryDirectory() as name:
        parts["tokenizer"].save_pretrained(name)
        Qwen2VLImageProcessorPil(min_pixels=56**2, max_pixels=112**2).save_pretrained(name)
        pipeline = QwenImageEditInpaintPipeline(**parts, processor=open_processor(Path(name)))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_z_image_pipeline() -> ZImageInpaintPipeline:
    """Z-Image: pad tokens that are not zero, as in a trained network."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[128, 32, 32],
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    pipeline = ZImageInpaintPipeline(
        vae=small_kl_vae(),
        text_encoder=Qwen3Model(Qwen3Config(**DECODER, head_dim=8)).eval(),
        tokenizer=small_qwen_tokenizer(),
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_klein_pipeline(*, is_distilled: bool = False) -> Flux2KleinInpaintPipeline:
    """FLUX.2 klein: the text encoder's layers 9, 18 and 27, and statistics of the batch norm that are not trivial."""
    torch.manual_seed(0)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=CHANNELS,
        sample_size=64,
    )
    torch.nn.init.normal_(vae.bn.running_mean)
    torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    pipeline = Flux2KleinInpaintPipeline(
        vae=vae.eval(),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**DECODER | {"num_hidden_layers": 28}, head_dim=8)).eval(),
        tokenizer=small_qwen_tokenizer(),
        transformer=Flux2Transformer2DModel(
            in_channels=4 * CHANNELS,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        is_distilled=is_distilled,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
