"""Published rewards, with tiny random weights of the same classes: sums, texts, and folders of another kind."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pickled_commands import Command
from safetensors.torch import save_file
from small_parts import small_prompts
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

from rlhf.config.reward_entry import RewardEntry
from rlhf.diffusion.builtin.text_parts import build_text_encoder, build_tokenizer
from rlhf.errors import UserError
from rlhf.rewards.aesthetic import AestheticHead
from rlhf.rewards.clip_model import clip_pixels
from rlhf.rewards.open_reward import build_reward
from rlhf.rewards.scores import Scores

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "a dog", "a cat", "rain"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random CLIPModel of one layer, as `save_pretrained` writes it, with its tokenizer."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=12,
    )
    text = build_text_encoder().config
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    prompts = small_prompts(4)
    return torch.stack([p.image for p in prompts]), torch.stack([p.mask for p in prompts])


def score(captions: list[str], **entry: object) -> Scores:
    return build_reward(RewardEntry(**entry), None, CPU).score(*batch(), captions)


def test_clip_score_is_a_hundred_times_the_cosine_and_pick_score_the_logit(clip: str) -> None:
    model, tokens = CLIPModel.from_pretrained(clip), build_tokenizer()(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**tokens, pixel_values=clip_pixels(batch()[0], 16)).logits_per_image.diagonal().double()
    cosine = logits / model.logit_scale.exp().item()
    for kind, expected in (("clip_score", 100 * cosine), ("pick_score", logits), ("hpsv2", cosine)):
        scores = score(CAPTIONS, kind=kind, path=clip)
        assert torch.allclose(scores.reward, expected, atol=1e-4), kind
        assert scores.trust_weight is None
    assert cosine.std() > 1e-4


def test_the_text_counts_and_a_fixed_one_replaces_the_captions(clip: str) -> None:
    fixed = score([""] * 4, kind="clip_score", path=clip, text="a cat").reward
    assert torch.allclose(fixed, score(["a cat"] * 4, kind="clip_score", path=clip).reward)
    assert not torch.allclose(fixed, score(["a dog"] * 4, kind="clip_score", path=clip).reward)


def test_a_text_longer_than_the_model_reads_is_cut(clip: str) -> None:
    assert score(["word " * 100] * 4, kind="clip_score", path=clip).reward.isfinite().all()


def test_an_empty_caption_is_refused(clip: str) -> None:
    with pytest.raises(UserError, match="caption 2 of 4 is empty; .*set a fixed `text` for clip_score"):
        score(["a", "b", " ", "d"], kind="clip_score", path=clip)


def test_weights_of_another_architecture_are_refused_and_not_filled_with_noise(clip: str, tmp_path: Path) -> None:
    build_text_encoder().save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="reward pick_score: .*no CLIPModel could be loaded .*tensors are missing"):
        score(CAPTIONS, kind="pick_score", path=str(tmp_path / "text"))
    with pytest.raises(UserError, match="no CLIPModel could be loaded"):
        score(CAPTIONS, kind="clip_score", path=str(tmp_path))
    with pytest.raises(UserError, match="no CLIPModel could be loaded"):
        score(CAPTIONS, kind="pick_score", path="no-such-name/on-the-hub")


def test_a_model_without_its_tokenizer_says_so(clip: str, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        score(CAPTIONS, kind="clip_score", path=str(tmp_path))


def test_pixels_are_normalised_as_clip_was_trained() -> None:
    grey = clip_pixels(torch.zeros(1, 3, 32, 32), 16)
    assert grey.shape == (1, 3, 16, 16)
    expected = (0.5 - torch.tensor([0.4815, 0.4578, 0.4082])) / torch.tensor([0.2686, 0.2613, 0.2758])
    assert torch.allclose(grey[0, :, 0, 0], expected, atol=1e-3)


def test_the_published_head_has_its_published_keys() -> None:
    shapes = {name: tuple(t.shape) for name, t in AestheticHead().state_dict().items() if "weight" in name}
    assert shapes == {
        "layers.0.weight": (1024, 768),
        "layers.2.weight": (128, 1024),
        "layers.4.weight": (64, 128),
        "layers.6.weight": (16, 64),
        "layers.7.weight": (1, 16),
    }


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_aesthetic_is_the_head_on_the_normalised_embedding(clip: str, tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(4)
    head = AestheticHead(12).eval()
    file = tmp_path / f"head{suffix}"
    if suffix == ".pth":
        torch.save(head.state_dict(), file)
    else:
        save_file(head.state_dict(), file)
    for place in (file, tmp_path):
        reward = score([""] * 4, kind="aesthetic", path=str(place), tower=clip).reward
        with torch.no_grad():
            embedded = CLIPModel.from_pretrained(clip).get_image_features(clip_pixels(batch()[0], 16)).pooler_output
            expected = head(embedded / embedded.norm(dim=1, keepdim=True)).double()
        assert torch.allclose(reward, expected, atol=1e-6)


def test_a_head_that_does_not_fit_is_refused(clip: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds 0 files of weights"):
        score([""] * 4, kind="aesthetic", path=str(tmp_path), tower=clip)
    torch.save(AestheticHead(768).state_dict(), tmp_path / "head.pth")
    with pytest.raises(UserError, match=r"head\.pth is not the aesthetic MLP that fits"):
        score([""] * 4, kind="aesthetic", path=str(tmp_path), tower=clip)
    (tmp_path / "head.pth").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"head\.pth: holds more than tensors.*set `path` of reward aesthetic"):
        score([""] * 4, kind="aesthetic", path=str(tmp_path), tower=clip)
    with pytest.raises(UserError, match="neither a folder nor on the hub"):
        score([""] * 4, kind="aesthetic", path="no-such-name/on-the-hub", tower=clip)


@pytest.mark.parametrize(("kind", "package"), [("hpsv2", "hpsv2"), ("image_reward", "image-reward")])
def test_a_package_that_is_missing_says_what_to_install(kind: str, package: str) -> None:
    with pytest.raises(UserError, match=f"reward {kind}: needs the package {package}.*`pip install {package}`"):
        score(CAPTIONS, kind=kind)


PACKAGES = {
    "ImageReward.py": """
class Model:
    def score(self, text, image): return len(text) + image.getpixel((0, 0))[0] / 255
def load(name, device): return Model()
""",
    "hpsv2.py": """
def score(images, text, hps_version): return [len(text) + i.getpixel((0, 0))[0] / 255 for i in images]
""",
}


@pytest.mark.parametrize(("kind", "module"), [("image_reward", "ImageReward.py"), ("hpsv2", "hpsv2.py")])
def test_packages_get_each_image_with_its_own_text(
    kind: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / module).write_text(PACKAGES[module])
    monkeypatch.syspath_prepend(str(tmp_path))
    first = (batch()[0][:, 0, 0, 0].double() + 1) / 2
    expected = first + torch.tensor([float(len(c)) for c in CAPTIONS]).double()
    assert torch.allclose(score(CAPTIONS, kind=kind).reward, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["image_reward", "hpsv2"])
def test_a_packages_weights_run_nothing(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, weights = tmp_path / "trace", tmp_path / "weights.pt"
    torch.save(Command(f"touch {trace}"), weights)

    def load(*_: object, **__: object) -> None:
        torch.load(weights, weights_only=False)

    package = SimpleNamespace(load=load, score=load)
    monkeypatch.setitem(sys.modules, "ImageReward" if kind == "image_reward" else kind, package)
    with pytest.raises(UserError, match=f"reward {kind}"):
        score(CAPTIONS, kind=kind)
    assert not trace.exists()
