"""CLIP score: how well an image fits its text (arXiv:2104.08718). PickScore and HPSv2 have other weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.clip_model import clip_pixels, load_clip
from rlhf.rewards.opening import Opening
from rlhf.rewards.scores import Scores, texts_of

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

PUBLISHED = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, kw_only=True)
class ClipScore:
    """`scale` times the cosine between the embeddings of image and text."""

    name: str
    model: "CLIPModel"
    tokenizer: "PreTrainedTokenizerBase"
    scale: float
    text: str | None
    """Fixed text in place of the captions; None compares each image with its caption."""

    @torch.no_grad()
    def score(self, images: torch.Tensor, masks: torch.Tensor, captions: Sequence[str]) -> Scores:
        """Scores images by their texts; shapes as in Reward. Raises UserError if an image has no text."""
        texts = texts_of(captions, self.text, self.name)
        distinct = sorted(set(texts))
        tokens = self.tokenizer(
            distinct, padding=True, truncation=True, max_length=_longest(self.model), return_tensors="pt"
        ).to(self.model.device)
        embedded = self.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            pixel_values=clip_pixels(images, self.model.config.vision_config.image_size).to(self.model.device),
        )
        of_images = embedded.text_embeds[[distinct.index(text) for text in texts]]
        return Scores(reward=self.scale * (embedded.image_embeds * of_images).sum(1).double().cpu())


def _longest(model: "CLIPModel") -> int:
    return model.config.text_config.max_position_embeddings


def open_entry(entry: RewardEntry, opening: Opening) -> ClipScore:
    """Opens the CLIP score in points of 100: 100 times the cosine."""
    return load_clip_score(entry.path or PUBLISHED, entry.label, opening.device, scale=100.0, text=entry.text)


def load_clip_score(
    path: str, name: str, device: torch.device, *, scale: float | None = None, text: str | None = None
) -> ClipScore:
    """Loads a CLIPModel with its tokenizer; `scale` None takes the model's own logit scale."""
    from transformers import CLIPModel

    model = load_clip(CLIPModel, path, f"reward {name}", device)
    tokenizer = _load_tokenizer(path, name, model.config.text_config.vocab_size)
    own = float(model.logit_scale.exp())
    return ClipScore(name=name, model=model, tokenizer=tokenizer, scale=own if scale is None else scale, text=text)


def _load_tokenizer(path: str, name: str, vocab_size: int) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer beside the weights; transformers would make up an empty one if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward {name}: {path}: holds no tokenizer ({reason}); save it beside the weights") from error
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"reward {name}: {path}: holds no tokenizer of the model's {vocab_size} tokens (found {len(tokenizer)}); "
            "save it beside the weights"
        )
    return tokenizer
