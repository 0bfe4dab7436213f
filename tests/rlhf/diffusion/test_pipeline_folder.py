"""Pipeline folders: other classes, variants, single files, hub names, and weights that are not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import torch
from diffusers import StableDiffusionInpaintPipeline
from huggingface_hub import constants as hub
from safetensors.torch import load_file, save_file
from small_parts import small_config, small_prompts, write_prompts

from actors.align import align
from actors.remote_sampler import remote_samplers
from actors.rollouts_only import roll_out
from rlhf.config.run_config import ModelConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.policy import Policy, load_policy, plan_steps
from rlhf.diffusion.policy_manifest import locate_policy
from rlhf.errors import UserError
from serve.application import check_before_start
from serve.settings import ServiceSettings

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(small_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_pipeline, tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(path: Path, **settings: str) -> str:
    """The message of both: the check from the configuration alone, where it refuses, and loading."""
    messages = []
    for open_model in (lambda config: plan_steps(config, 10), load_policy):
        with pytest.raises(UserError) as caught:
            open_model(ModelConfig(path=str(path), **settings))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


@pytest.mark.parametrize(
    "kind",
    [
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "FluxControlNetInpaintPipeline",
        "NoSuchPipeline",
    ],
)
def test_another_class_of_pipeline_is_refused_with_the_classes_that_are_supported(folder: Path, kind: str) -> None:
    edit_json(folder / "model_index.json", _class_name=kind, controlnet=["diffusers", "ControlNetModel"])
    message = refusal(folder)
    assert f"of class {kind}; supported are StableDiffusionInpaintPipeline, StableDiffusionXLInpaintPipeline" in message


def test_a_part_that_would_be_left_out_is_refused(folder: Path) -> None:
    edit_json(folder / "model_index.json", controlnet=["diffusers", "ControlNetModel"])
    assert "its part controlnet (ControlNetModel) would not be used" in refusal(folder)


@pytest.mark.parametrize(("part", "kind"), [("vae", "AsymmetricAutoencoderKL"), ("unet", "UNetMotionModel")])
def test_another_class_of_a_part_is_refused(folder: Path, part: str, kind: str) -> None:
    edit_json(folder / "model_index.json", **{part: ["diffusers", kind]})
    assert f"its {part} of class {kind}; supported is" in refusal(folder)


def test_a_unet_of_another_task_is_refused_before_its_weights_are_read(folder: Path) -> None:
    edit_json(folder / "unet" / "config.json", in_channels=8)
    assert "its unet reads 8 channels; supported are 9 (latents, mask and masked image), 4 (latents alone)" in refusal(
        folder
    )
    edit_json(folder / "unet" / "config.json", in_channels=9, time_cond_proj_dim=16)
    assert "distilled" in refusal(folder)


def test_a_single_file_is_refused_with_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "sd.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 9, 3, 3)}, file)
    assert "a single file (inpainting); supported are folders and hub names" in refusal(file)
    assert locate_policy(ModelConfig(), file) == (ModelConfig(path=str(file)), None), "also as an argument of commands"
    (tmp_path / "sd.ckpt").write_bytes(b"pickle")
    assert "a single file" in refusal(tmp_path / "sd.ckpt")


def test_every_command_that_starts_ray_refuses_a_model_before_it(folder: Path, tmp_path: Path) -> None:
    edit_json(folder / "model_index.json", _class_name="StableDiffusionControlNetInpaintPipeline")
    config, out = small_config(folder), tmp_path / "out"
    table = PromptTable(write_prompts(small_prompts(1), tmp_path / "prompts"))
    service = ServiceSettings(models=(str(folder),))
    starts = (
        lambda: align(config, None, None, out),
        lambda: roll_out(config, tmp_path, None, out, tmp_path / "dump"),
        lambda: remote_samplers(config, table, [None], out, workers=1).__enter__(),
        lambda: check_before_start(service, "127.0.0.1", 0),
    )
    for start in starts:
        with pytest.raises(UserError, match="of class StableDiffusionControlNetInpaintPipeline"):
            start()
        assert not ray.is_initialized()
    assert not out.exists()


def save_variant(folder: Path, variant: str | None) -> None:
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder, torch_dtype=torch.float16)
    for part in ("unet", "vae", "text_encoder"):
        getattr(pipeline, part).save_pretrained(folder / part, variant=variant)


def drop_plain(folder: Path) -> None:
    for file in (UNET, VAE, TEXT):
        (folder / file).unlink()


def parameters(policy: Policy) -> Tensors:
    parts = {"unet": policy.network, "vae": policy.family.pipeline.vae, "text": policy.family.pipeline.text_encoder}
    return {f"{part}.{name}": p for part, network in parts.items() for name, p in network.named_parameters()}


def test_a_folder_of_half_precision_weights_opens_by_itself(small_pipeline: Path, folder: Path) -> None:
    save_variant(folder, "fp16")
    drop_plain(folder)
    loaded = parameters(load_policy(ModelConfig(path=str(folder))))
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    plain = parameters(load_policy(ModelConfig(path=str(small_pipeline))))
    assert all(torch.equal(tensor, plain[name].half().float()) for name, tensor in loaded.items())


def test_the_variant_is_chosen_by_name_and_an_unknown_one_is_refused(folder: Path) -> None:
    save_variant(folder, "fp16")
    whole = parameters(load_policy(ModelConfig(path=str(folder))))["unet.conv_in.weight"]
    half = parameters(load_policy(ModelConfig(path=str(folder), variant="fp16")))["unet.conv_in.weight"]
    assert torch.equal(half, whole.half().float())
    assert not torch.equal(half, whole)
    with pytest.raises(UserError, match="no weights of model.variant `ema`; its variants are: fp16"):
        load_policy(ModelConfig(path=str(folder), variant="ema"))
    save_variant(folder, "ema")
    drop_plain(folder)
    with pytest.raises(UserError, match="set model.variant to one of ema, fp16"):
        load_policy(ModelConfig(path=str(folder)))


def test_a_hub_name_opens_from_the_hubs_cache(
    small_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "models--someone--inpainting"
    shutil.copytree(small_pipeline, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    # As HF_HUB_CACHE and HF_HUB_OFFLINE set them in a process that has yet to import the hub's client.
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    config = ModelConfig(path="someone/inpainting")
    plan_steps(config, 3)
    assert load_policy(config).native_px == 32


def test_a_hub_name_that_cannot_be_had_is_refused() -> None:
    assert "neither a pipeline folder nor a hub name" in refusal(Path("nobody/no-such-model"))


def without_one(tensors: Tensors) -> Tensors:
    return dict(list(tensors.items())[:-1])


def with_another(tensors: Tensors) -> Tensors:
    return tensors | {"stray.weight": torch.zeros(2)}


def of_another_shape(tensors: Tensors) -> Tensors:
    return {name: tensor[:1] if i == 0 else tensor for i, (name, tensor) in enumerate(tensors.items())}


def not_finite(tensors: Tensors) -> Tensors:
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    return tensors


def quantised(tensors: Tensors) -> Tensors:
    return {name: tensor.to(torch.int8) if i == 0 else tensor for i, (name, tensor) in enumerate(tensors.items())}


def of_eight_bits(tensors: Tensors) -> Tensors:
    return {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (without_one, "lacks "),
        (with_another, "holds unknown stray.weight"),
        (of_another_shape, "no whole weights"),
        (not_finite, "not finite"),
        (quantised, "is quantised (I8)"),
        (of_eight_bits, "is quantised (F8_E4M3)"),
    ],
    ids=["missing", "additional", "shape", "nan", "int8", "fp8"],
)
def test_weights_that_are_not_whole_are_refused_with_the_files_name(
    folder: Path, file: str, damage: Callable[[Tensors], Tensors], named: str
) -> None:
    save_file(damage(load_file(folder / file)), folder / file, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_policy(ModelConfig(path=str(folder)))
    assert str(folder / file) in str(caught.value)
    assert named in str(caught.value)


def test_quantised_weights_of_older_files_are_refused_too(folder: Path) -> None:
    old = (folder / UNET).with_suffix(".bin")
    torch.save(quantised(load_file(folder / UNET)), old)
    (folder / UNET).unlink()
    with pytest.raises(UserError, match=r"\.bin: .* is quantised \(torch.int8\)"):
        load_policy(ModelConfig(path=str(folder)))


@pytest.mark.parametrize("file", [UNET, VAE, TEXT])
def test_a_file_that_is_cut_off_or_garbled_is_named(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    for broken in (whole[:-100], whole[:20], b"", b"\xff" * 8 + whole[8:], whole[:8] + b"[" + whole[9:]):
        (folder / file).write_bytes(broken)
        with pytest.raises(UserError, match=file):
            load_policy(ModelConfig(path=str(folder)))


def test_the_position_ids_of_older_text_encoders_are_no_damage(folder: Path) -> None:
    tensors = load_file(folder / TEXT) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(tensors, folder / TEXT, metadata={"format": "pt"})
    assert load_policy(ModelConfig(path=str(folder))).native_px == 32
