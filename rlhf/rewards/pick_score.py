"""PickScore: CLIP ViT-H fine-tuned on people's choices between images of one text (arXiv:2305.01569)."""

import torch

from rlhf.config.reward_entry import RewardEntry
from rlhf.rewards.clip_score import ClipScore, load_clip_score

PUBLISHED = "yuvalkirstain/PickScore_v1"


def open_entry(entry: RewardEntry, device: torch.device) -> ClipScore:
    """Opens PickScore, whose score is the model's own logit: the cosine times the learned scale."""
    return load_clip_score(entry.path or PUBLISHED, entry.label, device, text=entry.text)
