"""What `benchmarks.gpu` measures: four parts, and their variants, of which each changes one thing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.gpu.full_size_models import SD, TINY_SD, TINY_XL, XL, Architecture


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large everything is."""

    is_tiny: bool = False
    px: int = 512
    """Side of the images."""
    samples: int = 8
    """Per prompt."""
    num_inference_steps: int = 10
    micro_batches: int = 4
    """Of one update."""
    rounds: int = 9
    limit_s: float = 20.0
    """After it no new round begins."""
    product_side: int = 8192
    """Of the matrix products that tell what the device can do."""


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
    """How the model is run."""

    prompts: int
    """Of one micro-batch, with `Scale.samples` images each."""
    trainable: Literal["none", "lora", "full"] = "lora"
    """none: for rollouts only, a policy without adapters."""
    precision: Literal["fp32", "bf16"] = "bf16"
    has_bf16_weights: bool = False
    """The UNet's weights are kept in bfloat16 instead of being rounded in each pass; rollouts only."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    is_compiled: bool = False
    """The repeated blocks are, as in serving."""
    memory_format: Literal["", "contiguous_format", "channels_last"] = ""
    """Of the weights; by default as in align: the UNet that is trained is contiguous, others are channels_last."""
    is_merged: bool = True
    """Steps that are not trained run with the LoRA merged into a second UNet; rollouts only."""
    shares_prefix: bool = True
    """A prompt's samples run as one until the first random step."""
    px_factor: int = 1
    """Times `Scale.px`."""
    gradient_checkpointing: bool = False
    kl_weight: float = 0.01
    is_plain: bool = False
    """Training without DeepSpeed."""


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
        """The first variant's name."""
        return next(iter(self.variants))


NATIVE = {"1024 px": replace(ROLLOUT, px_factor=2)}
PARTS = {
    "sd_rollout": Part(use="rollout", architecture=SD, tiny=TINY_SD, variants=ROLLOUTS, target=0.5),
    "sd_training": Part(use="training", architecture=SD, tiny=TINY_SD, variants=TRAINING, target=0.4),
    "xl_rollout": Part(use="rollout", architecture=XL, tiny=TINY_XL, variants=ROLLOUTS | NATIVE, target=0.5),
    "xl_training": Part(use="training", architecture=XL, tiny=TINY_XL, variants=TRAINING, target=0.4),
}
