"""Configuration of `rlhf reward`: the reward model, its bound, and its trust weight."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.config_types import Count, NonNegative, Positive, Section, Share

LITE0 = "efficientnet-lite0"
"""Value of `reward.backbone` for an ImageNet network from packages."""


class RewardConfig(Section):
    """The reward model and its bound."""

    backbone: str = "small"
    """`small`, `efficientnet-lite0` (extra `networks`), a vision model that transformers opens (a folder or a hub name;
    CLIP's, or another backbone), or `prefpaint-release:` and the file of PrefPaint's released reward model."""
    frozen_share: Share = 0.7
    """Share of CLIP's layers, from the first, that are not trained (PrefPaint: 0.7); at 1 all are fixed."""
    feature_dim: Count = 48
    """Length of the features z, without the constant."""
    epochs: Count = 12
    """Number of passes over part A."""
    learning_rate: Positive = 2e-3
    """Peak rate of AdamW, cosine decay."""
    micro_batch_size: Annotated[int, Field(ge=2)] = 64
    """Number of images per optimizer step."""
    augmentation: Literal["mirror", "strong"] = "mirror"
    """`mirror`: left and right; `strong`: also upside down, turned, colours swapped and inverted (few data)."""
    within_prompt: NonNegative = 30.0
    """Weight of the error of differences between samples of one prompt."""
    objective: Literal["scores", "pairs"] = "scores"
    """`scores`: regression on all marks; `pairs`: Bradley-Terry on the totals of one prompt's samples."""
    validation_share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of part A's photographs held out for early stopping; 0 trains all epochs."""
    patience: Count = 6
    """Number of epochs without a better validation before training stops."""
    decorrelation: NonNegative = 0.05
    """Weight of the penalty on the features' covariance; keeps them from collapsing."""
    ridge: Positive | Literal["auto"] = "auto"
    """lambda of the ridge head and of V = Z'Z + lambda I; `auto` chooses it on part A."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """The theorem's bound holds with probability 1 - delta."""
    coverage: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
    """Stated coverage of the conformal bound on a new annotation."""
    parameter_norm: Positive = 0.3
    """S: assumed norm of psi* less the head of part A, in the theorem's constant."""
    parts: tuple[Positive, Positive, Positive, Positive] = (0.5, 0.2, 0.15, 0.15)
    """Shares of photographs: A trains features and a first head, B corrects it and makes V, C calibrates, D reports."""
    trust_k: NonNegative = 0.05
    """k of the trust weight exp(-k u + b) (PrefPaint, section 3)."""
    trust_b: float = 0.7
    """b of the trust weight."""
