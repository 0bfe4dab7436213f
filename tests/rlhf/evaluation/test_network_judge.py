"""The held-out network: its marks on photographs that it never saw, its distance, and where it stands."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from rlhf.config.gate_config import GateConfig
from rlhf.data.networks.package_weights import RESNET50
from rlhf.data.networks.probe import Probe
from rlhf.data.networks.resnet50 import ResNet50Maps
from rlhf.data.photographs import HELD_OUT
from rlhf.data.prompts import Prompt
from rlhf.errors import UserError
from rlhf.evaluation.comparison_measures import list_measures, measure_prompts
from rlhf.evaluation.evaluation import compare
from rlhf.evaluation.judging import JUDGE, NETWORK_DISTANCE, Jury, judge_images
from rlhf.evaluation.network_judge import NAME, NetworkJudge, open_network_judge
from rlhf.promotion.gate_verdict import check_figures
from rlhf.rewards.seam import Seam
from rlhf.storage.images import composite, decode_image, image_to_tensor, list_photographs, to_8bit

needs_package = pytest.mark.skipif(not RESNET50.is_installed, reason="the extra `networks` is not installed")


def originals(count: int) -> torch.Tensor:
    photographs = [decode_image(path) for path in list_photographs(HELD_OUT)[:count]]
    return torch.stack([image_to_tensor(p.resize((64, 64), box=(0, 0, 200, 200))) for p in photographs])


def hole(count: int) -> torch.Tensor:
    masks = torch.zeros(count, 1, 64, 64)
    masks[..., 16:44, 16:44] = 1
    return masks


def blurred(images: torch.Tensor) -> torch.Tensor:
    return composite(torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, 3, 3))), images, hole(len(images)))


@needs_package
def test_originals_get_higher_marks_than_blurred_ones_and_noise_the_lowest() -> None:
    judge, images = open_network_judge(torch.device("cpu")), originals(8)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kinds = (images, blurred(images), composite(noise, images, hole(8)))
    true, smooth, noisy = (judge.score(kind, hole(8), [""] * 8).reward for kind in kinds)
    assert (true > smooth).float().mean() > 0.8
    assert true.mean() > 1.5 * smooth.mean()
    assert smooth.mean() > 2 * noisy.mean()


def random_judge() -> NetworkJudge:
    """A judge of random weights, which needs no package."""
    torch.manual_seed(0)
    size = 7 * (6 + sum(ResNet50Maps.channels))
    probe = Probe(mean=torch.zeros(size), std=torch.ones(size), weight=0.01 * torch.randn(size, 1), bias=torch.zeros(1))
    return NetworkJudge(maps=ResNet50Maps().eval(), probe=probe, device=torch.device("cpu"))


def prompts(images: torch.Tensor) -> list[Prompt]:
    return [
        Prompt(
            prompt_id=f"p{i}", photograph=f"{i}.png", source="s", hole="box", split="test", image=image, mask=hole(1)[0]
        )
        for i, image in enumerate(images)
    ]


def test_the_distance_is_0_for_the_original_and_lies_where_pictures_differ() -> None:
    judge, images = random_judge(), originals(2)
    assert float(judge.distance(images, images).max()) == 0
    found = judge.distance(blurred(images), images)
    assert found.shape == (2, 1, 64, 64)
    inside = (found * hole(2)).sum() / hole(2).sum()
    assert inside > 3 * found[..., :4, :4].mean()


def test_each_original_belongs_to_as_many_consecutive_images() -> None:
    judge, images = random_judge(), originals(4)
    found = judge.distance(images, images[::2])
    assert torch.equal(found, judge.distance(images.clone(), images[::2].repeat_interleave(2, dim=0)))


def test_mark_and_distance_of_the_same_pictures_run_the_network_once() -> None:
    judge, images = random_judge(), originals(2)
    seen: list[int] = []
    judge.maps.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    alone = judge.score(images.clone(), hole(2), [""] * 2)
    seen.clear()
    assert torch.equal(judge.score(images, hole(2), [""] * 2).reward, alone.reward)
    judge.distance(images, images[:1])
    assert seen == [2, 1]


def test_features_for_sets_have_a_row_per_picture() -> None:
    features = random_judge().describe(originals(3))
    assert features.shape == (3, ResNet50Maps.channels[-1])
    assert np.isfinite(features).all()


def test_the_network_stands_beside_the_gold_judge_in_marks_measures_and_gate() -> None:
    judge, images = random_judge(), originals(6)
    jury = Jury(reward=Seam(), judges={NAME: judge}, distance=judge.distance)
    own = prompts(images)
    base, aligned = (
        judge_images(to_8bit(kind)[:, None].expand(-1, 2, -1, -1, -1).contiguous(), own, jury)
        for kind in (blurred(images), images)
    )
    assert set(base.marks) == set(jury.marks)
    assert base.held_out == ["gold", JUDGE + NAME]
    assert aligned.marks[NETWORK_DISTANCE].max() == 0
    measures = list_measures(base.held_out, base.marks)
    assert {f"{JUDGE}{NAME}_win_1", NETWORK_DISTANCE} <= measures.keys()
    figures = measure_prompts(aligned, base, shares_noise=True)
    assert figures[NETWORK_DISTANCE].tolist() == [0.0] * 6
    assert f"{JUDGE}{NAME}_win_1" in figures
    gain = compare(base, aligned, own)
    assert gain.win_rate_network is not None
    assert 0 <= gain.win_rate_network.value <= 1
    assert gain.win_rate_independent == gain.win_rate, "both samples of a prompt are alike here"
    assert gain.win_rate_network_independent == gain.win_rate_network
    masks = torch.stack([prompt.mask for prompt in own]).expand(-1, 3, -1, -1) > 0.5
    levels = (to_8bit(images).float() - to_8bit(blurred(images)).float()).abs()
    changes = [float(levels[i][masks[i]].mean()) for i in range(6)]
    assert gain.hole_change is not None
    assert gain.hole_change.value == pytest.approx(np.mean(changes), rel=1e-5)
    checks = {check.figure: check for check in check_figures(gain, GateConfig())}
    assert checks["win_rate_network"].passed, "it is shown, and decides nothing"


def test_without_its_package_the_network_is_named_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.data.networks.package_weights.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"imgsim: .*prefpaint-ray\[networks\]"):
        open_network_judge(torch.device("cpu"))
