"""The known image for networks that do not read it: after each step its latents take their place outside the hole."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt


def extend_into_hole(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Images [B, 3, H, W] whose hole pixels (mask 1, [B, 1, H, W]) have the colour of the nearest known pixel.

    An encoder sees across the hole's border: this way the latents of known cells depend on known pixels alone, and not
    on what lay in the hole. An image without a known pixel stays as it is.
    """
    extended = images.clone()
    for i, mask in enumerate(masks[:, 0].cpu().numpy() >= 0.5):
        if not mask.all():
            rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
            extended[i] = images[i][:, torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(columns)]
    return extended


def hole_cells(masks: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """Masks [B, 1, H, W] in latent cells, [B, 1, h, w]: sampled as diffusers' pipelines do it (nearest).

    A hole that would vanish is held by every cell that it touches.
    """
    nearest = F.interpolate(masks, size=cells)
    vanished = nearest.flatten(1).sum(1).view(-1, 1, 1, 1) == 0
    return torch.where(vanished, F.adaptive_max_pool2d(masks, cells), nearest)
