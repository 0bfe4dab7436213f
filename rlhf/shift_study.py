"""Whether uncertainty rises where the reward has seen nothing alike: corruptions, other sources, other holes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from rlhf.reward_model import Reward

SEVERITIES = (1, 2, 3, 4)


def blur(images: torch.Tensor, severity: int) -> torch.Tensor:
    """`severity` passes of a 3x3 mean."""
    for _ in range(severity):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return images


def noise(images: torch.Tensor, severity: int) -> torch.Tensor:
    """Gaussian noise of standard deviation 0.1 x severity; images are 2 wide."""
    generator = torch.Generator().manual_seed(severity)
    return (images + 0.1 * severity * torch.randn(images.shape, generator=generator)).clamp(-1, 1)


def colour_cast(images: torch.Tensor, severity: int) -> torch.Tensor:
    """More red and less blue, by 0.15 x severity."""
    return (images + 0.15 * severity * torch.tensor([1.0, 0.0, -1.0])[:, None, None]).clamp(-1, 1)


def checkerboard(images: torch.Tensor, severity: int) -> torch.Tensor:
    """The pattern of transposed convolutions: single pixels lighter and darker in turn, by 0.1 x severity."""
    rows, columns = torch.arange(images.shape[-2]), torch.arange(images.shape[-1])
    sign = 1.0 - 2.0 * ((rows[:, None] + columns[None, :]) % 2)
    return (images + 0.1 * severity * sign).clamp(-1, 1)


CORRUPTIONS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "blur": blur,
    "noise": noise,
    "colour cast": colour_cast,
    "checkerboard": checkerboard,
}


def study_corruptions(model: Reward, images: torch.Tensor, masks: torch.Tensor) -> dict[str, list[dict[str, Any]]]:
    """Per corruption of the holes and severity (0 first): mean uncertainty and the share beyond the quantile.

    Shapes: images [N, 3, H, W] in [-1, 1], masks [N, 1, H, W]. Known pixels stay, as in inpainting.
    """
    table = {}
    for name, corrupt in CORRUPTIONS.items():
        rows = [_measure(model, images, masks, 0)]
        for severity in SEVERITIES:
            corrupted = torch.where(masks > 0.5, corrupt(images, severity), images)
            rows.append(_measure(model, corrupted, masks, severity))
        table[name] = rows
    return table


def _measure(model: Reward, images: torch.Tensor, masks: torch.Tensor, severity: int) -> dict[str, Any]:
    parts = [model.score(i, m) for i, m in zip(images.split(256), masks.split(256), strict=True)]
    outlying = [part.is_outlying for part in parts if part.is_outlying is not None]
    return {
        "severity": severity,
        "uncertainty": float(torch.cat([part.uncertainty for part in parts]).mean()),
        "ood_share": float(torch.cat(outlying).double().mean()) if outlying else None,
    }


def format_corruptions(table: dict[str, list[dict[str, Any]]]) -> str:
    """A line per corruption: mean uncertainty against that of clean fills, and the share beyond the quantile."""
    lines = [f"{'corruption':<14}" + "".join(f"{f'severity {s}':>20}" for s in (0, *SEVERITIES))]
    for name, rows in table.items():
        clean = rows[0]["uncertainty"]
        shares = ["" if r["ood_share"] is None else f" ({r['ood_share']:.0%} beyond)" for r in rows]
        cells = [f"{r['uncertainty'] / clean:.2f}{share}" for r, share in zip(rows, shares, strict=True)]
        lines.append(f"{name:<14}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
