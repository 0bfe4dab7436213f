"""Settings of sampling and comparison in evaluations."""

from rlhf.config.config_types import Count, Section


class EvaluateConfig(Section):
    """Comparison of models and other contestants on held-out prompts."""

    samples_per_prompt: Count = 2
    """Number of samples per prompt, with the same noise for all models."""
    num_inference_steps: Count = 10
    """Number of deterministic denoising steps."""
    micro_batch_size: Count = 64
    """Number of images per forward pass."""
    features: str | None = None
    """CLIP model (folder or hub name) whose image embeddings FID and KID use; null takes the held-out network's
    features, or leaves both out without the extra `networks`."""
