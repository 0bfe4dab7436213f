"""The model that ships, and its training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForInpainting
from PIL import Image

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.builtin.pretrain import PretrainConfig, pretrain, train_averaged
from rlhf.diffusion.families.open_family import TINY
from rlhf.diffusion.policy import load_policy


def test_plain_diffusers_opens_the_built_in_model_offline() -> None:
    pipeline = AutoPipelineForInpainting.from_pretrained(TINY)
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"
    assert sum(f.stat().st_size for f in TINY.rglob("*") if f.is_file()) <= 12e6
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8))
    mask = Image.fromarray(np.eye(64, dtype=np.uint8) * 255)
    painted = pipeline("", image=image, mask_image=mask, num_inference_steps=2, guidance_scale=1.0, height=64, width=64)
    assert painted.images[0].size == (64, 64)


def test_the_vae_keeps_real_photographs(test_data: Path) -> None:
    from rlhf.storage.images import decode_image, image_to_tensor, list_photographs, square_crop

    vae = load_policy(ModelConfig()).family.pipeline.vae
    rng = np.random.default_rng(0)
    photographs = list_photographs(test_data / "bsds300" / "val")[:20]
    crops = [square_crop(decode_image(p), rng, size=64, scale=(0.4, 1.0)) for p in photographs]
    images = torch.stack([image_to_tensor(c) for c in crops])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    psnr = -10 * torch.log10(((decoded - images) / 2).square().mean((1, 2, 3)))
    assert float(psnr.mean()) > 20


def test_interrupted_pretraining_ends_with_the_same_bits(tmp_path: Path) -> None:
    def train(path: Path, stop_at: int | None = None) -> torch.nn.Linear:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)

        def loss_of(update: int) -> torch.Tensor:
            if update == stop_at:
                raise KeyboardInterrupt
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(update))
            return (module(x) - x.sum(1, keepdim=True)).square().mean()

        return train_averaged(module, loss_of, updates=10, peak_lr=0.1, state_path=path, stage="test", save_every=2)

    straight = train(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b.pt", stop_at=5)
    again = train(tmp_path / "b.pt")
    assert torch.equal(straight.weight, again.weight)


@pytest.mark.slow
def test_pretraining_from_photographs_leaves_a_pipeline(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray((rng.random((80, 90, 3)) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    sizes = {"vae_updates": 2, "unet_updates": 2, "micro_batch_size": 8, "pool_size": 100}
    folder = pretrain(PretrainConfig(images=tmp_path, out=tmp_path / "out", **sizes))
    assert load_policy(ModelConfig(path=str(folder))).network.config.in_channels == 9
    assert not list(folder.glob("*.pt"))
