"""The published networks at their true size, without memory for their weights."""

import json
from pathlib import Path

import pytest

from rlhf.alignment.disk_need import count_trained
from rlhf.config.run_config import AlignConfig
from rlhf.diffusion.families.open_family import default_lora_targets, network_on_meta

MODELS = json.loads((Path(__file__).parents[4] / "benchmarks" / "true_sizes.json").read_text())
BIG = (
    *("black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3.5-large"),
    *("Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit"),
)
"""They take seconds to build."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in BIG else []) for name in MODELS]
)
def test_networks_have_the_published_number_of_parameters_and_all_default_lora_targets(
    name: str, tmp_path: Path
) -> None:
    model = MODELS[name]
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(model["transformer"]))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": model["pipeline"]}))
    network = network_on_meta(tmp_path)
    count = sum(tensor.numel() for tensor in network.parameters())
    assert count == pytest.approx(model["parameters"], rel=0.01)
    names = [module for module, _ in network.named_modules()]
    for target in default_lora_targets(tmp_path):
        assert any(module.endswith(f".{target}") for module in names), target
    assert 0 < count_trained(str(tmp_path), AlignConfig(lora_rank=16)) < 0.02 * count
