"""Statistics of a filled hole against its surroundings."""

import torch

from rlhf.rewards.learned.backbones.hole_statistics import COUNT, OCTAVES, hole_statistics

HOLE = (slice(None), slice(None), slice(24, 40), slice(16, 48))


def textured(amplitude: float, seed: int = 0, count: int = 4) -> torch.Tensor:
    noise = torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed))
    return (amplitude * noise).clamp(-1, 1).expand(-1, 3, -1, -1).contiguous()


def holes(count: int = 4) -> torch.Tensor:
    masks = torch.zeros(count, 1, 64, 64)
    masks[HOLE] = 1
    return masks


def split(statistics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jumps [B, 2 directions, 3 channels]; comparisons [B, octave, colour or texture, level/signed/absolute, 3]."""
    return statistics[:, :6].unflatten(1, (2, 3)), statistics[:, 6:].unflatten(1, (OCTAVES, 2, 3, 3))


def test_a_hole_filled_with_its_plain_surroundings_differs_in_nothing() -> None:
    images = torch.tensor([0.3, -0.2, 0.8]).view(1, 3, 1, 1).expand(4, 3, 64, 64)
    statistics = hole_statistics(images, holes())
    jumps, compared = split(statistics)
    assert statistics.shape == (4, COUNT)
    assert jumps.abs().max() < 1e-6
    assert compared[:, :, :, 1:].abs().max() < 1e-5
    luminance = 0.299 * 0.3 + 0.587 * -0.2 + 0.114 * 0.8
    torch.testing.assert_close(compared[:, :, 0, 0, 0], torch.full((4, OCTAVES), luminance))


def test_a_brighter_fill_jumps_and_differs_by_what_it_is_brighter() -> None:
    images = torch.zeros(4, 3, 64, 64)
    images[HOLE] = 0.25
    jumps, compared = split(hole_statistics(images, holes()))
    torch.testing.assert_close(jumps[:, :, 0], torch.full((4, 2), 0.25))
    torch.testing.assert_close(compared[:, :, 0, 1, 0], torch.full((4, OCTAVES), 0.25), atol=1e-6, rtol=0)
    assert jumps[:, :, 1:].abs().max() < 1e-6, "grey has no colour to jump"


def test_texture_is_missed_where_the_fill_is_smooth_and_noticed_where_it_is_rough() -> None:
    images, same = textured(0.1), textured(0.1)
    smooth, rough = images.clone(), images.clone()
    smooth[HOLE] = 0.0
    rough[HOLE] *= 3
    signed = [split(hole_statistics(x, holes()))[1][:, 0, 1, 1, 0] for x in (smooth, same, rough)]
    assert (signed[0] < -1).all()
    assert (signed[1].abs() < 0.2).all()
    assert (signed[2] > 0.5).all()


def test_brightness_leaves_the_texture_statistics_alone() -> None:
    images = textured(0.1)
    before, after = (split(hole_statistics(x, holes()))[1][:, :, 1] for x in (images, images + 0.3))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)


def test_mirroring_exchanges_nothing_and_turning_only_the_directions_of_the_jump() -> None:
    images, masks = textured(0.3), holes()
    statistics = hole_statistics(images, masks)
    torch.testing.assert_close(hole_statistics(images.flip(-1), masks.flip(-1)), statistics, atol=1e-5, rtol=1e-4)
    turned = hole_statistics(images.transpose(-1, -2), masks.transpose(-1, -2))
    torch.testing.assert_close(split(turned)[0].flip(1), split(statistics)[0])
    torch.testing.assert_close(turned[:, 6:], statistics[:, 6:], atol=1e-5, rtol=1e-4)


def test_the_expectation_comes_from_known_pixels_alone() -> None:
    images, other = textured(0.1), textured(0.1)
    other[HOLE] = textured(0.5, seed=1)[HOLE]
    first, second = (split(hole_statistics(x, holes()))[1] for x in (images, other))
    # On full size no cell of colours mixes the hole with what is known: level - signed difference is the expectation.
    expected = [x[:, 0, 0, 0] - x[:, 0, 0, 1] for x in (first, second)]
    torch.testing.assert_close(*expected, atol=1e-5, rtol=1e-4)


def test_a_hole_over_almost_everything_leaves_numbers_finite() -> None:
    masks = torch.ones(4, 1, 64, 64)
    masks[:, :, 0, 0] = 0
    assert hole_statistics(textured(0.5), masks).isfinite().all()
    assert hole_statistics(textured(0.5), 1 - masks).isfinite().all()
