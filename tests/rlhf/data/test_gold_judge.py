"""The gold judge orders fills as a person would who sees the picture and the hole, not the original.

The photographs are the demo's held-out ones, which trained neither the judge's network nor its probe.
"""

from functools import lru_cache

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.probes.fills import Place, continue_texture, cut
from rlhf.data.gold_judge import Utility, gold_utility
from rlhf.data.holes import FAMILIES, draw_hole
from rlhf.data.photographs import HELD_OUT
from rlhf.storage.images import composite, decode_image, list_photographs, mask_to_tensor

COUNT = 10
"""Photographs that an order is averaged over, out of the 24."""
KINDS = ("original", "continued", "other texture", "blurred", "smear", "mean colour", "noise")


@lru_cache
def places(family: str) -> list[Place]:
    """Windows of COUNT photographs with a hole each."""
    found = []
    for index, path in enumerate(list_photographs(HELD_OUT)[::2][:COUNT]):
        rng = np.random.default_rng([1, index])
        photograph = decode_image(path)
        window = (int(rng.integers(0, photograph.width - 160)), int(rng.integers(0, photograph.height - 160)), 160)
        mask = mask_to_tensor(draw_hole(family, rng, 64))
        found.append(
            Place(photograph=photograph, window=window, image=cut(photograph, *window), mask=mask, family=family)
        )
    return found


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(image.numpy(), (0, sigma, sigma)))


def fills(place: Place, other: Place) -> list[torch.Tensor]:
    image, known = place.image, 1 - place.mask
    smear = blur(image * known, 10) / blur(known, 10).clamp(min=1e-6)
    mean = ((image * known).sum((1, 2)) / known.sum()).view(3, 1, 1).expand_as(image)
    noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    continued = continue_texture(place, np.random.default_rng(0))
    return [image, continued, other.image, blur(image, 3), smear, mean, noise]


@lru_cache
def judged(family: str) -> Utility:
    """Marks of every place's fills, in the order of KINDS, place by place."""
    own = places(family)
    images = [composite(f, p.image, p.mask) for i, p in enumerate(own) for f in fills(p, own[i - 1])]
    masks = torch.stack([place.mask for place in own]).repeat_interleave(len(KINDS), 0)
    return gold_utility(torch.stack(images), masks)


def means(marks: torch.Tensor) -> dict[str, float]:
    return dict(zip(KINDS, marks.view(-1, len(KINDS)).mean(0).tolist(), strict=True))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fills_are_ordered_from_the_original_down_to_noise(family: str) -> None:
    found = means(judged(family).overall)
    assert list(found) == sorted(found, key=lambda kind: -found[kind]), found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_blur_costs_texture_and_foreign_content_costs_structure(family: str) -> None:
    texture, structure = means(judged(family).texture), means(judged(family).structure)
    assert texture["other texture"] > 2 * texture["blurred"]
    assert structure["blurred"] > structure["other texture"]


def test_the_stronger_the_blur_the_noise_or_the_shift_of_colour_the_lower_the_mark() -> None:
    own = places("box")
    masks = torch.stack([place.mask for place in own])
    noise = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))
    shift = torch.tensor([1.0, -0.5, 0.2]).view(3, 1, 1)
    for disturb in (
        lambda image, step: blur(image, (0.0, 0.8, 1.6, 3.0)[step]),
        lambda image, step: image + (0.0, 0.1, 0.25, 0.6)[step] * noise,
        lambda image, step: image + (0.0, 0.15, 0.35, 0.7)[step] * shift,
    ):
        marks = []
        for step in range(4):
            images = torch.stack([composite(disturb(p.image, step), p.image, p.mask) for p in own])
            marks.append(float(gold_utility(images, masks).overall.mean()))
        assert marks == sorted(marks, reverse=True), marks


def test_a_fill_judged_alone_or_in_a_batch_gets_the_same_mark() -> None:
    place = places("box")[0]
    images = torch.stack([place.image, blur(place.image, 2)])
    masks = place.mask.expand(2, -1, -1, -1)
    together = gold_utility(images, masks).overall
    alone = torch.cat([gold_utility(images[i : i + 1], masks[:1]).overall for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert ((together > 0) & (together < 1)).all()


def test_a_photograph_may_have_any_size() -> None:
    photograph = decode_image(list_photographs(HELD_OUT)[0])
    image = torch.from_numpy(np.array(photograph)).permute(2, 0, 1)[None] / 127.5 - 1
    mask = torch.zeros(1, 1, *image.shape[-2:])
    mask[..., 100:200, 100:200] = 1
    sharp, smooth = (
        float(gold_utility(composite(fill, image, mask), mask).overall) for fill in (image, blur(image[0], 12)[None])
    )
    assert sharp > smooth
