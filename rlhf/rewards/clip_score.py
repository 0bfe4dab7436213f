"""CLIP score: how well an image fits its text (arXiv:2104.08718). PickScore and HPSv2 have other weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from rlhf.config.reward_entry import RewardEntry
from rlhf.errors import UserError
from rlhf.rewards.scores import Scores, texts_of

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

PUBLISHED = "openai/clip-vit-large-patch14"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


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


def clip_pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resizes images [B, 3, H, W] in [-1, 1] to CLIP's [B, 3, size, size] (bicubic, antialiased) and normalises them.

    CLIP's own preprocessing crops images that are not square. Here they are squeezed, since the hole may lie at
    the border.
    """
    resized = F.interpolate((images + 1) / 2, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    mean, std = (resized.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (resized.clamp(0, 1) - mean) / std


def load_complete(architecture: type, path: str, name: str, device: torch.device) -> Any:
    """Loads a transformers model of the class `architecture` from a folder or the hub, in evaluation mode.

    Raises UserError if the model is not there or lacks tensors, which transformers would fill with random numbers.
    """
    try:
        model, info = architecture.from_pretrained(path, output_loading_info=True)  # type: ignore[attr-defined]
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"reward {name}: {path}: no {architecture.__name__} could be loaded ({reason})") from error
    absent = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if absent:
        raise UserError(
            f"reward {name}: {path} holds weights of another architecture than {architecture.__name__}: "
            f"{len(absent)} tensors are missing, such as {absent[0]}; name a folder or hub repository that has them"
        )
    return model.to(device).eval().requires_grad_(False)


def open_entry(entry: RewardEntry, device: torch.device) -> ClipScore:
    """Opens the CLIP score in points of 100: 100 times the cosine."""
    return load_clip_score(entry.path or PUBLISHED, entry.label, device, scale=100.0, text=entry.text)


def load_clip_score(
    path: str, name: str, device: torch.device, *, scale: float | None = None, text: str | None = None
) -> ClipScore:
    """Loads a CLIPModel with its tokenizer; `scale` None takes the model's own logit scale."""
    from transformers import CLIPModel

    model = load_complete(CLIPModel, path, name, device)
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
