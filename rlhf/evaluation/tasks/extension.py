"""How far a model can go on from a photograph: centre strips are extended to the true width, and judged step by step.

Of each photograph a centre strip is kept and extended to both sides in equal steps, by every contestant from the same
noise; each step sees what the ones before it painted, so errors add up as they do where nobody knows the rest. The
rest is known here: it judges. Photographs are painted at their own size, in the tiles of `tile_painting`.
"""

import csv
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from rlhf.config.run_config import RunConfig
from rlhf.diffusion.policy import Policy, load_policy
from rlhf.diffusion.policy_folders import locate_policy, read_manifest
from rlhf.errors import UserError
from rlhf.evaluation.tasks.extension_figures import draw_steps, format_table, save_sheet
from rlhf.evaluation.tasks.extension_measures import COLUMNS, measure_band, summarise_rows
from rlhf.progress import progress_bar
from rlhf.reports.intervals import LEAST_PHOTOGRAPHS
from rlhf.storage.atomic_files import atomic_write_json, atomic_write_text, read_json
from rlhf.storage.images import list_photographs, save_png
from rlhf.storage.tables import write_table
from rlhf.views.extension import LEAST_SIDE_PX, read_photograph
from rlhf.views.growth import Fill, Margins, fill_by_padding, fill_by_policy, grow, plan_bands

SCHEMA_VERSION = 1
"""Of `extension_study.json`."""
LEAST_STEP_PX = 4
"""Of the width that a step adds at a side."""
SHOWN = 8
"""Photographs in `extension_study.png`'s sheet."""
AGAIN = "remove it, and the study measures it again"
FLOORS = {"edge": "edge", "mirror": "symmetric"}
"""Contestants without a model, and numpy's paddings that they are: the outermost pixels drawn out; a mirror image."""
ROWS = pa.schema(
    [("photograph", pa.string()), ("contestant", pa.string()), ("step", pa.int32()), ("side", pa.string())]
    + [(name, pa.int32()) for name in ("band_px", "known_pixels_differ")]
    + [(name, pa.float64()) for name in COLUMNS]
)


@dataclass(frozen=True, kw_only=True)
class ExtensionPlan:
    """What is extended, and how far."""

    images: Path
    """Folder of photographs."""
    photographs: int = 24
    """How many of them, spread over the folder's names."""
    growth: float = 3.0
    """True width over the strip's."""
    steps_per_side: int = 4
    height_px: int | None = None
    """Photographs are scaled down to this height; None leaves them as they are."""
    bootstrap: int
    """Resamples of the photographs."""

    def check(self) -> None:
        """UserError where a number makes no sense."""
        if not 1 < self.growth <= 100:
            raise UserError(f"extension: --growth {self.growth} is not above 1 and at most 100; 3 keeps a third")
        for option, value, least in (
            ("photographs", self.photographs, LEAST_PHOTOGRAPHS),
            ("steps-per-side", self.steps_per_side, 1),
            ("height-px", LEAST_SIDE_PX if self.height_px is None else self.height_px, LEAST_SIDE_PX),
        ):
            if value < least:
                raise UserError(f"extension: --{option} {value} is too few; give {least} or more")


Contestants = Mapping[str, Callable[[str], Fill]]
"""By name, the first is what the others are compared with; each gives its fill for a photograph's name."""


def open_contestants(config: RunConfig, run: Path | None) -> Contestants:
    """The base model, `aligned` where there is a run, both from the same noise, and FLOORS."""
    located, adapter = locate_policy(config.model, run)
    policies = {"base": load_policy(config.model if adapter is None else located)}
    if run is not None:
        policies["aligned"] = load_policy(located, adapter)
    steps, seed = config.evaluate.num_inference_steps, config.seed

    def of_policy(policy: Policy) -> Callable[[str], Fill]:
        return lambda name: fill_by_policy(policy, num_inference_steps=steps, seed_key=(seed, "extension", name))

    floors = {name: lambda _, mode=mode: fill_by_padding(mode) for name, mode in FLOORS.items()}
    return {name: of_policy(policy) for name, policy in policies.items()} | floors


def describe_contestants(config: RunConfig, run: Path | None) -> dict[str, Any]:
    """What they are, and what their noise and steps are; UserError where `run` holds no model."""
    located, adapter = locate_policy(config.model, run)
    aligned = None if run is None else located.path
    if adapter is not None:
        manifest = read_manifest(adapter)
        aligned = f"{adapter.name}, version {manifest['policy_version']}, {manifest['checksum'][:8]}"
    return {
        "base": config.model.path if adapter is None else located.path,
        "aligned": aligned,
        "num_inference_steps": config.evaluate.num_inference_steps,
        "seed": config.seed,
    }


def evaluate_extension(plan: ExtensionPlan, config: RunConfig, run: Path | None, out: Path) -> str:
    """Extend with the base model, the aligned one of `run` and FLOORS; returns the table for the terminal.

    Raises UserError as `study_extension` does.
    """
    plan.check()
    settings = describe_contestants(config, run)
    return format_table(study_extension(plan, lambda: open_contestants(config, run), out, settings))


def study_extension(
    plan: ExtensionPlan, open_all: Callable[[], Contestants], out: Path, settings: dict[str, Any]
) -> dict[str, Any]:
    """Extend and judge; every photograph is a folder in `out/photographs`, so that a study goes on.

    `open_all` gives the contestants, once all else is checked; `settings` say what they are. Writes
    `extension_study.csv` and `.parquet` (a row per photograph, contestant, step and side), `extension_study.png`
    (curves), `pictures.png`, `skipped.json` and, last, `extension_study.json`, which is returned. Raises UserError
    where a setting makes no sense, too few photographs are readable and wide enough, or `out` holds another study.
    """
    plan.check()
    names, skipped = choose_photographs(plan)
    _check_settings(plan, names, settings, out)
    contestants = open_all()
    folders = []
    for number, name in enumerate(progress_bar(names, stage="extension")):
        folders.append(out / "photographs" / f"{number:03d}-{Path(name).stem}")
        if not (folders[-1] / "record.json").is_file():
            measure_photograph(plan, name, contestants, folders[-1])
    rows = [row for folder in folders for row in read_json(folder / "record.json", AGAIN)]
    summary = _summarise(plan, rows, list(contestants), settings) | {"skipped": len(skipped)}
    write_table(rows, ROWS, out / "extension_study.parquet")
    atomic_write_text(out / "extension_study.csv", to_csv(rows))
    atomic_write_json(out / "skipped.json", skipped)
    draw_steps(summary, out / "extension_study.png")
    shown = np.linspace(0, len(folders) - 1, min(SHOWN, len(folders))).astype(int)
    save_sheet([folders[i] for i in shown], ["strip", *contestants, "photograph"], out / "pictures.png")
    atomic_write_json(out / "extension_study.json", summary)
    return summary


def _summarise(
    plan: ExtensionPlan, rows: list[dict[str, Any]], contestants: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "growth": plan.growth,
        "steps_per_side": plan.steps_per_side,
        "height_px": plan.height_px,
        "photographs": len({row["photograph"] for row in rows}),
        "known_pixels_differ": sum(row["known_pixels_differ"] for row in rows),
        "judge": "gold judge: the noiseless utility of the simulated annotators",
        "reference": contestants[0],
        **summarise_rows(rows, resamples=plan.bootstrap),
    }


def choose_photographs(plan: ExtensionPlan) -> tuple[list[str], list[dict[str, str]]]:
    """Names of photographs that can be judged, and those that cannot with the reason; UserError where few can."""
    paths = list_photographs(plan.images)
    chosen = np.linspace(0, len(paths) - 1, min(plan.photographs, len(paths))).astype(int)
    names, skipped = [], []
    for path in (paths[i] for i in chosen):
        name = str(path.relative_to(plan.images))
        try:
            margins_of(read_truth(plan, name), plan, name)
            names.append(name)
        except UserError as error:
            skipped.append({"file": name, "reason": str(error)})
    if len(names) < LEAST_PHOTOGRAPHS:
        why = f"; {skipped[0]['reason']}" if skipped else ""
        raise UserError(
            f"{plan.images}: {len(names)} of {len(chosen)} photographs can be judged{why}: too few for an interval; "
            f"give {LEAST_PHOTOGRAPHS} or more"
        )
    return names, skipped


def read_truth(plan: ExtensionPlan, name: str) -> np.ndarray:
    """A photograph at the height of the plan, uint8 [H, W, 3]; UserError where it is lower."""
    pixels = read_photograph(plan.images / name)
    height, width = pixels.shape[:2]
    if plan.height_px in (None, height):
        return pixels
    if height < plan.height_px:
        raise UserError(f"{plan.images / name}: {height} pixels high, less than --height-px {plan.height_px}")
    size = max(1, round(width * plan.height_px / height)), plan.height_px
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def margins_of(truth: np.ndarray, plan: ExtensionPlan, name: str) -> Margins:
    """What is hidden to the left and right of the strip; UserError where strip or steps are too narrow."""
    width = truth.shape[1]
    strip = round(width / plan.growth)
    left = (width - strip) // 2
    if strip < LEAST_SIDE_PX or left // plan.steps_per_side < LEAST_STEP_PX:
        raise UserError(
            f"{plan.images / name}: {width} pixels wide, too narrow for a strip of {strip} and "
            f"{plan.steps_per_side} steps of {left // plan.steps_per_side} pixels at each side; take wider photographs"
        )
    return Margins(left=left, right=width - strip - left)


def _check_settings(plan: ExtensionPlan, names: list[str], settings: dict[str, Any], out: Path) -> None:
    """Note what the study is of; UserError where `out` holds another."""
    files = {name: f"{zlib.crc32((plan.images / name).read_bytes()):08x}" for name in names}
    record = settings | {"growth": plan.growth, "steps_per_side": plan.steps_per_side, "height_px": plan.height_px}
    record["photographs"] = files
    path = out / "settings.json"
    if path.is_file() and read_json(path, AGAIN) != record:
        raise UserError(f"{out}: holds a study with other settings or photographs; choose another --out")
    atomic_write_json(path, record)


def measure_photograph(plan: ExtensionPlan, name: str, contestants: Contestants, folder: Path) -> None:
    """Extend one photograph by all contestants: pictures, and the rows of the table in `record.json`, last."""
    truth = read_truth(plan, name)
    margins = margins_of(truth, plan, name)
    height, width = truth.shape[:2]
    strip = truth[:, margins.left : width - margins.right]
    bands = plan_bands((strip.shape[1], height), margins, plan.steps_per_side)
    rows = []
    for contestant, fill_for in contestants.items():
        for painted in grow(strip, margins, bands, fill_for(name)):
            band = painted.band
            place = {"photograph": name, "contestant": contestant, "step": band.step, "side": band.side}
            place |= {"band_px": band.box[2] - band.box[0], "known_pixels_differ": painted.known_pixels_differ}
            rows.append(place | measure_band(painted.extended, truth, band))
        save_png(painted.extended, folder / f"{contestant}.png")
    grey = np.full_like(truth, 128)
    grey[:, margins.left : width - margins.right] = strip
    save_png(grey, folder / "strip.png")
    save_png(truth, folder / "photograph.png")
    atomic_write_json(folder / "record.json", rows)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of the table; what cannot be computed is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ROWS.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
