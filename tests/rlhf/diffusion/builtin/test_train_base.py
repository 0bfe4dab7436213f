import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, FluxFillPipeline
from PIL import Image
from skimage import data

from benchmarks.base_model.fills import fill_transformer
from rlhf.data.photographs import set_aside
from rlhf.diffusion.builtin import export_base, train_base
from rlhf.diffusion.builtin.base_data import crop_batch, training_paths
from rlhf.diffusion.builtin.base_denoisers import (
    TEXT_TOKENS,
    build_transformer,
    transformer_pipeline,
)
from rlhf.diffusion.builtin.base_training import TrainingSchedule, train_stage
from rlhf.diffusion.builtin.base_vae import build_vae, principal_components, start_linear
from rlhf.diffusion.builtin.denoiser_loss import image_ids, pack, transformer_loss
from rlhf.diffusion.builtin.latent_shards import LatentShards, ShardPlan
from rlhf.errors import UserError
from rlhf.storage.images import blank_hole


@pytest.fixture(scope="module")
def photographs():
    return [Image.fromarray(data.astronaut()), Image.fromarray(data.coffee())]


@pytest.fixture(scope="module")
def crops(photographs):
    return crop_batch(photographs, np.random.default_rng(0), 48, 64)


@pytest.fixture(scope="module")
def vae(crops):
    torch.manual_seed(0)
    vae = build_vae().eval().requires_grad_(False)
    start_linear(vae, crops)
    return vae


def tiny_transformer():
    return build_transformer(heads=1, layers=1)


def reconstruction_db(images, originals):
    return float(-10 * torch.log10(((images - originals) / 2).square().mean()).detach())


def test_latents_of_the_linear_start_are_principal_components(vae, crops):
    mean, maps = principal_components(crops)
    patches = F.pixel_unshuffle(crops, 4).permute(0, 2, 3, 1)
    expected = ((patches - mean) @ maps.T).permute(0, 3, 1, 2)
    latents = vae.encode(crops).latent_dist.mean
    assert float((latents - expected).abs().max()) < 0.05
    assert latents.std() == pytest.approx(1.0, abs=0.1)


def test_the_linear_start_decodes_almost_as_the_components_do(vae, crops):
    mean, maps = principal_components(crops)
    some = crops[::4]
    latents = vae.encode(some).latent_dist.mean
    patches = latents.permute(0, 2, 3, 1) @ torch.linalg.pinv(maps).T + mean
    best = F.pixel_shuffle(patches.permute(0, 3, 1, 2), 4)
    decoded = vae.decode(latents).sample
    assert reconstruction_db(decoded, best) > 38
    assert reconstruction_db(decoded, some) > reconstruction_db(best, some) - 1.5


def test_a_resumed_run_equals_an_uninterrupted_one(vae, photographs, tmp_path):
    plan = ShardPlan(folder=tmp_path / "latents", sizes_px=(64, 96), tokens=128, batches=1, uses=2, shards=2)

    def run(name, until):
        torch.manual_seed(0)
        module = tiny_transformer()
        loss, shards = transformer_loss(module, vae), LatentShards(plan, vae, photographs)

        def loss_of(update):
            generator = torch.Generator().manual_seed(update)
            return loss(shards.batch(update, generator), generator)

        schedule = TrainingSchedule(
            until=until, peak_lr=1e-3, warm_up=2, decay_from=3, decay_to=6, save_every=2, log_every=2
        )
        paths = {"state_path": tmp_path / f"{name}.pt", "log_path": tmp_path / f"{name}.jsonl"}
        return train_stage(module, loss_of, schedule, **paths).state_dict()

    whole = run("whole", 6)
    run("parts", 4)
    with (tmp_path / "parts.jsonl").open("a") as log:
        log.write('{"update": 6, "loss"')  # As a kill leaves it.
    resumed = run("parts", 6)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = [[json.loads(line)["loss"] for line in (tmp_path / f"{n}.jsonl").open()] for n in ("whole", "parts")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_training_the_decoder_leaves_the_encoder_alone(photographs, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    photographs[0].save(folder / "astronaut.png")
    arguments = ["--stage", "vae", "--out", str(tmp_path), "--images", str(folder), "--vae-batch", "1"]
    train_base.main([*arguments, "--until", "2"])
    start = torch.load(tmp_path / "vae_start.pt")
    trained = torch.load(train_base.state_path(tmp_path, "vae"))["module"]
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_exported_weights_can_be_a_new_start(vae, tmp_path):
    torch.save(vae.state_dict(), tmp_path / "vae_start.pt")
    module = build_transformer()
    train_stage(
        module,
        lambda update: module.x_embedder.weight.square().mean(),
        TrainingSchedule(until=1, peak_lr=1e-3),
        state_path=train_base.state_path(tmp_path, "transformer"),
        log_path=train_base.log_path(tmp_path, "transformer"),
    )
    export_base.export(tmp_path, folder := tmp_path / "out")
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 16e6
    assert train_base.started_at(folder, "transformer") == 1
    again = train_base.start_vae([], tmp_path / "elsewhere", folder, 0)
    latents = torch.randn(1, 16, 4, 4)
    assert reconstruction_db(again.decode(latents).sample, vae.decode(latents).sample) > 40


def test_a_start_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"training\.json"):
        train_base.started_at(tmp_path, "transformer")


def test_the_transformer_fills_holes_in_plain_diffusers(vae, crops, tmp_path):
    torch.manual_seed(0)
    transformer = tiny_transformer()
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    transformer_pipeline(vae, transformer).save_pretrained(tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline, FluxFillPipeline)
    pipeline.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:41, 8:30] = 1
    image = crops[:1]
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    filled = pipeline(
        prompt="",
        image=(image + 1) / 2,
        mask_image=mask,
        height=64,
        width=64,
        num_inference_steps=3,
        max_sequence_length=TEXT_TOKENS,
        latents=pack(noise),
        output_type="pt",
    ).images
    ours = fill_transformer(pipeline, image, mask, 3, seed=0)
    hole = mask.expand_as(image) > 0.5
    # Its masked-image latents are drawn, not the mean, of a posterior that is narrow.
    assert float(((filled * 2 - 1).clamp(-1, 1) - ours)[hole].abs().max()) < 0.1


def test_packing_is_that_of_flux():
    latents = torch.randn(2, 16, 8, 12)
    assert torch.equal(pack(latents), FluxFillPipeline._pack_latents(latents, 2, 16, 8, 12))
    expected = FluxFillPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
    assert torch.equal(image_ids(8, 12), expected)


def test_cells_outside_the_hole_have_latents_of_the_whole_image(vae, crops):
    some = crops[::4]
    masks = torch.zeros(len(some), 1, 64, 64)
    masks[..., 16:48, 16:48] = 1
    whole = vae.encode(some).latent_dist.mean
    masked = vae.encode(blank_hole(some, masks)).latent_dist.mean
    known = (F.max_pool2d(masks, 4) < 0.5).expand_as(whole)
    assert float((whole - masked)[known].abs().max()) < 0.05


def test_no_photograph_that_serves_something_else_is_trained_on(tmp_path):
    aside = sorted(set_aside())
    assert len(aside) == 92
    for name in [*aside, "other.jpg"]:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert [path.name for path in training_paths([tmp_path])] == ["other.jpg"]
    with pytest.raises(UserError):
        training_paths([Path(tmp_path / "missing")])


def test_shards_hold_what_an_earlier_run_encoded(vae, photographs, tmp_path):
    plan = ShardPlan(folder=tmp_path, sizes_px=(64,), tokens=128, batches=1, uses=1, shards=1)
    draw = partial(torch.Generator().manual_seed, 5)
    first = LatentShards(plan, vae, photographs).batch(0, draw())
    again = LatentShards(plan, vae, []).batch(0, draw())
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.masks, again.masks)
    assert set(first.masks.unique().tolist()) == {0.0, 1.0}
