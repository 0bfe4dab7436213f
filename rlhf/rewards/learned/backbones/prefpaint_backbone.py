"""PrefPaint's released reward network (arXiv:2410.21966, section 5, and its code), read from its checkpoint.

    inpainting, masked image [B, 3, H, W]
      -> CLIP's image tower (ViT-B/32 in the release), projected, both concatenated      [B, 1024]
      -> one transformer encoder layer over that single token (16 heads, post-norm, ReLU)
      -> Linear 1024-512, Linear 512-256 = features z;   reward = z @ w

The checkpoint names CLIP's weights as OpenAI does; here they fill transformers' classes. Two of its parts look
alike: `vit_block.transformer_encoder.layers.0` is the trained layer; `vit_block.encoder_layer` is the template that
it was copied from, which no forward pass reaches.

Deviations from the release: there is no dropout (the release never switches to eval mode); pictures stay on a
continuous scale between resampling and normalisation, where PIL rounds them to 8 bits; white fills the holes, as in
the training images (the release's RL loop fills them with black).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.rewards.learned.backbones.clip_backbone import PAPER_FROZEN_SHARE, ClipBackbone
from rlhf.storage.tensor_files import read_state_dict

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

HOLE_VALUE = 1.0
"""Value of holes in the masked image: white, as in the pictures that the checkpoint was trained on."""
HEAD_WIDTH = 64
"""Number of channels of an attention head, in CLIP and in the encoder layer."""
RENAMED = (
    (r"class_embedding", r"vision_model.embeddings.class_embedding"),
    (r"positional_embedding", r"vision_model.embeddings.position_embedding.weight"),
    (r"conv1\.weight", r"vision_model.embeddings.patch_embedding.weight"),
    (r"ln_pre\.(weight|bias)", r"vision_model.pre_layrnorm.\1"),
    (r"ln_post\.(weight|bias)", r"vision_model.post_layernorm.\1"),
    (r"transformer\.resblocks\.(\d+)\.ln_([12])\.(.+)", r"vision_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"transformer\.resblocks\.(\d+)\.attn\.out_proj\.(.+)", r"vision_model.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_fc\.(.+)", r"vision_model.encoder.layers.\1.mlp.fc1.\2"),
    (r"transformer\.resblocks\.(\d+)\.mlp\.c_proj\.(.+)", r"vision_model.encoder.layers.\1.mlp.fc2.\2"),
)
"""OpenAI's names below `clip_model.visual.` and those of transformers; `_rename_visual` handles `proj`, `in_proj_*`."""
UNUSED = re.compile(
    r"clip_model\.(positional_embedding|text_projection|logit_scale|token_embedding\.weight|ln_final\.(weight|bias)"
    r"|transformer\.resblocks\.\d+\..+|input_resolution|context_length|vocab_size)"
    r"|vit_block\.encoder_layer\..+"
)
"""Keys that are not read: CLIP's text tower and the template of the encoder layer. Every other key must be used."""
REMEDY = "is this PrefPaint's reward checkpoint? One of another architecture cannot be read"

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class PrefpaintShape:
    """Sizes of a checkpoint, read from its tensors."""

    patch: int
    image_size: int
    width: int
    """Width of CLIP's image tower."""
    clip_feed_forward: int
    layers: int
    embedding: int
    """Length of CLIP's projected embedding of one picture."""
    feed_forward: int
    """Width of the encoder layer's feed-forward network."""
    hidden: int
    feature_dim: int
    """Length of z."""


class PrefpaintBackbone(nn.Module):
    """Released network up to its features z; the reward is z @ w, with the w of `load_prefpaint_network`."""

    code_version: tuple[int, ...] = (1, *ClipBackbone.code_version)

    def __init__(self, shape: PrefpaintShape, frozen_share: float = PAPER_FROZEN_SHARE) -> None:
        """Freezes the first `frozen_share` of CLIP's layers; at 1 the whole network."""
        super().__init__()
        self.clip = ClipBackbone(_build_tower(shape), frozen_share, hole_value=HOLE_VALUE)
        token = self.clip.output_dim
        self.block = nn.TransformerEncoderLayer(
            token, max(1, token // HEAD_WIDTH), shape.feed_forward, dropout=0.0, batch_first=True
        )
        self.first = nn.Linear(token, shape.hidden)
        self.second = nn.Linear(shape.hidden, shape.feature_dim)
        self.output_dim = shape.feature_dim
        if frozen_share == 1:
            self.requires_grad_(False)

    def forward(self, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Returns z [B, output_dim] of images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W], 1 = repainted."""
        token = self.clip(images, masks)[:, None]  # (B, 1, 2 x embedding)
        return self.second(self.first(self.block(token)[:, 0]))


def _build_tower(shape: PrefpaintShape) -> "CLIPVisionModelWithProjection":
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=shape.width,
            intermediate_size=shape.clip_feed_forward,
            projection_dim=shape.embedding,
            num_hidden_layers=shape.layers,
            num_attention_heads=max(1, shape.width // HEAD_WIDTH),
            image_size=shape.image_size,
            patch_size=shape.patch,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
        )
    )


def load_prefpaint_network(
    path: Path, frozen_share: float = PAPER_FROZEN_SHARE
) -> tuple[PrefpaintBackbone, torch.Tensor]:
    """Loads the network of a .pt, .pth or .safetensors checkpoint in eval mode, and w: float32 [feature_dim].

    Raises UserError if the file is unreadable, a key is unknown or missing, or a weight is not finite.
    """
    weights = _read_checkpoint(path)
    shape = _measure(weights, path)
    backbone = PrefpaintBackbone(shape, frozen_share)
    renamed, w = _rename(weights, path)
    try:
        backbone.load_state_dict(renamed | {f"clip.{n}": getattr(backbone.clip, n) for n in ("mean", "std")})
    except RuntimeError as error:
        raise UserError(
            f"{path}: weights do not fit together ({' '.join(str(error).split())[:300]}); {REMEDY}"
        ) from error
    return backbone.eval(), w


def _read_checkpoint(path: Path) -> Weights:
    """Reads the tensors of a checkpoint as float32, by name without a leading `module.`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name PrefPaint's reward checkpoint (.pt, .pth or .safetensors)")
    found = read_state_dict(path, "download PrefPaint's reward checkpoint again")
    weights = {name.removeprefix("module."): value.float() for name, value in found.items()}
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise UserError(f"{path}: weights are not finite ({', '.join(broken[:3])}); download it again")
    return weights


def _measure(weights: Weights, path: Path) -> PrefpaintShape:
    visual = "clip_model.visual"
    blocks = {int(m[1]) for n in weights if (m := re.match(r"clip_model\.visual\.transformer\.resblocks\.(\d+)\.", n))}
    try:
        width, _, patch, _ = weights[f"{visual}.conv1.weight"].shape
        positions = weights[f"{visual}.positional_embedding"].shape[0]
        return PrefpaintShape(
            patch=patch,
            image_size=patch * round((positions - 1) ** 0.5),
            width=width,
            clip_feed_forward=weights[f"{visual}.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            layers=len(blocks),
            embedding=weights[f"{visual}.proj"].shape[1],
            feed_forward=weights["vit_block.transformer_encoder.layers.0.linear1.weight"].shape[0],
            hidden=weights["mlp.layers.0.weight"].shape[0],
            feature_dim=weights["mlp.layers.2.weight"].shape[0],
        )
    except KeyError as error:
        raise UserError(f"{path}: lacks {error.args[0]}; {REMEDY}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path}: a weight has another number of dimensions ({error}); {REMEDY}") from error


def _rename(weights: Weights, path: Path) -> tuple[Weights, torch.Tensor]:
    """Returns the state dict of `PrefpaintBackbone` without CLIP's constants, and w; UserError names unknown keys."""
    renamed: Weights = {}
    unknown = []
    for name, value in weights.items():
        if name.startswith("clip_model.visual."):
            part = _rename_visual(name.removeprefix("clip_model.visual."), value)
        elif name.startswith("vit_block.transformer_encoder.layers.0."):
            part = {name.replace("vit_block.transformer_encoder.layers.0.", "block."): value}
        elif match := re.fullmatch(r"mlp\.layers\.([02])\.(weight|bias)", name):
            part = {f"{'first' if match[1] == '0' else 'second'}.{match[2]}": value}
        elif name in ("mlp.last_layer.weight", "mlp.last_layer_weight") or UNUSED.fullmatch(name):
            continue
        else:
            part = {}
        unknown += [name] if not part else []
        renamed |= part
    if unknown:
        raise UserError(f"{path}: {len(unknown)} unknown keys ({', '.join(unknown[:5])}); {REMEDY}")
    return renamed, _last_layer(weights, path)


def _rename_visual(name: str, value: torch.Tensor) -> Weights:
    """Returns one of OpenAI's tensors under the names of transformers; empty if the name is unknown."""
    if name == "proj":
        return {"clip.tower.visual_projection.weight": value.T}
    if match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
        layer = f"clip.tower.vision_model.encoder.layers.{match[1]}.self_attn"
        return {f"{layer}.{q}_proj.{match[2]}": part for q, part in zip("qkv", value.chunk(3), strict=True)}
    for pattern, replacement in RENAMED:
        if match := re.fullmatch(pattern, name):
            return {f"clip.tower.{match.expand(replacement)}": value}
    return {}


def _last_layer(weights: Weights, path: Path) -> torch.Tensor:
    """Returns w; the release registers it under two names, and safetensors may hold either."""
    found = [weights[n] for n in ("mlp.last_layer.weight", "mlp.last_layer_weight") if n in weights]
    wanted = (1, weights["mlp.layers.2.weight"].shape[0])
    if not found or found[0].shape != wanted or not torch.equal(found[0], found[-1]):
        raise UserError(f"{path}: mlp.last_layer.weight is missing, ambiguous or not {wanted}; {REMEDY}")
    return found[0][0].clone()
