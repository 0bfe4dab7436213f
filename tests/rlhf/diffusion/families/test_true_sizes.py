"""The published models at their true size, without memory for their weights."""

import pytest
import torch

from rlhf.alignment.disk_need import count_trained
from rlhf.config.run_config import AlignConfig, ModelConfig
from rlhf.diffusion.families.open_family import UNGUARDED, default_lora_targets, open_family
from rlhf.diffusion.families.written_down import WRITTEN, find_written, read_written
from rlhf.diffusion.policy import Policy

MODELS = read_written()
BIG = ("flux", "flux-kontext", "qwen-image", "qwen-image-edit", "sd3.5-large", "z-image", "sdxl")
"""They take seconds to build, and are like another."""
META = torch.device("meta")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in BIG else []) for name in MODELS]
)
def test_networks_have_the_published_number_of_parameters_and_all_default_lora_targets(name: str) -> None:
    place = WRITTEN / name
    family = open_family(ModelConfig(), place, META, frozenset())
    count = sum(tensor.numel() for tensor in family.network.parameters())
    assert MODELS[name].parameters is None or count == pytest.approx(MODELS[name].parameters, rel=0.01)
    names = [module for module, _ in family.network.named_modules()]
    for target in default_lora_targets(place):
        assert any(module.endswith(f".{target}") for module in names), target
    assert 0 < count_trained(str(place), AlignConfig(lora_rank=16)) < 0.02 * count
    text = family.longest_text()
    cells = (family.native_cells // 8, family.native_cells // 8)
    latents = torch.empty(1, *family.latent_shape(*cells), device=META)
    condition = family.join_condition(torch.empty(1, 1, *cells, device=META), latents)
    policy = Policy(family=family, text=text, device=META, precision="fp32", name=name)
    assert policy.predict(latents, torch.zeros(1, device=META), condition).shape == latents.shape


def test_a_model_is_found_by_its_short_name_and_its_names_on_the_hub() -> None:
    for name, model in MODELS.items():
        assert find_written(name) == WRITTEN / name
        assert all(find_written(hub) == WRITTEN / name for hub in model.hub)
        assert (WRITTEN / name / "model_index.json").is_file()
        assert model.licence
    assert find_written("someone/else") is None


def test_shapes_alone_need_no_weights_but_weights_need_them(tmp_path: object) -> None:
    with pytest.raises(Exception, match="no whole weights"):
        open_family(ModelConfig(), WRITTEN / "stable-diffusion-v1-5", torch.device("cpu"), UNGUARDED)
