"""Defines the four parts of `benchmarks.gpu` and their variants, each of which changes one setting."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.gpu.full_size_models import SD, TINY_SD, TINY_XL, XL, Architecture


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of a benchmark."""

    is_tiny: bool = False
    px: int = 512
    """Side of the images."""
    samples: int = 8
    """Number of samples per prompt."""
    num_inference_steps: int = 10
    micro_batches: int = 4
    """Number of micro-batches in an update."""
    rounds: int = 9
    limit_s: float = 20.0
    """Time after which no new round starts, in seconds."""
    product_side: int = 8192
    """Side of the matrix products that measure the device's rate."""


SCALES = {
    "full": Scale(),
    "tiny": Scale(
        is_tiny=True,
        px=64,
        samples=2,
        num_inference_steps=2,
        micro_batches=1,
        rounds=3,
        limit_s=0.0,
        product_side=256,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Settings with which the model runs."""

    prompts: int
    """Number of prompts in a micro-batch, with `Scale.samples` images each."""
    trainable: Literal["none", "lora", "full"] = "lora"
    """Trained weights; `none` is a policy without adapters, for rollouts only."""
    precision: Literal["fp32", "bf16"] = "bf16"
    has_bf16_weights: bool = False
    """Whether the UNet's weights are stored in bfloat16 instead of being rounded in each pass; rollouts only."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    is_compiled: bool = False
    """Whether the repeated blocks are compiled, as in serving."""
    memory_format: Literal["", "contiguous_format", "channels_last"] = ""
    """Layout of the weights; by default as in align: a trained UNet is contiguous, others are channels_last."""
    is_merged: bool = True
    """Whether untrained steps run with the LoRA merged into a second UNet; rollouts only."""
    shares_prefix: bool = True
    """Whether the samples of a prompt are computed once until the first random step."""
    px_factor: int = 1
    """Side of the images over `Scale.px`."""
    gradient_checkpointing: bool = False
    kl_weight: float = 0.01
    is_plain: bool = False
    """Whether training runs without DeepSpeed."""


ROLLOUT = Variant(prompts=2)
ROLLOUTS = {
    "as in align": ROLLOUT,
    "every image its own noise": replace(ROLLOUT, shares_prefix=False),
    "LoRA never merged": replace(ROLLOUT, is_merged=False),
    "no LoRA": replace(ROLLOUT, trainable="none"),
    "1 prompt": replace(ROLLOUT, prompts=1),
    "4 prompts": replace(ROLLOUT, prompts=4),
    "8 prompts": replace(ROLLOUT, prompts=8),
    "fp32": replace(ROLLOUT, precision="fp32"),
    "bf16 weights": replace(ROLLOUT, has_bf16_weights=True),
    "no channels last": replace(ROLLOUT, memory_format="contiguous_format"),
    "xformers": replace(ROLLOUT, attention="xformers"),
    "compiled blocks": replace(ROLLOUT, is_compiled=True),
}
TRAINED = Variant(prompts=1)
TRAINING = {
    "LoRA": TRAINED,
    "LoRA, gradient checkpointing": replace(TRAINED, gradient_checkpointing=True),
    "full": replace(TRAINED, trainable="full"),
    "full, gradient checkpointing": replace(TRAINED, trainable="full", gradient_checkpointing=True),
    "LoRA, no KL": replace(TRAINED, kl_weight=0.0),
    "LoRA, 2 prompts": replace(TRAINED, prompts=2),
    "LoRA, plain PyTorch": replace(TRAINED, is_plain=True),
    "LoRA, fp32": replace(TRAINED, precision="fp32"),
    # DeepSpeed does not take weights in this layout.
    "LoRA, plain PyTorch, channels last": replace(TRAINED, is_plain=True, memory_format="channels_last"),
    "LoRA, xformers": replace(TRAINED, attention="xformers"),
    "LoRA, compiled blocks": replace(TRAINED, is_compiled=True),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One model in one use; its first variant is the base."""

    use: Literal["rollout", "training"]
    architecture: Architecture
    tiny: Architecture
    variants: Mapping[str, Variant]
    target: float
    """Utilisation below which the base is profiled."""

    @property
    def base(self) -> str:
        """Name of the first variant."""
        return next(iter(self.variants))


NATIVE = {"1024 px": replace(ROLLOUT, px_factor=2)}
PARTS = {
    "sd_rollout": Part(use="rollout", architecture=SD, tiny=TINY_SD, variants=ROLLOUTS, target=0.5),
    "sd_training": Part(use="training", architecture=SD, tiny=TINY_SD, variants=TRAINING, target=0.4),
    "xl_rollout": Part(use="rollout", architecture=XL, tiny=TINY_XL, variants=ROLLOUTS | NATIVE, target=0.5),
    "xl_training": Part(use="training", architecture=XL, tiny=TINY_XL, variants=TRAINING, target=0.4),
}
