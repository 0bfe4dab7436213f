"""PickScore: CLIP ViT-H fine-tuned on people's choices between images of one text (arXiv:2305.01569)."""

from rlhf.config.reward_entry import RewardEntry
from rlhf.rewards.clip_score import ClipScore, load_clip_score
from rlhf.rewards.opening import Opening

PUBLISHED = "yuvalkirstain/PickScore_v1"


def open_entry(entry: RewardEntry, opening: Opening) -> ClipScore:
    """Opens PickScore, whose score is the model's own logit: the cosine times the learned scale."""
    return load_clip_score(entry.path or PUBLISHED, entry.label, opening.device, text=entry.text)
