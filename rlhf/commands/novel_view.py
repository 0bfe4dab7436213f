"""New views of a photograph, and of what is behind things in it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf.commands.options import Config, Out, Overrides, resolve_config, save_config
from rlhf.errors import UserError


def novel_view(
    image: Annotated[Path, typer.Argument(help="Photograph.")],
    out: Out,
    depth: Annotated[Path | None, typer.Option(help="Depth map: .npy, .npz, .pfm or grey .png.")] = None,
    depth_model: Annotated[
        str | None, typer.Option(help="Depth estimator of transformers instead: a folder or a hub name.")
    ] = None,
    depth_kind: Annotated[
        Literal["depth", "disparity"] | None,
        typer.Option(
            help="What the file holds (default: depth), or the model predicts (default: what it is known to)."
        ),
    ] = None,
    focal_px: Annotated[float | None, typer.Option(help="Focal length; default: the photograph's width.")] = None,
    baseline: Annotated[float, typer.Option(help="Of disparities: distance of the cameras, in any unit.")] = 1.0,
    offset_px: Annotated[float, typer.Option(help="Of disparities: difference of the principal points.")] = 0.0,
    mend_depth: Annotated[
        bool, typer.Option("--mend-depth", help="Take unknown depth from what lies around it.")
    ] = False,
    halo_px: Annotated[
        int,
        typer.Option(min=0, max=64, help="Pixels beside the depth map's edges that still show the object."),
    ] = 2,
    yaw: Annotated[float, typer.Option(help="Degrees; above 0 looks from the right.")] = 0.0,
    pitch: Annotated[float, typer.Option(help="Degrees; above 0 looks from above.")] = 0.0,
    roll: Annotated[float, typer.Option(help="Degrees; tilts the picture.")] = 0.0,
    shift: Annotated[
        tuple[float, float, float], typer.Option(help="Right, down, forward, as shares of the median depth.")
    ] = (0.0, 0.0, 0.0),
    path: Annotated[
        Literal["arc", "swing"], typer.Option(help="Moving picture: to the pose and back, or also to its opposite.")
    ] = "arc",
    frames: Annotated[int, typer.Option(min=2, max=500, help="Of the moving picture.")] = 24,
    policy: Annotated[
        Path | None, typer.Option(help="Who paints: a run, policy folder or pipeline; default: the base model.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Pictures of the view.")] = 1,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """See a photograph with depth from elsewhere: warp, fill, move along a path, fuse into a point cloud."""
    resolved = resolve_config(config, overrides)
    if (depth is None) == (depth_model is None):
        raise UserError("novel-view: give a depth map with --depth, or an estimator with --depth-model")
    for name, value in (("--focal-px", focal_px), ("--baseline", baseline)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{name}: {value:g}; it is a length, finite and above 0")
    from rlhf.views.novel_view import PathSettings, Pose, check_pose, make_novel_views, paint_with

    pose = Pose(yaw_deg=yaw, pitch_deg=pitch, roll_deg=roll, shift=shift)
    check_pose(pose)
    import numpy as np

    from rlhf.diffusion.policy import load_policy
    from rlhf.diffusion.policy_folders import locate_policy
    from rlhf.storage.images import decode_image
    from rlhf.views.depth import DepthSource, read_depth
    from rlhf.views.depth_estimation import estimate_depth

    photograph = decode_image(image)
    kind, focal = depth_kind or "depth", focal_px or float(photograph.width)
    source = DepthSource(kind=kind, focal_px=focal, baseline=baseline, offset_px=offset_px, is_mended=mend_depth)
    distances = (
        read_depth(depth, photograph.size, source)
        if depth is not None
        else estimate_depth(photograph, str(depth_model), kind=depth_kind, device=resolved.model.device)
    )
    model = load_policy(*locate_policy(resolved.model, policy))
    save_config(resolved, out)
    steps = resolved.evaluate.num_inference_steps
    fill = paint_with(model, num_inference_steps=steps, seed=resolved.seed, samples=samples)
    notes = {"image": str(image), "depth_from": str(depth or depth_model), "policy": str(policy or "base model")}
    record = make_novel_views(
        np.asarray(photograph),
        distances,
        pose,
        fill,
        out,
        focal_px=focal_px,
        halo_px=halo_px,
        path=PathSettings(kind=path, frames=frames),
        notes=notes | {"policy_version": model.version, "seed": resolved.seed, "num_inference_steps": steps},
    )
    without = "" if record["mp4"] == "path.mp4" else f" ({record['mp4']})"
    print(
        f"view.png, path.gif and cloud.ply ({record['cloud_points']} points) in {out}{without}; "
        f"{record['hole_share'][0]:.1%} of the view were hidden and are filled"
    )
