"""Estimates depth with a depth estimator of transformers, from a folder or the hub."""

from typing import Any

import numpy as np
from PIL import Image

from rlhf.data.networks.pretrained import load_whole
from rlhf.errors import UserError
from rlhf.views.depth import Kind, check_depth
from rlhf.views.surfaces import sharpen_edges

PREDICTS: dict[str, Kind] = {
    "depth_pro": "depth",
    "dpt": "disparity",
    "glpn": "depth",
    "zoedepth": "depth",
    "tipsv2_dpt": "depth",
    "chmv2": "depth",
}
"""Predicted quantity by model type; Depth Anything's configuration states it."""
NEAREST, FARTHEST = 1.0, 6.0
"""Depths assigned to the ends of a relative prediction, which has neither unit nor zero."""


def estimate_depth(image: Image.Image, name: str, *, kind: Kind | None = None, device: str = "auto") -> np.ndarray:
    """Estimates the depth of a picture, float64 [H, W], and sharpens its blurred edges.

    `name` is a folder or a hub name. A metric prediction stays unchanged; a relative prediction is inverse depth up to
    scale and shift, and is mapped between NEAREST and FARTHEST. `kind` overrides the known quantity of the model.
    Raises UserError if the model cannot be opened, lacks weights, or predicts invalid depth.
    """
    import torch
    from torch.nn.functional import interpolate

    from rlhf.config.devices import resolve_device

    processor, model = _open_estimator(name)
    predicted = kind or _prediction_of(model.config, name)
    model = model.to(resolve_device(device)).eval()
    inputs = processor(images=image, return_tensors="pt").to(model.device)
    with torch.no_grad():
        output = model(**inputs).predicted_depth
    output = interpolate(output[None].float(), size=image.size[::-1], mode="bilinear", align_corners=False)[0, 0]
    values = output.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise UserError(f"{name}: predicts numbers that are not finite; it may lack weights")
    if predicted == "depth":
        return sharpen_edges(check_depth(values, name))
    return sharpen_edges(_place_relative(values, name))


def _open_estimator(name: str) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = load_whole(AutoModelForDepthEstimation, name)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: not a depth estimator with its weights ({reason}); name a folder or hub name that "
            "AutoModelForDepthEstimation opens, or give a depth map with --depth"
        ) from error
    return processor, model


def _prediction_of(config: Any, name: str) -> Kind:
    """Returns the quantity that a model predicts; raises UserError if its type is unknown."""
    if hasattr(config, "depth_estimation_type"):
        return "depth" if config.depth_estimation_type == "metric" else "disparity"
    if config.model_type not in PREDICTS:
        raise UserError(
            f"{name}: predicts an unknown quantity (model type {config.model_type}); say which with --depth-kind"
        )
    return PREDICTS[config.model_type]


def _place_relative(values: np.ndarray, name: str) -> np.ndarray:
    """Maps inverse depth up to scale and shift to depth between NEAREST and FARTHEST."""
    low, high = values.min(), values.max()
    if high - low <= 1e-9 * max(abs(high), 1e-9):
        raise UserError(f"{name}: predicts the same depth everywhere; it may lack weights")
    share = (values - low) / (high - low)
    return 1 / (1 / FARTHEST + share * (1 / NEAREST - 1 / FARTHEST))
