"""PrefPaint's released network from a checkpoint: the same numbers as its formulas, and every key accounted for."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_annotations import make_world
from small_checkpoint import SMALL, TRUE, Weights, reference_features, release_state

from rlhf.config.run_config import RewardConfig
from rlhf.errors import UserError
from rlhf.rewards.learned.backbones.prefpaint_backbone import HOLE_VALUE, load_prefpaint_network
from rlhf.rewards.learned.feature_network import FeatureNetwork, build_backbone
from rlhf.rewards.learned.reward_folder import load_reward
from rlhf.rewards.learned.reward_training import train_reward
from rlhf.storage.images import image_to_tensor


def save(state: Weights, path: Path) -> Path:
    torch.save(state, path)
    return path


def batch(count: int = 3, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    masks = torch.zeros(count, 1, size, size)
    masks[:, :, size // 4 : size // 2, size // 8 :] = 1
    return images, masks


def clip_input(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1], already of CLIP's size, as CLIP normalises them."""
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]


def check_against_the_reference(sizes: dict[str, int], path: Path, count: int) -> None:
    state = release_state(sizes)
    backbone, weight = load_prefpaint_network(save(state, path))
    images, masks = batch(count, sizes["image"])
    with torch.no_grad():
        features = backbone(images, masks)
    masked = torch.where(masks > 0.5, torch.tensor(HOLE_VALUE), images)
    expected = reference_features(state, clip_input(images), clip_input(masked))
    assert features.shape == (count, sizes["features"]) == (count, backbone.output_dim)
    torch.testing.assert_close(features.double(), expected, atol=2e-4, rtol=2e-4)
    assert features.std() > 0.05, "the comparison would else be of nothing"
    assert torch.equal(weight, state["mlp.last_layer.weight"][0])


def test_features_are_those_of_the_formulas(tmp_path: Path) -> None:
    check_against_the_reference(SMALL, tmp_path / "c.pt", 3)


@pytest.mark.slow
def test_features_are_those_of_the_formulas_at_the_true_size(tmp_path: Path) -> None:
    check_against_the_reference(TRUE, tmp_path / "c.pt", 1)


def test_pixels_are_resampled_as_pil_does(tmp_path: Path) -> None:
    backbone, _ = load_prefpaint_network(save(release_state(), tmp_path / "c.pt"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    wanted = clip_input(image_to_tensor(image.resize((32, 32), Image.Resampling.BICUBIC))[None])
    got = backbone.clip.pixels(image_to_tensor(image)[None])
    assert (got - wanted).abs().max() < 1.5 / 255 / 0.26, "to within PIL's rounding"


def test_prefix_precision_and_format_do_not_matter(tmp_path: Path) -> None:
    state = release_state()
    backbone, weight = load_prefpaint_network(save(state, tmp_path / "c.pt"))
    halves = {f"module.{name}": value.bfloat16().float().half() for name, value in state.items()}
    rounded, _ = load_prefpaint_network(save({n: v.bfloat16().float() for n, v in state.items()}, tmp_path / "r.pt"))
    prefixed, _ = load_prefpaint_network(save(halves, tmp_path / "h.pth"))
    without_alias = {name: value for name, value in state.items() if name != "mlp.last_layer_weight"}
    save_file(without_alias, tmp_path / "c.safetensors")
    safe, safe_weight = load_prefpaint_network(tmp_path / "c.safetensors")
    with torch.no_grad():
        assert torch.equal(safe(*batch()), backbone(*batch()))
        torch.testing.assert_close(prefixed(*batch()), rounded(*batch()), atol=2e-3, rtol=2e-3)
    assert torch.equal(weight, safe_weight)


def test_only_the_trained_copy_of_the_encoder_layer_is_used(tmp_path: Path) -> None:
    """torch.nn.TransformerEncoder copies the layer that it is given; the template stays as it was at the start."""
    template = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
    assert torch.nn.TransformerEncoder(template, num_layers=1).layers[0].linear1.weight is not template.linear1.weight
    state = release_state()
    with torch.no_grad():
        before = load_prefpaint_network(save(state, tmp_path / "a.pt"))[0](*batch())
        other = {n: v + 1 if n.startswith("vit_block.encoder_layer") else v for n, v in state.items()}
        assert torch.equal(load_prefpaint_network(save(other, tmp_path / "b.pt"))[0](*batch()), before)
        used = {n: v + 1 if n.endswith("layers.0.linear1.weight") else v for n, v in state.items()}
        assert not torch.equal(load_prefpaint_network(save(used, tmp_path / "c.pt"))[0](*batch()), before)


def test_every_visual_key_is_used(tmp_path: Path) -> None:
    """Each tensor of the image tower, the encoder layer and the head moves the features, or w."""
    state = release_state()
    backbone, _ = load_prefpaint_network(save(state, tmp_path / "a.pt"))
    names = dict(backbone.named_parameters())
    text = [n for n in state if n.startswith("clip_model.") and not n.startswith("clip_model.visual.")]
    unused = [*text, *(n for n in state if n.startswith("vit_block.encoder_layer."))]
    weights = ["mlp.last_layer.weight", "mlp.last_layer_weight"]
    packed = sum(n.startswith("clip_model.visual.") and ".in_proj_" in n for n in state)
    assert len(names) == len(state) - len(unused) - len(weights) + 2 * packed
    for parameter in names.values():
        parameter.requires_grad_(True)
    backbone(*batch()).square().sum().backward()
    # Queries and keys of a single token, and the bias of any key, move nothing.
    idle = {"block.self_attn.in_proj_weight", "block.self_attn.in_proj_bias"}
    moved = {n for n, p in names.items() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n for n in names.keys() - moved if "k_proj.bias" not in n} <= idle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"blip.visual_encoder.x": torch.ones(2)}, r"1 unknown keys \(blip\.visual_encoder\.x\)"),
        (lambda s: s | {"clip_model.visual.layer1.0.conv1.weight": torch.ones(2)}, "unknown keys .*layer1"),
        (lambda s: {n: v for n, v in s.items() if n != "clip_model.visual.proj"}, r"lacks clip_model\.visual\.proj"),
        (
            lambda s: {n: v for n, v in s.items() if "ln_post.bias" not in n},
            "do not fit .*post_layernorm.bias",
        ),
        (lambda s: {n: v for n, v in s.items() if "last_layer" not in n}, "last_layer.weight is missing"),
        (lambda s: s | {"mlp.last_layer_weight": torch.ones(1, 16)}, "ambiguous"),
        (lambda s: s | {"mlp.layers.2.bias": torch.ones(17)}, "do not fit together .*second.bias"),
        (lambda s: s | {"mlp.layers.0.bias": torch.full((24,), torch.nan)}, r"not finite \(mlp\.layers\.0\.bias\)"),
        (lambda s: {"epoch": 3, "model": s}, "holds no state dict"),
        (lambda s: [1, 2], "holds no state dict"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_by_key(tmp_path: Path, change, message: str) -> None:
    path = save(change(release_state()), tmp_path / "c.pt")
    with pytest.raises(UserError, match=rf"c\.pt: .*{message}"):
        load_prefpaint_network(path)


@pytest.mark.parametrize("name", ["c.pt", "c.pth", "c.safetensors"])
def test_a_damaged_or_absent_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_prefpaint_network(tmp_path / name)
    state = {n: v.clone() for n, v in release_state().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 7, 1000, len(whole) // 2):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match="holds more than tensors, or is damaged .*download"):
            load_prefpaint_network(tmp_path / name)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frozen_share_says_what_is_trained(tmp_path: Path, share: float) -> None:
    backbone = build_backbone(f"prefpaint-release:{save(release_state(), tmp_path / 'c.pt')}", share)
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    layers = {int(n.split("layers.")[1][0]) for n in trained if "encoder.layers." in n}
    assert layers == {0.0: {0, 1}, 0.5: {1}, 1.0: set()}[share]
    assert any("embeddings" in n for n in trained) == (share == 0)
    assert any(n.startswith("block") for n in trained) == (share < 1)


def test_it_is_a_backbone_of_our_own_feature_network_and_the_same_in_training(tmp_path: Path) -> None:
    backbone = build_backbone(f"prefpaint-release:{save(release_state(), tmp_path / 'c.pt')}")
    network = FeatureNetwork(backbone, 4)
    assert network(*batch(4)).shape == (4, 5)
    network.train()
    with torch.no_grad():
        torch.testing.assert_close(backbone(*batch()), backbone.eval()(*batch()), atol=1e-5, rtol=1e-5)


def test_a_reward_is_trained_on_the_frozen_release_and_opened_again(tmp_path: Path) -> None:
    path = save(release_state(), tmp_path / "c.pt")
    config = RewardConfig(
        backbone=f"prefpaint-release:{path}", frozen_share=1.0, feature_dim=12, epochs=10, decorrelation=1.0
    )
    prompts, candidates, annotations = make_world(18)
    train_reward(prompts, candidates, annotations, tmp_path / "reward", config, seed=0)
    scored = load_reward(tmp_path / "reward").score(*batch())
    assert torch.isfinite(scored.reward).all()
    assert (scored.lower < scored.upper).all()
