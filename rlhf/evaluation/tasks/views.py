"""Compares new views of base and aligned model with the true right view of a stereo pair, and with synthetic scenes.

The stereo pair is one scene. Its intervals are over regions of the picture, all seeds of a region
together; they say how certain the figure is for this scene and nothing about others. Intervals of the synthetic scenes
are over scenes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_manifest import locate_policy
from rlhf.evaluation.classical_fills import fill_biharmonic, fill_with_opencv
from rlhf.evaluation.tasks.resplits import Settings, average, run_resplits
from rlhf.evaluation.tasks.scenes import measure_scene
from rlhf.evaluation.tasks.stereo_pair import REGIONS, StereoPair, judge_against_truth, load_motorcycle, psnr
from rlhf.evaluation.tasks.views_figures import draw_figure, format_table, tabulate
from rlhf.evaluation.tasks.views_records import (
    CloudFigures,
    FillFigures,
    PartFigures,
    RegionEstimate,
    RegionSums,
    ScenesSummary,
    ViewsSummary,
)
from rlhf.evaluation.tasks.views_sheets import draw_motorcycle, draw_scene
from rlhf.reports.intervals import Estimate, estimate_figure
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text
from rlhf.storage.images import save_png
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import Fill, paint_with
from rlhf.views.warping import Warped

SHRINKS = (1, 2)
"""Divisors of the pair's sides, and with them of its baseline in pixels."""
MODELS = ("base", "aligned")
NO_OPENCV = "Telea's and Navier-Stokes inpainting are left out: OpenCV is not installed (prefpaint-ray[fillers])"
SCENE_FIGURES = (
    "completeness",
    "accuracy",
    "precision",
    "added_accuracy",
    "added_precision",
    "reached",
    "psnr",
    "psnr_unseen",
)
"""Fields of CloudFigures that are summarised."""
PAIRS = (("aligned", "base"), ("aligned", "without"), ("aligned", "nearest background"), ("aligned", "biharmonic"))
"""Fillers whose differences are summarised."""
OpenFill = Callable[[str, int], Fill]
"""Returns the fill of `base` or `aligned` with a seed."""


def classical_fills() -> dict[str, Callable[[Warped], np.ndarray]]:
    """Returns the classical fills by name; those of OpenCV if it is installed."""
    fills: dict[str, Callable[[Warped], np.ndarray]] = {
        "nearest background": fill_with_nearest_background,
        "biharmonic": lambda warped: fill_biharmonic(warped.rgb, warped.hole),
    }
    if find_spec("cv2"):
        fills["telea"] = lambda warped: fill_with_opencv(warped.rgb, warped.hole, "telea")
        fills["navier_stokes"] = lambda warped: fill_with_opencv(warped.rgb, warped.hole, "navier-stokes")
    return fills


def evaluate_views(config: RunConfig, run: Path, out: Path, *, seeds: int = 5, scenes: int = 6) -> str:
    """Compares new views of the base model and the aligned one of `run`; returns the table for the terminal.

    Raises UserError as `study_views` does.
    """
    aligned_model, aligned = locate_policy(config.model, run)
    steps, seed = config.evaluate.num_inference_steps, config.seed

    @cache
    def open_policy(name: str) -> Policy:
        """Opens `base` or `aligned`, once each."""
        # An adapter has its own base model; a whole pipeline is compared with the configured model.
        base = aligned_model if aligned is not None else config.model
        return load_policy(base) if name == "base" else load_policy(aligned_model, aligned)

    def open_fill(name: str, number: int) -> Fill:
        """Returns the fill of `base` or `aligned` with seed number `number`."""
        return paint_with(open_policy(name), num_inference_steps=steps, seed=seed + number)

    settings: Settings = {
        "model": config.model.path,
        "aligned": str(aligned or run),
        "policy_version": open_policy("aligned").version,
        "num_inference_steps": steps,
        "seed": seed,
    }
    summary = study_views(open_fill, settings, out, seeds=seeds, scenes=scenes)
    atomic_write_text(out / "views_study.csv", tabulate(summary).to_csv(index=False, lineterminator="\n"))
    draw_figure(summary, out / "views_study.png")
    return format_table(summary)


def study_views(
    open_fill: OpenFill,
    settings: Settings,
    out: Path,
    *,
    seeds: int,
    scenes: int,
    shrinks: Sequence[int] = SHRINKS,
    scale: float = 1.0,
) -> ViewsSummary:
    """Measures both parts; every seed and scene is a file, so that the study can be resumed.

    `settings` describe the fills and are compared with those in `out`. `shrinks` and `scale` are arguments of
    `load_motorcycle` and `measure_scene`. Writes `motorcycle-SHRINK/`, `scenes/`, sheets of pictures, and last
    `views_study.json`. Raises UserError if `out` holds a study with other settings.
    """
    floors = classical_fills()
    known = dict(settings) | {"floors": list(floors), "scale": scale}
    pairs = {}
    for shrink in shrinks:
        folder = out / f"motorcycle-{shrink}"
        measure = partial(_measure_motorcycle, open_fill, floors, load_motorcycle(shrink), folder)
        stage = f"motorcycle 1/{shrink}"
        records = run_resplits(folder, known, seeds, measure, RegionSums, stage=stage, name="seed")
        pairs[str(shrink)] = summarise_motorcycle(records)
    measure_one = partial(_measure_scene, open_fill, floors, out / "scenes", scale)
    kind = dict[str, CloudFigures]
    clouds = run_resplits(out / "scenes", known, scenes, measure_one, kind, stage="scenes", name="figures")
    summary = ViewsSummary(
        settings=known,
        seeds=seeds,
        motorcycle=pairs,
        scenes=summarise_scenes(clouds),
        notes=[] if "telea" in floors else [NO_OPENCV],
    )
    atomic_write_json(out / "views_study.json", asdict(summary))
    return summary


def _measure_scene(
    open_fill: OpenFill, floors: Mapping[str, Callable[[Warped], np.ndarray]], folder: Path, scale: float, seed: int
) -> dict[str, CloudFigures]:
    fills = {name: open_fill(name, seed) for name in MODELS} | {name: _as_fill(floor) for name, floor in floors.items()}
    figures, pictures = measure_scene(seed, fills, scale=scale)
    draw_scene(pictures, folder / f"scene-{seed:02d}.png")
    return figures


def _as_fill(floor: Callable[[Warped], np.ndarray]) -> Fill:
    return lambda warped, _: [floor(warped)]


def _measure_motorcycle(
    open_fill: OpenFill,
    floors: Mapping[str, Callable[[Warped], np.ndarray]],
    pair: StereoPair,
    folder: Path,
    seed: int,
) -> RegionSums:
    """Returns rows of regions by filler and part; the floors ignore the seed and are measured with seed 0 only."""
    pictures = {name: open_fill(name, seed)(pair.warped, 0)[0] for name in MODELS}
    if seed == 0:
        pictures |= {name: floor(pair.warped) for name, floor in floors.items()}
        draw_motorcycle(pair, pictures, folder / "sheet.png")
    for name in MODELS:
        save_png(pictures[name], folder / f"{name}-{seed:02d}.png")
    return {name: judge_against_truth(pair, picture) for name, picture in pictures.items()}


def summarise_motorcycle(records: Sequence[RegionSums]) -> dict[str, PartFigures]:
    """Returns, for each part, PSNR and SSIM of every filler and the gain of the aligned over the base model."""
    summary = {}
    for part in records[0]["base"]:
        rows = {name: _stack(records, name, part) for name in records[0]}
        if not rows["base"][:, 0].any():
            continue
        paired = np.concatenate([rows["base"], rows["aligned"]], axis=1)
        summary[part] = PartFigures(
            pixels=int(np.sum(records[0]["base"][part], axis=0)[0]),
            fillers={name: _estimate(own, psnr, _ssim) for name, own in rows.items()},
            aligned_over_base=_estimate(
                paired,
                lambda both: psnr(both[:, 3:]) - psnr(both[:, :3]),
                lambda both: _ssim(both[:, 3:]) - _ssim(both[:, :3]),
            ),
        )
    return summary


def _stack(records: Sequence[RegionSums], name: str, part: str) -> np.ndarray:
    """Returns rows [seeds x regions, 3] of one filler, seed by seed."""
    return np.concatenate([np.asarray(record[name][part]) for record in records if name in record])


def _ssim(rows: np.ndarray) -> float:
    return float(rows[:, 2].sum() / rows[:, 0].sum()) if rows[:, 0].any() else float("nan")


def _estimate(
    rows: np.ndarray, psnr_of: Callable[[np.ndarray], float], ssim_of: Callable[[np.ndarray], float]
) -> FillFigures:
    return FillFigures(**vars(_interval(rows, psnr_of)), ssim=_interval(rows, ssim_of))


def _interval(rows: np.ndarray, statistic: Callable[[np.ndarray], float]) -> RegionEstimate:
    """Returns a statistic with an interval over the regions that hold pixels."""
    count = REGIONS[0] * REGIONS[1]
    names = np.array([str(i % count) for i in range(len(rows))])
    filled = rows[:, 0] > 0
    found = estimate_figure(rows[filled], names[filled].tolist(), statistic=statistic)
    return RegionEstimate(value=found.value, low=found.low, high=found.high, regions=found.clusters)


def summarise_scenes(records: Sequence[Mapping[str, CloudFigures]]) -> ScenesSummary:
    """Returns means over scenes by filler, and the paired differences of PAIRS."""

    def difference(first: str, second: str, name: str) -> Estimate | None:
        """Returns the mean paired difference of a figure over scenes."""
        pairs = [(getattr(record[first], name), getattr(record[second], name)) for record in records]
        return average(a - b for a, b in pairs if a is not None and b is not None)

    return ScenesSummary(
        count=len(records),
        means={
            filler: {name: average(getattr(record[filler], name) for record in records) for name in SCENE_FIGURES}
            for filler in records[0]
        },
        differences={f"{a} over {b}": {name: difference(a, b, name) for name in SCENE_FIGURES} for a, b in PAIRS},
    )
