"""Changes of a picture and its mask that leave its marks as they are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A change of pictures; the default changes nothing."""

    mirrored: bool = False
    """Left and right."""
    upside_down: bool = False
    transposed: bool = False
    colours: tuple[int, int, int] = (0, 1, 2)
    """Order of the colour channels."""
    inverted: bool = False
    """Light and dark."""

    @property
    def label(self) -> str:
        """Name in files."""
        flags = (self.mirrored, self.upside_down, self.transposed, self.inverted)
        return "".join(str(int(flag)) for flag in flags) + "-" + "".join(map(str, self.colours))

    def apply(self, images: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Changes images [B, 3, H, W] and masks [B, 1, H, W]."""
        if self.mirrored:
            images, masks = images.flip(-1), masks.flip(-1)
        if self.upside_down:
            images, masks = images.flip(-2), masks.flip(-2)
        if self.transposed:
            images, masks = images.transpose(-1, -2), masks.transpose(-1, -2)
        if self.colours != (0, 1, 2):
            images = images[:, list(self.colours)]
        if self.inverted:
            images = -images
        return images, masks


PLAIN = Augmentation()


def draw_augmentation(strength: str, generator: torch.Generator) -> Augmentation:
    """Draws one: `mirror` mirrors or not; `strong` also turns, swaps colours and inverts them."""
    coins = (torch.rand(5, generator=generator) < 0.5).tolist()
    red, green, blue = torch.randperm(3, generator=generator).tolist()
    if strength != "strong":
        return Augmentation(mirrored=coins[0])
    return Augmentation(
        mirrored=coins[0],
        upside_down=coins[1],
        transposed=coins[2],
        colours=(red, green, blue) if coins[3] else (0, 1, 2),
        inverted=coins[4],
    )
