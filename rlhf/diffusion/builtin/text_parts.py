"""Builds the text encoder and the tokenizer of the built-in models, which only ever read the empty text."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 32
"""Width of the text embedding."""


def build_tokenizer(length: int = 16) -> CLIPTokenizer:
    """Builds a byte-level tokenizer without merges, for which any text is a sequence of up to `length` bytes."""
    symbols = sorted(ByteLevel.alphabet())
    tokens = symbols + [s + "</w>" for s in symbols] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=length)


def build_text_encoder() -> CLIPTextModel:
    """Builds a text encoder of one layer; the project trains and samples with the empty text only."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=514,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )
