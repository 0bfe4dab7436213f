"""Command `novel-view`: a photograph seen from elsewhere, with what is behind things in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from rlhf.config.run_config import RunConfig
    from rlhf.views.novel_view import Fill

DepthKind = Literal["depth", "disparity"]
Photograph = Annotated[Path, typer.Argument(help="Photograph.")]
DepthFile = Annotated[Path | None, typer.Option(help="Depth map: .npy, .npz, .pfm or grey .png.")]
DepthModel = Annotated[
    str | None, typer.Option(help="Depth estimator of transformers instead: a folder or a hub name.")
]
GivenKind = Annotated[
    DepthKind | None,
    typer.Option(help="Content of the file (default: depth) or output of the model (default: its known kind)."),
]
FocalPx = Annotated[float | None, typer.Option(help="Focal length in pixels; default: the photograph's width.")]
Baseline = Annotated[float, typer.Option(help="Disparity only: distance of the two cameras, in any unit.")]
OffsetPx = Annotated[float, typer.Option(help="Disparity only: difference of the principal points in pixels.")]
MendDepth = Annotated[bool, typer.Option("--mend-depth", help="Fill unknown depth from its surroundings.")]
HaloPx = Annotated[
    int, typer.Option(min=0, max=64, help="Pixels beside the depth map's edges that still show the object.")
]
Yaw = Annotated[float, typer.Option(help="Degrees; a positive angle looks from the right.")]
Pitch = Annotated[float, typer.Option(help="Degrees; a positive angle looks from above.")]
Roll = Annotated[float, typer.Option(help="Degrees; tilts the picture.")]
Shift = Annotated[tuple[float, float, float], typer.Option(help="Right, down, forward, as shares of the median depth.")]
PathOption = Annotated[
    Literal["arc", "swing"],
    typer.Option(help="Moving picture: to the pose and back, or also to the opposite pose."),
]
Frames = Annotated[int, typer.Option(min=2, max=500, help="Number of frames of the moving picture.")]
PolicyFolder = Annotated[
    Path | None, typer.Option(help="Policy that paints: a run, policy folder or pipeline; default: the base model.")
]
Samples = Annotated[int, typer.Option(min=1, max=64, help="Number of pictures of the view.")]


def novel_view(
    image: Photograph,
    out: Out,
    depth: DepthFile = None,
    depth_model: DepthModel = None,
    depth_kind: GivenKind = None,
    focal_px: FocalPx = None,
    baseline: Baseline = 1.0,
    offset_px: OffsetPx = 0.0,
    mend_depth: MendDepth = False,
    halo_px: HaloPx = 2,
    yaw: Yaw = 0.0,
    pitch: Pitch = 0.0,
    roll: Roll = 0.0,
    shift: Shift = (0.0, 0.0, 0.0),
    path: PathOption = "arc",
    frames: Frames = 24,
    policy: PolicyFolder = None,
    samples: Samples = 1,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """See a photograph with depth from elsewhere: warp, fill, move along a path, fuse into a point cloud."""
    resolved = resolve_config(config, overrides)
    _check_depth_options(depth, depth_model, focal_px, baseline)
    from rlhf.views.novel_view import PathSettings, Pose, check_pose, make_novel_views

    pose, way = Pose(yaw_deg=yaw, pitch_deg=pitch, roll_deg=roll, shift=shift), PathSettings(kind=path, frames=frames)
    check_pose(pose)
    lens = {"focal_px": focal_px, "baseline": baseline, "offset_px": offset_px, "is_mended": mend_depth}
    rgb, distances = _read(image, depth, depth_model, depth_kind, lens, resolved.model.device)
    fill, painter = _open_painter(resolved, policy, samples)
    notes = {"image": str(image), "depth_from": str(depth or depth_model), **painter}
    save_config(resolved, out)
    made = make_novel_views(rgb, distances, pose, fill, out, focal_px=focal_px, halo_px=halo_px, path=way, notes=notes)
    files = ", ".join(filter(None, ["view.png", "path.gif", made.mp4]))
    print(f"{files} and cloud.ply ({made.cloud_points} points) in {out}; ", end="")
    print(f"{made.hole_share[0]:.1%} of the view were hidden and are filled")


def _check_depth_options(depth: Path | None, depth_model: str | None, focal_px: float | None, baseline: float) -> None:
    if (depth is None) == (depth_model is None):
        raise UserError("novel-view: give a depth map with --depth, or an estimator with --depth-model")
    for name, value in (("--focal-px", focal_px), ("--baseline", baseline)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name}: {value:g}; it is a length, finite and above 0")


def _read(
    image: Path, depth: Path | None, depth_model: str | None, kind: DepthKind | None, lens: dict[str, Any], device: str
) -> "tuple[np.ndarray, np.ndarray]":
    """Returns the photograph, uint8 [H, W, 3], and its depth, float64 [H, W]."""
    import numpy as np

    from rlhf.storage.images import decode_image
    from rlhf.views.depth import DepthSource, read_depth
    from rlhf.views.depth_estimation import estimate_depth

    photograph = decode_image(image)
    if depth is None:
        return np.asarray(photograph), estimate_depth(photograph, str(depth_model), kind=kind, device=device)
    lens = lens | {"focal_px": lens["focal_px"] or float(photograph.width)}
    return np.asarray(photograph), read_depth(depth, photograph.size, DepthSource(kind=kind or "depth", **lens))


def _open_painter(config: "RunConfig", policy: Path | None, samples: int) -> "tuple[Fill, dict[str, object]]":
    """Returns the function that fills holes, and its description for `novel_view.json`."""
    from rlhf.diffusion.policy import load_policy
    from rlhf.diffusion.policy_manifest import locate_policy
    from rlhf.views.novel_view import paint_with

    model = load_policy(*locate_policy(config.model, policy))
    steps = config.evaluate.num_inference_steps
    about = {"policy": str(policy or "base model"), "policy_version": model.version, "seed": config.seed}
    fill = paint_with(model, num_inference_steps=steps, seed=config.seed, samples=samples)
    return fill, about | {"num_inference_steps": steps}
