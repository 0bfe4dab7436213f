"""PickScore: CLIP ViT-H fine-tuned on people's choices between images of one text (arXiv:2305.01569)."""

import torch

from rlhf.rewards.clip_score import ClipScore, load_clip_score

PUBLISHED = "yuvalkirstain/PickScore_v1"


def load_pick_score(path: str | None, name: str, device: torch.device, text: str | None) -> ClipScore:
    """Its score is the model's own logit: the cosine times the learnt scale."""
    return load_clip_score(path or PUBLISHED, name, device, text=text)
