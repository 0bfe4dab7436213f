import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from family_cases import CASES
from family_painting import noise_for, paint, prompt_of
from small_families import small_fill_pipeline, small_sd3_pipeline, small_sd_pipeline
from small_parts import write_prompts
from small_qwen import small_klein_pipeline, small_z_image_pipeline

from rlhf.alignment.disk_need import count_trained
from rlhf.config.run_config import AlignConfig, ModelConfig, RunConfig
from rlhf.data.prompts import PromptTable
from rlhf.diffusion.families.open_family import MODULES, check_guided_captions, guidance_kinds, reads_picture
from rlhf.diffusion.families.pipeline_folder import PAINTING
from rlhf.diffusion.policy import Policy, export_policy, load_policy, make_trainable, plan_steps
from rlhf.diffusion.policy_weights import save_policy
from rlhf.diffusion.rollout import rollout
from rlhf.diffusion.steps.flow_matching import FlowSchedule
from rlhf.diffusion.text_encoding import fill_cache
from rlhf.diffusion.trained_weights import trainable_state
from rlhf.diffusion.trajectories import RolloutPlan, Trajectories
from rlhf.errors import UserError


@pytest.fixture(scope="module", params=CASES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("pipeline")
    CASES[request.param].build().save_pretrained(path)
    return request.param, path


GUIDED = {"guidance": "true", "guidance_scale": 3.0, "negative_caption": "blur"}


def model(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), device="cpu")


def test_a_folder_is_opened_by_its_class_and_channels(folder: tuple[str, Path]) -> None:
    name, path = folder
    policy = load_policy(model(path))
    assert type(policy.family).__name__ == name.replace("XL", "").removesuffix(" of third order")
    native = policy.family.native_cells
    ours, planned = policy.family.schedule(5, (native, native)), plan_steps(model(path), 5)
    assert torch.equal(ours.timesteps, planned.timesteps), "the checks before a run see the steps that it takes"


def test_trained_adapters_are_counted_without_weights(folder: tuple[str, Path]) -> None:
    config, policy = AlignConfig(lora_rank=4), load_policy(model(folder[1]))
    make_trainable(policy, "lora", rank=4, targets=None, seed=0)
    assert count_trained(str(folder[1]), config) == sum(t.numel() for t in trainable_state(policy.network).values())


def test_a_saved_lora_gives_plain_diffusers_the_policys_images(folder: tuple[str, Path], tmp_path: Path) -> None:
    """Painted by the family on a pipeline that diffusers alone has loaded the LoRA into."""
    name, path = folder
    policy = load_policy(model(path))
    make_trainable(policy, "lora", rank=4, targets=None, seed=0)
    state = {n: t + 0.2 * torch.randn_like(t) for n, t in trainable_state(policy.network).items()}
    save_policy(policy.family, state, tmp_path / "policy", version=1, trainable="lora", base=str(path))
    latents = paint_latents(load_policy(model(path), tmp_path / "policy"))
    plain = diffusers.DiffusionPipeline.from_pretrained(path, **CASES[name].components(path))
    plain.load_lora_weights(tmp_path / "policy")
    other = load_policy(model(path))
    base = paint_latents(other)
    other.family.pipeline, other.family.network = plain, getattr(plain, other.family.network_name)
    torch.testing.assert_close(paint_latents(other), latents, atol=1e-4, rtol=0)
    assert float((latents - base).abs().max()) > 1e-2, f"{name}: the adapter changes what is painted"


def test_an_exported_folder_opens_in_plain_diffusers(folder: tuple[str, Path], tmp_path: Path) -> None:
    name, path = folder
    policy = load_policy(model(path))
    make_trainable(policy, "full", rank=4, targets=None, seed=0)
    state = {n: t + 0.01 * torch.randn_like(t) for n, t in trainable_state(policy.network).items()}
    save_policy(policy.family, state, tmp_path / "policy", version=1, trainable="full", base=str(path))
    out = export_policy(model(path), tmp_path / "policy", tmp_path / "out")
    plain = diffusers.DiffusionPipeline.from_pretrained(out, **CASES[name].components(out))
    assert all(torch.equal(t, state[n]) for n, t in getattr(plain, policy.family.network_name).named_parameters())


def paint_latents(policy: Policy) -> torch.Tensor:
    prompt = prompt_of(64, 64, seed=5)
    return paint(policy, prompt, noise_for(policy.family, prompt, seed=1), "a cat", steps=3)


def test_a_policy_paints_from_the_cache_what_it_paints_with_its_text_encoder(
    folder: tuple[str, Path], tmp_path: Path
) -> None:
    """The encoders' weights are gone by then, so nothing can have opened them."""
    path = shutil.copytree(folder[1], tmp_path / "model")
    is_guided = "true" in guidance_kinds(path)
    config = model(path).model_copy(update=GUIDED if is_guided else {})
    prompts = [replace(prompt_of(64, 64, seed), caption="a cat" * seed) for seed in range(3)]
    plan = RolloutPlan(num_inference_steps=3, eta=1.0, stochastic_steps=frozenset({0, 1}), trained_steps=(0, 1))
    expected = rollout(load_policy(config), prompts, plan, sample_indices=range(2), seed_key=(0,))
    table = PromptTable(write_prompts(prompts, tmp_path / "prompts"))
    cache = fill_cache(config, table, tmp_path / "texts")
    texts = 8 if reads_picture(path) else 4 if is_guided else 3
    assert len(list((tmp_path / "texts" / cache.encoder).glob("*.safetensors"))) == texts
    for weights in path.glob("text_encoder*/*.safetensors"):
        weights.unlink()
    policy = load_policy(config, parts=PAINTING, texts=cache)
    assert (policy.guidance is not None) is is_guided
    found = rollout(policy, prompts, plan, sample_indices=range(2), seed_key=(0,))
    assert torch.equal(found.images, expected.images)
    ours, theirs = found.trajectories, expected.trajectories
    assert isinstance(ours, Trajectories)
    assert isinstance(theirs, Trajectories)
    assert torch.equal(ours.old_log_prob, theirs.old_log_prob)


def test_other_classes_and_channels_are_refused_with_those_supported(tmp_path: Path) -> None:
    chroma = tmp_path / "chroma"
    chroma.mkdir()
    (chroma / "model_index.json").write_text('{"_class_name": "ChromaInpaintPipeline"}')
    with pytest.raises(UserError, match=f"class ChromaInpaintPipeline; supported are {', '.join(MODULES)}"):
        load_policy(model(chroma))
    control = small_sd3_pipeline(in_channels=16)
    control.save_pretrained(tmp_path / "sd3")
    config = tmp_path / "sd3" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 16', '"in_channels": 17'))
    with pytest.raises(UserError, match=r"reads 17 channels; supported are 33 \(latents, mask and masked image\), 16"):
        load_policy(model(tmp_path / "sd3"))


def test_a_scheduler_of_another_kind_is_refused_by_class(tmp_path: Path) -> None:
    pipeline = small_fill_pipeline()
    pipeline.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its scheduler of class FlowMatchHeunDiscreteScheduler; supported is"):
        plan_steps(RunConfig(model=model(tmp_path)).model, 4)


def test_encoding_is_deterministic(folder: tuple[str, Path]) -> None:
    policy = load_policy(model(folder[1]))
    first, again = (policy.family.encode_prompts([prompt_of(64, 64, seed=1)])[0] for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (small_fill_pipeline, {"guidance": "true"}, "true is not for .*, which takes embedded; choose one"),
        (small_fill_pipeline, {"guidance": "none"}, "none is not for .*, which takes embedded"),
        (small_z_image_pipeline, {"guidance": "embedded"}, "embedded is not for .*, which takes none or true"),
        (lambda: small_klein_pipeline(is_distilled=True), {"guidance": True}, "true is not for .*, which takes none"),
        (small_z_image_pipeline, {"guidance_scale": 3.0}, "guidance_scale: nothing reads it without guidance"),
        (small_z_image_pipeline, {"negative_caption": "blur"}, "negative_caption: only true guidance reads it"),
        (lambda: small_sd_pipeline(in_channels=4), {"step_rule": "dance"}, "step_rule: dance is for flow matching"),
    ],
)
def test_settings_that_a_model_does_not_take_are_refused_before_it_is_loaded(
    build: Callable[[], Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    build().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        plan_steps(ModelConfig(path=str(tmp_path), **settings), 4)


def test_true_guidance_and_step_rule_are_taken_from_the_configuration(tmp_path: Path) -> None:
    small_z_image_pipeline().save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), device="cpu", guidance="true", negative_caption="blur", step_rule="dance")
    policy = load_policy(config)
    assert policy.guidance is not None
    assert policy.guidance.scale == 5.0
    assert torch.equal(policy.guidance.negative.embedding, policy.family.embed("blur").embedding)
    schedule = policy.family.schedule(4, (8, 8))
    assert isinstance(schedule, FlowSchedule)
    assert schedule.rule == "dance"
    assert load_policy(config.model_copy(update={"guidance_scale": 0.0})).guidance is None, "Z-Image's scale of none"


def test_true_guidance_needs_a_caption_for_every_prompt() -> None:
    config = ModelConfig(guidance="true")
    check_guided_captions(config, {"a": "a cat"})
    check_guided_captions(ModelConfig(), {"a": ""})
    with pytest.raises(UserError, match="prompt b has none; cut the prompts with --captions"):
        check_guided_captions(config, {"a": "a cat", "b": " "})
