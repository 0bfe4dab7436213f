"""The models that ship, and their training."""

import csv
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from rlhf.config.run_config import BUILTIN, ModelConfig
from rlhf.data.photographs import photographs_of
from rlhf.diffusion.builtin.latent_shards import ShardPlan
from rlhf.diffusion.builtin.pretrain import PretrainConfig, pretrain
from rlhf.diffusion.families.open_family import resolve_model
from rlhf.diffusion.policy import load_policy
from rlhf.storage.images import decode_image, image_to_tensor, list_photographs, square_crop

FOLDERS = {name: Path(resolve_model(name)) for name in BUILTIN}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("tiny", "FluxFillPipeline", {"max_sequence_length": 4}),
        ("tiny-sd", "StableDiffusionInpaintPipeline", {"guidance_scale": 1.0}),
    ],
)
def test_plain_diffusers_opens_the_built_in_models_offline(name: str, kind: str, options: dict[str, object]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(FOLDERS[name], torch_dtype=torch.float32)
    assert type(pipeline).__name__ == kind
    pipeline.set_progress_bar_config(disable=True)
    image = Image.fromarray(np.full((64, 64, 3), 128, dtype=np.uint8))
    mask = Image.fromarray(np.eye(64, dtype=np.uint8) * 255)
    painted = pipeline("", image=image, mask_image=mask, num_inference_steps=2, height=64, width=64, **options)
    assert painted.images[0].size == (64, 64)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_built_in_model_has_at_most_16_mb_and_a_licence(name: str) -> None:
    assert sum(f.stat().st_size for f in FOLDERS[name].rglob("*") if f.is_file()) <= 16e6
    licence = {"tiny": "cc-by-sa-4.0", "tiny-sd": "apache-2.0"}[name]
    assert f"license: {licence}\n" in (FOLDERS[name] / "README.md").read_text()


def test_the_demos_photographs_are_not_among_those_that_the_weights_saw() -> None:
    with (FOLDERS["tiny"].parent / "SOURCES.tsv").open() as file:
        seen = {row["file"] for row in csv.DictReader(file, delimiter="\t")}
    demo = {*photographs_of("demo: learned from"), *photographs_of("demo: held out")}
    assert len(seen) == 246
    assert len(demo) == 48
    assert not seen & demo


def test_the_vae_keeps_real_photographs(test_data: Path) -> None:
    vae = load_policy(ModelConfig()).family.pipeline.vae
    rng = np.random.default_rng(0)
    photographs = list_photographs(test_data / "bsds300" / "train")[:20]
    crops = [square_crop(decode_image(p), rng, size=64, scale=(0.4, 1.0)) for p in photographs]
    images = torch.stack([image_to_tensor(c) for c in crops])
    with torch.no_grad():
        decoded = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
    psnr = -10 * torch.log10(((decoded - images) / 2).square().mean((1, 2, 3)))
    assert float(psnr.mean()) > 33


def test_pretraining_from_photographs_leaves_a_pipeline_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(ShardPlan, sizes_px=(64,), tokens=128, batches=1, uses=2, shards=2)
    monkeypatch.setattr("rlhf.diffusion.builtin.train_base.ShardPlan", small)
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray((rng.random((80, 90, 3)) * 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    for updates in (1, 2):
        settings = PretrainConfig(images=(tmp_path,), out=tmp_path / "out", vae_updates=1, updates=updates)
        folder = pretrain(settings)
        assert json.loads((folder / "training.json").read_text())["updates"] == {"vae": 1, "transformer": updates}
    assert load_policy(ModelConfig(path=str(folder))).network.config.in_channels == 192
