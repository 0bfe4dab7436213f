"""Stores encoded crops with holes on disk, for both denoisers.

Encoding a crop costs a third of a denoiser's update, so each crop is used several times, with different noise. The
shards are used in turn; with the default sizes the first one returns after 16,384 updates.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from rlhf.diffusion.builtin.base_data import crop_batch, hole_batch
from rlhf.diffusion.builtin.denoiser_loss import LatentBatch
from rlhf.storage.atomic_files import atomic_torch_save
from rlhf.storage.images import blank_hole


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """Sizes and numbers of the shards."""

    folder: Path
    """Folder of the shards; deleted ones are made again."""
    seed: int = 0
    """Seed of crops and holes."""
    sizes_px: tuple[int, ...] = (64, 64, 64, 96)
    """Sides of the crops; shards take them in turn."""
    tokens: int = 64 * 64
    """Number of tokens in a batch, so that batches of all sizes cost the same; a crop of 64 px has 64 tokens."""
    batches: int = 64
    """Number of batches in a shard."""
    uses: int = 4
    """Mean number of times that each crop is drawn."""
    shards: int = 64
    """Number of shards."""

    def shard_of(self, update: int) -> int:
        """Returns the number of the shard that an update draws from."""
        return update // (self.batches * self.uses) % self.shards

    def size_px(self, shard: int) -> int:
        """Returns the side of the crops of a shard."""
        return self.sizes_px[shard % len(self.sizes_px)]

    def batch_size(self, shard: int) -> int:
        """Returns the number of crops in a batch of a shard."""
        return max(1, self.tokens * 64 // self.size_px(shard) ** 2)


class LatentShards:
    """Batches for updates, with one shard at a time in memory."""

    def __init__(self, plan: ShardPlan, vae: AutoencoderKL, photographs: list[Image.Image]) -> None:
        """Encodes nothing yet; `batch` does."""
        self._plan, self._vae, self._photographs = plan, vae, photographs
        self._loaded: tuple[int, dict[str, torch.Tensor]] | None = None

    def batch(self, update: int, generator: torch.Generator) -> LatentBatch:
        """Draws rows at random from the update's shard, and encodes the shard first if it does not exist."""
        number = self._plan.shard_of(update)
        if self._loaded is None or self._loaded[0] != number:
            self._loaded = number, self._shard(number)
        shard = self._loaded[1]
        rows = torch.randint(len(shard["latents"]), (self._plan.batch_size(number),), generator=generator)
        size = self._plan.size_px(number)
        return LatentBatch(
            latents=shard["latents"][rows].float(),
            masks=_unpack_bits(shard["masks"][rows], size),
            masked_image_latents=shard["masked_image_latents"][rows].float(),
        )

    def _shard(self, number: int) -> dict[str, torch.Tensor]:
        path = self._plan.folder / f"shard_{number:03d}.pt"
        if not path.is_file():
            atomic_torch_save(self._encode(number), path)
        return torch.load(path)

    @torch.no_grad()
    def _encode(self, number: int) -> dict[str, torch.Tensor]:
        size, count = self._plan.size_px(number), self._plan.batch_size(number)
        rng = np.random.default_rng([self._plan.seed, 3, number])
        columns: dict[str, list[torch.Tensor]] = {"latents": [], "masks": [], "masked_image_latents": []}
        for _ in range(self._plan.batches):
            images, masks = crop_batch(self._photographs, rng, count, size), hole_batch(rng, count, size)
            columns["latents"].append(self._latents(images))
            columns["masked_image_latents"].append(self._latents(blank_hole(images, masks)))
            columns["masks"].append(torch.from_numpy(np.packbits(masks.flatten(1).numpy() > 0.5, axis=1)))
        return {name: torch.cat(parts) for name, parts in columns.items()}

    def _latents(self, images: torch.Tensor) -> torch.Tensor:
        images = images.to(memory_format=torch.channels_last)
        return (self._vae.encode(images).latent_dist.mean * self._vae.config.scaling_factor).half().contiguous()


def _unpack_bits(bits: torch.Tensor, size: int) -> torch.Tensor:
    """Returns masks [B, 1, size, size] from their bits [B, size * size / 8]."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=1)).view(-1, 1, size, size).float()
