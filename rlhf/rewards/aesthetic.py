"""LAION's aesthetic predictor: a published MLP on the image embedding of CLIP ViT-L/14.

github.com/christophschuhmann/improved-aesthetic-predictor, `sac+logos+ava1-l14-linearMSE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.clip_model import clip_pixels, load_clip
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Scores
from rlhf.storage.tensor_files import read_state_dict

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

PUBLISHED = "trl-lib/ddpo-aesthetic-predictor"
PUBLISHED_FILE = "aesthetic-model.pth"


class AestheticHead(nn.Module):
    """Published layers, 768-1024-128-64-16-1 without non-linearities; keys are `layers.0.weight`, ..."""

    def __init__(self, embedding_dim: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Maps embeddings [B, embedding_dim] of length 1 to scores [B], about 1 to 10."""
        return self.layers(embeddings)[:, 0]


@dataclass(frozen=True, kw_only=True)
class Aesthetic:
    """CLIP's image tower and the head on it."""

    tower: "CLIPVisionModelWithProjection"
    head: AestheticHead

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images; masks and captions are not read. Shapes as in Reward."""
        pixels = clip_pixels(images, self.tower.config.image_size).to(self.tower.device)
        embeddings = nn.functional.normalize(self.tower(pixel_values=pixels).image_embeds, dim=1)
        return Scores(reward=self.head(embeddings).double().cpu())


def open_entry(entry: RewardEntry, opening: Opening) -> Aesthetic:
    """Opens the head from a file, a folder that holds one, or the hub, and the tower from a folder or the hub."""
    from transformers import CLIPVisionModelWithProjection

    path, tower, name = entry.path, entry.tower, entry.label
    clip = load_clip(CLIPVisionModelWithProjection, tower, f"reward {name}", opening.device)
    head = AestheticHead(clip.config.projection_dim)
    file = _find_head(path or PUBLISHED, name)
    weights = read_state_dict(file, f"set `path` of reward {name} to the published MLP")
    try:
        head.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"reward {name}: {file} is not the aesthetic MLP that fits {tower} ({reason})") from error
    return Aesthetic(tower=clip, head=head.to(opening.device).eval().requires_grad_(False))


def _find_head(path: str, name: str) -> Path:
    place = Path(path)
    if place.is_file():
        return place
    if place.is_dir():
        found = sorted(p for p in place.iterdir() if p.suffix in (".pth", ".pt", ".safetensors"))
        if len(found) != 1:
            raise UserError(
                f"reward {name}: {place} holds {len(found)} files of weights (.pth, .pt, .safetensors), not one; "
                "name the file"
            )
        return found[0]
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path, PUBLISHED_FILE))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward {name}: {path}: neither a folder nor on the hub ({reason})") from error
