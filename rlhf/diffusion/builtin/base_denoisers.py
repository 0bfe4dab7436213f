"""Builds the denoiser of the built-in model `tiny`, and the diffusers pipeline around it: the layout of FLUX.1 Fill.

The VAE has 16 channels and factor 4.
"""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from rlhf.diffusion.builtin.base_vae import FACTOR, LATENT_CHANNELS
from rlhf.diffusion.builtin.text_parts import TEXT_WIDTH, build_text_encoder, build_tokenizer

TEXT_TOKENS = 4
"""Number of text tokens in the transformer's training; its attention can use them as scratch memory."""
TOKEN_WIDTH = 4 * LATENT_CHANNELS
"""Number of channels of a token: four neighbouring latents."""


def build_transformer(*, heads: int = 6, layers: int = 10) -> FluxTransformer2DModel:
    """Builds a denoiser of packed latents, masked-image latents and mask: [B, tokens, 64 + 64 + 64] to [B, tokens, 64].

    It has single-stream blocks only, since double-stream blocks have separate weights for text, and the text is empty.
    """
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=2 * TOKEN_WIDTH + 4 * FACTOR**2,
        out_channels=TOKEN_WIDTH,
        num_layers=0,
        num_single_layers=layers,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(4, 14, 14),
    )
    # As in DiT (arXiv:2212.09748), blocks start as the identity, and the output starts at 0.
    for block in transformer.single_transformer_blocks:
        torch.nn.init.zeros_(block.norm.linear.weight)
        torch.nn.init.zeros_(block.norm.linear.bias)
    for linear in (transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return transformer


def build_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Builds the scheduler of flow matching, with a static shift of 2 and steps of third order.

    10 of Euler's steps blur; 5 of these do so less. diffusers' own class ignores `solver_order`, and takes Euler's.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=2.0, use_dynamic_shifting=False)
    scheduler.register_to_config(solver_order=3)
    return scheduler


def build_t5() -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """Builds a T5 encoder of one layer and a byte-level tokenizer; the project trains with the empty text only."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *symbols])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(vocabulary),
            d_model=TEXT_WIDTH,
            d_kv=8,
            d_ff=64,
            num_layers=1,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
        )
    )
    return encoder, fast


def transformer_pipeline(vae: AutoencoderKL, transformer: FluxTransformer2DModel) -> FluxFillPipeline:
    """Builds the pipeline around the transformer; call it with `max_sequence_length=TEXT_TOKENS`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text_encoder = build_text_encoder().eval()
        text_encoder_2, tokenizer_2 = build_t5()
    return FluxFillPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=build_tokenizer(),
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=tokenizer_2,
        transformer=transformer,
        scheduler=build_flow_scheduler(),
    )
