import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_painting import policy_of, prompt_of
from small_qwen import small_qwen_edit_pipeline

from rlhf.config.run_config import ModelConfig
from rlhf.diffusion.families.qwen_edit import QwenImageEdit
from rlhf.diffusion.policy import export_policy, load_policy
from rlhf.diffusion.policy_weights import save_policy
from rlhf.errors import UserError


def test_an_embedding_depends_on_the_known_pixels_and_not_on_what_lay_in_the_hole() -> None:
    policy, prompt = policy_of(QwenImageEdit(small_qwen_edit_pipeline())), prompt_of(64, 64, seed=1)
    hole = prompt.mask.expand_as(prompt.image) > 0.5
    asked = [
        replace(prompt, caption="a cat"),
        replace(prompt, caption="a cat", image=torch.where(hole, -prompt.image, prompt.image)),
        replace(prompt, caption="a cat", image=torch.where(hole, prompt.image, -prompt.image)),
        replace(prompt, caption=""),
    ]
    first, other_hole, other_picture, other_text = (policy.embed([one]).embedding for one in asked)
    assert torch.equal(first, other_hole)
    assert not torch.equal(first, other_picture)
    assert first.shape != other_text.shape


def test_an_exported_folder_names_the_class_of_its_processor_and_has_its_files(tmp_path: Path) -> None:
    model = tmp_path / "model"
    small_qwen_edit_pipeline().save_pretrained(model)
    config = ModelConfig(path=str(model), device="cpu")
    family = load_policy(config).family
    weights = dict(family.network.named_parameters())
    save_policy(family, weights, tmp_path / "policy", version=1, trainable="full", base=str(model))
    out = export_policy(config, tmp_path / "policy", tmp_path / "out")
    assert json.loads((out / "model_index.json").read_text())["processor"] == ["transformers", "Qwen2VLProcessor"]
    files = {path.name: path.read_bytes() for path in (model / "processor").iterdir()}
    assert {path.name: path.read_bytes() for path in (out / "processor").iterdir()} == files


def test_a_damaged_processor_is_refused_by_folder(tmp_path: Path) -> None:
    small_qwen_edit_pipeline().save_pretrained(tmp_path)
    (tmp_path / "processor" / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match=r"processor: no whole Qwen2VLProcessor \(.*fetch the model again"):
        load_policy(ModelConfig(path=str(tmp_path), device="cpu"))
