"""Is an aligned model better at new views? Measured against the true right view of a stereo pair, and true scenes.

The stereo pair is one scene: its intervals are by bootstrap over regions of the picture, all seeds of one together, so
they tell how sure the figure is of this scene, and nothing of others. Those of the synthetic scenes are by bootstrap
over scenes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_folders import locate_policy
from rlhf.evaluation.classical_fills import fill_biharmonic, fill_with_opencv
from rlhf.evaluation.tasks.resplits import average, run_resplits
from rlhf.evaluation.tasks.scenes import measure_scene
from rlhf.evaluation.tasks.stereo_pair import REGIONS, StereoPair, judge_against_truth, load_motorcycle, psnr
from rlhf.evaluation.tasks.views_figures import draw_figure, format_table, write_csv
from rlhf.evaluation.tasks.views_sheets import draw_motorcycle, draw_scene
from rlhf.reports.intervals import cluster_bootstrap
from rlhf.storage.atomic_files import atomic_write_json
from rlhf.storage.images import save_png
from rlhf.views.depth_filling import fill_with_nearest_background
from rlhf.views.novel_view import Fill, paint_with
from rlhf.views.warping import Warped

SHRINKS = (1, 2)
"""The pair at its own size, and at half of it with half the baseline in pixels."""
MODELS = ("base", "aligned")
NO_OPENCV = "Telea's and Navier-Stokes inpainting are left out: OpenCV is not installed (prefpaint-ray[fillers])"
SCENE_FIGURES = ("completeness", "accuracy", "precision", "added_accuracy", "added_precision", "reached", "psnr")
OpenFill = Callable[[str, int], Fill]
"""The fill of `base` or `aligned` with a seed."""


def classical_fills() -> dict[str, Callable[[Warped], np.ndarray]]:
    """The floors by name; OpenCV's where it is installed."""
    fills: dict[str, Callable[[Warped], np.ndarray]] = {
        "nearest background": fill_with_nearest_background,
        "biharmonic": lambda warped: fill_biharmonic(warped.rgb, warped.hole),
    }
    if find_spec("cv2"):
        fills["telea"] = lambda warped: fill_with_opencv(warped.rgb, warped.hole, "telea")
        fills["navier_stokes"] = lambda warped: fill_with_opencv(warped.rgb, warped.hole, "navier-stokes")
    return fills


def evaluate_views(config: RunConfig, run: Path, out: Path, *, seeds: int = 5, scenes: int = 6) -> str:
    """Compare new views of the base model and the aligned one of `run`; returns the table for the terminal.

    Raises UserError as `study_views` does.
    """
    aligned_model, aligned = locate_policy(config.model, run)
    steps, seed = config.evaluate.num_inference_steps, config.seed

    @cache
    def open_policy(name: str) -> Policy:
        # The base of an adapter is its own base model; that of a whole pipeline is the one of the configuration.
        base = aligned_model if aligned is not None else config.model
        return load_policy(base) if name == "base" else load_policy(aligned_model, aligned)

    def open_fill(name: str, number: int) -> Fill:
        return paint_with(open_policy(name), num_inference_steps=steps, seed=seed + number)

    settings = {
        "model": config.model.path,
        "aligned": str(aligned or run),
        "policy_version": open_policy("aligned").version,
        "num_inference_steps": steps,
        "seed": seed,
    }
    summary = study_views(open_fill, settings, out, seeds=seeds, scenes=scenes)
    write_csv(summary, out / "views_study.csv")
    draw_figure(summary, out / "views_study.png")
    return format_table(summary)


def study_views(
    open_fill: OpenFill,
    settings: Mapping[str, Any],
    out: Path,
    *,
    seeds: int,
    scenes: int,
    shrinks: Sequence[int] = SHRINKS,
    scale: float = 1.0,
) -> dict[str, Any]:
    """Measure both parts; every seed and scene is a file, so that the study goes on where it was interrupted.

    `settings` says what the fills are, and is compared with what `out` holds. Writes `motorcycle-SHRINK/`, `scenes/`,
    sheets of pictures, and last `views_study.json`, which is returned. `shrinks` and `scale` are of `load_motorcycle`
    and `measure_scene`.
    Raises UserError where `out` holds a study of other settings.
    """
    floors = classical_fills()
    known = dict(settings) | {"floors": list(floors), "scale": scale}
    pairs = {}
    for shrink in shrinks:
        folder = out / f"motorcycle-{shrink}"
        measure = partial(_measure_motorcycle, open_fill, floors, load_motorcycle(shrink), folder)
        records = run_resplits(folder, known, seeds, measure, stage=f"motorcycle 1/{shrink}", name="seed")
        pairs[str(shrink)] = summarise_motorcycle(records)
    fills = {name: _as_fill(floor) for name, floor in floors.items()}

    def measure_one(seed: int) -> dict[str, Any]:
        figures, pictures = measure_scene(seed, {name: open_fill(name, seed) for name in MODELS} | fills, scale=scale)
        draw_scene(pictures, out / "scenes" / f"scene-{seed:02d}.png")
        return figures

    records = run_resplits(out / "scenes", known, scenes, measure_one, stage="scenes", name="figures")
    summary = {
        "settings": known,
        "seeds": seeds,
        "motorcycle": pairs,
        "scenes": summarise_scenes(records),
        "notes": [] if "telea" in floors else [NO_OPENCV],
    }
    atomic_write_json(out / "views_study.json", summary)
    return summary


def _as_fill(floor: Callable[[Warped], np.ndarray]) -> Fill:
    return lambda warped, _: [floor(warped)]


def _measure_motorcycle(
    open_fill: OpenFill,
    floors: Mapping[str, Callable[[Warped], np.ndarray]],
    pair: StereoPair,
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """By filler and part, rows of regions; the floors, which know no seed, with seed 0 alone."""
    pictures = {name: open_fill(name, seed)(pair.warped, 0)[0] for name in MODELS}
    if seed == 0:
        pictures |= {name: floor(pair.warped) for name, floor in floors.items()}
        draw_motorcycle(pair, pictures, folder / "sheet.png")
    for name in MODELS:
        save_png(pictures[name], folder / f"{name}-{seed:02d}.png")
    return {name: judge_against_truth(pair, picture) for name, picture in pictures.items()}


def summarise_motorcycle(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each part and filler PSNR and SSIM, and the gain of the aligned over the base model, with intervals."""
    summary: dict[str, Any] = {}
    for part in records[0]["base"]:
        rows = {name: _stack(records, name, part) for name in records[0]}
        if not rows["base"][:, 0].any():
            continue
        figures = {name: _interval(own, psnr) | {"ssim": _interval(own, _ssim)} for name, own in rows.items()}
        paired = np.concatenate([rows["base"], rows["aligned"]], axis=1)
        gain = _interval(paired, lambda both: psnr(both[:, 3:]) - psnr(both[:, :3]))
        gain["ssim"] = _interval(paired, lambda both: _ssim(both[:, 3:]) - _ssim(both[:, :3]))
        pixels = int(np.sum(records[0]["base"][part], axis=0)[0])
        summary[part] = {"pixels": pixels, "fillers": figures, "aligned_over_base": gain}
    return summary


def _stack(records: Sequence[Mapping[str, Any]], name: str, part: str) -> np.ndarray:
    """Rows [seeds x regions, 3] of one filler: region 0 of all seeds comes first in each seed's block."""
    return np.concatenate([np.asarray(record[name][part]) for record in records if name in record])


def _ssim(rows: np.ndarray) -> float:
    return float(rows[:, 2].sum() / rows[:, 0].sum()) if rows[:, 0].any() else float("nan")


def _interval(rows: np.ndarray, statistic: Callable[[np.ndarray], float]) -> dict[str, Any]:
    """The statistic with an interval by bootstrap over the regions that hold pixels."""
    count = REGIONS[0] * REGIONS[1]
    names = np.array([str(i % count) for i in range(len(rows))])
    filled = rows[:, 0] > 0
    estimate = asdict(cluster_bootstrap(rows[filled], names[filled].tolist(), statistic=statistic))
    return estimate | {"regions": estimate.pop("clusters")}


def summarise_scenes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over scenes by filler, and paired differences: filled over without, aligned over base."""
    names = (*SCENE_FIGURES, "psnr_unseen")
    means = {
        filler: {name: average(record[filler][name] for record in records) for name in names} for filler in records[0]
    }

    def difference(first: str, second: str, name: str) -> dict[str, Any] | None:
        pairs = [(record[first][name], record[second][name]) for record in records]
        return average(a - b for a, b in pairs if a is not None and b is not None)

    pairs = [("aligned", "base"), ("aligned", "without"), ("aligned", "nearest background"), ("aligned", "biharmonic")]
    differences = {f"{a} over {b}": {name: difference(a, b, name) for name in names} for a, b in pairs}
    return {"count": len(records), "means": means, "differences": differences}
